"""Fit the tile model of dense matrix products, one format at a time. Whole (n, k) sites are held out.

First the physical coefficients by least squares on the log error, then a smooth correction of what is left
(``validate.residuals``). Neither sees a held-out row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import estimate, gemm, operator, tiles
from sextant.simulator.types import Cluster, Device, KernelFit, Op
from sextant.validate.prediction import operators
from sextant.validate.prediction.operators import BARE
from sextant.validate.residuals import Pairs, corrected, held_out_rows, whole_shapes
from sextant.validate.solver import (
    Array,
    Bounds,
    Errors,
    Fitted,
    Row,
    alone,
    column,
    columns,
    solve,
    with_fit,
)

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
#: GPUs before FP8 launch one block per tile, whose last wave leaves SMs idle; later ones choose tiles that fill it.
_WAVES = {"whole_waves": Bounds(start=0.5, low=0.0, high=1.0)}
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

#: A library whose only tile is square: waves are whole, k is never split.
_ONE_TILE = {
    "step_s": Bounds(start=3e-10, low=0.0, high=3e-9),
    "l2_warm": Bounds(start=0.2, low=0.0, high=0.6),
    "whole_waves": Bounds(start=0.8, low=0.0, high=1.0),
}
_UNALIGNED = {"unaligned": Bounds(start=2.0, low=1.0, high=10.0)}

#: Of a serving engine's calls, which take BF16 activations and convert them.
COEFFICIENTS: Mapping[str, Mapping[str, Bounds]] = {
    "bf16": {**_LAUNCH, **_COMMON, **_TUNED},
    "fp8": {**_COMMON, **_TUNED, **_CONVERT_TENSOR},
    "fp8_block": {**_COMMON, **_BLOCK_SCALED, **_CONVERT_BLOCK},
}
#: Of calls of cuBLAS through torch, whose FP8 operands are FP8 (``prediction.operators.BARE``). Of several sets of
#: tiles 128 x 128 alone had the least cross-validated error in both FP8 formats.
BARE_COEFFICIENTS: Mapping[str, Mapping[str, Bounds]] = {
    "bf16": {**_LAUNCH, **_COMMON, **_TUNED, **_UNALIGNED},
    "fp8": {**_LAUNCH, **_COMMON, **_ONE_TILE},
    "fp8_block": {**_LAUNCH, **_COMMON, **_ONE_TILE},
}
_BARE_FIXED: Mapping[str, Mapping[str, float]] = {"fp8": {"tile": 128.0}, "fp8_block": {"tile": 128.0}}

_N_CENTRES = 128
#: Variants with a block of their own (``fit_wgrad``) or a kernel of their own.
_APART = ("wgrad", "wgrad_bf16")


def gemm_op(rows: Sequence[Row], format: str) -> Op:
    """One array operator for ``rows`` (m, n, k), all of one library: FP8 calls of those in ``BARE`` take FP8 operands,
    those of others BF16 activations."""
    bare = _is_bare(rows)
    return operators.gemm(columns(rows, "gemm"), format, "quantised" if bare else "from_bf16")


def _is_bare(rows: Sequence[Row]) -> bool:
    """Whether rows name a library that takes FP8 operands; InputError where some do and some do not."""
    said = {row.get("library", "") in BARE for row in rows}
    if len(said) > 1:
        raise InputError("library: some rows take FP8 operands and some convert BF16; fit them apart")
    return said == {True}


def fit_gemm(rows: Sequence[Row], device: Device, format: str, source: str = "", *, correct: bool = True) -> Fitted:
    """The block ``gemm_<format>`` from rows with m, n, k, us of that format (other rows are ignored).

    Where an FP8 call is a conversion and a product, the product's own launch cannot be told from the conversion's, so
    it is taken from ``device``'s block ``gemm_bf16`` (or its launch_s) and the rest is ``convert_s``. ``correct=False``
    leaves the smooth correction out. InputError for an unknown format or too few rows.
    """
    if format not in COEFFICIENTS:
        raise InputError(f"format {format!r} cannot be fitted; {nearest(format, COEFFICIENTS)}")
    rows = [row for row in rows if _is_row(row, format)]
    name, measured_s, test = f"gemm_{format}", column(rows, "us") * 1e-6, held_out_rows(rows)
    parts = {True: gemm_op(_kept(rows, test), format), False: gemm_op(_kept(rows, ~test), format)}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        op = parts[bool(chosen[np.argmax(test)])]
        return np.asarray(estimate(op, alone(with_fit(device, name, fit))).seconds)

    bare = _is_bare(rows)
    fixed: dict[str, float] = {} if bare or format == "bf16" else {"launch_s": _launch_s(device)}
    bounds = BARE_COEFFICIENTS[format] if bare else COEFFICIENTS[format]
    if "fp8" not in device.peak_flops_per_s:
        bounds = {**bounds, **_WAVES}
    fixed |= _BARE_FIXED.get(format, {}) if bare else {}
    fitted = solve(name, bounds, predict, measured_s, test, source, fixed)
    if correct:
        features = _features(gemm_op(rows, format), device)
        lower, upper = _doublings(format)
        growth = _growth(lower, upper, alone(with_fit(device, name, fitted.fit)))
        if not bare and format != "bf16":
            # The law binds the call that converts its input, and the product alone.
            growth = np.minimum(
                growth,
                _growth(_bare_as(lower, bare), _bare_as(upper, bare), alone(with_fit(device, name, fitted.fit))),
            )
        pairs = Pairs(lower=_features(lower, device), upper=_features(upper, device), growth=growth)
        fitted = corrected(
            fitted, predict, features, measured_s, test, whole_shapes(rows), pairs=pairs, n_centres=_N_CENTRES
        )
    return replace(fitted, fit=sourced(fitted.fit, "whole (n, k) sites", fitted.held_out))


def _growth(lower: Op, upper: Op, cluster: Cluster) -> Array:
    """Logarithm of the seconds of the one over the other's."""
    return np.log(np.asarray(estimate(upper, cluster).seconds) / np.asarray(estimate(lower, cluster).seconds))


def _is_row(row: Row, format: str) -> bool:
    """A measured product of the format. Weight gradients with scaled blocks are another kernel, and so are FP8 calls
    with one scale per operand or with exact accumulation."""
    if row.get("op", "gemm") != "gemm" or row.get("format") != format or row.get("us", "") == "":
        return False
    variant = row.get("variant", "")
    return not (variant in ("accumulate", "per_tensor") or (format == "fp8_block" and variant in _APART))


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


def _bare_as(op: Op, bare: bool) -> Op:
    converts = not bare and op.format.startswith("fp8")
    return operator("gemm", op.name, op.format, op.shape, variant="from_bf16" if converts else "")


def _features(op: Op, device: Device) -> dict[str, Array]:
    """Features of the products of one array operator, (n_points,) each."""
    found = tiles.features(gemm.product(op), device)
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _doublings(format: str) -> tuple[Op, Op]:
    """Products of whole tiles over the range of sizes, and the same with twice the rows."""
    rows, widths = 256.0 * 2.0 ** np.arange(10), 16.0 * np.round(2.0 ** np.arange(1, 13.1, 0.5))
    grid = np.meshgrid(rows, widths, 2.0 ** np.arange(5, 17.1, 0.5), indexing="ij")
    m, n, k = (np.asarray(axis.ravel(), dtype=np.float64) for axis in grid)
    lower = operator("gemm", "gemm", format, {"m": m, "n": n, "k": k})
    return lower, operator("gemm", "gemm", format, {"m": 2.0 * m, "n": n, "k": k})
