"""Fit attention and latent-attention kernels. Whole shapes are held out, never random rows of a dense grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.prediction import operators
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, held_out, solve, with_fit

TILED_BOUNDS = {
    "matrix_efficiency": Bounds(start=0.7, low=0.2, high=1.0),
    "exp_per_s_per_sm": Bounds(start=2.0e10, low=5e9, high=3.2e10),
    "overlap_power": Bounds(start=1.6, low=1.0, high=8.0),
    "prologue_tiles": Bounds(start=0.6, low=0.0, high=10.0),
    "wave_share": Bounds(start=0.6, low=0.0, high=1.0),
    "tail": Bounds(start=0.3, low=0.0, high=1.5),
    "passes": Bounds(start=1.4, low=1.0, high=5.0),
    "token_s": Bounds(start=2e-10, low=0.0, high=1e-8),
    "serial_power": Bounds(start=1.2, low=1.0, high=4.0),
    "floor_s": Bounds(start=1.2e-5, low=1e-6, high=4e-5),
}

DECODE_BOUNDS = {
    "efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "l2_share": Bounds(start=0.4, low=0.01, high=1.0),
    "l2_bytes_per_s": Bounds(start=1e13, low=4e12, high=2e13),
    "chunk_tokens": Bounds(start=320.0, low=32.0, high=4096.0),
    "program_bytes_per_s": Bounds(start=5e10, low=1e10, high=1e11),
    "program_s": Bounds(start=4e-6, low=0.0, high=2e-5),
    "light_program_s": Bounds(start=1.2e-6, low=0.0, high=2e-5),
    "row_s": Bounds(start=5e-12, low=0.0, high=1e-10),
    "drain_s": Bounds(start=1.3e-5, low=0.0, high=5e-5),
    "light_drain_s": Bounds(start=4e-6, low=0.0, high=5e-5),
    "overlap_power": Bounds(start=2.0, low=1.0, high=8.0),
    "floor_s": Bounds(start=8e-6, low=1e-6, high=4e-5),
}

MLA_BOUNDS = {
    "memory_efficiency": Bounds(start=0.92, low=0.3, high=1.0),
    "matrix_efficiency": Bounds(start=0.68, low=0.2, high=1.0),
    "overlap_power": Bounds(start=6.0, low=1.0, high=10.0),
    "program_s": Bounds(start=3e-6, low=0.0, high=4e-5),
    "row_passes": Bounds(start=1.8, low=1.0, high=6.0),
    "chunk_tokens": Bounds(start=180.0, low=64.0, high=4096.0),
    "program_bytes_per_s": Bounds(start=5e10, low=1e10, high=2e11),
    "split_passes": Bounds(start=1.5, low=0.0, high=10.0),
    "floor_s": Bounds(start=1.1e-5, low=1e-6, high=4e-5),
}

#: Elements of a key tile of a Hopper kernel: 256 keys of 64 values, 128 of 128, 64 of 256.
KV_TILE_ELEMENTS = 16384.0

#: The largest group of query heads that shares one read of the cache in the measured decode kernels.
SHARED_GROUP = 32.0

#: A cache is split among SMs when programs alone would fill less than this share of them.
SPLIT_SHARE = 0.25


def attention_op(rows: Sequence[Row], chosen: NDArray[np.bool_] | None = None) -> Op:
    """One array operator for rows of one direction: ``attention``, or ``mla`` prefill with expanded heads."""
    rows = rows if chosen is None else [row for row, keep in zip(rows, chosen, strict=True) if keep]
    directions = {str(row.get("direction") or "forward") for row in rows}
    if len(directions) != 1:
        raise InputError(f"rows of one direction are needed, got {', '.join(sorted(directions)) or 'no rows'}")
    kinds = np.asarray([f"{row['op']}:{row.get('phase') or 'prefill'}" for row in rows])
    shape = {name: np.zeros(len(rows)) for name in operators.ATTENTION}
    for kind in np.unique(kinds).tolist():
        c = columns([row for row, own in zip(rows, kinds, strict=True) if own == kind], kind)
        c = operators.latent_prefill(c) if kind.startswith("mla") else c
        for name, values in shape.items():
            values[kinds == kind] = c[name]
    return operators.attention(shape, direction=directions.pop())


def fit_attention(name: str, rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """The block ``name`` (attention_forward, attention_backward, attention_encoder, attention_decode, mla_prefill,
    mla_prefill_backward) from BF16 rows of that regime; whole (heads, kv_heads, head_dim) combinations are held out.

    The caller sends the rows of the regime: those of the other direction raise InputError.
    """
    wanted = "backward" if name.endswith("backward") else "forward"
    if any(str(row.get("direction") or "forward") != wanted for row in rows):
        raise InputError(f"{name} is fitted to {wanted} rows only; filter on the column 'direction'")
    measured_s = column(rows, "us") * 1e-6
    keys = [(row["heads"], row.get("kv_heads", ""), row.get("head_dim", "")) for row in rows]
    decode = name == "attention_decode"
    bounds = DECODE_BOUNDS if decode else TILED_BOUNDS
    fixed = {"kv_tile_elements": KV_TILE_ELEMENTS}
    if decode:
        fixed = {"shared_group": SHARED_GROUP, "split_share": SPLIT_SHARE}

    test = held_out(keys)
    ops = {True: attention_op(rows, test), False: attention_op(rows, ~test)}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        cluster = alone(with_fit(device, name, fit))
        return np.asarray(estimate(ops[bool(np.array_equal(chosen, test))], cluster).seconds)

    return solve(name, bounds, predict, measured_s, test, source, fixed)


def mla_op(rows: Sequence[Row], chosen: NDArray[np.bool_] | None = None) -> Op:
    """One array operator of the absorbed kernel for ``mla`` decode rows."""
    rows = rows if chosen is None else [row for row, keep in zip(rows, chosen, strict=True) if keep]
    return operators.latent_decode(columns(rows, "mla:decode"))


def fit_mla(rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """The block ``mla`` from BF16 decode rows; whole (heads, batch) sites are held out."""
    measured_s = column(rows, "us") * 1e-6
    test = held_out([(row["heads"], row["batch"]) for row in rows])
    ops = {True: mla_op(rows, test), False: mla_op(rows, ~test)}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        cluster = alone(with_fit(device, "mla", fit))
        return np.asarray(estimate(ops[bool(np.array_equal(chosen, test))], cluster).seconds)

    return solve("mla", MLA_BOUNDS, predict, measured_s, test, source)
