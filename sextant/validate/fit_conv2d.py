"""Fit convolutions: the tile model of products on the implicit product of a convolution. Whole layers are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import conv2d, estimate, tiles
from sextant.simulator.types import Device, KernelFit
from sextant.validate.fit_gemm import BARE_COEFFICIENTS, sourced
from sextant.validate.prediction import operators
from sextant.validate.residuals import corrected, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Fitted, Row, alone, column, columns, solve, with_fit

#: Those of a product, of which a convolution neither splits k nor finds its input in L2 so often.
COEFFICIENTS = {name: bound for name, bound in BARE_COEFFICIENTS["bf16"].items() if name != "reduce_s"}


def fit_conv2d(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The block ``conv2d_bf16`` from forward rows that are not depthwise; InputError where there are none."""
    rows = [row for row in rows if row["op"] == "conv2d" and row.get("us", "") and row["format"] == "bf16"]
    rows = [row for row in rows if row.get("direction", "") != "backward" and float(row.get("groups") or 1.0) == 1.0]
    if not rows:
        raise InputError("no measured rows of conv2d in bf16; check columns 'op', 'format' and 'us'")
    name, measured_s, test = "conv2d_bf16", column(rows, "us") * 1e-6, held_out_rows(rows)
    whole = operators.convolution(columns(rows, "conv2d"), "bf16")

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in whole.shape.items()}
        return np.asarray(estimate(replace(whole, shape=part), alone(with_fit(device, name, fit))).seconds)

    fitted = solve(name, COEFFICIENTS, predict, measured_s, test, source)
    known = {
        key: np.asarray(values, dtype=np.float64)
        for key, values in tiles.features(conv2d.product(whole), device).items()
    }
    found = corrected(fitted, predict, known, measured_s, test, whole_shapes(rows))
    return [replace(found, fit=sourced(found.fit, "whole layers", found.held_out))]
