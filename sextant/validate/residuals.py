"""What the physical model of a kernel leaves over, learned from measured rows: smooth, small, and tested on whole
shapes.

``corrected`` turns a fitted block into one with a ``Correction``: Gaussian-process regression of the logarithm of
measured over predicted seconds on features of the shape. Length scales and the weight of the prior are chosen by
cross-validation in which whole shapes are left out together, among the rows a fit may see; the held-out rows only
measure. A law (``pairs``) may bind it: more work must not take less time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sextant.simulator.kernels.correction import basis
from sextant.simulator.types import Correction, KernelFit, Num
from sextant.validate.cases import shapes_of, split
from sextant.validate.solver import Array, Errors, Fitted, Row, central, errors

#: Centres of a correction, at most.
N_CENTRES = 64
N_FOLDS = 8

#: Length scales that cross-validation tries, in standard deviations of a feature; priors, as the variance of a row's
#: scatter over that of the correction. A correction is some 10%: 0.03 says rows scatter by 2%, 3 says by 17%.
_SCALES = (0.35, 0.6, 1.0, 1.7, 3.0, 6.0)
_PRIORS = (0.03, 0.1, 0.3, 1.0, 3.0)
#: Larger residuals (log) pull no more than this: they are rare choices of a library, not a trend.
_LARGEST_RESIDUAL = 0.3
#: Twice the work takes at least this much longer (log); constraints further from binding wait until violated.
_SMALLEST_GROWTH, _NEAR = 1e-3, 0.15
#: Digits that a correction keeps: what a fit file holds is what was tested.
_DIGITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Points of which the second must not be faster: features of both, each (n_pairs,) by name, and the logarithm of
    the uncorrected seconds of the second over the first, (n_pairs,)."""

    lower: Mapping[str, Array]
    upper: Mapping[str, Array]
    growth: Array


def grown(
    lower: Mapping[str, Array],
    uppers: Sequence[Mapping[str, Array]],
    seconds: Callable[[Mapping[str, Array]], Array],
    features: Callable[[Mapping[str, Array]], Mapping[str, Num]],
) -> Pairs:
    """Pairs of the shapes ``lower`` and each of ``uppers`` (arrays (n_shapes,) by dimension), which hold more work."""
    before = np.log(seconds(lower))

    def known(shape: Mapping[str, Array]) -> dict[str, Array]:
        found = features(shape)
        return {
            name: np.broadcast_to(np.asarray(values, dtype=np.float64), before.shape) for name, values in found.items()
        }

    first, above = known(lower), [known(upper) for upper in uppers]
    return Pairs(
        lower={name: np.tile(values, len(uppers)) for name, values in first.items()},
        upper={name: np.concatenate([found[name] for found in above]) for name in first},
        growth=np.concatenate([np.log(seconds(upper)) - before for upper in uppers]),
    )


def crossed(**axes: Array | Sequence[float]) -> dict[str, Array]:
    """Every combination of the axes' values, flat arrays by name."""
    grid = np.meshgrid(*(np.asarray(values, dtype=np.float64) for values in axes.values()), indexing="ij")
    return dict(zip(axes, map(np.ravel, grid), strict=True))


def held_out_rows(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Which rows no fit may see (``cases.split``), shape (n_rows,)."""
    return np.array([split(_case(row)) == "held_out" for row in rows], dtype=bool)


def whole_shapes(rows: Sequence[Row]) -> list[str]:
    """One name per row for cross-validation: rows that share a whole shape (``cases.shapes_of``) share it.

    Of attention, which belongs to two, the configuration of heads.
    """
    return [shapes_of(_case(row))[0] for row in rows]


def _case(row: Row) -> dict[str, str | int]:
    return {name: str(value) for name, value in row.items() if value != ""}


def folds(groups: Sequence[object], n_folds: int = N_FOLDS) -> NDArray[np.intp]:
    """The fold of each row, shape (n_rows,): rows of a group stay together, groups are dealt by size, then by hash."""
    names, counts = np.unique(np.array([str(group) for group in groups]), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-counts[i], zlib.crc32(names[i].encode())))
    load = np.zeros(n_folds)
    fold_of: dict[str, int] = {}
    for i in order:
        fold = int(np.argmin(load))
        fold_of[str(names[i])] = fold
        load[fold] += counts[i]
    return np.array([fold_of[str(group)] for group in groups], dtype=np.intp)


def corrected(
    fitted: Fitted,
    predict: Callable[[KernelFit, NDArray[np.bool_]], Array],
    features: Mapping[str, Array],
    measured_s: Array,
    test: NDArray[np.bool_],
    groups: Sequence[object],
    *,
    pairs: Pairs | None = None,
    n_centres: int = N_CENTRES,
) -> Fitted:
    """``fitted`` with a correction learned on the rows not marked in ``test``, or unchanged if none helps.

    ``predict(fit, chosen)`` gives seconds of the chosen rows; ``features`` has an array (n_rows,) per name, for all
    rows; ``groups`` name the whole shapes of all rows. The interval comes from the held-out rows, and where fewer than
    20 are held out from these and the cross-validated ones together.
    """
    plain = replace(fitted.fit, correction=None)
    residual = np.log(measured_s[~test] / predict(plain, ~test))
    points = {name: np.asarray(values, dtype=float)[~test] for name, values in features.items()}
    own = [group for group, is_test in zip(groups, test, strict=True) if not is_test]
    found, unseen = learned(points, residual, own, pairs=pairs, n_centres=n_centres)
    better = np.abs(residual - unseen).mean() < np.abs(residual).mean()
    fit = replace(plain, correction=found) if better else plain
    tested, trained = errors(predict(fit, test), measured_s[test]), errors(predict(fit, ~test), measured_s[~test])
    crossed = errors(measured_s[~test] / np.exp(residual - (unseen if better else 0.0)), measured_s[~test])
    low, high = interval(measured_s[test] / predict(fit, test), crossed, residual - (unseen if better else 0.0))
    fit = replace(fit, low=low, high=high)
    return Fitted(name=fitted.name, fit=fit, training=trained, held_out=tested, cross_validated=crossed)


def interval(held_out_ratio: Array, crossed: Errors, crossed_residual: Array) -> tuple[float, float]:
    """Factors that hold 90% of measured over predicted seconds."""
    ratios = held_out_ratio
    if len(ratios) < 20:
        ratios = np.concatenate([ratios, np.exp(crossed_residual)])
    low, high = central(ratios)
    return float(min(low, 1.0)), float(max(high, 1.0))


def coverage(fit: KernelFit, predicted_s: Array, measured_s: Array) -> float:
    """The share of rows inside the interval of ``fit``."""
    ratio = measured_s / predicted_s
    return float(((ratio >= fit.low * (1 - 1e-9)) & (ratio <= fit.high * (1 + 1e-9))).mean())


def learned(
    points: Mapping[str, Array], residual: Array, groups: Sequence[object], *, pairs: Pairs | None = None,
    n_centres: int = N_CENTRES,
) -> tuple[Correction, Array]:  # fmt: skip
    """The correction of ``residual`` (n_rows,) over ``points``, and what it says of each row when the folds of that
    row's group took no part (n_rows,).

    One length scale per feature, found by coordinate descent; an irrelevant feature ends with a long one.
    """
    names = tuple(points)
    x = np.column_stack([points[name] for name in names])
    y = np.clip(residual, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
    fold, spread = folds(groups), np.maximum(x.std(axis=0), 1e-9)
    scales, prior = spread * 1.7, 0.3
    best = _crossed_error(x, y, fold, scales, prior, n_centres)
    for _ in range(2):
        for j in range(len(names)):
            for factor in _SCALES:
                tried = scales.copy()
                tried[j] = spread[j] * factor
                best, scales, prior = min(
                    (best, scales, prior), (_crossed_error(x, y, fold, tried, prior, n_centres), tried, prior),
                    key=lambda found: found[0],
                )  # fmt: skip
        for tried_prior in _PRIORS:
            error = _crossed_error(x, y, fold, scales, tried_prior, n_centres)
            if error < best:
                best, prior = error, tried_prior
    scales = _rounded(scales)
    centres = _rounded(spread_centres(x, scales, n_centres))
    weights = _weights(x, y, centres, scales, prior)
    found = Correction(features=names, scales=scales, centres=centres, weights=_rounded(weights))
    if pairs is not None:
        found = _lawful(found, x, prior, pairs)
    return found, _crossed(x, y, fold, scales, prior, n_centres)


def spread_centres(x: Array, scales: Array, n_centres: int) -> Array:
    """At most ``n_centres`` of the points (n_points, n_features), each as far as possible from those before it."""
    scaled = x / scales
    chosen = [int(np.argmin(np.square(scaled - scaled.mean(axis=0)).sum(axis=1)))]
    distance = np.square(scaled - scaled[chosen[0]]).sum(axis=1)
    while len(chosen) < n_centres and distance.max() > 1e-3:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.square(scaled - scaled[chosen[-1]]).sum(axis=1))
    return x[chosen]


def _weights(x: Array, y: Array, centres: Array, scales: Array, prior: float) -> Array:
    """Weights of least squares with the Gaussian-process prior; rows far from the trend count less (two rounds)."""
    k, inner = basis(x, centres, scales), basis(centres, centres, scales)
    ridge = prior * inner + 1e-8 * len(x) * np.eye(len(centres)) / len(centres)
    trust = np.ones(len(y))
    weights = np.zeros(len(centres))
    for _ in range(3):
        weighted = k * trust[:, None]
        weights = np.asarray(np.linalg.solve(weighted.T @ k + ridge, weighted.T @ y), dtype=np.float64)
        rest = np.abs(y - k @ weights)
        trust = np.minimum(1.0, 0.08 / np.maximum(rest, 1e-9))
    return weights


def _crossed(x: Array, y: Array, fold: NDArray[np.intp], scales: Array, prior: float, n_centres: int) -> Array:
    """What a correction says of each row when the rows of its fold took no part, (n_rows,)."""
    said = np.zeros(len(y))
    for left_out in np.unique(fold):
        out = fold == left_out
        if out.all():
            continue
        centres = spread_centres(x[~out], scales, n_centres)
        said[out] = basis(x[out], centres, scales) @ _weights(x[~out], y[~out], centres, scales, prior)
    return said


def _crossed_error(x: Array, y: Array, fold: NDArray[np.intp], scales: Array, prior: float, n_centres: int) -> float:
    return float(np.abs(y - _crossed(x, y, fold, scales, prior, n_centres)).mean())


def _rounded(values: Array) -> Array:
    """``values`` with as many digits as a fit file keeps."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in values.ravel()]).reshape(values.shape)


def _lawful(found: Correction, x: Array, prior: float, pairs: Pairs) -> Correction:
    """The correction nearest to ``found`` under which the second of each pair takes no less time than the first."""
    lower, upper = (np.column_stack([p[name] for name in found.features]) for p in (pairs.lower, pairs.upper))
    steps = basis(upper, found.centres, found.scales) - basis(lower, found.centres, found.scales)
    k, inner = (basis(points, found.centres, found.scales) for points in (x, found.centres))
    normal = k.T @ k + prior * inner + 1e-6 * len(x) * np.eye(len(found.weights)) / len(found.weights)
    least = np.minimum(_SMALLEST_GROWTH, pairs.growth / 2.0) - pairs.growth
    return replace(found, weights=_rounded(_constrained(found.weights, normal, steps, least)))


def _constrained(free: Array, normal: Array, steps: Array, least: Array) -> Array:
    """The point nearest to ``free`` in the metric ``normal`` with ``steps @ point >= least``.

    Least distance programming by non-negative least squares (Lawson and Hanson 1974, chapter 23).
    """
    root = np.linalg.cholesky(normal).T
    bent = np.linalg.solve(root.T, steps.T).T
    slack = least - steps @ free
    tight, point = slack > -_NEAR, free
    while (steps @ point < least - 1e-12).any():
        tight |= steps @ point < least
        dual, _ = nnls(np.vstack([bent[tight].T, slack[tight]]), np.append(np.zeros(len(free)), 1.0))
        rest = np.append(bent[tight].T @ dual, slack[tight] @ dual - 1.0)
        known, point = point, free + np.linalg.solve(root, -rest[:-1] / rest[-1])
        if np.array_equal(known, point):
            break
    return point
