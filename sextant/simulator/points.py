"""Points of a sweep that are equal: what they cost is computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import paths
from sextant.simulator.types import Correction, Num, Op

Record = TypeVar("Record")

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
        mixed = (mixed ^ np.ascontiguousarray(column, dtype=np.float64).view(np.uint64)) * _MIXER
        mixed ^= mixed >> np.uint64(29)
    _, first, which = np.unique(mixed, return_index=True, return_inverse=True)
    which = which.ravel()
    if 2 * len(first) > len(which):
        return None
    if not all(np.array_equal(column[first][which], column) for column in columns):
        return None  # two different points were mixed to the same number
    return first, which


@dataclass(frozen=True, slots=True)
class Points:
    """The points that differ, and for each point (in the points' shape) which of these it is; ``at`` as given to
    ``distinct_points``."""

    first: NDArray[np.intp]
    which: NDArray[np.intp]
    at: NDArray[np.intp] | None = None

    def of(self, value: Num) -> Num:
        """A number, or the values of the points that differ."""
        if np.ndim(value) == 0:
            return value
        values = np.asarray(value, dtype=float)
        if values.shape != self.which.shape:
            values = np.broadcast_to(values, self.which.shape)
        return values.reshape(-1)[self.first]

    def of_op(self, op: Op) -> Op:
        """An operator of the points that differ: its shape and count, which its seconds depend on."""
        pick = self.of if self.at is None else partial(picked, index=self.at[self.first])
        return replace(op, shape={name: pick(size) for name, size in op.shape.items()}, count=pick(op.count))

    def of_record(self, record: Record) -> Record:
        """A record of the points that differ."""
        return paths.mapped(record, self.of) if swept(record) else record

    def all(self, value: Num) -> Num:
        """A number, or for every point what was found for its equal."""
        return picked(value, self.which)


def picked(value: Num, index: NDArray[np.intp]) -> Num:
    """A number, or the values at ``index``."""
    return value if np.ndim(value) == 0 else np.asarray(value)[index]


def distinct_points(
    ops: Sequence[Op], records: Sequence[Any], values: Values, at: NDArray[np.intp] | None = None
) -> Points | None:
    """The distinct points of ``ops``, of which only shapes and counts are looked at, on what ``records`` say.

    ``at``: for each point of the records which of the operators' points it is; without it they have the same. None
    where to look would not be worth it: few points, or few that are equal.
    """
    shapes = [at] if at is not None else [values.first(size) for op in ops for size in (*op.shape.values(), op.count)]
    swept_too = (value for record in records for value in swept(record))
    arrays = {id(value): value for value in (*shapes, *swept_too) if isinstance(value, np.ndarray)}
    shape = np.broadcast_shapes(*(value.shape for value in arrays.values()))
    if math.prod(shape) < FEW_POINTS:
        return None
    found = distinct([np.broadcast_to(np.asarray(value, dtype=float), shape).ravel() for value in arrays.values()])
    return None if found is None else Points(found[0], found[1].reshape(shape), at)


class Values:
    """Arrays told apart by what is in them: equal ones are all known by the first of them. Arrays must outlive it."""

    def __init__(self) -> None:
        self._of_array: dict[int, Any] = {}
        self._of_values: dict[tuple[tuple[int, ...], bytes], Any] = {}

    def first(self, value: Num) -> Num:
        """A number, or the first array that was equal to this one."""
        if not isinstance(value, np.ndarray):
            return value
        found = self._of_array.get(id(value))
        if found is None:
            found = self._of_values.setdefault((value.shape, value.tobytes()), value)
            self._of_array[id(value)] = found
        return found


def swept(record: Any) -> tuple[NDArray[np.float64], ...]:
    """Every array of points in a record; the tables of a ``Correction`` are none."""
    return _swept(_Same(record)) if is_dataclass(record) else tuple(_arrays(record))


class _Same:
    """A record that equals itself alone; it stays alive as long as it is remembered."""

    __slots__ = ("record",)

    def __init__(self, record: Any) -> None:
        self.record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.record is self.record

    def __hash__(self) -> int:
        return id(self.record)


@lru_cache(maxsize=16)
def _swept(same: _Same) -> tuple[NDArray[np.float64], ...]:
    return tuple(_arrays(same.record))


def _arrays(record: Any) -> Iterator[NDArray[np.float64]]:
    if isinstance(record, float | str):
        return
    if isinstance(record, np.ndarray):
        if record.ndim:
            yield record
    elif isinstance(record, Mapping):
        for value in record.values():
            yield from _arrays(value)
    elif isinstance(record, tuple):
        for value in record:
            yield from _arrays(value)
    elif is_dataclass(record) and not isinstance(record, Correction):
        for each in fields(record):
            yield from _arrays(getattr(record, each.name))
