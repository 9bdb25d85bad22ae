"""Dispatch and combine of routed tokens: a permutation, and an exchange whose parts the routing decides.

Every rank routes ``n_tokens`` of width ``hidden`` to ``top_k`` of ``n_experts``, which lie in equal runs on the ranks.
``routing`` balanced draws experts alike; power_law_A with rank^-A, the popular ones first, so that rank 0 gets most.
``copies`` gpu sends a token once to each rank that has one of its experts, ``pair`` once per expert. Dispatch orders
rows by their destination, then exchanges; combine exchanges back, then adds each token's rows, weighted.

    us            both together                     permute_us    the local part alone: ordering rows, or adding them
    exchange_us   all_to_all alone                  notify_us     agreeing on the parts: counts exchanged, host told
    busiest_bytes the most one rank sends to others, or gets from them
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from sextant.validate.kernels import Target
from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import TIME_COLUMNS, timed

Case = dict[str, str | int]

CASE_COLUMNS = ("op", "copies", "format", "routing", "n_gpus", "n_tokens", "hidden", "top_k", "n_experts")
RESULT_COLUMNS = (
    *TIME_COLUMNS, "exchange_us", "permute_us", "notify_us", "busiest_bytes", "sent_rows", "received_rows", "library",
)  # fmt: skip
TOKENS = (1, 8, 64, 128, 512, 1024, 4096, 8192, 48, 300, 3000)
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.uint8}
N_NOTIFIED = 15


def cases(n_gpus: int, small: bool) -> list[Case]:
    """Tokens of a decode step to those of a training micro-batch, DeepSeek-V3's dimensions."""
    hidden, experts, tokens = (64, 16, (3,)) if small else (7168, 256, TOKENS)
    kinds = (
        ("dispatch", "gpu", "fp8"), ("combine", "gpu", "bf16"), ("dispatch", "gpu", "bf16"),
        ("dispatch", "pair", "bf16"), ("combine", "pair", "bf16"),
    )  # fmt: skip
    return [
        {
            "op": op, "copies": copies, "format": fmt, "routing": routing, "n_gpus": n_gpus, "n_tokens": n,
            "hidden": hidden, "top_k": 8, "n_experts": experts,
        }
        for n in tokens for routing in ("balanced", "power_law_1.2") for op, copies, fmt in kinds
    ]  # fmt: skip


def routed(n_tokens: int, n_experts: int, top_k: int, routing: str, device: torch.device) -> Tensor:
    """Expert ids (n_tokens, top_k): distinct ones, drawn one after another by the shares of ``routing``."""
    exponent = 0.0 if routing == "balanced" else float(routing.removeprefix("power_law_"))
    share = -exponent * torch.arange(1, n_experts + 1, device=device).log()
    noise = -torch.empty((n_tokens, n_experts), device=device).exponential_().log()
    return (share + noise).topk(top_k, dim=1).indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How rows leave: the ``token`` of each row, rows per rank, and per token where its rows are and what they weigh
    (n_tokens, rows per token at most)."""

    token: Tensor
    counts: Tensor
    place: Tensor
    weight: Tensor


def ordered(ids: Tensor, n_experts: int, n_ranks: int, copies: str) -> Order:
    """Rows sorted by the rank they go to, from expert ids (n_tokens, top_k)."""
    n_tokens, top_k = ids.shape
    to = ids // (n_experts // n_ranks)
    if copies == "pair":
        flat = to.flatten()
        order = flat.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(flat), device=ids.device)
        weight = torch.full((n_tokens, top_k), 1.0 / top_k, device=ids.device)
        return Order(
            token=order // top_k, counts=torch.bincount(flat, minlength=n_ranks), place=place.view(n_tokens, top_k),
            weight=weight,
        )  # fmt: skip
    wanted = torch.zeros((n_tokens, n_ranks), dtype=torch.bool, device=ids.device).scatter_(1, to, True)
    by_rank = wanted.t()
    place = (by_rank.flatten().cumsum(0).view(n_ranks, n_tokens).t() - 1) * wanted
    weight = wanted / wanted.sum(1, keepdim=True)
    # kernels read these row by row: no transposed strides
    return Order(
        token=by_rank.nonzero()[:, 1].contiguous(), counts=by_rank.sum(1), place=place.contiguous(),
        weight=weight.contiguous(),
    )  # fmt: skip


def taken(x: Tensor, index: Tensor, target: Target) -> Tensor:
    """Rows x[index]; index int32."""
    if not target.fused:
        return x[index.long()]
    from sextant.validate.kernels import triton_moves

    return triton_moves.gather_rows(x, index)[0]


def added(x: Tensor, place: Tensor, weight: Tensor, target: Target) -> Tensor:
    """Every token's rows of x, weighted and added; place int32."""
    if not target.fused:
        return (x[place.long()].float() * weight.unsqueeze(2)).sum(1).to(torch.bfloat16)
    from sextant.validate.kernels import triton_moves

    return triton_moves.weighted_sum(x, place, weight)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The calls of one case: the local part, the exchange, both; and what they move."""

    permute: Callable[[], object]
    exchange: Callable[[], object]
    whole: Callable[[], object]
    notify: Callable[[], object]
    sent_rows: int
    received_rows: int
    busiest_rows: int


def prepared(case: Case, ranks: Ranks, max_ctas: int = 0) -> Exchange:
    """Draw tokens and routing, exchange once and check it; the same group sizes for all ``max_ctas``."""
    n_tokens, hidden, n_experts = int(case["n_tokens"]), int(case["hidden"]), int(case["n_experts"])
    device, target, group = ranks.device, ranks.target, ranks.group(max_ctas=max_ctas)
    ids = routed(n_tokens, n_experts, int(case["top_k"]), str(case["routing"]), device)
    order = ordered(ids, n_experts, ranks.size, str(case["copies"]))
    every = ranks.gathered(order.counts.tolist())
    sent, got = every[ranks.rank], [counts[ranks.rank] for counts in every]
    dtype = DTYPES[str(case["format"])]
    x = torch.randn((n_tokens, hidden), device=device).to(torch.bfloat16)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, (n_tokens, hidden), dtype=torch.uint8, device=device)
    token, place = order.token.to(torch.int32), order.place.to(torch.int32)
    outgoing = taken(x, token, target)
    incoming = torch.empty((sum(got), hidden), dtype=dtype, device=device)
    back = torch.empty_like(outgoing)

    def forth() -> None:
        dist.all_to_all_single(incoming, outgoing, got, sent, group=group)

    def home() -> None:
        dist.all_to_all_single(back, incoming, sent, got, group=group)

    _check(ranks, forth, home, x=x, outgoing=outgoing, back=back, order=order)
    counts, others = order.counts.to(torch.int64), torch.empty_like(order.counts, dtype=torch.int64)

    def notify() -> None:
        dist.all_to_all_single(others, counts, group=group)
        others.tolist()

    def dispatch() -> None:
        dist.all_to_all_single(incoming, taken(x, token, target), got, sent, group=group)

    def combine() -> None:
        home()
        added(back, place, order.weight, target)

    forwards = case["op"] == "dispatch"
    rank, n_rows = ranks.rank, [sum(counts) for counts in every]
    received = [sum(counts[r] for counts in every) for r in range(ranks.size)]
    away = [max(n_rows[r], received[r]) - every[r][r] for r in range(ranks.size)]
    return Exchange(
        permute=(lambda: taken(x, token, target)) if forwards
        else (lambda: added(back, place, order.weight, target)),
        exchange=forth if forwards else home, whole=dispatch if forwards else combine, notify=notify,
        sent_rows=n_rows[rank], received_rows=received[rank], busiest_rows=max(away),
    )  # fmt: skip


def _check(
    ranks: Ranks, forth: Callable[[], None], home: Callable[[], None], *, x: Tensor, outgoing: Tensor, back: Tensor,
    order: Order,
) -> None:  # fmt: skip
    """Rows that went out and came home are what they were, and a token's rows, averaged, are the token."""
    forth()
    home()
    ranks.synchronize()
    wrong = 0.0 if torch.equal(back, x[order.token]) and torch.equal(back, outgoing) else 1.0
    if x.dtype == torch.bfloat16 and not wrong:
        summed = added(back, order.place.to(torch.int32), order.weight, ranks.target)
        wrong = float((summed.float() - x.float()).norm() / x.float().norm())
    ranks.require(wrong, what="what went out and came home")


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row."""
    found = prepared(case, ranks)
    whole, exchange, permute = (timed(ranks, call) for call in (found.whole, found.exchange, found.permute))
    waits = []
    for _ in range(N_NOTIFIED):
        ranks.wait()
        start_s = time.perf_counter()
        found.notify()
        waits.append((time.perf_counter() - start_s) * 1e6)
    row_bytes = int(case["hidden"]) * DTYPES[str(case["format"])].itemsize
    return {
        **whole.columns(), "exchange_us": f"{exchange.us:.3f}", "permute_us": f"{permute.us:.3f}",
        "notify_us": f"{median(ranks.slowest(waits)):.3f}", "busiest_bytes": found.busiest_rows * row_bytes,
        "sent_rows": found.sent_rows, "received_rows": found.received_rows, "library": ranks.library,
    }  # fmt: skip
