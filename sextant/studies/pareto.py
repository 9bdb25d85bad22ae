"""What no other answer beats in both of two quantities."""

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
