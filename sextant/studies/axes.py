"""Axes: what a sweep varies, as a table of all combinations, cut into groups that one evaluation answers.

Points are numbered like the nested loops a reader would write: axes in file order, the last one fastest. A numeric axis
turns into an array in the record; a structural axis (a model, a schedule, a depth) gives one group per value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import paths
from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Scenario
from sextant.studies.fields import shown

if TYPE_CHECKING:
    from sextant.studies.layers import Entry
    from sextant.studies.scenario import Question

CHUNK = 16_384
MAX_POINTS = 5_000_000
_SPACES = ("linspace", "logspace")


def length(entry: Entry) -> int:
    """How many values an axis has, before any is made; InputError (with its place) if it is no axis."""
    raw = entry.raw
    if isinstance(raw, list):
        if not raw:
            raise InputError(entry.problem("has no values; list at least one or remove the axis"))
        return len(raw)
    if not isinstance(raw, dict):
        remedy = "write [a, b, ...], {linspace: [from, to, n]} or {logspace: [from, to, n]}"
        raise InputError(entry.problem(f"expected the values of an axis, got {shown(raw)}; {remedy}"))
    unknown = [k for k in raw if k not in _SPACES]
    if unknown:
        raise InputError(*(entry.problem(f"unknown kind of axis {shown(k)}; {nearest(k, _SPACES)}", k, value=False)
                           for k in unknown))  # fmt: skip
    if len(raw) != 1:
        raise InputError(entry.problem("expected one of linspace and logspace; keep one of them"))
    ((space, ends),) = raw.items()
    if not isinstance(ends, list) or len(ends) != 3:
        got = f"{len(ends)} values" if isinstance(ends, list) else shown(ends)
        raise InputError(entry.problem(f"expected three values, got {got}; write {{{space}: [from, to, n]}}", space))
    n = ends[2]
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        remedy = "the third value counts the points: write a whole number of 2 or more"
        raise InputError(entry.problem(f"expected a number of points, got {shown(n)}; {remedy}", space, 2))
    return n


def values(entry: Entry, convert: Callable[[Any], Any], whole: bool) -> tuple[Any, ...]:
    """The values of an axis whose ``length`` is known to be sound, each as ``convert`` returns it (SI numbers, text).

    ``whole`` demands whole numbers. Raises InputError with the place of every value that is wrong.
    """
    if isinstance(entry.raw, list):
        return _all(entry, [(raw, (i,)) for i, raw in enumerate(entry.raw)], convert)
    ((space, ends),) = entry.raw.items()
    first, last = _all(entry, [(raw, (space, i)) for i, raw in enumerate(ends[:2])], convert)
    if not _is_number(first) or not _is_number(last):
        raise InputError(entry.problem(f"{space} needs a number field; list the values instead", space))
    if space == "logspace" and min(first, last) <= 0:
        raise InputError(entry.problem("logspace needs end values above zero; raise them or use linspace", space))
    made = np.linspace(first, last, ends[2]) if space == "linspace" else np.geomspace(first, last, ends[2])
    if whole:
        near = np.rint(made)
        off = np.abs(made - near) > 1e-9 * np.maximum(np.abs(near), 1.0)
        if off.any():
            some = f"{made[np.argmax(off)]:.6g}"
            message = f"counts something, but {space} gives {some}; change n or list whole numbers"
            raise InputError(entry.problem(message, space, 2))
        made = near
    return tuple(made.tolist())


def _all(
    entry: Entry, items: list[tuple[Any, tuple[str | int, ...]]], convert: Callable[[Any], Any]
) -> tuple[Any, ...]:
    found: list[Any] = []
    problems: list[Problem] = []
    for raw, where in items:
        try:
            found.append(convert(raw))
        except InputError as error:
            problems += [entry.problem(p.message, *where) for p in error.problems]
    if problems:
        raise InputError(*problems)
    return tuple(found)


def count_problem(lengths: Mapping[str, int], max_points: int) -> str:
    """What to say if all combinations are more than ``max_points``; "" if they are not."""
    total = math.prod(lengths.values())
    if total <= max_points:
        return ""
    product = " x ".join(f"{n:,}" for n in lengths.values())
    return f"{product} = {total:,} points, more than {max_points:,}; shorten an axis or split the study"


def n_points(axes: Mapping[str, Sequence[object]]) -> int:
    """The number of combinations; 1 without axes."""
    return math.prod(len(v) for v in axes.values())


def columns(axes: Mapping[str, Sequence[object]], index: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The axis values of the points ``index`` (shape (n,)): per axis float64, or object where it is not numeric."""
    if not axes:
        return {}
    where = np.unravel_index(index, [len(v) for v in axes.values()])
    return {path: _array(v)[at] for (path, v), at in zip(axes.items(), where, strict=True)}


def is_numeric(axis: Sequence[object]) -> bool:
    """Whether every value of the axis is a number, so that it can be swept as one array."""
    return all(_is_number(v) for v in axis)


def groups(
    question: Question, *, structural: Set[str] = frozenset(), chunk: int = CHUNK
) -> Iterator[tuple[NDArray[np.int64], Scenario]]:
    """Every point of ``question`` once: the numbers of the points, shape (n,), and the scenario that answers them.

    In the scenario each numeric axis is a float64 array of shape (n,), n at most ``chunk``; each structural one (not
    numeric, or its path in ``structural``) is one value. Without axes the only group is point 0, all scalars.
    """
    axes = question.scenario.axes
    fixed = {p: v for p, v in axes.items() if p in structural or not is_numeric(v)}
    swept = {p: _array(v) for p, v in axes.items() if p not in fixed}
    lengths = [len(v) for v in axes.values()]
    for point, positions in _combinations(fixed):
        scenario = question.at(point)
        chosen = [positions.get(p, np.arange(len(v))) for p, v in axes.items()]
        sizes = [len(c) for c in chosen]
        total = math.prod(sizes)
        for start in range(0, total, chunk):
            local = np.unravel_index(np.arange(start, min(start + chunk, total)), sizes) if axes else ()
            at = [c[i] for c, i in zip(chosen, local, strict=True)]
            index = np.ravel_multi_index(at, lengths) if axes else np.zeros(1, dtype=np.int64)
            part = scenario
            for path, i in zip(axes, at, strict=True):
                if path in swept and path not in question.held:
                    part = paths.put(part, path, swept[path][i])
            yield np.asarray(index, dtype=np.int64), part


def _combinations(
    fixed: Mapping[str, Sequence[object]],
) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[np.int64]]]]:
    """Every combination of distinct values of the structural axes, with where in its axis each value stands."""
    distinct: list[tuple[str, dict[Any, list[int]]]] = []
    for path, axis in fixed.items():
        seen: dict[Any, list[int]] = {}
        for i, value in enumerate(axis):
            seen.setdefault(value, []).append(i)
        distinct.append((path, seen))
    shape = [len(seen) for _, seen in distinct]
    for flat in range(math.prod(shape)):
        picks = np.unravel_index(flat, shape) if shape else ()
        point, positions = {}, {}
        for (path, seen), pick in zip(distinct, picks, strict=True):
            value = list(seen)[int(pick)]
            point[path], positions[path] = value, np.asarray(seen[value], dtype=np.int64)
        yield point, positions


def _array(axis: Sequence[object]) -> NDArray[Any]:
    if is_numeric(axis):
        return np.asarray(axis, dtype=np.float64)
    column = np.empty(len(axis), dtype=object)
    column[:] = list(axis)
    return column


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
