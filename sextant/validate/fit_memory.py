"""Fit the time model of memory-bound operators, and the solver that the other fits share.

A fit minimises the error of the logarithm of predicted over measured seconds with the estimate functions that the
simulator itself uses, so there is one model of time. Coefficients come from the training rows alone; the errors and the
90% interval come from the rows held out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Cluster, Device, KernelFit, Num, Op
from sextant.validate.prediction import operators
from sextant.validate.prediction.vocabulary import KINDS, filled

Row = Mapping[str, str | float]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Where the search for one coefficient starts and between which values it stays."""

    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of predicted seconds relative to measured ones; ``low`` and ``high`` are the 5% and 95% quantiles of
    measured over predicted."""

    n_rows: int
    mape: float
    median: float
    p95: float
    bias: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One block of coefficients with its errors on the rows it was fitted to and on those held out."""

    name: str
    fit: KernelFit
    training: Errors
    held_out: Errors


def column(rows: Sequence[Row], name: str, default: float | None = None) -> Array:
    """One numeric column, shape (n_rows,); ``default`` stands for an absent or empty cell, InputError if none."""
    cells = [row.get(name, "") for row in rows]
    missing = [i for i, cell in enumerate(cells) if cell == ""]
    if missing and default is None:
        raise InputError(f"row {missing[0]}: the column {name!r} is absent; add it to the kernel cases")
    return np.asarray([default if cell == "" else float(cell) for cell in cells], dtype=np.float64)


def columns(rows: Sequence[Row], kind: str) -> dict[str, Array]:
    """The columns of a kind of case (``vocabulary.KINDS``) with its defaults; InputError if a needed one is absent."""
    needed = KINDS[kind].needed
    return filled(KINDS[kind], lambda name: column(rows, name, None if name in needed else np.nan))


def held_out(keys: Sequence[object], share: float = 0.2) -> NDArray[np.bool_]:
    """Which rows are held out, by a fixed hash of their key: rows with one key stay together, shape (n_rows,)."""
    return np.asarray([zlib.crc32(str(key).encode()) % 1000 < 1000 * share for key in keys], dtype=bool)


def errors(predicted_s: Array, measured_s: Array) -> Errors:
    """Relative errors of predictions, shapes (n_rows,)."""
    relative = predicted_s / measured_s - 1
    size = np.abs(relative)
    low, high = np.quantile(measured_s / predicted_s, [0.05, 0.95])
    return Errors(
        n_rows=len(size), mape=float(size.mean()), median=float(np.median(size)), p95=float(np.quantile(size, 0.95)),
        bias=float(relative.mean()), low=float(low), high=float(high),
    )  # fmt: skip


def with_fit(device: Device, name: str, fit: KernelFit) -> Device:
    """``device`` with the block ``name`` set."""
    return replace(device, kernels={**device.kernels, name: fit})


def alone(device: Device) -> Cluster:
    """A cluster of this one device, for operators that need no link."""
    return Cluster(name=device.name, device=device, n_devices=1.0, tiers={})


def solve(
    name: str,
    bounds: Mapping[str, Bounds],
    predict: Callable[[KernelFit, NDArray[np.bool_]], Array],
    measured_s: Array,
    test: NDArray[np.bool_],
    source: str,
    fixed: Mapping[str, float] | None = None,
) -> Fitted:
    """Fit a block. ``predict(fit, chosen)`` gives the seconds of the chosen rows; ``test`` marks the held-out ones."""
    if not test.any() or test.all():
        raise InputError(f"{name}: {int(test.sum())} of {len(test)} rows are held out; a fit needs both kinds of rows")
    names = tuple(bounds)
    scale = np.asarray([max(abs(bounds[n].start), 1e-12) for n in names])

    def block(point: Array, low: float = 1.0, high: float = 1.0) -> KernelFit:
        values = {n: float(v) for n, v in zip(names, point * scale, strict=True)}
        return KernelFit(
            coefficients={**(fixed or {}), **values}, low=low, high=high, provenance="fitted", source=source
        )

    def residuals(point: Array) -> Array:
        return np.log(predict(block(point), ~test) / measured_s[~test])

    found = least_squares(
        residuals,
        [bounds[n].start for n in names] / scale,
        bounds=([bounds[n].low for n in names] / scale, [bounds[n].high for n in names] / scale),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-4,
    )
    trained = errors(predict(block(found.x), ~test), measured_s[~test])
    tested = errors(predict(block(found.x), test), measured_s[test])
    # A few held-out rows can lie all on one side: the interval is never narrower than the training rows' own.
    low, high = min(tested.low, trained.low), max(tested.high, trained.high)
    return Fitted(name=name, fit=block(found.x, low, high), training=trained, held_out=tested)


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
