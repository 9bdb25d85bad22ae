"""Fit the time model of memory-bound operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Device, KernelFit, Num, Op
from sextant.validate.prediction import operators
from sextant.validate.prediction.vocabulary import KINDS
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, held_out, solve, with_fit

MEMORY_BOUNDS = {
    "efficiency": Bounds(start=0.85, low=0.3, high=1.0),
    "write_cost": Bounds(start=1.05, low=1.0, high=1.5),
    "l2_share": Bounds(start=0.5, low=0.0, high=1.0),
    "l2_speedup": Bounds(start=1.5, low=1.0, high=5.0),
    "floor_s": Bounds(start=3e-6, low=1e-7, high=2e-5),
}
#: Many small kernels in a row: the floor is that of all of them, and no byte count is a bound.
MANY_KERNELS = ("topk", "index")
MANY_BOUNDS = {
    "efficiency": Bounds(start=0.05, low=1e-3, high=1.0), "floor_s": Bounds(start=5e-5, low=1e-6, high=1e-3)
}  # fmt: skip
MANY_FIXED = {"write_cost": 1.0, "l2_share": 0.0, "l2_speedup": 1.0}


def moved_bytes(rows: Sequence[Row]) -> tuple[Array, Array]:
    """Bytes read and written per row, shapes (n_rows,): from read_bytes and write_bytes where a row has them, else
    from the operator (``prediction.operators.moved_bytes``)."""
    pairs = [_moved(row) for row in rows]
    return np.asarray([p[0] for p in pairs]), np.asarray([p[1] for p in pairs])


def _moved(row: Row) -> tuple[float, float]:
    if row.get("read_bytes", "") != "":
        return float(row["read_bytes"]), float(row["write_bytes"])
    op = str(row["op"])
    if op not in STREAMING and op not in MOVING:
        raise InputError(f"{op!r} is not a memory-bound operator; choose one of {', '.join(sorted(STREAMING))}")
    shape = {name: float(row[name]) for name in KINDS[op].needed}
    read, write = operators.moved_bytes(op, shape, str(row.get("format") or "bf16"), str(row.get("variant", "")))
    return float(read), float(write)


#: Kinds of access with a block of their own, and the measured operators that show them.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "permute": ("permute",), "transpose": ("requant_transpose",), "norm_backward": ("rmsnorm_backward",),
    "topk": ("routing:topk",), "index": ("routing:index",),
}  # fmt: skip

#: Operators that stream their tensors once; a copy through the copy engine is no kernel and not among them.
STREAMING = (
    "copy", "rmsnorm", "swiglu", "swiglu_backward", "add", "cast", "cast_transpose", "rope", "unpermute", "adam",
)  # fmt: skip


def of_variant(rows: Sequence[Row], variant: str) -> list[Row]:
    """The rows that a block is fitted to: those of its operators, of streaming ones for ""."""
    ops = VARIANTS.get(variant, STREAMING)
    return [row for row in rows if row.get("variant") != "memcpy" and (row["op"] in ops or _exact(row) in ops)]


#: Memory-bound operators that do not stream.
MOVING = ("permute", "requant_transpose", "rmsnorm_backward", "routing")


def _exact(row: Row) -> str:
    return f"{row['op']}:{row.get('variant', '')}"


def fit_memory(rows: Sequence[Row], device: Device, source: str = "", variant: str = "") -> Fitted:
    """The block ``memory`` (or ``memory_<variant>``) from rows with ``us``; whole shapes are held out."""
    name = f"memory_{variant}" if variant else "memory"
    read, write = moved_bytes(rows)
    measured_s = column(rows, "us") * 1e-6
    shape = ("op", "hidden", "expert_ffn", "bytes", "n_elements") if not variant else ("n_tokens", "format", "groups")
    keys = [tuple(row.get(column, "") for column in shape) for row in rows]

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        op = memory_op(read[chosen], write[chosen], variant)
        return np.asarray(estimate(op, alone(with_fit(device, name, fit))).seconds)

    bounds, fixed = (MANY_BOUNDS, MANY_FIXED) if variant in MANY_KERNELS else (MEMORY_BOUNDS, {})
    return solve(name, bounds, predict, measured_s, held_out(keys, 0.25), source, fixed)


def memory_op(read_bytes: Num, write_bytes: Num, variant: str = "") -> Op:
    """A memory-bound operator that moves so many bytes."""
    shape = {"read_bytes": read_bytes, "write_bytes": write_bytes}
    return operator("memory", "moved", "bf16", shape, variant=variant)
