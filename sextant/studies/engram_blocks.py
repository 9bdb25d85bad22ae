"""What one Engram block waits for its rows, predicted and measured: one model, one GPU, six ways of fetching.

A prediction is of kernels: gathers, copies and rounds of few programs, and what kernels lose beside a fetch, all fitted
to kernels alone or in pairs (``simulator.kernels.host_rows``). No pass is part of any of them. Measured is a pass less
the same pass without a fetch (``validate.whole.engram_block``), on a cool GPU.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.evaluate import TimedOp, time_ops
from sextant.simulator.kernels import estimate, host_rows, operator
from sextant.simulator.types import Cluster, Op
from sextant.studies import whole_data, whole_models
from sextant.validate.whole import engram_cases
from sextant.validate.whole.cases import WholeCase, steps

#: What counts as predicted: within so many seconds, or that share of the measured seconds.
NEAR_S, NEAR = 20e-6, 0.10
#: Rows of a program's tile that ``bounded`` asks for, as ``validate.whole.memory`` has it.
BOUNDED = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """Seconds that a way of fetching adds to a pass: ``fetch_s`` the fetch, ``window_s`` what computes beside it,
    ``slowed_s`` what that loses."""

    seconds: float
    fetch_s: float
    window_s: float = 0.0
    slowed_s: float = 0.0


def exposed(case: WholeCase, way: str, device: str = "h200") -> Exposed:
    """What ``way`` (of ``engram_cases.WAYS``) adds to the case's pass without a fetch."""
    if way not in engram_cases.WAYS:
        raise InputError(f"way: unknown way {way!r}; {nearest(way, engram_cases.WAYS)}")
    if way == "none":
        return Exposed(seconds=0.0, fetch_s=0.0)
    cluster = whole_models.scenario_of(case, device, cool=True).cluster
    (fetch,) = [op for op in steps(engram_cases.planned(case, way))[0].ops if op.name == "engram_gather"]
    if way == "hbm":
        seconds = float(estimate(fetch, cluster).seconds)
        return Exposed(seconds=seconds, fetch_s=seconds)
    if way in ("inline", "full"):
        # A thousand reads in flight hold up whatever else there is: ahead or not, nothing is hidden.
        seconds = float(host_rows.all_sms_s(fetch, cluster))
        return Exposed(seconds=seconds, fetch_s=seconds)
    front = _in_front(case, cluster)
    window_s = sum(seconds for _, seconds in front)
    if way == "copy":
        size = {"bytes": fetch.shape["lookups"] * fetch.shape["row_bytes"]}
        copy_s = float(estimate(operator("host_copy", "h2d", "bf16", size, variant="h2d"), cluster).seconds)
        return Exposed(seconds=max(copy_s - window_s, 0.0), fetch_s=copy_s, window_s=window_s)
    return _by_few(fetch, cluster, front, bounded=way == "bounded")


def _by_few(fetch: Op, cluster: Cluster, front: list[tuple[TimedOp, float]], *, bounded: bool) -> Exposed:
    """Compute is slowed while the fetch runs, and what then remains of the fetch is waited for."""
    shape, device = fetch.shape, cluster.device
    rows = BOUNDED if bounded else host_rows.tile_rows(shape["lookups"], shape["row_bytes"], device.n_sms)
    window_s = sum(seconds for _, seconds in front)
    if not front:
        seconds = float(host_rows.few_s(fetch, cluster, rows, cold="first"))
        return Exposed(seconds=seconds, fetch_s=seconds)
    fetch_s = float(host_rows.beside_s(fetch, cluster, rows))
    in_flight = np.minimum(host_rows.N_PROGRAMS * rows, shape["lookups"])
    slowed = sum(
        n * float(host_rows.slowed_s(item.op, item.time.seconds, device, in_flight)) for item, n in _runs(front)
    )
    share = min(fetch_s / (window_s + slowed), 1.0)
    seconds = share * slowed + max(fetch_s - window_s - slowed, 0.0)
    return Exposed(seconds=seconds, fetch_s=fetch_s, window_s=window_s, slowed_s=share * slowed)


def _in_front(case: WholeCase, cluster: Cluster) -> list[tuple[TimedOp, float]]:
    """Operators of the layers in front of the block, with their seconds in all of these."""
    (place,) = case.model.engram_layers
    dense = min(float(case.model.first_k_dense_replace), place - 1.0)
    layers = {"dense_layer": dense, "moe_layer": place - 1.0 - dense}
    left_out = {name for each in case.differs for name in each.instead_of}
    timed = time_ops(steps(case)[0], cluster)
    return [
        (item, layers[item.op.part] * float(item.op.count) * float(item.time.seconds))
        for item in timed.ops
        if layers.get(item.op.part) and item.op.name not in left_out
    ]


def _runs(front: list[tuple[TimedOp, float]]) -> list[tuple[TimedOp, float]]:
    """Each operator with how often it runs."""
    return [(item, seconds / float(item.time.seconds)) for item, seconds in front if seconds]


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
    predicted_s, error}, per run."""
    known = {case.name: case for case in engram_cases.cases()}
    sums: dict[tuple[str, str], list[float]] = {}
    for row in rows(device, folder, kernels=True):
        operators = [name for name, kernels in _KERNELS.items() if row["kernel"] in kernels]
        if row["way"] == "none" and operators and row["case"].startswith(prefix):
            total = sums.setdefault((row["case"], operators[0]), [0.0, 0.0])
            total[0], total[1] = float(row["count"]), total[1] + 1e-6 * float(row["us"])
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


#: Kernels of the passes that one operator's prediction stands for.
_KERNELS = {
    "mhc_pre": ("_mappings_product", "_mix_in"), "mhc_post": ("_mix_out",), "engram_gate": ("gate",),
    "engram_conv": ("convolve",),
}  # fmt: skip
