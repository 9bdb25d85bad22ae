"""Collectives of all processes in bf16, from 256 bytes to 1 GiB: the time of the slowest rank and the bus bandwidth.

``message_elements`` counts the larger buffer of one rank. ``variant`` of all_to_all: empty (equal parts) or
``power_law_A``: every rank sends most to rank 0, parts falling as (rank + 1)^-A. Of send_recv: empty (even ranks send
to the next) or ``both`` (they exchange). ``busiest_elements`` is the most that one rank sends to or receives from
others; ``bus_bytes_per_s`` counts what one rank's link carries in the ring, or in direct sends, per second. Sizes that
are no power of four are there to be held out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from sextant.validate.kernels import relative_error
from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import TIME_COLUMNS, timed

Case = dict[str, str | int]

CASE_COLUMNS = ("op", "variant", "format", "n_gpus", "message_elements")
RESULT_COLUMNS = (*TIME_COLUMNS, "bus_bytes_per_s", "busiest_elements", "library", "relative_error")
SIZES = tuple(4**i for i in range(4, 16))
ODD_SIZES = (768, 12_000, 100_000, 700_000, 3_000_000, 24_000_000, 100_000_000, 700_000_000)
KINDS = (
    ("all_reduce", ""), ("all_gather", ""), ("reduce_scatter", ""), ("all_to_all", ""), ("all_to_all", "power_law_1.2"),
    ("send_recv", ""), ("send_recv", "both"), ("broadcast", ""),
)  # fmt: skip
#: Elements compared with what they should be.
N_CHECKED = 2**22


def cases(n_gpus: int, small: bool) -> list[Case]:
    """Every collective in every size; elements are a multiple of 8 for every rank."""
    sizes = (12_000,) if small else (*SIZES, *ODD_SIZES)
    step = 8 * n_gpus
    return [
        {
            "op": op, "variant": variant, "format": "bf16", "n_gpus": n_gpus,
            "message_elements": max(step, size // 2 // step * step),
        }
        for size in sizes for op, variant in KINDS
    ]  # fmt: skip


def parts(n: int, size: int, variant: str) -> list[int]:
    """Elements that a rank sends to each of ``size`` ranks: equal, or falling as a power law; multiples of 8."""
    if not variant:
        return [n // size] * size
    weights = [(i + 1.0) ** -float(variant.removeprefix("power_law_")) for i in range(size)]
    found = [int(n * weight / sum(weights)) // 8 * 8 for weight in weights]
    return [n - sum(found[1:]), *found[1:]]


def busiest(op: str, variant: str, n: int, size: int) -> int:
    """The most elements that one rank sends to others, or receives from them, in direct sends."""
    if op != "all_to_all":
        return n
    sent = parts(n, size, variant)
    return max(max(n - sent[rank], (size - 1) * sent[rank]) for rank in range(size))


def _bus_share(op: str, size: int) -> float:
    """Bytes over one rank's link per byte of message, in the ring."""
    if op in ("send_recv", "broadcast"):
        return 1.0
    return (2.0 if op == "all_reduce" else 1.0) * (size - 1) / size


def _sent(op: str, n: int, rank: int, size: int, device: torch.device) -> Tensor:
    """A rank's input, which all others can draw too."""
    share = n // size if op == "all_gather" else n
    generator = torch.Generator(device=device).manual_seed(rank + 1)
    return torch.randn(share, dtype=torch.bfloat16, device=device, generator=generator)


def _received(op: str, variant: str, n: int, ranks: Ranks) -> int:
    """Elements of a rank's result."""
    if op == "reduce_scatter":
        return n // ranks.size
    return parts(n, ranks.size, variant)[ranks.rank] * ranks.size if op == "all_to_all" else n


def _call(op: str, variant: str, source: Tensor, result: Tensor, ranks: Ranks) -> Callable[[], object]:
    group, rank, size = ranks.group(), ranks.rank, ranks.size
    # in place, as gradients are; averages, where the library has them, since repeated sums would overflow
    kept = dist.ReduceOp.AVG if ranks.target.cuda else dist.ReduceOp.MAX
    sent = parts(source.numel(), size, variant) if op == "all_to_all" else []
    got = [sent[rank]] * size if sent else []
    splits = (got, sent) if variant else (None, None)

    def one_way() -> None:
        if rank % 2 == 0 and rank + 1 < size:
            dist.send(source, rank + 1, group=group)
        elif rank % 2 == 1:
            dist.recv(result, rank - 1, group=group)

    def exchange() -> None:
        if (other := rank ^ 1) < size:
            for work in dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, source, other, group), dist.P2POp(dist.irecv, result, other, group)]
            ):
                work.wait()

    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(result, op=kept, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(result, source, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(result, source, group=group),
        "all_to_all": lambda: dist.all_to_all_single(result, source, *splits, group=group),
        "broadcast": lambda: dist.broadcast(result, 0, group=group),
        "send_recv": exchange if variant == "both" else one_way,
    }
    return calls[op]


def _expected(op: str, variant: str, n: int, ranks: Ranks) -> Tensor | None:
    """The result by torch alone, in float32; None where this rank receives nothing."""
    rank, size = ranks.rank, ranks.size

    def drawn(other: int) -> Tensor:
        return _sent(op, n, other, size, ranks.device)

    if op == "send_recv":
        receives = rank ^ 1 < size and (variant == "both" or rank % 2 == 1)
        return drawn(rank ^ 1).float() if receives else None
    if op == "broadcast":
        return drawn(0).float()
    every = [drawn(other).float() for other in range(size)]
    if op == "all_gather":
        return torch.cat(every)
    if op == "all_to_all":
        sent = parts(n, size, variant)
        start = sum(sent[:rank])
        return torch.cat([other[start : start + sent[rank]] for other in every])
    if op == "all_reduce":
        return torch.stack(every).mean(0) if ranks.target.cuda else torch.stack(every).amax(0)
    return torch.stack(every).sum(0)[rank * (n // size) : (rank + 1) * (n // size)]


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row: the result checked where it is small, then timed."""
    op, variant, n = str(case["op"]), str(case["variant"]), int(case["message_elements"])
    source = _sent(op, n, ranks.rank, ranks.size, ranks.device)
    result = torch.zeros(_received(op, variant, n, ranks), dtype=torch.bfloat16, device=ranks.device)
    if op == "all_reduce" or (op == "broadcast" and ranks.rank == 0):
        result.copy_(source)
    call = _call(op, variant, source, result, ranks)
    error = 0.0
    if n <= N_CHECKED:
        call()
        expected = _expected(op, variant, n, ranks)
        found = 0.0 if expected is None else relative_error(result, expected)
        error = ranks.require(found, what=f"the result of {op}")
    times = timed(ranks, call)
    rate = _bus_share(op, ranks.size) * 2.0 * n / (times.us * 1e-6)
    return {
        **times.columns(), "bus_bytes_per_s": f"{rate:.4g}", "busiest_elements": busiest(op, variant, n, ranks.size),
        "library": ranks.library, "relative_error": f"{error:.2e}",
    }  # fmt: skip
