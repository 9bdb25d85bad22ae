"""Caches of table rows under Zipf's law: what share of lookups they answer, and what is left for the tiers below.

``lru`` evicts the row that was looked up longest ago. By Che's approximation a row stays for one time T, the same for
all, in which ``size`` different rows are looked up (Che, Tung, Wang, IEEE JSAC 2002). ``lfu`` has come to hold the most
popular rows, and keeps them. A lookup is independent of those before it; rows that bear several hashed n-grams are rows
like any other, so the exponent is that of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Num
from sextant.simulator.zipf import Rows, seen

POLICIES = ("lru", "lfu")

#: Halvings of the range of Che's time: to 1e-12 of a range of e ** 60.
_HALVINGS = 60


def held(found: Rows, size: Num, policy: str = "lru") -> NDArray[np.float64]:
    """The probability that a cache of ``size`` rows has a row, per group of rows: the shape of ``found.count``.

    InputError for a policy that is not there, or a size below 0.
    """
    if policy not in POLICIES:
        raise InputError(f"cache policy: unknown {policy!r}; {nearest(policy, POLICIES)}")
    size = np.asarray(size, dtype=float)
    if np.any(size < 0):
        raise InputError(f"cache size: rows cannot be fewer than none, got {size.min():g}")
    n = found.count.sum(axis=-1)
    size = np.minimum(size, n)
    if policy == "lfu":
        before = np.cumsum(found.count, axis=-1) - found.count
        some = np.where(found.count > 0, found.count, 1.0)
        return np.clip((size[..., None] - before) / some, 0.0, 1.0)
    there = -np.expm1(-found.probability * _stay(found, size)[..., None])
    return np.where((size >= n * (1.0 - 1e-12))[..., None], 1.0, there)


def _stay(found: Rows, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Che's time, in lookups: so long that ``size`` different rows are expected among them; by bisection."""
    shape = np.broadcast_shapes(size.shape, found.count.shape[:-1])
    least = np.where(found.probability > 0, found.probability, np.inf).min(axis=-1)
    low, high = np.full(shape, -30.0), np.broadcast_to(np.log(60.0 / least), shape).copy()
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        filled = (found.count * -np.expm1(-found.probability * np.exp(middle)[..., None])).sum(axis=-1)
        less = filled < size
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return np.where(size > 0, np.exp(0.5 * (low + high)), 0.0)


def hit_rate(found: Rows, size: Num, policy: str = "lru") -> Num:
    """The share of lookups that a cache of ``size`` rows answers, in [0, 1]; shape of the points."""
    return (found.count * found.probability * held(found, size, policy)).sum(axis=-1)[()]


def tiers(found: Rows, sizes: Sequence[Num], policy: str = "lru") -> list[Num]:
    """The share of lookups that each of ``sizes`` (rows, the fastest memory first) answers; what lies below them all
    answers the rest, the last item.

    A row in a faster memory is in the slower ones too, and those see all lookups: each answers what it holds beyond
    the one before. A slower memory that holds less answers nothing.
    """
    reached: list[Num] = [0.0]
    for size in sizes:
        reached.append(np.maximum(hit_rate(found, size, policy), reached[-1]))
    return [b - a for a, b in zip(reached, [*reached[1:], 1.0], strict=True)]


def fetched(found: Rows, draws: Num, size: Num, policy: str = "lru", *, deduplicated: bool) -> Num:
    """Expected rows that ``draws`` lookups at once fetch past a cache of ``size`` rows: each lookup, or each different
    row once. The batch finds the cache as earlier ones left it."""
    absent = 1.0 - held(found, size, policy)
    if deduplicated:
        return (found.count * absent * seen(found.probability, draws)).sum(axis=-1)[()]
    return draws * (found.count * absent * found.probability).sum(axis=-1)[()]
