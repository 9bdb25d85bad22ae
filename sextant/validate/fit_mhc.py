"""Fit the kernels of residual streams: ``mhc_pre`` and ``mhc_post``, ``engram_gate`` and ``sinkhorn``.

Rows of this package's own kernels (library triton) cover widths, streams and iterations: whole (hidden, n_streams) are
held out, and what the physical model leaves is learned. Rows of a serving engine have four streams: whole hidden sizes
are held out, one after the other: a fit to the other sizes predicts the rows of the one left out.
Errors and interval are those of all rows so predicted; the coefficients that are kept come from all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import engram_gate, estimate, fit_of, mhc_post, mhc_pre, sinkhorn
from sextant.simulator.kernels.streams import stream_features
from sextant.simulator.types import Device, KernelFit, Num, Op
from sextant.validate.prediction import operators
from sextant.validate.residuals import Pairs, corrected, crossed, grown, held_out_rows, whole_shapes
from sextant.validate.solver import Array, Bounds, Errors, Fitted, Row, alone, column, columns, errors, solve, with_fit

Predict = Callable[[KernelFit, NDArray[np.bool_]], Array]

KINDS = ("mhc_pre", "mhc_post")

#: Blocks of this package's kernels: those of one pass with the coefficients of ``rows``.
_ONE_PASS = {
    "floor_s": Bounds(start=1.2e-6, low=3e-7, high=5e-6),
    "cold_s": Bounds(start=6e-7, low=0.0, high=3e-6),
    "cold_share": Bounds(start=0.01, low=0.002, high=0.05),
    "row_cost": Bounds(start=20.0, low=0.0, high=500.0),
    "efficiency": Bounds(start=0.85, low=0.3, high=1.0),
    "padding": Bounds(start=0.2, low=0.0, high=1.0),
}
_ONE_PASS_FIXED = {"write_cost": 1.0, "l2_share": 0.0, "l2_speedup": 1.0}
_OWN: Mapping[str, Mapping[str, Bounds]] = {
    "mhc_pre": {
        "floor_s": Bounds(start=6e-6, low=5e-7, high=2e-5),
        "column_s": Bounds(start=4e-10, low=0.0, high=5e-9),
        "iteration_s": Bounds(start=1e-7, low=0.0, high=1e-6),
        "product_efficiency": Bounds(start=0.5, low=0.2, high=1.0),
        "efficiency": Bounds(start=0.6, low=0.2, high=1.0),
        "short_s": Bounds(start=7e-9, low=1e-9, high=5e-8),
        "short_lane_s": Bounds(start=8e-11, low=1e-12, high=1e-9),
        "tall_s": Bounds(start=1.5e-8, low=1e-9, high=1e-7),
        "tall_lane_s": Bounds(start=2.5e-10, low=1e-12, high=3e-9),
        "token_iteration_s": Bounds(start=1.5e-8, low=0.0, high=2.5e-7),
    },
    "mhc_post": _ONE_PASS,
    "engram_gate": _ONE_PASS,
    "sinkhorn": {
        "floor_s": Bounds(start=1.2e-6, low=3e-7, high=5e-6),
        **{f"iteration_s_{n}": Bounds(start=3e-7, low=1e-8, high=2e-6) for n in sinkhorn.SIZES},
        **{f"token_s_{n}": Bounds(start=4e-11, low=1e-13, high=1e-9) for n in sinkhorn.SIZES},
    },
}

#: Seconds of one Sinkhorn iteration on a 4 x 4 matrix held by one thread: two normalisations of some 50 cycles each.
#: Rows of one number of iterations cannot tell it from the floor: assumed.
ITERATION_S = 5e-8

BOUNDS = {
    "floor_s": Bounds(start=2e-6, low=1e-7, high=2e-5),
    "efficiency": Bounds(start=0.88, low=0.3, high=1.0),
    "sm_bytes_per_s": Bounds(start=5e10, low=1e10, high=5e11),
    "crowding": Bounds(start=0.2, low=0.0, high=1.0),
    "warm_share": Bounds(start=0.5, low=0.05, high=1.0),
    "spread": Bounds(start=0.4, low=0.05, high=1.0),
}


def fit_mhc(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The blocks ``mhc_pre`` and ``mhc_post``, as far as there are rows; ``device`` holds the block ``memory``.

    InputError if a kernel has rows of one hidden size only, or if there are no rows of either.
    """
    own = [row for row in rows if row.get("library") == "triton" and row.get("us", "") != ""]
    if own:
        found = [_fit_own(kind, part, device, source) for kind in _OWN if (part := [r for r in own if r["op"] == kind])]
    else:
        found = [_fit(kind, part, device, source) for kind in KINDS if (part := [r for r in rows if r["op"] == kind])]
    if not found:
        raise InputError(f"no rows of {', '.join(_OWN)}; check column 'op'")
    return found


def _fit_own(kind: str, rows: Sequence[Row], device: Device, source: str) -> Fitted:
    """A block of this package's own kernel, with a correction."""
    op, test, measured_s = mhc_op(rows, kind), held_out_rows(rows), column(rows, "us") * 1e-6

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {name: np.asarray(values)[chosen] for name, values in op.shape.items()}
        return np.asarray(estimate(replace(op, shape=part), alone(with_fit(device, kind, fit))).seconds)

    fixed = _ONE_PASS_FIXED if _OWN[kind] is _ONE_PASS else {}
    fitted = solve(kind, _OWN[kind], predict, measured_s, test, f"{source}; this package's Triton kernel", fixed)
    known = {name: np.asarray(values, dtype=np.float64) for name, values in _features(op).items()}
    pairs = _growths(op, fitted.fit, device)
    return corrected(fitted, predict, known, measured_s, test, whole_shapes(rows), pairs=pairs)


def _growths(op: Op, fit: KernelFit, device: Device) -> Pairs:
    """Sizes over the measured range, and the same with twice the tokens, or with more iterations of Sinkhorn."""
    cluster = alone(with_fit(device, op.kind, fit))
    lower = crossed(
        n_tokens=2.0 ** np.arange(17.0), hidden=2.0 ** np.arange(10.0, 14.0), n_streams=(2, 4, 8),
        sinkhorn_iters=(1, 5, 10, 20),
    )  # fmt: skip
    uppers = [{**lower, name: 2.0 * lower[name]} for name in ("n_tokens", "sinkhorn_iters") if name in op.shape]

    def sized(shape: Mapping[str, Array]) -> Op:
        return replace(op, shape={name: shape[name] for name in op.shape})

    def seconds(shape: Mapping[str, Array]) -> Array:
        return np.asarray(estimate(sized(shape), cluster).seconds)

    return grown(lower, uppers, seconds, lambda shape: _features(sized(shape)))


def _features(op: Op) -> Mapping[str, Num]:
    if op.kind == "sinkhorn":
        return sinkhorn.features(op.shape)
    if op.kind == "mhc_pre":
        return mhc_pre.features(op.shape)
    module = mhc_post if op.kind == "mhc_post" else engram_gate
    return stream_features(module.stream(op.shape, ""), op.shape)


def mhc_op(rows: Sequence[Row], kind: str) -> Op:
    """All rows of one kernel as one operator; 4 streams and 20 iterations where a row does not say."""
    return operators.streams(kind, columns(rows, kind))


def _fit(kind: str, rows: Sequence[Row], device: Device, source: str) -> Fitted:
    fixed = _fixed(kind, device)
    bounds = {name: bound for name, bound in BOUNDS.items() if name not in fixed}

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = [row for row, taken in zip(rows, chosen, strict=True) if taken]
        return np.asarray(estimate(mhc_op(part, kind), alone(with_fit(device, kind, fit))).seconds)

    fitted = fit_unseen(kind, bounds, fixed, predict, column(rows, "us") * 1e-6, column(rows, "hidden"), "hidden sizes")
    said = f"{source}; {fitted.fit.source}"
    if kind == "mhc_pre":
        said += f"; iteration_s assumed: rows have {_iterations(rows)} iterations"
    return replace(fitted, fit=replace(fitted.fit, source=said))


def _fixed(kind: str, device: Device) -> dict[str, float]:
    """What the rows of one kernel cannot tell: the floor of a single kernel is that of every memory-bound one (one
    hidden size confuses it with the ramp), and what an iteration takes."""
    if kind == "mhc_pre":
        return {"iteration_s": ITERATION_S}
    return {"floor_s": float(fit_of(device, "memory").coefficients["floor_s"])}


def _iterations(rows: Sequence[Row]) -> str:
    return ", ".join(f"{value:.0f}" for value in np.unique(column(rows, "sinkhorn_iters", 20.0)))


def fit_unseen(
    name: str,
    bounds: Mapping[str, Bounds],
    fixed: Mapping[str, float],
    predict: Predict,
    measured_s: Array,
    groups: Array,
    what: str,
) -> Fitted:
    """A block fitted to all rows, with the errors of rows whose group (shape (n_rows,), named ``what``) no fit saw.

    The block's source says those errors. InputError if all rows are of one group.
    """
    values = np.unique(groups)
    if len(values) < 2:
        raise InputError(f"{name}: all rows have the same {what}; a fit needs a second one to be judged by")
    unseen_s = np.empty_like(measured_s)
    for value in values:
        test = groups == value
        unseen_s[test] = predict(solve(name, bounds, predict, measured_s, test, "", fixed).fit, test)
    held_out = errors(unseen_s, measured_s)
    n = len(measured_s)

    def twice(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        return predict(fit, chosen[:n] if chosen[:n].any() else chosen[n:])

    # Every row is trained on; a second copy of all of them stands where ``solve`` wants rows to hold out.
    whole = solve(name, bounds, twice, np.tile(measured_s, 2), np.repeat([False, True], n), "", fixed)
    return judged(name, whole.fit, whole.training, held_out, what)


def judged(name: str, fit: KernelFit, training: Errors, held_out: Errors, what: str) -> Fitted:
    """``fit`` with the interval and the words of the errors that rows of whole ``what`` have that no fit saw."""
    said = (
        f"whole {what} held out: MAPE {100 * held_out.mape:.1f}%, median {100 * held_out.median:.1f}%, 95th percentile "
        f"{100 * held_out.p95:.1f}% over {held_out.n_rows} rows"
    )
    low, high = min(held_out.low, training.low), max(held_out.high, training.high)
    fit = replace(fit, low=low, high=high, source=f"{fit.source}; {said}" if fit.source else said)
    return Fitted(name=name, fit=fit, training=training, held_out=held_out)
