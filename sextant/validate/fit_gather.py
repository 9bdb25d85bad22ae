"""Fit the gather of table rows: ``gather_hbm``, ``gather_host`` and ``gather_cpu_copy`` from rows with tier, rows, dim,
lookups, us. Whole row widths are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.kernels.gather import SECTOR_BYTES, features
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.prediction import operators
from sextant.validate.residuals import Pairs, corrected, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, solve, with_fit

_COMMON = {
    "efficiency": Bounds(start=0.8, low=0.1, high=1.0),
    "overlap_power": Bounds(start=4.0, low=1.0, high=20.0),
    "floor_s": Bounds(start=1.5e-6, low=1e-7, high=5e-5),
}
_KERNEL = {**_COMMON, "unaligned": Bounds(start=1.3, low=1.0, high=2.0)}
#: HBM shows how fast blocks are issued, and no cost of translation up to tables of 64 GiB; host memory the reverse.
BOUNDS: Mapping[str, Mapping[str, Bounds]] = {
    "hbm": {
        **_KERNEL,
        "rows_per_s": Bounds(start=1.6e9, low=1e8, high=1e10),
        "spread": Bounds(start=15.0, low=4.0, high=24.0),
        "cold_s": Bounds(start=8e-7, low=0.0, high=2e-6),
        "cold_share": Bounds(start=0.04, low=0.02, high=0.08),
    },
    "host": {
        **_KERNEL,
        "miss_s": Bounds(start=2e-8, low=1e-9, high=2e-7),
        "reach_bytes": Bounds(start=6e8, low=1e8, high=4e9),
        "growth": Bounds(start=0.12, low=0.0, high=0.5),
        "walkers": Bounds(start=200.0, low=0.0, high=2000.0),
    },
    "cpu_copy": {**_COMMON, "rows_per_s": Bounds(start=2e8, low=1e7, high=1e10)},
}
_NO_WALKS = {"miss_s": 0.0, "reach_bytes": 1e9, "growth": 0.0}
#: Steps in which no time may fall.
_STEP = 2.0**0.5
#: What corrections depend on.
_FEATURES: Mapping[str, tuple[str, ...]] = {
    "hbm": ("log2_lookups", "log2_row_bytes", "unaligned"),
    "host": ("log2_lookups", "log2_row_bytes", "unaligned"),
    "cpu_copy": ("log2_lookups", "log2_row_bytes"),
}


def variant_of(row: Row) -> str | None:
    """How a row of a gather fetches: from ``hbm``, ``host``, or by ``cpu_copy``; None where it is no measured one."""
    if row.get("op") != "gather" or not row.get("us"):
        return None
    return str(row.get("variant") or row["tier"])


def fit_gather(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The blocks ``gather_<variant>`` of the variants in ``rows``; host memory takes the pace of issue from HBM's rows.
    Both of these are needed: InputError where one is absent."""
    found: list[Fitted] = []
    fixed: Mapping[str, float] = _NO_WALKS
    for variant in BOUNDS:
        part = [row for row in rows if variant_of(row) == variant]
        if not part and variant == "cpu_copy":
            continue
        if not part:
            raise InputError(f"no rows of gather from tier {variant!r}; check columns 'op', 'tier' and 'us'")
        found.append(_fit(variant, part, device, source, fixed))
        issued = {name: float(found[0].fit.coefficients[name]) for name in ("rows_per_s", "spread")}
        fixed = issued if variant == "hbm" else _NO_WALKS
    return found


def gather_op(rows: Sequence[Row], variant: str) -> Op:
    """All rows of one variant as one operator."""
    return operators.gather(columns(rows, "gather"), variant)


def _fit(variant: str, rows: Sequence[Row], device: Device, source: str, fixed: Mapping[str, float]) -> Fitted:
    name, measured_s, test = f"gather_{variant}", column(rows, "us") * 1e-6, held_out_rows(rows)
    whole = gather_op(rows, variant)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in whole.shape.items()}
        return np.asarray(estimate(replace(whole, shape=part), alone(with_fit(device, name, fit))).seconds)

    fitted = solve(name, BOUNDS[variant], predict, measured_s, test, source, fixed)
    names = _FEATURES[variant]
    known = {key: np.asarray(value, dtype=np.float64) for key, value in features(whole.shape).items() if key in names}
    pairs = _steps(fitted.fit, name, device, whole, names)
    return corrected(fitted, predict, known, measured_s, test, whole_shapes(rows), pairs=pairs)


def _steps(fit: KernelFit, name: str, device: Device, op: Op, names: tuple[str, ...]) -> Pairs:
    """Tables, rows and batches over the range of sizes, and the same with more of one of them. The table is one where
    a correction does not depend on it."""
    cluster = alone(with_fit(device, name, fit))
    tables = np.arange(20.0, 44.0) if "log2_table_bytes" in names else np.array([30.0])
    widths = np.unique(_aligned(2.0 ** np.arange(5.0, 13.5, 0.5)))
    grid = np.meshgrid(2.0 ** np.arange(0.0, 27.0), widths, 2.0**tables)
    shape = {key: axis.ravel() for key, axis in zip(("lookups", "row_bytes", "table_bytes"), grid, strict=True)}
    lower = [shape] * 3
    upper = [{**shape, key: _STEP * values} for key, values in shape.items()]
    upper[1]["row_bytes"] = _aligned(upper[1]["row_bytes"])
    points = [
        {key: np.concatenate([np.asarray(features(one)[key]) for one in side]) for key in names}
        for side in (lower, upper)
    ]
    growth = [
        np.log(np.asarray(estimate(replace(op, shape=b), cluster).seconds)
               / np.asarray(estimate(replace(op, shape=a), cluster).seconds))
        for a, b in zip(lower, upper, strict=True)
    ]  # fmt: skip
    return Pairs(lower=points[0], upper=points[1], growth=np.concatenate(growth))


def _aligned(row_bytes: Array) -> Array:
    """The next row that starts on a multiple of what an access moves."""
    return np.ceil(row_bytes / SECTOR_BYTES["hbm"]) * SECTOR_BYTES["hbm"]
