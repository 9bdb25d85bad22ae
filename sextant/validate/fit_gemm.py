"""Fit the tile model of dense matrix products, one format at a time. Whole (n, k) sites are held out.

First the physical coefficients by least squares on the log error, then a smooth correction over (tiles per SM, k) by
ridge regression on what is left. Neither sees a held-out row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import estimate, operator, tiles
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.prediction import operators
from sextant.validate.solver import (
    Array,
    Bounds,
    Errors,
    Fitted,
    Row,
    alone,
    column,
    columns,
    errors,
    held_out,
    solve,
    with_fit,
)

#: Share of the (n, k) sites held out.
HELD_OUT_SHARE = 0.25

#: Coefficients of every format; see ``sextant.simulator.kernels.tiles`` for what each means.
_COMMON = {
    "math_share": Bounds(start=0.8, low=0.3, high=1.0),
    "load_ratio": Bounds(start=5.0, low=1.0, high=12.0),
    "fill_s": Bounds(start=1.5e-6, low=0.0, high=1e-5),
    "hbm_share": Bounds(start=0.88, low=0.5, high=0.95),
    "ramp_s": Bounds(start=1.2e-6, low=0.0, high=1e-5),
    "exposed": Bounds(start=0.25, low=0.0, high=1.0),
}
#: A library that tunes its tile shape and splits k.
_TUNED = {
    "step_s": Bounds(start=3e-10, low=0.0, high=3e-9),
    "l2_warm": Bounds(start=0.2, low=0.0, high=0.6),
    "reduce_s": Bounds(start=2.5e-6, low=0.0, high=2e-5),
}
#: Block-scaled kernels: one tile height, no split.
_BLOCK_SCALED = {
    "whole_waves": Bounds(start=0.8, low=0.0, high=1.0),
    "crowding": Bounds(start=0.4, low=0.0, high=0.9),
    "padding": Bounds(start=1.2, low=0.0, high=5.0),
}
_CONVERT_S = {"convert_s": Bounds(start=2e-6, low=0.0, high=2e-5)}
#: Per-tensor scaling reads x once more for its maximum, and so feels the L2 cache; per-block scaling does not.
_CONVERT_BLOCK = {**_CONVERT_S, "convert": Bounds(start=5.0, low=3.0, high=15.0)}
_CONVERT_TENSOR = {**_CONVERT_BLOCK, "convert_spill": Bounds(start=3.0, low=0.0, high=15.0)}
_LAUNCH = {"launch_s": Bounds(start=1.5e-6, low=1e-7, high=1e-5)}

COEFFICIENTS: Mapping[str, Mapping[str, Bounds]] = {
    "bf16": {**_LAUNCH, **_COMMON, **_TUNED},
    "fp8": {**_COMMON, **_TUNED, **_CONVERT_TENSOR},
    "fp8_block": {**_COMMON, **_BLOCK_SCALED, **_CONVERT_BLOCK},
}

#: Rows count as this many knots' worth of zero: keeps the correction small where measurements are few.
_RIDGE = 3.0
#: Larger errors do not pull the correction: they are rare choices of a library, not a trend.
_LARGEST_RESIDUAL = 0.3
#: Twice the rows take at least this much longer (log; half the model's growth where that is less). Constraints further
#: from binding than _NEAR wait until a solution violates them.
_SMALLEST_GROWTH, _NEAR = 1e-3, 0.15


def gemm_op(rows: Sequence[Row], format: str) -> Op:
    """One array operator for ``rows`` (m, n, k). FP8 calls of the measured library take BF16 activations."""
    return operators.gemm(columns(rows, "gemm"), format)


def fit_gemm(rows: Sequence[Row], device: Device, format: str, source: str = "", *, correct: bool = True) -> Fitted:
    """The block ``gemm_<format>`` from rows with m, n, k, us of that format (other rows are ignored).

    An FP8 call is a conversion and a product: the product's own launch cannot be told from the conversion's, so it is
    taken from ``device``'s block ``gemm_bf16`` (or its launch_s) and the rest is ``convert_s``. ``correct=False``
    leaves the smooth correction out. InputError for an unknown format or too few rows.
    """
    if format not in COEFFICIENTS:
        raise InputError(f"format {format!r} cannot be fitted; {nearest(format, COEFFICIENTS)}")
    rows = [row for row in rows if row.get("format") == format]
    name, measured_s = f"gemm_{format}", column(rows, "us") * 1e-6
    test = held_out([(row["n"], row["k"]) for row in rows], HELD_OUT_SHARE)
    parts = {True: gemm_op(_kept(rows, test), format), False: gemm_op(_kept(rows, ~test), format)}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        op = parts[bool(chosen[np.argmax(test)])]
        return np.asarray(estimate(op, alone(with_fit(device, name, fit))).seconds)

    fixed = {} if format == "bf16" else {"launch_s": _launch_s(device)}
    fitted = solve(name, COEFFICIENTS[format], predict, measured_s, test, source, fixed)
    if not correct:
        return replace(fitted, fit=sourced(fitted.fit, "whole (n, k) sites", fitted.held_out))
    coefficients = {
        **fitted.fit.coefficients,
        **_correction(parts[False], predict(fitted.fit, ~test), measured_s[~test], fitted.fit, device),
    }
    fit = replace(fitted.fit, coefficients=coefficients)
    tested = errors(predict(fit, test), measured_s[test])
    trained = errors(predict(fit, ~test), measured_s[~test])
    fit = sourced(replace(fit, low=tested.low, high=tested.high), "whole (n, k) sites", tested)
    return Fitted(name=name, fit=fit, training=trained, held_out=tested)


def sourced(fit: KernelFit, unseen: str, e: Errors) -> KernelFit:
    """``fit`` with what was held out, and the errors there, in its source."""
    said = f"held-out error {e.mape:.1%} mean, {e.median:.1%} median, {e.p95:.0%} at the 95th percentile"
    return replace(fit, source=f"{fit.source}; held out: {unseen}; {said} over {e.n_rows} rows")


def _kept(rows: Sequence[Row], chosen: NDArray[np.bool_]) -> list[Row]:
    return [row for row, keep in zip(rows, chosen, strict=True) if keep]


def _launch_s(device: Device) -> float:
    if "gemm_bf16" in device.kernels:
        return float(device.kernels["gemm_bf16"].coefficients["launch_s"])
    return float(device.launch_s)


def _correction(op: Op, predicted_s: Array, measured_s: Array, fit: KernelFit, device: Device) -> dict[str, float]:
    """Ridge regression of log(measured / predicted) on the bilinear knots, as coefficients.

    More rows must never take less time, also where the uncorrected time ``fit`` gives hardly grows with them: the
    regression is bound by that law on a grid of shapes far wider than the measured ones.
    """
    residual = np.clip(np.log(measured_s / predicted_s), -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
    weights = _weights(op, device)
    normal = weights.T @ weights + _RIDGE * np.eye(weights.shape[1])
    free = np.asarray(np.linalg.solve(normal, weights.T @ residual), dtype=np.float64)
    lower, upper = _doublings(op.format)
    cluster = alone(with_fit(device, f"gemm_{op.format}", fit))
    growth = np.log(np.asarray(estimate(upper, cluster).seconds) / np.asarray(estimate(lower, cluster).seconds))
    steps = _weights(upper, device) - _weights(lower, device)
    values = _constrained(free, normal, steps, np.minimum(_SMALLEST_GROWTH, growth / 2.0) - growth)
    keys = [key for row in tiles.CORRECTION_KEYS for key in row]
    return {key: float(value) for key, value in zip(keys, values, strict=True)}


def _weights(op: Op, device: Device) -> Array:
    m, n, k = (np.asarray(op.shape[name], dtype=float) for name in ("m", "n", "k"))
    return tiles.correction_weights(np.ceil(m / 128.0) * np.ceil(n / 128.0) / device.n_sms, k)


def _doublings(format: str) -> tuple[Op, Op]:
    """Products of whole tiles over the range of sizes, and the same with twice the rows."""
    rows, columns = 256.0 * 2.0 ** np.arange(10), 16.0 * np.round(2.0 ** np.arange(1, 13.1, 0.5))
    grid = np.meshgrid(rows, columns, 2.0 ** np.arange(5, 17.1, 0.5), indexing="ij")
    m, n, k = (np.asarray(axis.ravel(), dtype=np.float64) for axis in grid)
    lower = operator("gemm", "gemm", format, {"m": m, "n": n, "k": k})
    return lower, operator("gemm", "gemm", format, {"m": 2.0 * m, "n": n, "k": k})


def _constrained(free: Array, normal: Array, steps: Array, least: Array) -> Array:
    """The point nearest to ``free`` in the metric ``normal`` with ``steps @ point >= least``.

    Least distance programming by non-negative least squares (Lawson and Hanson 1974, chapter 23).
    """
    root = np.linalg.cholesky(normal).T
    bent = np.linalg.solve(root.T, steps.T).T
    slack = least - steps @ free
    tight, point = slack > -_NEAR, free
    while (steps @ point < least - 1e-12).any():
        tight |= steps @ point < least
        dual, _ = nnls(np.vstack([bent[tight].T, slack[tight]]), np.append(np.zeros(len(free)), 1.0))
        rest = np.append(bent[tight].T @ dual, slack[tight] @ dual - 1.0)
        known, point = point, free + np.linalg.solve(root, -rest[:-1] / rest[-1])
        if np.array_equal(known, point):
            break
    return point
