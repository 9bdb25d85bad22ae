"""Fit the grouped matrix product: from measured products (``fit_products``), or from whole expert layers where that is
the only form in which the rows have it (``fit_grouped``).

A row of ``moe`` is the routed experts of one device: permutation, up and gate product, SwiGLU, down product, weighted
sum. Its time is two grouped products plus an explicit overhead, the block ``moe_<format>``:

    overhead_s      launches of routing, permutation, activation and sum
    hidden_passes   bytes moved outside the products per token-expert pair, in units of one BF16 row of hidden elements
    ffn_passes      the same in units of one BF16 row of expert_ffn elements
    token_passes    bytes per token of the whole expert-parallel group: its rows are scanned on every device

Where products were measured themselves, layers of the same kernels only add these four (``fit_layers``). Whole (n, k)
sites and whole (hidden, expert_ffn) layers are held out. Only balanced rows are used: a skewed one is its most loaded
expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import estimate, grouped_gemm, tiles
from sextant.simulator.kernels.tiles import product_fit
from sextant.simulator.types import Device, KernelFit, Num, Op
from sextant.validate.fit_gemm import sourced
from sextant.validate.prediction import experts, operators
from sextant.validate.prediction.experts import moe_seconds
from sextant.validate.residuals import Pairs, corrected, crossed, grown, held_out_rows, whole_shapes
from sextant.validate.solver import (
    Array,
    Bounds,
    Fitted,
    Row,
    alone,
    central,
    column,
    columns,
    held_out,
    solve,
    with_fit,
)

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

#: Of products measured themselves: kernels of CUTLASS as torch builds them (``tiles.grouped_tile``).
_MEASURED = {
    "launch_s": Bounds(start=5e-6, low=1e-7, high=3e-5),
    "math_share": Bounds(start=0.8, low=0.3, high=1.0),
    "load_ratio": Bounds(start=4.0, low=0.3, high=12.0),
    "fill_s": Bounds(start=1.5e-6, low=0.0, high=1e-5),
    "hbm_share": Bounds(start=0.88, low=0.3, high=0.95),
    "ramp_s": Bounds(start=1.2e-6, low=0.0, high=1e-5),
    "exposed": Bounds(start=0.25, low=0.0, high=1.0),
    "step_s": Bounds(start=3e-10, low=0.0, high=5e-9),
    "l2_warm": Bounds(start=0.2, low=0.0, high=0.6),
    "whole_waves": Bounds(start=0.8, low=0.0, high=1.0),
    "crowding": Bounds(start=0.4, low=0.0, high=0.9),
}
_N_CENTRES = 96

#: Layers of the kernel database whose experts have no gate (hidden, expert_ffn): its collector measures Nemotron-3 with
#: squared ReLU, and those rows take two thirds of the time of a gated one. Rows do not say so; they are not fitted to.
UNGATED = ((2048, 5120), (8192, 5120), (2688, 1856))

#: A row this far from its prediction ran another kernel: the database has 2 to 10 times slower untuned ones.
FALLBACK = 2.0


def expert_layers(rows: Sequence[Row]) -> dict[str, Num]:
    """What one device computes (``prediction.experts.expert_layers``), shapes (n_rows,)."""
    return experts.expert_layers(columns(rows, "moe"))


def fit_products(rows: Sequence[Row], device: Device, format: str, source: str = "") -> Fitted:
    """The block ``grouped_gemm_<format>`` from measured ``grouped_gemm`` rows of that format, weight gradients left
    out; InputError where there are none."""
    rows = [row for row in rows if row["op"] == "grouped_gemm" and row["format"] == format and row.get("us", "")]
    rows = [row for row in rows if row.get("variant", "") != "wgrad"]
    if not rows:
        raise InputError(f"no measured rows of grouped_gemm in {format!r}; check columns 'op', 'format' and 'us'")
    name, measured_s, test = f"grouped_gemm_{format}", column(rows, "us") * 1e-6, held_out_rows(rows)
    whole = operators.grouped_gemm(columns(rows, "grouped_gemm"), format)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in whole.shape.items()}
        return np.asarray(estimate(replace(whole, shape=part), alone(with_fit(device, name, fit))).seconds)

    fitted = solve(name, _MEASURED, predict, measured_s, test, source, {"cluster": 2.0})
    found = corrected(
        fitted, predict, _features(whole, device), measured_s, test, whole_shapes(rows), n_centres=_N_CENTRES,
        pairs=_doublings(whole, fitted.fit, device),
    )  # fmt: skip
    return replace(found, fit=sourced(found.fit, "whole (n, k) sites", found.held_out))


def _doublings(op: Op, fit: KernelFit, device: Device) -> Pairs:
    """Products of whole tiles over the range of sizes, and with twice the tokens, the columns or the groups."""
    cluster = alone(with_fit(device, f"grouped_gemm_{op.format}", fit))
    lower = crossed(
        groups=2.0 ** np.arange(1.0, 7.0), tokens_per_group=2.0 ** np.arange(9.0, 14.0), n=2.0 ** np.arange(9.0, 14.0),
        k=2.0 ** np.arange(9.0, 13.5, 0.5),
    )  # fmt: skip
    uppers = [{**lower, name: 2.0 * lower[name]} for name in ("groups", "tokens_per_group", "n")]

    def seconds(shape: Mapping[str, Array]) -> Array:
        return np.asarray(estimate(replace(op, shape=shape), cluster).seconds)

    return grown(lower, uppers, seconds, lambda shape: _features(replace(op, shape=shape), device))


def _features(op: Op, device: Device) -> dict[str, Array]:
    found = tiles.features(grouped_gemm.product(op), device)
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def fit_layers(rows: Sequence[Row], device: Device, format: str, source: str = "") -> Fitted:
    """The block ``moe_<format>`` from balanced layers of routed experts (their router not among them), given the
    products of ``device``; InputError where there are none."""
    rows = [row for row in rows if row["op"] == "moe" and row["format"] == format and row.get("us", "")]
    rows = [row for row in rows if row.get("routing", "balanced") == "balanced" and not row.get("variant")]
    if not rows:
        raise InputError(f"no measured rows of moe in {format!r}; check columns 'op', 'format' and 'us'")
    name, measured_s, test = f"moe_{format}", column(rows, "us") * 1e-6, held_out_rows(rows)
    layers = expert_layers(rows)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in layers.items()}
        return np.asarray(moe_seconds(part, format, alone(with_fit(device, name, fit)), routing="exact"))

    fitted = solve(name, _OVERHEAD, predict, measured_s, test, source)
    return replace(fitted, fit=sourced(fitted.fit, "whole expert layers (hidden, expert_ffn)", fitted.held_out))


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
    whole = [f"{row['hidden']}x{row['expert_ffn']}" for row in rows]
    known_of = {name: np.asarray(values, dtype=np.float64) for name, values in experts.features(layers).items()}
    fitted = corrected(fitted, predict, known_of, measured_s, test, whole, n_centres=_N_CENTRES)
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
    low, high = central(tuned)
    left_out = 1.0 - len(tuned) / len(ratios)
    source = f"{fit.source}; interval without the {left_out:.1%} of held-out rows off by more than {FALLBACK:g}x"
    return replace(fit, low=float(low), high=float(high), source=source)


def _blocks(fit: KernelFit, dense: Mapping[str, Num], format: str) -> dict[str, KernelFit]:
    """The joint coefficients split into the block of the product and that of the overhead."""
    own = {k: v for k, v in fit.coefficients.items() if k not in _OVERHEAD}
    overhead = {k: v for k, v in fit.coefficients.items() if k in _OVERHEAD}
    return {
        f"grouped_gemm_{format}": replace(fit, coefficients={**dense, **own}, correction=None),
        f"moe_{format}": replace(fit, coefficients=overhead),
    }
