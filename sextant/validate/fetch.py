"""How fast few programs fetch rows of a table in pinned host memory, and how they and compute kernels slow each other.

    python -m sextant.validate.fetch --out FILE.csv

A fetch is one launch that takes ``lookups`` random rows, new ones in every launch of a replay, by ``programs`` programs
that take ``in_turn`` rows at once and in turn (0: as many as the kernel likes), or by a kernel with all SMs
(``programs`` 0). Rows without a ``call`` are fetches alone: one after the other, and each behind a write of more than
the L2 cache, which leaves it no page table entries (``fetch_cold_us``). The others are a fetch beside one compute
kernel, both repeated over the same milliseconds of a cool GPU: microseconds of either alone and beside the other.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from sextant.validate.beside import write_rows
from sextant.validate.kernels import triton_gather
from sextant.validate.measure import find_target
from sextant.validate.timer import FLUSH_BYTES
from sextant.validate.whole.fused import FETCHING, FusedKernels
from sextant.validate.whole.memory import BOUNDED, host_table

#: Rows of the table: those of a layer of Engram-27B, and fewer (the first that the address translation reaches).
ROWS, FEWER_ROWS, DIM = 36_198_400, (3_354_624, 13_421_568), 80
LOOKUPS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
#: Lookups for other widths, tables and numbers of programs, and those that run beside calls.
SOME = (1024, 8192, 65536)
DIMS, PROGRAMS = (160, 512), (2, 4, 16, 32)
#: Lookups of a fetch that runs beside calls: long, so that few of its launches wait for a place.
LONG, TURNS = 2**18, (4, 8, 16)
SIDE_US, CALL_US, N_ROUNDS, N_COLD, PAUSE_S = 6000.0, 300.0, 5, 15, 0.01
COLUMNS = (
    "call", "programs", "in_turn", "lookups", "row_bytes", "table_bytes", "call_alone_us", "call_beside_us",
    "fetch_alone_us", "fetch_cold_us", "fetch_beside_us",
)  # fmt: skip
Call = Callable[[], object]


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A graph of the calls, one after the other, each of which has run before."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def between_us(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """Microseconds between two recorded events."""
    return 1e3 * start.elapsed_time(end)


def marks(n: int) -> list[torch.cuda.Event]:
    """Events that keep their time."""
    return [torch.cuda.Event(enable_timing=True) for _ in range(n)]


class Fetch:
    """Launches of a fetch that together take about ``SIDE_US``, in one graph."""

    def __init__(self, rows: int, dim: int, lookups: int, programs: int, in_turn: int, n_sms: int) -> None:
        self.table = host_table(ROWS, DIM).view(-1)[: rows * dim].view(rows, dim)
        self.out = torch.empty((lookups, dim), dtype=self.table.dtype, device="cuda")
        self.lookups, self.programs, self.in_turn, self.n_sms = lookups, programs, in_turn, n_sms
        self.n, self.index = 0, torch.empty((0, lookups), dtype=torch.int32, device="cuda")
        self._capture(2)
        self._capture(max(2, min(512, math.ceil(SIDE_US / self.alone_us()))))

    def _capture(self, n: int) -> None:
        self.n, self.index = n, torch.empty((n, self.lookups), dtype=torch.int32, device="cuda")
        self.draw()
        self.graph = captured([lambda i=i: self._launch(i) for i in range(n)])

    def _launch(self, i: int) -> None:
        triton_gather.gather(
            self.table, self.index[i], self.out, n_sms=self.n_sms, most=self.programs, in_turn=self.in_turn
        )

    def draw(self) -> None:
        """New rows for every launch."""
        self.index.random_(0, self.table.shape[0])

    def alone_us(self) -> float:
        """Microseconds of one launch, the median over replays."""
        found = []
        for _ in range(N_ROUNDS):
            self.draw()
            start, end = marks(2)
            start.record()
            self.graph.replay()
            end.record()
            torch.cuda.synchronize()
            found.append(between_us(start, end) / self.n)
        return median(found)

    def cold_us(self) -> float:
        """Microseconds of one launch behind a write of more than the L2 cache, the median over launches."""
        self.draw()
        graph, flushed = captured([lambda: self._launch(0)]), torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        found = []
        for i in range(N_COLD):
            self.index[0].random_(0, self.table.shape[0])
            flushed.fill_(i)
            start, end = marks(2)
            start.record()
            graph.replay()
            end.record()
            found.append((start, end))
        torch.cuda.synchronize()
        return median(between_us(start, end) for start, end in found[1:])


class Compute:
    """Repeated calls of one kernel, about ``CALL_US`` in a graph."""

    def __init__(self, call: Call) -> None:
        self.n = 1
        self.graph = captured([call])
        self.n = max(1, min(64, round(CALL_US / self.windows(8)[0])))
        self.graph = captured([call] * self.n)
        self.alone_us = median(us for _ in range(N_ROUNDS) for us in self.windows(max(8, int(SIDE_US / CALL_US))))

    def windows(self, n: int) -> list[float]:
        """Microseconds per call of ``n`` replays in a row, but the first, on a cool GPU."""
        time.sleep(PAUSE_S)
        events = marks(n + 1)
        torch.cuda._sleep(200_000)
        events[0].record()
        for event in events[1:]:
            self.graph.replay()
            event.record()
        torch.cuda.synchronize()
        return [between_us(a, b) / self.n for a, b in list(pairwise(events))[1:]]


def beside_us(compute: Compute, fetch: Fetch, fetch_alone_us: float) -> tuple[float, float]:
    """Microseconds of a call, and of a fetch, while both run."""
    side, calls_us, fetches_us = torch.cuda.Stream(), [], []
    n = max(8, math.ceil(3.0 * fetch.n * fetch_alone_us / (compute.n * compute.alone_us)))
    for _ in range(N_ROUNDS):
        fetch.draw()
        torch.cuda.synchronize()
        time.sleep(PAUSE_S)
        begin, end, *events = marks(n + 3)
        torch.cuda._sleep(4_000_000)
        events[0].record()
        side.wait_event(events[0])
        with torch.cuda.stream(side):
            begin.record()
            fetch.graph.replay()
            end.record()
        for event in events[1:]:
            compute.graph.replay()
            event.record()
        torch.cuda.synchronize()
        inside = [(a, b) for a, b in list(pairwise(events))[1:] if between_us(b, end) > 0.0]
        calls_us += [between_us(a, b) / compute.n for a, b in inside]
        if between_us(end, events[-1]) > 0.0:
            fetches_us.append(between_us(begin, end) / fetch.n)
    if not calls_us or not fetches_us:
        raise ValueError("no call ran wholly beside a fetch, or no fetch wholly beside calls")
    return median(calls_us), median(fetches_us)


def calls(n_sms: int) -> dict[str, Call]:
    """Kernels of the layers of Engram-27B: of 4096 tokens of prefill, and of 64 of decoding at a context of 4096."""
    fused = FusedKernels(n_sms=n_sms)

    def bf16(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def product(m: int, n: int, k: int) -> Call:
        x, w = bf16(m, k), bf16(n, k)
        return lambda: F.linear(x, w)

    m, hidden, streams = 4096, 2560, 4
    q, k, v = (bf16(1, 32, m, width) for width in (192, 192, 128))
    x, f, wide = bf16(m, streams, hidden), bf16(m, hidden), bf16(m, 2 * 12288)
    maps = torch.randn((24, streams * hidden), device="cuda") * (streams * hidden) ** -0.5
    scale, base = torch.rand(3, device="cuda"), torch.rand(24, device="cuda")
    _, post, res = fused.mix_in(x, maps, scale, base, iterations=20)
    latent_q, cache, norm = bf16(64, 32, 576), bf16(64, m, 576), bf16(hidden)
    return {
        "gemm 4096x24576x2560": product(m, 24576, hidden),
        "gemm 4096x2560x12288": product(m, hidden, 12288),
        "gemm 4096x6144x2560": product(m, 6144, hidden),
        "gemm 4096x2560x4096": product(m, hidden, 4096),
        "gemm 1024x24576x2560": product(1024, 24576, hidden),
        "gemm 1024x6144x2560": product(1024, 6144, hidden),
        "gemm 256x24576x2560": product(256, 24576, hidden),
        "gemm 64x24576x2560": product(64, 24576, hidden),
        "attention 32x4096 192/128": lambda: fused.attention(q, k, v, causal=True),
        "latent attention 64x4096": lambda: fused.latent(latent_q, cache, rank=512, scale=0.07),
        "mhc_pre 4096x4x2560": lambda: fused.mix_in(x, maps, scale, base, iterations=20),
        "mhc_post 4096x4x2560": lambda: fused.mix_out(f, x, post, res),
        "swiglu 4096x12288": lambda: fused.swiglu(wide),
        "rmsnorm 4096x2560": lambda: fused.norm(f, norm),
    }


def alone(n_sms: int) -> list[tuple[object, ...]]:
    """Rows of fetches alone."""
    asked = [(ROWS, DIM, n, *way) for way in ((0, 0), (FETCHING, 0), (FETCHING, BOUNDED)) for n in LOOKUPS]
    for way in ((0, 0), (FETCHING, 0), (FETCHING, BOUNDED)):
        asked += [(rows, DIM, n, *way) for rows in FEWER_ROWS for n in SOME]
        asked += [(ROWS * DIM // dim, dim, n, *way) for dim in DIMS for n in SOME]
    asked += [(ROWS, DIM, n, programs, 0) for programs in PROGRAMS for n in SOME]
    rows = []
    for n_rows, dim, lookups, programs, in_turn in asked:
        fetch = Fetch(n_rows, dim, lookups, programs, in_turn, n_sms)
        us = f"{fetch.alone_us():.2f}", f"{fetch.cold_us():.2f}"
        rows.append(("", programs, in_turn, lookups, 2 * dim, 2 * dim * n_rows, "", "", *us, ""))
        print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def together(n_sms: int) -> list[tuple[object, ...]]:
    """Rows of fetches beside calls."""
    rows = []
    fetches = [Fetch(ROWS, DIM, LONG, FETCHING, in_turn, n_sms) for in_turn in TURNS]
    alone_us = [fetch.alone_us() for fetch in fetches]
    for name, call in calls(n_sms).items():
        compute = Compute(call)
        for fetch, fetch_us in zip(fetches, alone_us, strict=True):
            call_us, slowed_us = beside_us(compute, fetch, fetch_us)
            shape = fetch.programs, fetch.in_turn, fetch.lookups, 2 * DIM, 2 * DIM * ROWS
            times = (f"{us:.2f}" for us in (compute.alone_us, call_us, fetch_us))
            rows.append((name, *shape, *times, "", f"{slowed_us:.2f}"))
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.fetch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    n_sms = find_target("cuda").n_sms
    with torch.no_grad():
        write_rows(out, "fetch", COLUMNS, alone(n_sms) + together(n_sms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
