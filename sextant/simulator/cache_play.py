"""Caches played lookup by lookup, from a seed: what the formulas of ``cache`` are compared with."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError

#: An LFU cache first chooses its rows after so many lookups, then whenever there were this many times as many.
_FIRST, _AGAIN = 10_000, 1.1


def lookups(n_rows: int, exponent: float, n_lookups: int, seed: int) -> NDArray[np.int64]:
    """Rows by rank from 0, (n_lookups,), drawn by Zipf's law: the same for the same seed."""
    weights = np.arange(1.0, n_rows + 1.0) ** -exponent
    ends = np.cumsum(weights)
    drawn = np.random.default_rng(seed).random(n_lookups) * ends[-1]
    return np.minimum(np.searchsorted(ends, drawn, side="right"), n_rows - 1).astype(np.int64)


def lru_hits(looked_up: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which lookups a cache of ``size`` rows answers, empty at first, that evicts the row looked up longest ago."""
    if size < 1:
        raise InputError(f"cache size: a cache holds a row at least, got {size}")
    held: OrderedDict[int, None] = OrderedDict()
    hits = np.zeros(len(looked_up), dtype=bool)
    for i, row in enumerate(looked_up.tolist()):
        if row in held:
            hits[i] = True
            held.move_to_end(row)
            continue
        held[row] = None
        if len(held) > size:
            held.popitem(last=False)
    return hits


def lfu_hits(looked_up: NDArray[np.int64], size: int, n_rows: int) -> NDArray[np.bool_]:
    """Which lookups a cache answers, empty at first, that counts all rows and holds the ``size`` most looked up so far:
    chosen after 10,000 lookups, and anew whenever there were 1.1 times as many."""
    if size < 1:
        raise InputError(f"cache size: a cache holds a row at least, got {size}")
    # Rows of one count are taken in an order that does not know the law.
    order = np.random.default_rng(0).permutation(n_rows)
    counts, held = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=bool)
    hits, start, end = np.zeros(len(looked_up), dtype=bool), 0, _FIRST
    while start < len(looked_up):
        some = looked_up[start:end]
        hits[start:end] = held[some]
        counts += np.bincount(some, minlength=n_rows)
        held = _most(counts, size, order)
        start, end = end, int(end * _AGAIN) + 1
    return hits


def _most(counts: NDArray[np.int64], size: int, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The ``size`` rows of the largest ``counts``, those of the last count that has room in their ``order``."""
    at_least = np.cumsum(np.bincount(counts)[::-1])[::-1]
    fits = np.flatnonzero(at_least <= size)
    least = int(fits[0]) if len(fits) else len(at_least)
    held = counts >= max(least, 1)
    if least > 1:
        tied = order[counts[order] == least - 1]
        held[tied[: size - int(held.sum())]] = True
    return held
