"""Host memory that several GPUs use at once: rows gathered from it over the link, and copies from and to it.

The first ``n_active`` of ``n_gpus`` processes work, the others rest; each has its own pinned buffers in the memory of
the one host. ``op`` gather fetches ``lookups`` random rows of ``dim`` bf16 (fresh ones in every sample) from a table of
``rows`` with a Triton kernel; h2d and d2h copy ``bytes`` by the copy engine. ``us`` is the slowest active process's
time per call, ``total_bytes_per_s`` the sum of what all of them moved per second, each in its own time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from sextant.validate.node.processes import Ranks
from sextant.validate.node.timing import span_us

Case = dict[str, str | int]

CASE_COLUMNS = ("op", "n_gpus", "n_active", "rows", "dim", "lookups", "bytes")
RESULT_COLUMNS = ("us", "us_p10", "us_p90", "n_samples", "total_bytes_per_s", "us_by_gpu", "library")
#: Pinned memory per process, and how long one sample keeps all processes busy at once.
TABLE_BYTES, SMALL_BYTES = 4 * 2**30, 2**20
SAMPLE_US, N_SAMPLES, MAX_CALLS = 8000.0, 7, 32


def cases(n_gpus: int, small: bool) -> list[Case]:
    """Every number of active GPUs up to 4, then doubling; rows of 256 bytes to 4 KiB, copies of 1 to 256 MiB."""
    active = [n for n in range(1, n_gpus + 1) if n <= 4 or n == n_gpus or n & (n - 1) == 0]
    table, sizes = (SMALL_BYTES, (4096,)) if small else (TABLE_BYTES, (2**20, 2**24, 2**28))
    rows = [(64, 256)] if small else [(128, 65536), (256, 16384), (256, 65536), (640, 65536), (2048, 16384)]
    gathers: list[Case] = [
        {"op": "gather", "rows": table // (2 * dim), "dim": dim, "lookups": n, "bytes": ""} for dim, n in rows
    ]
    copies: list[Case] = [
        {"op": op, "rows": "", "dim": "", "lookups": "", "bytes": size} for size in sizes for op in ("h2d", "d2h")
    ]
    return [{**case, "n_gpus": n_gpus, "n_active": n} for case in (*gathers, *copies) for n in active]


def _table(ranks: Ranks) -> Tensor:
    """This process's pinned memory, filled at random; int16, so that every use can see it in its own way."""
    if "table" not in ranks.kept:
        n = (TABLE_BYTES if ranks.target.cuda else SMALL_BYTES) // 2
        table = torch.empty(n, dtype=torch.int16, pin_memory=ranks.target.cuda)
        chunk = 2**26
        for start in range(0, n, chunk):
            part = table[start : start + chunk]
            part.copy_(torch.randn(part.numel(), device=ranks.device).to(torch.bfloat16).view(torch.int16))
        ranks.kept["table"] = table
    return ranks.kept["table"]


def _gather(case: Case, ranks: Ranks) -> tuple[Callable[[int], object], Callable[[], object], float]:
    n_rows, dim, lookups = (int(case[name]) for name in ("rows", "dim", "lookups"))
    table = _table(ranks)[: n_rows * dim].view(torch.bfloat16).view(n_rows, dim)
    indices = [torch.zeros(lookups, dtype=torch.int32, device=ranks.device) for _ in range(MAX_CALLS)]
    out = torch.empty((lookups, dim), dtype=torch.bfloat16, device=ranks.device)

    def draw() -> None:
        for index in indices:
            index.random_(0, n_rows)

    def call(i: int) -> object:
        if not ranks.target.fused:
            return torch.index_select(table, 0, indices[i].cpu().long())
        from sextant.validate.kernels import triton_gather

        return triton_gather.gather(table, indices[i], out, n_sms=ranks.target.n_sms)

    draw()
    call(0)
    ranks.synchronize()
    wrong = 0.0
    if ranks.target.fused:  # as integers: bytes that a copy left in the table may be no number
        rows = table[indices[0].cpu().long()]
        wrong = 0.0 if torch.equal(out.cpu().view(torch.int16), rows.view(torch.int16)) else 1.0
    ranks.require(wrong, what="the rows")
    return call, draw, 2.0 * lookups * dim


def _copy(case: Case, ranks: Ranks) -> tuple[Callable[[int], object], Callable[[], object], float]:
    n_bytes = int(case["bytes"])
    table = _table(ranks).view(torch.uint8)
    n_slots = max(1, min(MAX_CALLS, table.numel() // n_bytes))
    slots = [table[i * n_bytes : (i + 1) * n_bytes] for i in range(n_slots)]
    buffer = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=ranks.device)

    def call(i: int) -> object:
        slot = slots[i % n_slots]
        pair = (buffer, slot) if case["op"] == "h2d" else (slot, buffer)
        return pair[0].copy_(pair[1], non_blocking=True)

    return call, lambda: None, float(n_bytes)


def measure(case: Case, ranks: Ranks) -> dict[str, str | int | float]:
    """One row: all active processes start together and repeat calls for several milliseconds."""
    active = ranks.rank < int(case["n_active"])
    call, before, moved_bytes = (_gather if case["op"] == "gather" else _copy)(case, ranks)
    for i in range(2):
        call(i)
    before()
    first_us = ranks.slowest([span_us(ranks, lambda: call(0))])[0]
    n_calls = max(2, min(MAX_CALLS, math.ceil(SAMPLE_US / first_us)))

    def several() -> None:
        for i in range(n_calls if active else 0):
            call(i)

    samples = []
    for i in range(N_SAMPLES + 1):
        before()
        us = span_us(ranks, several) / n_calls
        if i:
            samples.append(us if active else 0.0)
    slowest = sorted(ranks.slowest(samples))
    own = [us for us in ranks.gathered(median(samples)) if us > 0.0]
    return {
        "us": f"{median(slowest):.2f}", "us_p10": f"{slowest[0]:.2f}", "us_p90": f"{slowest[-1]:.2f}",
        "n_samples": N_SAMPLES, "total_bytes_per_s": f"{sum(moved_bytes / (us * 1e-6) for us in own):.4g}",
        "us_by_gpu": " ".join(f"{us:.2f}" for us in own),
        "library": "cuda_memcpy" if case["op"] != "gather" and ranks.target.cuda else
        "triton" if ranks.target.fused else "torch",
    }  # fmt: skip
