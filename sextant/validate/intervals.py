"""Arithmetic of time intervals: unions, and how much of a span they cover, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Union:
    """Disjoint intervals in order, ``start_s`` and ``end_s`` of shape (n_intervals,)."""

    start_s: Times
    end_s: Times

    @property
    def seconds(self) -> float:
        """Their summed length."""
        return float(np.sum(self.end_s - self.start_s))

    def covered_s(self, start_s: Times, end_s: Times) -> Times:
        """Seconds of each span from ``start_s`` to ``end_s`` that lie in the union, shape of the spans."""
        if not self.start_s.size:
            return np.zeros(np.shape(start_s))
        # Seconds covered until a time: linear between the ends of intervals, so interpolation is exact.
        times = np.stack([self.start_s, self.end_s], axis=1).ravel()
        lengths = np.cumsum(self.end_s - self.start_s)
        covered = np.stack([np.concatenate([[0.0], lengths[:-1]]), lengths], axis=1).ravel()
        return np.interp(end_s, times, covered) - np.interp(start_s, times, covered)

    def overlap_s(self, other: Union) -> float:
        """Seconds in both."""
        return float(np.sum(self.covered_s(other.start_s, other.end_s)))

    def gaps(self) -> Union:
        """The intervals between its own."""
        return Union(start_s=self.end_s[:-1], end_s=self.start_s[1:])


def union(start_s: Times, end_s: Times) -> Union:
    """The union of intervals, in any order and overlapping or not, shapes (n_intervals,); those that touch join."""
    order = np.argsort(start_s, kind="stable")
    starts = np.asarray(start_s, dtype=float)[order]
    reach = np.maximum.accumulate(np.asarray(end_s, dtype=float)[order])
    new = np.concatenate([[True], starts[1:] > reach[:-1]]) if starts.size else np.zeros(0, dtype=bool)
    last = np.concatenate([new[1:], [True]]) if starts.size else new
    return Union(start_s=starts[new], end_s=reach[last])
