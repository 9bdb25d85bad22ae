"""Fit copies between pinned host memory and the device: ``host_copy_h2d`` and ``host_copy_d2h``. Whole sizes are held
out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.kernels.host_copy import DIRECTIONS, features
from sextant.simulator.types import Device, KernelFit
from sextant.validate.prediction import operators
from sextant.validate.residuals import Pairs, corrected, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, solve, with_fit

BOUNDS = {
    "efficiency": Bounds(start=0.86, low=0.3, high=1.0),
    "floor_s": Bounds(start=2e-6, low=1e-7, high=2e-5),
}


def fit_host_copy(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """A block for each direction in ``rows``. InputError where there is none."""
    rows = [row for row in rows if row["op"] in DIRECTIONS and row.get("us", "") != ""]
    if not rows:
        raise InputError(f"no measured rows of a copy; column 'op' says {' or '.join(DIRECTIONS)}")
    present = [direction for direction in DIRECTIONS if any(row["op"] == direction for row in rows)]
    return [_fit(direction, [row for row in rows if row["op"] == direction], device, source) for direction in present]


def _fit(direction: str, rows: Sequence[Row], device: Device, source: str) -> Fitted:
    name, measured_s, test = f"host_copy_{direction}", column(rows, "us") * 1e-6, held_out_rows(rows)
    size = column(rows, "bytes")

    def seconds(fit: KernelFit, n_bytes: Array) -> Array:
        op = operators.host_copy(direction, {"bytes": n_bytes})
        return np.asarray(estimate(op, alone(with_fit(device, name, fit))).seconds)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        return seconds(fit, size[chosen])

    def known(n_bytes: Array) -> dict[str, Array]:
        return {key: np.asarray(value, dtype=np.float64) for key, value in features({"bytes": n_bytes}).items()}

    fitted = solve(name, BOUNDS, predict, measured_s, test, source)
    sizes = 2.0 ** np.arange(8.0, 34.0, 0.5)
    growth = np.log(seconds(fitted.fit, 2.0 * sizes) / seconds(fitted.fit, sizes))
    pairs = Pairs(lower=known(sizes), upper=known(2.0 * sizes), growth=growth)
    return corrected(fitted, predict, known(size), measured_s, test, whole_shapes(rows), pairs=pairs)
