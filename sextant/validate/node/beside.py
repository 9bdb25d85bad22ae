"""How much a product and an exchange slow each other on two streams of every GPU.

``call`` is all_reduce, all_to_all or send_recv (both ways) of ``message_elements`` bf16, or expert_dispatch (FP8) and
expert_combine of ``n_tokens`` with their permutation; it runs on a communicator of at most ``max_ctas`` thread blocks
(0: NCCL's own choice). The product is y[m, n] = x[m, k] w[n, k]^T in bf16, repeated. Each is timed alone, and beside
the other while that runs from before its start to after its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from sextant.validate.node import experts
from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import span_us

Case = dict[str, str | int]

CASE_COLUMNS = ("call", "max_ctas", "n_gpus", "message_elements", "n_tokens", "m", "n", "k")
RESULT_COLUMNS = (
    "gemm_us", "gemm_beside_us", "call_us", "call_beside_us", "gemm_slowdown", "call_slowdown", "n_gemm", "n_call",
    "moved_bytes", "library",
)  # fmt: skip
#: Sites of DeepSeek-V3 with 4,096 tokens: output projection, shared expert, queries from their latent.
PRODUCTS = ((4096, 7168, 16384), (4096, 4096, 7168), (4096, 24576, 1536))
#: Hidden states of 4,096 tokens, and of the experts of 4,096 tokens on two GPUs.
TOKENS, HIDDEN = 4096, 7168
MESSAGE = TOKENS * HIDDEN
CTAS = (0, 4, 8, 16)
#: Calls timed beside the other stream, rounds of them, and how many times slower than alone they may become.
N_TIMED, N_ROUNDS, SLOWED = 8, 3, 3.0


def cases(n_gpus: int, small: bool) -> list[Case]:
    """Every exchange beside the largest product on every number of thread blocks; beside the others on NCCL's own."""
    calls = (
        ("all_to_all", 4 * MESSAGE, ""), ("all_reduce", MESSAGE, ""), ("send_recv", MESSAGE, ""),
        ("expert_dispatch", "", TOKENS), ("expert_combine", "", TOKENS),
    )  # fmt: skip
    pairs = [(PRODUCTS[0], ctas) for ctas in CTAS] + [(product, 0) for product in PRODUCTS[1:]]
    if small:
        calls, pairs = (("all_reduce", 4096, ""), ("expert_dispatch", "", 8)), [((64, 64, 64), 0)]
    return [
        {
            "call": call, "max_ctas": ctas, "n_gpus": n_gpus, "message_elements": elements, "n_tokens": tokens,
            "m": m, "n": n, "k": k,
        }
        for (m, n, k), ctas in pairs for call, elements, tokens in calls
    ]  # fmt: skip


def _exchange(case: Case, ranks: Ranks) -> tuple[Callable[[], object], float]:
    """The call, and the bytes that the busiest rank sends to others or gets from them."""
    name, ctas = str(case["call"]), int(case["max_ctas"])
    group = ranks.group(max_ctas=ctas)
    if name.startswith("expert"):
        op = name.removeprefix("expert_")
        routed: Case = {
            "op": op, "copies": "gpu", "format": "fp8" if op == "dispatch" else "bf16", "routing": "balanced",
            "n_tokens": case["n_tokens"], "hidden": HIDDEN, "top_k": 8,
            "n_experts": 256,
        }  # fmt: skip
        found = experts.prepared(routed, ranks, max_ctas=ctas)
        return found.whole, float(found.busiest_rows * HIDDEN * (1 if op == "dispatch" else 2))
    n = int(case["message_elements"])
    source = torch.randn(n, device=ranks.device).to(torch.bfloat16)
    result = torch.empty_like(source)
    kept = dist.ReduceOp.AVG if ranks.target.cuda else dist.ReduceOp.MAX
    share = (ranks.size - 1) / ranks.size
    if name == "all_to_all":
        return lambda: dist.all_to_all_single(result, source, group=group), 2.0 * n * share
    if name == "all_reduce":
        return lambda: dist.all_reduce(source, op=kept, group=group), 4.0 * n * share

    def exchange() -> None:
        if (other := ranks.rank ^ 1) < ranks.size:
            sent = dist.P2POp(dist.isend, source, other, group)
            for work in dist.batch_isend_irecv([sent, dist.P2POp(dist.irecv, result, other, group)]):
                work.wait()

    return exchange, 2.0 * n


def _alone_us(ranks: Ranks, call: Callable[[], object]) -> float:
    """Median time per call of calls in a row, on the slowest rank."""

    def several() -> None:
        for _ in range(N_TIMED):
            call()

    for _ in range(2):
        call()
    return median(ranks.slowest([span_us(ranks, several) / N_TIMED for _ in range(5)]))


def _burst(
    ranks: Ranks, timed: Callable[[], object], other: Callable[[], object], cover: int, side: Any
) -> list[float]:
    """Times of the timed calls that ended before the other stream did, without the first, which meets its start."""
    ranks.wait()
    begun, over, *events = (torch.cuda.Event(enable_timing=True) for _ in range(N_TIMED + 3))
    with torch.cuda.stream(side):
        other()
        begun.record()
        for _ in range(cover):
            other()
        over.record()
    torch.cuda.current_stream().wait_event(begun)
    events[0].record()
    for event in events[1:]:
        timed()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e3 for a, b in list(pairwise(events))[1:] if b.elapsed_time(over) > 0.0]


def _beside_us(
    ranks: Ranks, timed: Callable[[], object], timed_us: float, other: Callable[[], object], other_us: float
) -> tuple[float, int]:
    """Median time of a call beside the other stream on the slowest rank (infinite where none ran wholly beside it),
    and of how many."""
    if not ranks.target.cuda:  # one stream: one after the other

        def both() -> None:
            timed()
            other()

        return _alone_us(ranks, both), N_TIMED
    cover = math.ceil(SLOWED * N_TIMED * timed_us / other_us) + 2
    side, found = torch.cuda.Stream(), []
    for _ in range(N_ROUNDS):
        found += _burst(ranks, timed, other, cover, side)
    slowest = ranks.slowest([median(found) if found else math.inf])[0]
    return slowest, len(found)


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row: both alone, both beside each other; ``slowdown`` is beside over alone."""
    m, n, k = (int(case[name]) for name in ("m", "n", "k"))
    x, w = (torch.randn((rows, k), device=ranks.device).to(torch.bfloat16) for rows in (m, n))
    y = torch.empty((m, n), dtype=torch.bfloat16, device=ranks.device)

    def product() -> None:
        torch.mm(x, w.t(), out=y) if ranks.target.cuda else F.linear(x, w)

    call, moved = _exchange(case, ranks)
    gemm_us, call_us = _alone_us(ranks, product), _alone_us(ranks, call)
    gemm_beside, n_gemm = _beside_us(ranks, product, gemm_us, call, call_us)
    call_beside, n_call = _beside_us(ranks, call, call_us, product, gemm_us)
    if not math.isfinite(gemm_beside) or not math.isfinite(call_beside):
        raise ValueError("beside: no timed call ran wholly beside the other stream")
    return {
        "gemm_us": f"{gemm_us:.2f}", "gemm_beside_us": f"{gemm_beside:.2f}", "call_us": f"{call_us:.2f}",
        "call_beside_us": f"{call_beside:.2f}", "gemm_slowdown": f"{gemm_beside / gemm_us:.4f}",
        "call_slowdown": f"{call_beside / call_us:.4f}", "n_gemm": n_gemm, "n_call": n_call,
        "moved_bytes": f"{moved:.0f}", "library": ranks.library,
    }  # fmt: skip
