"""Points of a sweep that are equal: what they cost is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: To look for equal points among fewer takes longer than to compute them all.
FEW_POINTS = 256
#: An odd number whose product spreads bits (the golden ratio's).
_MIXER = np.uint64(0x9E3779B97F4A7C15)


def distinct(columns: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Which points stand for all others, and for each point which of these is its equal; ``columns`` of shape
    (n_points,) each. None where it would not be worth it: few points, or few that are equal."""
    n_points = len(columns[0]) if columns else 0
    if n_points < FEW_POINTS:
        return None
    mixed = np.zeros(n_points, dtype=np.uint64)
    for column in columns:
        mixed = (mixed ^ np.ascontiguousarray(column).view(np.uint64)) * _MIXER
        mixed ^= mixed >> np.uint64(29)
    _, first, which = np.unique(mixed, return_index=True, return_inverse=True)
    which = which.ravel()
    if 2 * len(first) > len(which):
        return None
    if not all(np.array_equal(column[first][which], column) for column in columns):
        return None  # two different points were mixed to the same number
    return first, which
