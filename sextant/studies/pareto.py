"""What no other answer beats in all of several quantities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.intp]:
    """The points, shape (n_front,), that no other one matches in both quantities and beats in one; less is better.

    Both are of shape (n_points,). Sorted by ``first``, so that ``second`` falls strictly; of equal points the one of
    the lowest number.
    """
    order = np.lexsort((np.arange(len(first)), second, first))
    least = np.minimum.accumulate(second[order]) if len(order) else second
    kept = np.ones(len(order), dtype=bool)
    kept[1:] = second[order][1:] < least[:-1]
    return order[kept]


def unbeaten(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points, shape (n_points,), no other one matches in all quantities and beats in one; less is better.

    ``table`` has a row per quantity, shape (n_quantities, n_points). Of equal points all stay.
    """
    n = table.shape[1]
    kept = np.ones(n, dtype=bool)
    for i in range(n):
        kept[i] = not np.any(np.all(table <= table[:, i : i + 1], axis=0) & np.any(table < table[:, i : i + 1], axis=0))
    return kept
