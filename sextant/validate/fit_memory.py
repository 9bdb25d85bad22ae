"""Fit the time model of memory-bound operators: one block per operator or pattern of access. Whole widths are held out.

Rows are those of kernels that rotate inputs of more than the L2 cache. Where fewer than 64 sets of inputs exceed it,
nothing is found there by the next call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.memory import features
from sextant.simulator.types import Device, KernelFit, Num, Op
from sextant.validate.prediction import operators
from sextant.validate.prediction.vocabulary import KINDS
from sextant.validate.residuals import Pairs, corrected, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, solve, with_fit

_BYTES = {
    "efficiency": Bounds(start=0.9, low=0.2, high=1.0),
    "floor_s": Bounds(start=1.5e-6, low=1e-7, high=2e-5),
}
_FLAT = {
    **_BYTES,
    "write_cost": Bounds(start=1.05, low=1.0, high=1.5),
    "cold_s": Bounds(start=8e-7, low=0.0, high=3e-6),
    "cold_share": Bounds(start=0.0102, low=0.0095, high=0.011),
}
_ROWS = {
    **_FLAT,
    "row_s": Bounds(start=3e-7, low=0.0, high=5e-6),
    "row_byte_s": Bounds(start=1e-11, low=0.0, high=1e-9),
    "cold_byte_s": Bounds(start=5e-12, low=0.0, high=1e-9),
    "padded": Bounds(start=0.5, low=0.0, high=1.0),
    "blocks": Bounds(start=8.0, low=1.0, high=32.0),
}
_SUMMED = {**_ROWS, "sum_s": Bounds(start=1.5e-7, low=0.0, high=1e-6)}
_AGAIN = {**_ROWS, "held": Bounds(start=0.5, low=0.1, high=2.0)}
_COPIED = {**_FLAT, "odd": Bounds(start=1.5, low=1.0, high=3.0)}
#: Many small kernels in a row: the floor is that of all of them, and no byte count is a bound.
_PIECES = {name: bound for name, bound in _ROWS.items() if name != "padded"}
_MANY = {
    "floor_s": Bounds(start=5e-5, low=1e-6, high=1e-3),
    "row_s": Bounds(start=3e-6, low=0.0, high=1e-4),
    "row_byte_s": Bounds(start=2e-9, low=0.0, high=1e-7),
}
_SORTED = {
    "efficiency": Bounds(start=0.02, low=1e-3, high=1.0),
    "floor_s": Bounds(start=1.8e-5, low=1e-6, high=1e-4),
    "cold_s": Bounds(start=2e-5, low=0.0, high=1e-4),
    "cold_share": Bounds(start=1e-4, low=4e-5, high=2e-4),
    "sort_s": Bounds(start=4e-5, low=0.0, high=1e-4),
    "sort_share": Bounds(start=1.8e-3, low=1.2e-3, high=2.5e-3),
}

#: What the blocks depend on; those that are not named here, on ``_FLAT``.
BOUNDS: Mapping[str, Mapping[str, Bounds]] = {
    "rmsnorm": _ROWS, "layernorm": _ROWS, "norm_backward": _SUMMED, "rope": _ROWS, "permute": _AGAIN,
    "unpermute": _PIECES, "memcpy": _COPIED, "adam": _BYTES, "topk": _MANY, "index": _SORTED,
    "softmax": _ROWS, "softmax_backward": _ROWS,
}  # fmt: skip
#: What corrections of blocks depend on besides the bytes; None: the block has none.
_BESIDES: Mapping[str, tuple[str, ...] | None] = {
    "rmsnorm": ("log2_rows", "log2_padded"), "layernorm": ("log2_rows", "log2_padded"),
    "norm_backward": ("log2_rows", "log2_padded"), "rope": ("log2_rows", "log2_padded"), "permute": ("log2_rows",),
    "unpermute": ("log2_rows", "log2_padded"), "topk": ("log2_rows",), "adam": None,
    "softmax": ("log2_rows", "log2_padded"), "softmax_backward": ("log2_rows", "log2_padded"),
}  # fmt: skip
#: Far more than what moves is what else these kernels do: no written byte is told from a read one.
_FIXED: Mapping[str, Mapping[str, float]] = {
    "adam": {"write_cost": 1.0}, "index": {"write_cost": 1.0},
    "topk": {"write_cost": 1.0, "efficiency": 1.0, "blocks": 1.0},
}  # fmt: skip

#: Memory-bound operators of the kernel cases.
OPS = (
    "copy", "rmsnorm", "rmsnorm_backward", "layernorm", "gelu", "swiglu", "swiglu_backward", "add", "cast",
    "cast_transpose", "requant_transpose", "rope", "permute", "unpermute", "routing", "adam", "dropout",
    "dropout_backward", "softmax", "softmax_backward", "column_sum", "scale", "square_sum", "adam_fp32",
)  # fmt: skip


def access(row: Row) -> str | None:
    """The kind of access of a row, None where it is no memory-bound operator or was not measured."""
    if row["op"] not in OPS or row.get("us", "") == "":
        return None
    return operators.access(*_kind(row))


def _kind(row: Row) -> tuple[str, str, str]:
    op = str(row["op"])
    formats = KINDS[op].formats
    return op, str(row.get("format") or (formats[0] if formats else "bf16")), str(row.get("variant", ""))


def shapes(rows: Sequence[Row]) -> dict[str, Array]:
    """The shape of each row's operator as predictions make it, (n_rows,) by dimension.

    All rows are of one kind of access. InputError where one is no memory-bound operator.
    """
    found: dict[str, Array] = {}
    for kind in dict.fromkeys(_kind(row) for row in rows):
        op, format, variant = kind
        if op not in OPS:
            raise InputError(f"{op!r} is not a memory-bound operator; choose one of {', '.join(OPS)}")
        chosen = np.array([_kind(row) == kind for row in rows])
        part = columns([row for row, taken in zip(rows, chosen, strict=True) if taken], op)
        for name, value in operators.moved(op, part, format, variant).shape.items():
            found.setdefault(name, np.zeros(len(rows)))[chosen] = value
    return found


def fit_memory(rows: Sequence[Row], device: Device, source: str = "", variant: str = "") -> Fitted:
    """The block ``memory`` (or ``memory_<variant>``) from rows of that access with ``us``; whole widths are held out.

    InputError where there are none.
    """
    rows = [row for row in rows if access(row) == variant]
    name = f"memory_{variant}" if variant else "memory"
    if not rows:
        raise InputError(f"{name}: no measured rows; choose operators among {', '.join(OPS)}")
    measured_s, test = column(rows, "us") * 1e-6, held_out_rows(rows)
    whole = memory_op(shapes(rows), variant)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in whole.shape.items()}
        return np.asarray(estimate(replace(whole, shape=part), alone(with_fit(device, name, fit))).seconds)

    fitted = solve(name, BOUNDS.get(variant, _FLAT), predict, measured_s, test, source, _FIXED.get(variant))
    besides = _BESIDES.get(variant, ())
    if besides is None:
        return fitted
    names = ("log2_bytes", *besides)
    known = {key: np.asarray(value, dtype=np.float64) for key, value in features(whole.shape).items() if key in names}
    pairs = _steps(fitted.fit, name, device, whole, names)
    return corrected(fitted, predict, known, measured_s, test, _groups(rows), pairs=pairs)


def _groups(rows: Sequence[Row]) -> list[str]:
    """Which rows leave a fit together where it is cross-validated: those of a whole width, of rope heads and their
    width."""
    return [f"{shape}:{row.get('head_dim', '')}" for shape, row in zip(whole_shapes(rows), rows, strict=True)]


def _steps(fit: KernelFit, name: str, device: Device, op: Op, names: tuple[str, ...]) -> Pairs:
    """Tensors over the range of sizes, and the same with more rows, or with wider ones; in steps of the size alone
    where that is all a correction depends on."""
    cluster = alone(with_fit(device, name, fit))
    share = float(np.median(op.shape["write_bytes"] / (op.shape["read_bytes"] + op.shape["write_bytes"])))
    alone_s = names == ("log2_bytes",)
    step = 2.0 ** (0.2 if alone_s else 0.5)
    n_rows = step ** np.arange((-8.0 if alone_s else 0.0) / np.log2(step), 22.0 / np.log2(step))
    widths = np.array([1024.0]) if alone_s else 2.0 ** np.arange(6.0, 16.5, 0.5)
    rows, width = (axis.ravel() for axis in np.meshgrid(n_rows, widths))

    def tensor(rows: Array, width: Array) -> Op:
        size = 4.0 * rows * width
        known = {"read_bytes": (1.0 - share) * size, "write_bytes": share * size, "rows": rows, "width": width}
        return replace(op, shape={key: known[key] for key in op.shape})

    def known(found: Op) -> dict[str, Array]:
        return {key: np.asarray(features(found.shape)[key]) for key in names}

    lower = tensor(rows, width)
    upper = [tensor(step * rows, width)]
    if not alone_s:
        # A little wider is past a power of two, where padding doubles the row.
        upper += [tensor(rows, factor * width) for factor in (step, 1.02)]
    before = np.asarray(estimate(lower, cluster).seconds)
    growth = [np.log(np.asarray(estimate(found, cluster).seconds) / before) for found in upper]
    above = [known(found) for found in upper]
    return Pairs(
        lower={key: np.tile(values, len(upper)) for key, values in known(lower).items()},
        upper={key: np.concatenate([found[key] for found in above]) for key in names},
        growth=np.concatenate(growth),
    )


def memory_op(shape: Mapping[str, Num], variant: str = "") -> Op:
    """A memory-bound operator of that shape: read_bytes and write_bytes, for some accesses rows and width."""
    return operator("memory", "moved", "bf16", shape, variant=variant)
