"""Measure what an Engram block waits for its rows: ``python -m sextant.validate.whole.engram_block --out FOLDER``.

Every case of ``engram_cases`` is a pass, captured in one CUDA graph per way of fetching, over the same weights. Graphs
are replayed in turn, round by round, each with new random tokens, on a cool GPU: before each replay the GPU spins
for ``PAUSES`` times its length, so that no way is slowed by the power that another way's waiting saves. Ways differ by
what the fetch costs: ``exposed_us`` is the median over the rounds of the way's time less that of ``none`` in the same
round, ``error_us`` the standard error of that median (from the median deviation).

``GPU_engram_block.csv`` has a row per case and way, ``GPU_engram_block_kernels.csv`` the kernels of profiled replays:
how often each ran in one, the mean of all its runs' microseconds, and when its first began after the pass did. Beside
``copy`` stands how long the CPU gathers into the pinned buffer, which the pass does not contain.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sextant.validate import timer
from sextant.validate.kernels import Target
from sextant.validate.measure import Settings, find_target, provenance
from sextant.validate.whole import reduction, run
from sextant.validate.whole.cases import WholeCase
from sextant.validate.whole.engram_cases import WAYS, cases, planned
from sextant.validate.whole.language import Language
from sextant.validate.whole.memory import Memory
from sextant.validate.whole.network import check, network

COLUMNS = (
    "case", "way", "us", "us_p10", "us_p90", "exposed_us", "error_us", "n_rounds", "sm_clock_mhz", "cpu_gather_us",
    "expert_load", "relative_error", "error",
)  # fmt: skip
KERNEL_COLUMNS = ("case", "way", "kernel", "count", "us", "first_us")
#: How long the GPU spins before a replay, in lengths of the pass, and at least; its clock while it does.
PAUSES, LEAST_PAUSE_US, CLOCK_MHZ = 1.5, 500.0, 1980.0
_WARM_UPS, _PROFILES = 2, 2
#: A kernel's name is cut to so many characters: templates go on for thousands.
_NAME = 160
_PROFILED = ("none", "inline", "few", "bounded")


class Block:
    """A pass with one Engram block, and a graph of it for every way of fetching."""

    def __init__(self, case: WholeCase, target: Target) -> None:
        net = network(planned(case, "few"), target)
        assert isinstance(net, Language), "an Engram block is part of a language model"
        self.net, self.target = net, target
        (self.memory,) = net.memories.values()
        self.host: Tensor = self.memory.table
        self.device: Tensor = self.host.to(target.device)
        self.gathered_us: list[float] = []
        self.replays = {way: self._replay(way) for way in WAYS}

    def _choose(self, way: str) -> Memory:
        self.memory.way = "inline" if way == "hbm" else way
        self.memory.table = self.device if way == "hbm" else self.host
        return self.memory

    def _replay(self, way: str) -> run.Replay:
        self._choose(way)
        if way == "copy":
            self.memory.pack(self.net.history)
        return run.Replay(self.net, self.target)

    def refresh(self, way: str) -> None:
        """New tokens; for ``copy`` also their rows, gathered by the CPU, which is timed."""
        memory = self._choose(way)
        self.net.refresh()
        if way != "copy":
            return
        at = memory.at
        index = at.kernels.hash(self.net.history, memory.primes, memory.starts, memory.orders).flatten().cpu()
        start_s = time.perf_counter()
        memory.gather(index)
        self.gathered_us.append(1e6 * (time.perf_counter() - start_s))

    def us(self, way: str, pause_us: float) -> float:
        """One replay with new tokens, behind a pause of the GPU's own."""
        self.refresh(way)
        if not self.target.cuda:
            start_s = time.perf_counter()
            self.replays[way]()
            return 1e6 * (time.perf_counter() - start_s)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(CLOCK_MHZ * pause_us))
        start.record()
        self.replays[way]()
        end.record()
        torch.cuda.synchronize()
        return 1e3 * start.elapsed_time(end)

    def rounds(self, n: int) -> dict[str, list[float]]:
        """Microseconds of ``n`` replays of every way, one of each a round, each round beginning with the next way."""
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        longest = max(min(self.us(way, LEAST_PAUSE_US) for _ in range(_WARM_UPS)) for way in WAYS)
        self.gathered_us.clear()
        for i in range(n):
            for j in range(len(WAYS)):
                way = WAYS[(i + j) % len(WAYS)]
                found[way].append(self.us(way, max(LEAST_PAUSE_US, PAUSES * longest)))
        return found

    def profiled(self, way: str) -> list[tuple[str, int, float, float]]:
        """Kernels of ``_PROFILES`` replays: name, runs in one, their microseconds together (the mean), when the first
        began."""
        from torch.profiler import ProfilerActivity, profile

        runs: dict[str, list[float]] = defaultdict(list)
        begun: dict[str, list[float]] = defaultdict(list)
        for _ in range(_PROFILES):
            self.refresh(way)
            torch.cuda.synchronize()
            time.sleep(0.02)
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                self.replays[way]()
                torch.cuda.synchronize()
            events = [
                each for each in profiler.events() or ()
                if each.device_type == torch.autograd.DeviceType.CUDA and not each.name.startswith(run.NO_KERNELS)
            ]  # fmt: skip
            zero = min(each.time_range.start for each in events)
            first: dict[str, float] = {}
            for each in events:
                runs[each.name].append(float(each.device_time))
                first[each.name] = min(first.get(each.name, float("inf")), float(each.time_range.start - zero))
            for name, at in first.items():
                begun[name].append(at)
        return [
            (name, round(len(us) / _PROFILES), sum(us) / _PROFILES, median(begun[name])) for name, us in runs.items()
        ]


def exposed(way_us: Sequence[float], none_us: Sequence[float]) -> tuple[float, float]:
    """Median microseconds of a way beyond ``none``, round by round, and that median's standard error, from the median
    deviation of normal values."""
    beyond = np.asarray(way_us) - np.asarray(none_us)
    middle = float(np.median(beyond))
    deviation = 1.4826 * float(np.median(np.abs(beyond - middle)))
    return middle, 1.2533 * deviation / float(np.sqrt(len(beyond)))


def measure(
    case: WholeCase, target: Target, *, n_rounds: int, checked: bool
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of all ways of a case and of their kernels; raises what goes wrong."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    error = check(network(reduction.checked(case), target)) if checked else None
    run.free(target)
    with torch.no_grad():
        block = Block(case, target)
        found = block.rounds(n_rounds)
        clock_mhz = timer.sm_clock_mhz() if target.cuda else None
        load = block.net.expert_load()
        kernels = [
            {"case": case.name, "way": way, "kernel": name[:_NAME], "count": str(count), "us": f"{us:.2f}",
             "first_us": f"{first:.2f}"}
            for way in (_PROFILED if target.cuda else ())
            for name, count, us, first in sorted(block.profiled(way), key=lambda each: -each[2])
        ]  # fmt: skip
    rows = []
    for way, samples in found.items():
        told, (beyond, off) = timer.summarise(samples, timing="graph"), exposed(samples, found["none"])
        rows.append(
            {
                "case": case.name, "way": way, "us": f"{told.us:.2f}", "us_p10": f"{told.us_p10:.2f}",
                "us_p90": f"{told.us_p90:.2f}", "exposed_us": f"{beyond:.2f}", "error_us": f"{off:.2f}",
                "n_rounds": str(n_rounds), "sm_clock_mhz": "" if clock_mhz is None else f"{clock_mhz:.0f}",
                "cpu_gather_us": f"{median(block.gathered_us):.2f}" if way == "copy" else "", "expert_load": load,
                "relative_error": "" if error is None else f"{error:.2e}",
            }
        )  # fmt: skip
    return rows, kernels


def header_of(target: Target, *, rounds: int, note: str) -> Mapping[str, str]:
    """Device, versions, date and how it was timed."""
    header = provenance(target, cases="", settings=Settings(), note=note)
    del header["traffic"]
    header["command"] = f"python -m sextant.validate.whole.engram_block --rounds {rounds}"
    header["timing"] = f"one CUDA graph per way, in turn, each replay behind a pause of {PAUSES:g} passes; host: a call"
    return header


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when every case was measured, 1 when one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m sextant.validate.whole.engram_block", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for both files; one that is there is continued")
    parser.add_argument("--only", default="", help="cases, comma-separated, by the beginning of their names")
    parser.add_argument("--name", default="h200", help="catalogue name of the GPU, which names the files")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=40, help="replays of every way")
    parser.add_argument("--tiny", action="store_true", help="narrow widths, to try every case")
    parser.add_argument("--note", default="", help="a line for the header")
    given = parser.parse_args(arguments)
    target = find_target(given.device)
    header = header_of(target, rounds=given.rounds, note=given.note)
    times, kernels = (given.out / f"{given.name}_engram_block{end}.csv" for end in ("", "_kernels"))
    done = run.started(times, COLUMNS, header)
    run.started(kernels, KERNEL_COLUMNS, header)
    only = tuple(name for name in given.only.split(",") if name)
    chosen = [case for case in cases() if not only or case.name.startswith(only)]
    failed, checks = 0, set[str]()
    for i, case in enumerate(chosen):
        if case.name in done:
            continue
        start_s = time.monotonic()
        rows: list[dict[str, Any]]
        try:
            # Cases of one phase have the same kernels: the first stands for all.
            rows, found = measure(
                reduction.tiny(case) if given.tiny else case, target, n_rounds=given.rounds,
                checked=case.phase not in checks,
            )  # fmt: skip
            checks.add(case.phase)
        except Exception as error:  # whatever a kernel, a library or a compiler raises is this case's result
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            rows, found = [{"case": case.name, "error": said[:300]}], []
            failed += 1
        run.append(times, COLUMNS, rows)
        run.append(kernels, KERNEL_COLUMNS, found)
        said = ", ".join(f"{row.get('way', '')} {row.get('exposed_us', row.get('error'))}" for row in rows)
        spent_s = time.monotonic() - start_s
        print(f"[{i + 1}/{len(chosen)} +{spent_s:.1f}s] {case.name}: {said}", file=sys.stderr, flush=True)
        run.free(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
