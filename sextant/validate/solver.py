"""What all fits share: rows, errors, the least-squares solver, and what is learned beyond a physical model.

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
from sextant.simulator.types import Cluster, Device, KernelFit
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
    """One block of coefficients with its errors on the rows it was fitted to and on those held out.

    ``cross_validated`` are the errors on the former, each predicted by a correction that was learned without the whole
    shapes it belongs to; None where nothing was learned.
    """

    name: str
    fit: KernelFit
    training: Errors
    held_out: Errors
    cross_validated: Errors | None = None

    @property
    def judged(self) -> bool:
        """Whether ``held_out`` are rows that the fit has not seen; else they are those of training."""
        return self.held_out is not self.training


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


def central(ratios: Array) -> tuple[float, float]:
    """The 5% and 95% quantiles, each the next value outwards: at least 90% of few values lie between them, too."""
    low, high = np.quantile(ratios, 0.05, method="lower"), np.quantile(ratios, 0.95, method="higher")
    return float(low), float(high)


def errors(predicted_s: Array, measured_s: Array) -> Errors:
    """Relative errors of predictions, shapes (n_rows,)."""
    relative = predicted_s / measured_s - 1
    size = np.abs(relative)
    low, high = central(measured_s / predicted_s)
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
    left_out: NDArray[np.bool_] | None = None,
) -> Fitted:
    """Fit a block. ``predict(fit, chosen)`` gives the seconds of the chosen rows; ``test`` marks the held-out ones.

    Rows that are ``left_out`` are not fitted, whether held out or not. With this argument all rows may be fitted: then
    the held-out errors are those of training, for the caller to replace.
    """
    if test.all() or (left_out is None and not test.any()):
        raise InputError(f"{name}: {int(test.sum())} of {len(test)} rows are held out; a fit needs both kinds of rows")
    train = ~test if left_out is None else ~test & ~left_out
    names = tuple(bounds)
    scale = np.asarray([max(abs(bounds[n].start), 1e-12) for n in names])

    def block(point: Array, low: float = 1.0, high: float = 1.0) -> KernelFit:
        values = {n: float(v) for n, v in zip(names, point * scale, strict=True)}
        return KernelFit(
            coefficients={**(fixed or {}), **values}, low=low, high=high, provenance="fitted", source=source
        )

    def residuals(point: Array) -> Array:
        return np.log(predict(block(point), train) / measured_s[train])

    found = least_squares(
        residuals,
        [bounds[n].start for n in names] / scale,
        bounds=([bounds[n].low for n in names] / scale, [bounds[n].high for n in names] / scale),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-4,
    )
    trained = errors(predict(block(found.x), train), measured_s[train])
    tested = errors(predict(block(found.x), test), measured_s[test]) if test.any() else trained
    # A few held-out rows can lie all on one side: the interval is never narrower than the training rows' own.
    low, high = min(tested.low, trained.low), max(tested.high, trained.high)
    return Fitted(name=name, fit=block(found.x, low, high), training=trained, held_out=tested)
