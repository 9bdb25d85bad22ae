"""What one Engram block waits for its rows, predicted and measured: one model, one GPU, six ways of fetching.

A prediction is what a scenario with the same plan gets (``studies.fetches``), of kernels: gathers, copies and rounds of
few programs, and what kernels lose beside a fetch, all fitted to kernels alone or in pairs. No pass is part of any of
them. Measured is a pass less the same pass without a fetch (``validate.whole.engram_block``), on a cool GPU.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.evaluate import time_ops
from sextant.simulator.kernels import estimate
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Step
from sextant.studies import fetches, whole_data, whole_models
from sextant.validate.whole import engram_cases
from sextant.validate.whole.cases import WholeCase, steps

#: What counts as predicted: within so many seconds, or that share of the measured seconds.
NEAR_S, NEAR = 20e-6, 0.10
#: Rows of a program's tile that ``bounded`` asks for, as ``validate.whole.memory`` has it.
BOUNDED = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """Seconds that a way of fetching adds to a pass: ``fetch_s`` the fetch with nothing beside it, ``waited_s`` what is
    waited for, the rest of which compute was slowed."""

    seconds: float
    fetch_s: float
    waited_s: float


def exposed(case: WholeCase, way: str, device: str = "h200") -> Exposed:
    """What ``way`` (of ``engram_cases.WAYS``) adds to the case's pass without a fetch.

    Of ``copy`` the gather by the CPU is no part: it was done before the pass.
    """
    if way not in engram_cases.WAYS:
        raise InputError(f"way: unknown way {way!r}; {nearest(way, engram_cases.WAYS)}")
    if way == "none":
        return Exposed(seconds=0.0, fetch_s=0.0, waited_s=0.0)
    planned = engram_cases.planned(case, way)
    scenario = whole_models.scenario_of(planned, device, cool=True)
    timed = time_ops(_run(planned), scenario.cluster)
    if way == "hbm":
        seconds = sum(float(item.time.seconds) for item in timed.ops if item.op.name == "engram_gather")
        return Exposed(seconds=seconds, fetch_s=seconds, waited_s=seconds)
    in_front_s = sum(seconds for seconds in _seconds(timed).values())
    scene = fetches.scene(scenario, timed, in_front_s, in_turn=BOUNDED if way == "bounded" else 0.0)
    assert scene is not None, "an Engram block with its table in the host's memory fetches rows"
    if way == "copy":
        scene = replace(scene, fetch=replace(scene.fetch, prepare_s=0.0))
    played = scene.played()
    return Exposed(seconds=float(played.exposed_s), fetch_s=float(played.fetch_s), waited_s=float(played.waited_s))


def _run(case: WholeCase) -> Step:
    """The pass without the operators that the case's implementation does not run."""
    (step,) = steps(case)
    left_out = {name for each in case.differs for name in each.instead_of}
    return replace(step, ops=tuple(op for op in step.ops if op.name not in left_out))


def _seconds(timed: TimedStep) -> dict[str, float]:
    """Seconds of each part of the pass, all its layers, without fetches."""
    found: dict[str, float] = {}
    for item in timed.ops:
        if item.op.stream != "host":
            n = float(timed.step.layers.get(item.op.part, 1.0))
            found[item.op.part] = found.get(item.op.part, 0.0) + n * float(item.seconds)
    return found


def pass_s(case: WholeCase, device: str = "h200") -> float:
    """Seconds of the pass without a fetch."""
    lines = whole_models.predicted(engram_cases.planned(case, "hbm"), device, cool=True).lines
    return sum(line.seconds for line in lines if line.name != "engram_gather")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A case and way: seconds of the pass and of what the fetch exposes, measured and predicted; ``spread_s`` is the
    standard error of the measured one."""

    case: str
    way: str
    pass_measured_s: float
    pass_predicted_s: float
    measured_s: float
    spread_s: float
    predicted_s: float

    @property
    def off_s(self) -> float:
        """Predicted less measured exposed seconds."""
        return self.predicted_s - self.measured_s

    @property
    def error(self) -> float:
        """The same as a share of what was measured; infinite where that is not above zero."""
        return self.off_s / self.measured_s if self.measured_s > 0.0 else float("inf")

    @property
    def near(self) -> bool:
        """Within 20 us or 10%."""
        return abs(self.off_s) <= NEAR_S or abs(self.error) <= NEAR


def rows(device: str, folder: Path | None = None, kernels: bool = False) -> list[dict[str, str]]:
    """What was measured of the blocks, or of their kernels; InputError where nothing was."""
    path = (folder or whole_data.MEASURED) / f"{device}_engram_block{'_kernels' if kernels else ''}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(line for line in lines if not line.startswith("#")))
    except FileNotFoundError:
        raise InputError(
            f"device: no measured Engram blocks of {device!r} ({path.name}); measure them on such a GPU: "
            "python -m sextant.validate.whole.engram_block"
        ) from None


def judged(device: str = "h200", prefix: str = "", folder: Path | None = None) -> list[Judged]:
    """Every measured case (whose name begins with ``prefix``) and way but ``none``, beside its prediction."""
    known: Mapping[str, WholeCase] = {case.name: case for case in engram_cases.cases()}
    found, passes = [], dict[str, float]()
    for row in rows(device, folder):
        name, way = row["case"], row["way"]
        if row["error"] or way == "none" or not name.startswith(prefix):
            continue
        passes.setdefault(name, pass_s(known[name], device))
        guess = exposed(known[name], way, device).seconds
        found.append(
            Judged(
                case=name, way=way, pass_measured_s=1e-6 * float(row["us"]), pass_predicted_s=passes[name] + guess,
                measured_s=1e-6 * float(row["exposed_us"]), spread_s=1e-6 * float(row["error_us"]), predicted_s=guess,
            )
        )  # fmt: skip
    if not found:
        raise InputError(f"case: nothing was measured of {prefix!r}; {nearest(prefix, known)}")
    return found


def kernel_errors(device: str = "h200", prefix: str = "", folder: Path | None = None) -> list[dict[str, object]]:
    """mHC's and Engram's kernels inside the profiled passes that fetch nothing: {case, kernel, runs, measured_s,
    predicted_s, error}, per run. A kernel's measured seconds are those that it takes of the pass, the gap behind it
    included, as in the graphs of one kernel that predictions are fitted to."""
    known = {case.name: case for case in engram_cases.cases()}
    profiled = [row for row in rows(device, folder, kernels=True) if row["way"] == "none"]
    gaps = _gaps_s(profiled, device, folder)
    sums: dict[tuple[str, str], list[float]] = {}
    for row in profiled:
        operators = [name for name, kernels in _KERNELS.items() if row["kernel"] in kernels]
        if operators and row["case"].startswith(prefix):
            total = sums.setdefault((row["case"], operators[0]), [0.0, 0.0])
            count = float(row["count"])
            total[0], total[1] = count, total[1] + 1e-6 * float(row["us"]) + count * gaps[row["case"]]
    found: list[dict[str, object]] = []
    for (name, kind), (runs, seconds) in sums.items():
        cluster = whole_models.scenario_of(known[name], device, cool=True).cluster
        op = next(op for op in steps(known[name])[0].ops if kind in (op.kind, op.name))
        guess, measured = float(estimate(op, cluster).seconds), seconds / runs
        found.append(
            {"case": name, "kernel": kind, "runs": runs, "measured_s": measured, "predicted_s": guess,
             "error": guess / measured - 1.0}
        )  # fmt: skip
    return found


def _gaps_s(profiled: list[dict[str, str]], device: str, folder: Path | None) -> dict[str, float]:
    """By case the mean seconds between two kernels of its pass: the pass less its kernels, over their number."""
    found: dict[str, float] = {}
    for row in rows(device, folder):
        if row["way"] == "none" and not row["error"]:
            kernels = [each for each in profiled if each["case"] == row["case"]]
            run_s = 1e-6 * sum(float(each["us"]) for each in kernels)
            found[row["case"]] = (1e-6 * float(row["us"]) - run_s) / sum(float(each["count"]) for each in kernels)
    return found


#: Kernels of the passes that one operator's prediction stands for.
_KERNELS = {
    "mhc_pre": ("_mappings_product", "_mix_in"), "mhc_post": ("_mix_out",), "engram_gate": ("gate",),
    "engram_conv": ("convolve", "convolve_step"),
}  # fmt: skip
