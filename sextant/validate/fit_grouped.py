"""Fit the grouped matrix product from whole expert layers, the only form in which the kernel database has it.

A row of ``moe`` is the routed experts of one device: permutation, up and gate product, SwiGLU, down product, weighted
sum. Its time is two grouped products plus an explicit overhead, the block ``moe_<format>``:

    overhead_s      launches of routing, permutation, activation and sum
    hidden_passes   bytes moved outside the products per token-expert pair, in units of one BF16 row of hidden elements
    ffn_passes      the same in units of one BF16 row of expert_ffn elements
    token_passes    bytes per token of the whole expert-parallel group: its rows are scanned on every device

Whole (hidden, expert_ffn) layers are held out. Only balanced rows are used: a skewed one is its most loaded expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels.tiles import product_fit
from sextant.simulator.types import Device, KernelFit, Num
from sextant.validate.fit_gemm import sourced
from sextant.validate.prediction import experts
from sextant.validate.prediction.experts import moe_seconds
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, held_out, solve, with_fit

HELD_OUT_SHARE = 0.25

#: Coefficients that a grouped kernel has of its own; the others stay the dense kernel's.
_PRODUCT = {
    "math_share": Bounds(start=0.75, low=0.3, high=0.93),
    "load_ratio": Bounds(start=4.0, low=1.0, high=12.0),
    "fill_s": Bounds(start=1.5e-6, low=0.0, high=1e-5),
    "hbm_share": Bounds(start=0.85, low=0.5, high=0.95),
    "exposed": Bounds(start=0.25, low=0.0, high=1.0),
}
_OVERHEAD = {
    "overhead_s": Bounds(start=1.8e-5, low=1e-6, high=5e-5),
    "hidden_passes": Bounds(start=4.0, low=2.0, high=20.0),
    "ffn_passes": Bounds(start=3.0, low=2.0, high=20.0),
    "token_passes": Bounds(start=1.0, low=0.0, high=10.0),
}

COEFFICIENTS: Mapping[str, Mapping[str, Bounds]] = {
    "bf16": {**_PRODUCT, **_OVERHEAD},
    "fp8_block": {**_PRODUCT, "padding": Bounds(start=1.0, low=0.0, high=5.0), **_OVERHEAD},
}

#: Layers of the kernel database whose experts have no gate (hidden, expert_ffn): its collector measures Nemotron-3 with
#: squared ReLU, and those rows take two thirds of the time of a gated one. Rows do not say so; they are not fitted to.
UNGATED = ((2048, 5120), (8192, 5120), (2688, 1856))

#: A row this far from its prediction ran another kernel: the database has 2 to 10 times slower untuned ones.
FALLBACK = 2.0


def expert_layers(rows: Sequence[Row]) -> dict[str, Num]:
    """What one device computes (``prediction.experts.expert_layers``), shapes (n_rows,)."""
    return experts.expert_layers(columns(rows, "moe"))


def fit_grouped(
    rows: Sequence[Row], device: Device, format: str, source: str = "", routing: str = "exact"
) -> list[Fitted]:
    """Blocks ``grouped_gemm_<format>`` and ``moe_<format>`` from balanced, gated ``moe`` rows of that format.

    ``device`` must hold ``gemm_<format>``, whose other coefficients the grouped kernel keeps (without its smooth
    correction and the split along k). Both blocks carry the errors of whole expert layers.
    """
    if format not in COEFFICIENTS:
        raise InputError(f"format {format!r} cannot be fitted; {nearest(format, COEFFICIENTS)}")
    rows = [row for row in rows if row.get("format") == format and row.get("routing", "balanced") == "balanced"]
    rows = [row for row in rows if (int(row["hidden"]), int(row["expert_ffn"])) not in UNGATED]
    test = held_out([(row["hidden"], row["expert_ffn"]) for row in rows], HELD_OUT_SHARE)
    layers = expert_layers(rows)
    dense = product_fit(device, "gemm", format).coefficients
    kept = {k: v for k, v in dense.items() if not k.startswith(("correction", "reduce", "convert"))}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        with_blocks = device
        for name, block in _blocks(fit, kept, format).items():
            with_blocks = with_fit(with_blocks, name, block)
        chosen_layers = {name: np.asarray(values)[chosen] for name, values in layers.items()}
        return np.asarray(moe_seconds(chosen_layers, format, alone(with_blocks), routing=routing))

    measured_s = column(rows, "us") * 1e-6
    fitted = solve(f"moe_{format}", COEFFICIENTS[format], predict, measured_s, test, source)
    known = sourced(fitted.fit, "whole expert layers (hidden, expert_ffn)", fitted.held_out)
    blocks = _blocks(known, kept, format)
    product = f"grouped_gemm_{format}"
    blocks[product] = _tuned_interval(blocks[product], measured_s[test] / predict(fitted.fit, test))
    return [replace(fitted, name=name, fit=fit) for name, fit in blocks.items()]


def _tuned_interval(fit: KernelFit, ratios: Array) -> KernelFit:
    """The interval of the product without the rows whose library chose a fallback kernel, and the source saying so.

    Those rows hang together by layer and parallel layout, not by the product's shape; ``moe_<format>`` keeps them.
    """
    tuned = ratios[(ratios > 1.0 / FALLBACK) & (ratios < FALLBACK)]
    low, high = np.quantile(tuned, [0.05, 0.95])
    left_out = 1.0 - len(tuned) / len(ratios)
    source = f"{fit.source}; interval without the {left_out:.1%} of held-out rows off by more than {FALLBACK:g}x"
    return replace(fit, low=float(low), high=float(high), source=source)


def _blocks(fit: KernelFit, dense: Mapping[str, Num], format: str) -> dict[str, KernelFit]:
    """The joint coefficients split into the block of the product and that of the overhead."""
    own = {k: v for k, v in fit.coefficients.items() if k not in _OVERHEAD}
    overhead = {k: v for k, v in fit.coefficients.items() if k in _OVERHEAD}
    return {
        f"grouped_gemm_{format}": replace(fit, coefficients={**dense, **own}),
        f"moe_{format}": replace(fit, coefficients=overhead),
    }
