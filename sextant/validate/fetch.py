"""How fast few programs, and a kernel on all SMs, fetch rows of a table in pinned host memory.

    python -m sextant.validate.fetch --out FILE.csv

A fetch is one launch that takes ``lookups`` random rows, new ones in every launch of a replay, by ``programs`` programs
that take ``in_turn`` rows at once and in turn (0: as many as the kernel likes), or by a kernel with all SMs
(``programs`` 0). All are alone: one after the other, and each behind a write of more than the L2 cache, which leaves it
no page table entries (``fetch_cold_us``). ``validate.resident`` measures them beside compute.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from sextant.validate.beside import write_rows
from sextant.validate.kernels import triton_gather
from sextant.validate.measure import find_target
from sextant.validate.timer import FLUSH_BYTES
from sextant.validate.whole.fused import FETCHING
from sextant.validate.whole.memory import BOUNDED, host_table

#: Rows of the table: those of a layer of Engram-27B, and fewer (the first that the address translation reaches).
ROWS, FEWER_ROWS, DIM = 36_198_400, (3_354_624, 13_421_568), 80
LOOKUPS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
#: Lookups for other widths, tables and numbers of programs.
SOME = (1024, 8192, 65536)
DIMS, PROGRAMS = (160, 512), (2, 4, 16, 32)
SIDE_US, N_ROUNDS, N_COLD = 6000.0, 5, 15
COLUMNS = ("programs", "in_turn", "lookups", "row_bytes", "table_bytes", "fetch_alone_us", "fetch_cold_us")
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


def alone(n_sms: int) -> list[tuple[object, ...]]:
    """All rows."""
    asked = [(ROWS, DIM, n, *way) for way in ((0, 0), (FETCHING, 0), (FETCHING, BOUNDED)) for n in LOOKUPS]
    for way in ((0, 0), (FETCHING, 0), (FETCHING, BOUNDED)):
        asked += [(rows, DIM, n, *way) for rows in FEWER_ROWS for n in SOME]
        asked += [(ROWS * DIM // dim, dim, n, *way) for dim in DIMS for n in SOME]
    asked += [(ROWS, DIM, n, programs, 0) for programs in PROGRAMS for n in SOME]
    rows = []
    for n_rows, dim, lookups, programs, in_turn in asked:
        fetch = Fetch(n_rows, dim, lookups, programs, in_turn, n_sms)
        us = f"{fetch.alone_us():.2f}", f"{fetch.cold_us():.2f}"
        rows.append((programs, in_turn, lookups, 2 * dim, 2 * dim * n_rows, *us))
        print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(prog="sextant.validate.fetch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    n_sms = find_target("cuda").n_sms
    with torch.no_grad():
        write_rows(out, "fetch", COLUMNS, alone(n_sms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
