"""Measure whole models on this machine: ``python -m sextant.validate.whole.run --out FOLDER``.

Every case is first checked: a reduced model of the same widths against a reference in FP32. Then the model is built,
one pass is captured in a CUDA graph, and the graph is replayed, each replay with new random tokens, which are drawn
outside the timed region. Two ways of running are timed between events:

``us``          a burst: ``--burst`` replays after a pause of the device's own, the median with percentiles 10 and 90
``lasting_us``  replays in a row for ``--seconds`` seconds, the median of the second half: under the power limit

``--fetching N,N`` instead runs the chosen cases with so many programs that fetch Engram rows beside the pass.
``GPU_models.csv`` has a row per case, ``GPU_model_kernels.csv`` the kernels of one profiled replay. A case that fails
is a row whose ``error`` says why. Cases that are already there are skipped. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sextant.simulator.errors import InputError
from sextant.validate import timer
from sextant.validate.kernels import Target
from sextant.validate.measure import Settings, find_target, provenance
from sextant.validate.whole import reduction
from sextant.validate.whole.cases import WholeCase, chosen
from sextant.validate.whole.network import Network, check, network

COLUMNS = (
    "case", "us", "us_p10", "us_p90", "n_replays", "sm_clock_mhz", "lasting_us", "lasting_us_p10", "lasting_us_p90",
    "lasting_sm_clock_mhz", "timing", "library", "memory_bytes", "expert_load", "relative_error", "error",
)  # fmt: skip
KERNEL_COLUMNS = ("case", "kernel", "count", "us")
#: Of a run with ``--fetching``: programs that fetch rows beside the pass, the pass, the fetch, and the slowest kernel.
FETCH_COLUMNS = ("case", "programs", "lasting_us", "fetch_us", "slowed_kernel", "slowed_us")
#: Replays before the first timed one; a pause after them lets the device cool to where a burst starts.
_WARM_UPS, _PAUSE_S = 3, 0.5
#: The profiler's own records and those of replays with new tokens, which are no kernels of a pass.
NO_KERNELS = ("ProfilerStep", "Activity Buffer", "cudaGraph", "cudaDevice", "cudaStream", "cudaEvent")


class Replay:
    """A pass that is replayed from a CUDA graph; on the CPU, called."""

    def __init__(self, net: Network, target: Target) -> None:
        self.net, self.target = net, target
        for _ in range(2):
            net()
        if not target.cuda:
            self.label = "host"
            return
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        gc.collect()
        with torch.cuda.graph(self.graph):
            self.output: Any = net()
        self.label = "graph"
        torch.cuda.synchronize()

    def __call__(self) -> None:
        if self.target.cuda:
            self.graph.replay()
        else:
            self.net()

    def samples_us(self, n: int) -> tuple[list[float], float | None]:
        """Microseconds of ``n`` replays in a row, and the clock of the multiprocessors while they ran."""
        if not self.target.cuda:
            return timer.HostSampler(calls=[self], before=self.net.refresh)(n), None
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
        for start, end in events:
            self.net.refresh()
            start.record()
            self.graph.replay()
            end.record()
        clock_mhz = timer.sm_clock_mhz()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events], clock_mhz


def measure(case: WholeCase, target: Target, *, burst: int, seconds: float) -> tuple[dict[str, str], list[Any]]:
    """The row of a case and its kernels as (name, count, microseconds); raises what goes wrong."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    error = check(network(reduction.checked(case), target))
    free(target)
    with torch.no_grad():
        net = network(case, target)
        replay = Replay(net, target)
        for _ in range(_WARM_UPS):
            replay()
        if target.cuda:
            torch.cuda.synchronize()
            time.sleep(_PAUSE_S)
        replay.samples_us(1)
        short, clock_mhz = replay.samples_us(burst)
        found = timer.summarise(short, timing=replay.label)
        row = {
            "us": f"{found.us:.2f}", "us_p10": f"{found.us_p10:.2f}", "us_p90": f"{found.us_p90:.2f}",
            "n_replays": str(len(short)), "sm_clock_mhz": _number(clock_mhz), "timing": replay.label,
            "library": net.at.kernels.library if hasattr(net, "at") else "", "expert_load": net.expert_load(),
            "relative_error": f"{error:.2e}",
            "memory_bytes": str(torch.cuda.max_memory_allocated() if target.cuda else ""),
        }  # fmt: skip
        row |= _lasting(replay, found.us, seconds)
        kernels = _profiled(replay) if target.cuda else []
    return row, kernels


def fetches(case: WholeCase, target: Target, programs: Sequence[int], *, seconds: float) -> list[dict[str, str]]:
    """A pass that fetches Engram rows beside its other kernels, with so many programs of the fetching kernel each.

    The slowed kernel is the one whose time grew most over that with the fewest programs.
    """
    from sextant.validate.whole import fused

    rows: list[dict[str, str]] = []
    kept, first = fused.FETCHING, {}
    try:
        for number in programs:
            fused.FETCHING = number
            row, kernels = measure(case, target, burst=5, seconds=seconds)
            us = {name: spent for name, _, spent in kernels}
            fetch_us = us.pop("_gather_in_turn", 0.0)
            first = first or us
            slowed = max(us, key=lambda name: us[name] - first.get(name, us[name]), default="")
            rows.append(
                {"case": case.name, "programs": str(number), "lasting_us": row["lasting_us"],
                 "fetch_us": f"{fetch_us:.2f}", "slowed_kernel": slowed, "slowed_us": f"{us.get(slowed, 0.0):.2f}"}
            )  # fmt: skip
            free(target)
    finally:
        fused.FETCHING = kept
    return rows


def _lasting(replay: Replay, us: float, seconds: float) -> dict[str, str]:
    """Columns of replays for ``seconds`` in a row; only the second half counts."""
    if seconds <= 0.0:
        return {}
    samples: list[float] = []
    clock_mhz: float | None = None
    while sum(samples) < 1e6 * seconds:
        part, clock_mhz = replay.samples_us(max(2, min(200, int(2e5 / us))))
        samples += part
    late = timer.summarise(samples[len(samples) // 2 :], timing=replay.label)
    return {
        "lasting_us": f"{late.us:.2f}", "lasting_us_p10": f"{late.us_p10:.2f}",
        "lasting_us_p90": f"{late.us_p90:.2f}", "lasting_sm_clock_mhz": _number(clock_mhz),
    }  # fmt: skip


def _profiled(replay: Replay) -> list[tuple[str, int, float]]:
    """Kernels and copies of one replay, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        replay()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    us: Counter[str] = Counter()
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(NO_KERNELS):
            counts[event.name] += 1
            us[event.name] += event.device_time  # type: ignore[assignment]
    return [(name, counts[name], float(spent)) for name, spent in us.most_common()]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def free(target: Target) -> None:
    """Gives memory of what is no longer used back to the device."""
    gc.collect()
    if target.cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def started(path: Path, columns: Sequence[str], header: Mapping[str, str]) -> set[str]:
    """Names of the cases that a file holds; starts the file where there is none."""
    if path.exists():
        with path.open(encoding="utf-8", newline="") as lines:
            return {row["case"] for row in csv.DictReader(line for line in lines if not line.startswith("#"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in header.items())
        csv.DictWriter(file, fieldnames=columns, lineterminator="\n").writeheader()
    return set()


def append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """More rows of a file."""
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, fieldnames=columns, lineterminator="\n").writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when every case was measured, 1 when one failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m sextant.validate.whole.run", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for both files; one that is there is continued")
    parser.add_argument("--only", default="", help="cases, comma-separated; a name may end in *")
    parser.add_argument("--name", default="h200", help="catalogue name of the GPU, which names the files")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--burst", type=int, default=15, help="replays of a burst")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long the lasting run takes; 0: none")
    parser.add_argument("--tiny", action="store_true", help="few layers and narrow widths, to try every case")
    parser.add_argument("--fetching", default="", help="numbers of programs that fetch Engram rows, comma-separated")
    parser.add_argument("--note", default="", help="a line for the header")
    given = parser.parse_args(arguments)
    try:
        cases = chosen([name for name in given.only.split(",") if name])
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    target = find_target(given.device)
    header = provenance(target, cases="", settings=Settings(), note=given.note)
    del header["traffic"]
    header["command"] = f"python -m sextant.validate.whole.run --burst {given.burst} --seconds {given.seconds:g}"
    header["timing"] = "graph = one CUDA graph per pass, each replay between two events; host = host clock"
    if given.fetching:
        path, programs = given.out / f"{given.name}_prefetch.csv", [int(n) for n in given.fetching.split(",")]
        header["command"] += f" --only {given.only} --fetching {given.fetching}"
        started(path, FETCH_COLUMNS, header)
        for case in cases:
            append(path, FETCH_COLUMNS, fetches(case, target, programs, seconds=given.seconds))
        return 0
    models, kernels = given.out / f"{given.name}_models.csv", given.out / f"{given.name}_model_kernels.csv"
    done = started(models, COLUMNS, header)
    started(kernels, KERNEL_COLUMNS, header)
    failed = 0
    for i, case in enumerate(cases):
        if case.name in done:
            continue
        start_s = time.monotonic()
        try:
            row, found = measure(
                reduction.tiny(case) if given.tiny else case, target, burst=given.burst, seconds=given.seconds
            )
        except Exception as error:  # whatever a kernel, a library or a compiler raises is this case's result
            row, found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}, []
            failed += 1
        append(models, COLUMNS, [{"case": case.name, **row}])
        rows = [{"case": case.name, "kernel": n, "count": c, "us": f"{us:.2f}"} for n, c, us in found]
        append(kernels, KERNEL_COLUMNS, rows)
        said = row.get("error") or f"{row['us']} us, lasting {row.get('lasting_us', 'not run')}"
        spent_s = time.monotonic() - start_s
        print(f"[{i + 1}/{len(cases)} +{spent_s:.1f}s] {case.name}: {said}", file=sys.stderr, flush=True)
        free(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
