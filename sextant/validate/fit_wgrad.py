"""Fit the tile model of FP8 weight gradients: both operands scaled per 128 along the reduction, FP32 result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.kernels import estimate
from sextant.simulator.types import Device, KernelFit
from sextant.validate.fit_gemm import COEFFICIENTS, sourced
from sextant.validate.prediction import operators
from sextant.validate.solver import Array, Fitted, Row, alone, column, columns, held_out, solve, with_fit

NAME = "gemm_fp8_block_wgrad"

#: Share of the few sites held out.
HELD_OUT_SHARE = 0.4

#: The coefficients that a few dozen large products can tell apart.
_FITTED = ("math_share", "load_ratio", "fill_s", "hbm_share", "exposed", "whole_waves")

#: What they cannot tell: taken as small, so that no fit hides in it.
_FIXED = {"launch_s": 2e-6, "ramp_s": 1e-6}


def is_row(row: Row) -> bool:
    """Whether a row measures a weight gradient in block-scaled FP8 with an FP32 result."""
    return row.get("op") == "gemm" and row.get("format") == "fp8_block" and row.get("variant") == "wgrad"


def fit_wgrad(rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """The block ``gemm_fp8_block_wgrad`` from rows with m, n, k, us; whole (m, n) sites are held out."""
    rows = [row for row in rows if is_row(row)]
    measured_s = column(rows, "us") * 1e-6
    shape = columns(rows, "gemm")
    test = held_out([(row["m"], row["n"]) for row in rows], HELD_OUT_SHARE)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        sizes = {name: values[chosen] for name, values in shape.items()}
        op = operators.gemm(sizes, "fp8_block", "wgrad")
        return np.asarray(estimate(op, alone(with_fit(device, NAME, fit))).seconds)

    bounds = {name: COEFFICIENTS["fp8_block"][name] for name in _FITTED}
    fitted = solve(NAME, bounds, predict, measured_s, test, source, _FIXED)
    return replace(fitted, fit=sourced(fitted.fit, "whole (m, n) sites", fitted.held_out))
