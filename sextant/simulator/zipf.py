"""Zipf's law over the rows of a table: row number r is looked up in proportion to r ** -exponent (0: all alike).

Sums over rows are taken over the first rows one by one and over geometric ranges of rank beyond, all of whose rows
count alike: a table of 1e8 rows costs no more than one of 1e4. Everything broadcasts over design points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.types import Num

#: Rows that are summed one by one, and ranges beyond them: from one to the next the rank grows by 4% in 1e8 rows.
_EXACT, _RANGES = 64, 384
#: Exponents among which the likeliest is looked for.
_LEAST, _MOST = 0.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows by falling popularity, in groups: ``count`` rows each looked up with ``probability``, both of the shape of
    the points and one more axis. A group may hold a part of a row."""

    count: NDArray[np.float64]
    probability: NDArray[np.float64]

    def total(self, each: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Num:
        """Sum of ``each(probability)`` over all rows, shape of the points."""
        return (self.count * each(self.probability)).sum(axis=-1)[()]


def rows(n_rows: Num, exponent: Num) -> Rows:
    """The rows of a table; InputError without a row, or for an exponent below 0."""
    n, s = np.broadcast_arrays(np.asarray(n_rows, dtype=float), np.asarray(exponent, dtype=float))
    if np.any(n < 1):
        raise InputError(f"n_rows: a table needs a row, got {n.min():g}")
    if np.any(s < 0):
        raise InputError(f"exponent: popularity falls with the rank, got {s.min():g}; give 0 or more")
    n, s = n[..., None], s[..., None]
    first = np.arange(1.0, _EXACT + 1.0)
    count = np.clip(n - first + 1.0, 0.0, 1.0)
    weight = count * first**-s
    # Ranges end half-way between ranks, where the integral is nearest to the sum.
    last = np.maximum(n, _EXACT) + 0.5
    edges = (_EXACT + 0.5) * (last / (_EXACT + 0.5)) ** np.linspace(0.0, 1.0, _RANGES + 1)
    counts = np.concatenate([np.broadcast_to(count, (*n.shape[:-1], _EXACT)), np.diff(edges, axis=-1)], axis=-1)
    weights = np.concatenate([weight, np.diff(_integral(edges, s), axis=-1)], axis=-1)
    total = weights.sum(axis=-1, keepdims=True)
    probability = np.divide(weights / total, counts, out=np.zeros_like(weights), where=counts > 0)
    return Rows(count=counts, probability=probability)


def _integral(rank: NDArray[np.float64], exponent: NDArray[np.float64]) -> NDArray[np.float64]:
    """The integral of rank ** -exponent from 1 to ``rank``."""
    power, log = 1.0 - exponent, np.log(rank)
    near = np.abs(power) < 1e-9
    return np.where(near, log, np.expm1(power * log) / np.where(near, 1.0, power))


def distinct(found: Rows, draws: Num) -> Num:
    """Expected number of different rows among ``draws`` lookups, each row looked up independently of the last."""
    return found.total(lambda p: seen(p, draws))


def seen(probability: NDArray[np.float64], draws: Num) -> NDArray[np.float64]:
    """The probability that a row of that ``probability`` is among ``draws`` (any shape of points) lookups."""
    certain = probability >= 1.0
    log = np.log1p(-np.where(certain, 0.0, probability))
    some = -np.expm1(np.asarray(draws, dtype=float)[..., None] * log)
    return np.where(certain, np.minimum(np.asarray(draws, dtype=float)[..., None], 1.0), some)


def distinct_share(found: Rows, draws: Num) -> Num:
    """Different rows among ``draws`` lookups, as a share of the draws: in (0, 1]. InputError without a draw."""
    if np.any(np.asarray(draws) <= 0):
        raise InputError(f"draws: a share of no lookups means nothing, got {np.min(draws):g}; give 1 or more")
    return np.minimum(distinct(found, draws) / draws, 1.0)


def likeliest_exponent(counts: NDArray[np.float64]) -> float:
    """The exponent under which ``counts`` (n_rows,), how often each row was looked up, are likeliest.

    Rows are ranked by their counts, so rows that were never looked up belong in too. The likelihood falls to both
    sides of one exponent: where the mean of log(rank) over lookups is what the law expects. InputError without counts.
    """
    ordered = np.sort(np.asarray(counts, dtype=float))[::-1]
    if ordered.size < 2 or not ordered.sum() > 0 or ordered[-1] < 0:
        raise InputError("counts: give how often each row was looked up, two rows at least and none below 0")
    log = np.log(np.arange(1.0, ordered.size + 1.0))
    mean = float((ordered * log).sum() / ordered.sum())
    low, high = _LEAST, _MOST
    for _ in range(60):
        middle = 0.5 * (low + high)
        weight = np.exp(-middle * log)
        # A larger exponent moves lookups to the first ranks.
        low, high = (middle, high) if float((weight * log).sum() / weight.sum()) > mean else (low, middle)
    return 0.5 * (low + high)
