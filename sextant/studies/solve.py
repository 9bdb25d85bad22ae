"""Solved fields: at every point a field takes the value at which a size of the model equals its target.

Points are solved together, as arrays: a search over whole multiples asks for each size some ten times per group of
points, not per point. Where a solved field decides what is built, points that differ in the model are solved one by one
and the group is split by the values found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import paths
from sextant.simulator.errors import InputError, Problem
from sextant.simulator.result import result
from sextant.simulator.types import Num, Result, Scenario
from sextant.studies import allocated, axes
from sextant.studies.equations import MOST, MULTIPLE, equation, figure
from sextant.studies.fields import check, find

if TYPE_CHECKING:
    from sextant.studies.scenario import Question

#: How a size follows from a model and a load.
Size = Callable[[Any, Any], Num]

#: Several equations are solved in turn until no value changes, at most so often.
_ROUNDS = 20
#: Counts whose 0 is a plain zero; 0 of the others removes what they count, and with it what they would be solved for.
_FROM_ZERO = ("first_k_dense_replace", "n_shared_experts")
#: Steps over the range of a field that is no count and has no ``multiple_of``.
_N_STEPS = 2**50
#: Sizes that differ by less than this share are the same number, computed in another order.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Points that one evaluation answers: their numbers, shape (n,), and the scenario with its solved fields.

    ``columns`` holds the solved fields and the sizes reached, each of shape (n,). ``missed`` says for each point why it
    has no solution; it is empty where all have one.
    """

    index: NDArray[np.int64]
    scenario: Scenario
    columns: Mapping[str, NDArray[np.float64]]
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unknown:
    """One equation: the field at ``path`` is a multiple of ``step`` from ``low`` to ``high`` times ``step``."""

    path: str
    name: str
    size: Size
    target: float | str
    step: float
    low: int
    high: int
    integer: bool

    def put(self, scenario: Scenario, values: NDArray[np.float64]) -> Scenario:
        """``scenario`` with the field at ``values``, as one number where all points agree on it."""
        if np.all(values == values[0]):
            return paths.put(scenario, self.path, int(values[0]) if self.integer else float(values[0]))
        return paths.put(scenario, self.path, values)

    def measure(self, scenario: Scenario, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The size at ``values`` of the field, shape (n_points,)."""
        there = self.put(scenario, values)
        return np.broadcast_to(np.asarray(self.size(there.model, there.load), dtype=float), values.shape)

    def miss(self, value: float, got: float) -> str:
        """Why a point has no solution, with the value that comes nearest and the size there."""
        nearest = f"the nearest, {figure(value)}, gives {figure(got)}"
        return f"solve: no {self.path.rpartition('.')[2]} gives {self.name} = {figure(self.target)}; {nearest}"


def parts(question: Question, structural: Set[str] = frozenset()) -> Iterator[Part]:
    """Every point of ``question`` once, in the groups of ``axes.groups``, its solved fields and what follows from
    ``model.engram_fraction`` set.

    A group is split by the values of solved fields in ``structural``; its points without solution come last, apart.
    """
    for part in _parts(question, structural):
        yield from allocated.parts(part)


def _parts(question: Question, structural: Set[str]) -> Iterator[Part]:
    asked = question.scenario
    for index, scenario in axes.groups(question, structural=structural):
        if not asked.solve:
            yield Part(index=index, scenario=scenario, columns={})
            continue
        unknowns = _unknowns(scenario, question.catalogue.sizes)
        point = {p: v[0] for p, v in axes.columns(asked.axes, index[:1]).items()}
        targets = _targets(question, point, scenario, unknowns, len(index))
        yield from _split(index, scenario, unknowns, targets, structural)


def answered(part: Part, evaluate: Callable[[Scenario, int], Result]) -> Result:
    """The result of ``part`` with the columns of its solved fields; points without solution are not evaluated."""
    n = len(part.index)
    if not part.missed:
        found = evaluate(part.scenario, n)
    else:
        empty = result(n, {"step_time_s": 0.0}, {})
        found = replace(empty, feasible=np.zeros(n, dtype=bool), limits=tuple((text,) for text in part.missed))
    return replace(found, columns={**part.columns, **found.columns}) if part.columns else found


def first(question: Question) -> Scenario:
    """The question's first point with its solved fields; at its nearest miss where it has no solution.

    InputError, at its place in the file, for an equation that the field cannot decide: a size that does not follow from
    it, or rises and falls with it.
    """
    scenario, sizes = question.scenario, question.catalogue.sizes
    unknowns = _unknowns(scenario, sizes)
    problems = [p for unknown in unknowns for p in _undecided(question, unknown, sizes)]
    if problems:
        raise InputError(*problems)
    point = {p: v[0] for p, v in scenario.axes.items()}
    solved, *_ = _solved(scenario, unknowns, _targets(question, point, scenario, unknowns, 1))
    return solved


def columns(solve: Mapping[str, Mapping[str, float | str]]) -> dict[str, str]:
    """The result's column of each solved field, by its path: the last name, or the path where names would collide."""
    last = [path.rpartition(".")[2] for path in solve]
    taken = {size for given in solve.values() for size in given}
    return {p: n if last.count(n) == 1 and n not in taken else p for p, n in zip(solve, last, strict=True)}


def _unknowns(scenario: Scenario, sizes: Mapping[str, Size]) -> list[_Unknown]:
    found = []
    for path, given in scenario.solve.items():
        name, target, multiple = equation(given)
        top, _, rest = path.partition(".")
        field = find(getattr(scenario, top), rest, top)
        most = MOST
        try:
            check(MOST, field)
        except InputError:  # a share
            most = 1.0
        step = multiple or (1.0 if field.whole else most / _N_STEPS)
        zero = not field.whole or field.name in _FROM_ZERO
        found.append(
            _Unknown(
                path=path,
                name=name,
                size=sizes[name],
                target=target,
                step=step,
                low=0 if zero else 1,
                high=max(1, int(most / step)),
                integer=field.kind == "integer",
            )
        )
    return found


def _targets(
    question: Question, point: Mapping[str, Any], scenario: Scenario, unknowns: Sequence[_Unknown], n: int
) -> dict[str, NDArray[np.float64]]:
    """The target of each equation, shape (n,); ``base`` is the size of the catalogue's model under the same load."""
    base = question.unchanged(point) if any(u.target == "base" for u in unknowns) else None
    values = {u.path: u.size(base, scenario.load) if u.target == "base" else u.target for u in unknowns}
    return {path: np.broadcast_to(np.asarray(value, dtype=float), (n,)) for path, value in values.items()}


def _split(
    index: NDArray[np.int64], scenario: Scenario, unknowns: Sequence[_Unknown], targets: Mapping[str, NDArray],
    structural: Set[str],
) -> Iterator[Part]:  # fmt: skip
    """The solved points of one group by the values of their structural fields, then those without solution."""
    fixed = [u.path for u in unknowns if u.path in structural]
    found = _one_by_one(scenario, unknowns, targets, len(index)) if fixed else _solved(scenario, unknowns, targets)[1:]
    values, sizes, missed = found
    names = columns(scenario.solve)
    every = {**{names[p]: v for p, v in values.items()}, **sizes}
    ok = missed == ""
    keys = np.stack([values[p] for p in fixed], axis=1) if fixed else np.zeros((len(index), 1))
    for key in np.unique(keys[ok], axis=0):
        at = np.flatnonzero(ok & np.all(keys == key, axis=1))
        part = scenario if len(at) == len(index) else _taken(scenario, at)
        for unknown in unknowns:
            part = unknown.put(part, values[unknown.path][at])
        yield Part(index=index[at], scenario=part, columns={n: v[at] for n, v in every.items()})
    bad = np.flatnonzero(~ok)
    if len(bad):
        at_bad = {n: v[bad] for n, v in every.items()}
        yield Part(index=index[bad], scenario=scenario, columns=at_bad, missed=tuple(missed[bad]))


def _one_by_one(scenario: Scenario, unknowns: Sequence[_Unknown], targets: Mapping[str, NDArray], n: int):
    """What ``_solved`` finds, each distinct combination of the model's arrays and the context solved as scalars."""
    leaves = [*paths.leaves(scenario.model).values(), scenario.load.context_tokens]
    swept = [np.asarray(v) for v in leaves if isinstance(v, np.ndarray) and v.ndim]
    rows = np.stack(swept, axis=1) if swept else np.zeros((n, 1))
    _, firsts, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    found = [
        _solved(_taken(scenario, int(i)), unknowns, {p: t[i : i + 1] for p, t in targets.items()})[1:] for i in firsts
    ]
    values, sizes = ({k: np.concatenate([f[j][k] for f in found])[inverse] for k in found[0][j]} for j in (0, 1))
    return values, sizes, np.concatenate([f[2] for f in found])[inverse]


def _taken(scenario: Scenario, index: Any) -> Scenario:
    """The points ``index`` of a scenario; its axes still say what the whole sweep varies."""
    records = {top: paths.take(getattr(scenario, top), index) for top in ("model", "cluster", "plan", "load")}
    return replace(scenario, **records)


def _solved(
    scenario: Scenario, unknowns: Sequence[_Unknown], targets: Mapping[str, NDArray]
) -> tuple[Scenario, dict[str, NDArray], dict[str, NDArray], NDArray]:
    """The scenario with its solved fields, their values, the sizes reached, and why a point has none ("" if it has).

    Equations are solved in their order, each with the others' values so far, again until none changes.
    """
    n = len(next(iter(targets.values())))
    values: dict[str, NDArray] = {}
    missed = np.full(n, "", dtype=object)
    moving = np.zeros(n, dtype=bool)
    for _ in range(_ROUNDS if len(unknowns) > 1 else 1):
        missed, moving = np.full(n, "", dtype=object), np.zeros(n, dtype=bool)
        for unknown in unknowns:
            found, got, out = _search(unknown, scenario, targets[unknown.path])
            scenario = unknown.put(scenario, found)
            moving |= found != values.get(unknown.path, np.nan)
            values[unknown.path] = found
            for i in np.flatnonzero(out):
                missed[i] = missed[i] or unknown.miss(found[i], got[i])
        if not moving.any():
            break
    sizes = {u.name: np.array(u.measure(scenario, values[u.path])) for u in unknowns}
    if len(unknowns) > 1:
        names = " and ".join(u.path.rpartition(".")[2] for u in unknowns)
        for i in np.flatnonzero(moving | (missed != "")):
            why = missed[i] or f"solve: {names} do not settle"
            missed[i] = f"{why}; solve each field for the size that it moves most"
    return scenario, values, sizes, missed


def _search(
    unknown: _Unknown, scenario: Scenario, target: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Per point the value whose size is nearest ``target`` (of two the smaller), that size, and whether the target lies
    outside: more than half a step beyond the sizes at both ends of the field's range."""

    def measure(steps: NDArray[np.int64]) -> NDArray[np.float64]:
        return unknown.measure(scenario, steps * np.float64(unknown.step))

    low, high = (np.full(target.shape, end, dtype=np.int64) for end in (unknown.low, unknown.high))
    least, most = measure(low), measure(high)
    sign = np.where(most >= least, 1.0, -1.0)
    below, above = sign * (target - least) <= 0, sign * (target - most) > 0
    # Left does not reach the target and right does, except where both are the same end of the range.
    left, right = np.where(above, high, low), np.where(below, low, high)
    at_left, at_right = np.where(above, most, least), np.where(below, least, most)
    rounds = 0
    while np.any(right - left > 1):
        guess = _between(left, right, at_left, at_right, target, halve=rounds % 3 == 2)
        got = measure(guess)
        reached = sign * (got - target) >= 0
        inside = right - left > 1
        up, down = inside & ~reached, inside & reached
        left, at_left = np.where(up, guess, left), np.where(up, got, at_left)
        right, at_right = np.where(down, guess, right), np.where(down, got, at_right)
        rounds += 1
    first_nearer = np.abs(at_left - target) <= np.abs(at_right - target)
    steps, got = np.where(first_nearer, left, right), np.where(first_nearer, at_left, at_right)
    inner = np.where(below, np.minimum(low + 1, high), np.maximum(high - 1, low))
    out = (below | above) & (np.abs(got - target) > np.abs(got - measure(inner)) / 2.0)
    return steps * np.float64(unknown.step), got, out


def _between(
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    at_left: NDArray,
    at_right: NDArray,
    target: NDArray,
    *,
    halve: bool,
) -> NDArray[np.int64]:
    """A step inside each interval: where a straight line meets the target, or the middle, which always converges."""
    share = np.full(target.shape, 0.5)
    if not halve:
        np.divide(target - at_left, at_right - at_left, out=share, where=at_right != at_left)
    guess = left + np.ceil(share * (right - left)).astype(np.int64)
    return np.clip(guess, np.minimum(left + 1, right), np.maximum(right - 1, left))


def _undecided(question: Question, unknown: _Unknown, sizes: Mapping[str, Size]) -> list[Problem]:
    """Why an equation cannot decide its field at the first point: sizes sampled over the whole range of the field."""
    powers = np.geomspace(unknown.low + 1, unknown.high, 48).astype(np.int64)
    steps = np.unique(np.concatenate([np.arange(unknown.low, min(unknown.low + 17, unknown.high + 1)), powers]))
    entry = question.entries[f"solve.{unknown.path}"]

    def changes(size: Size) -> NDArray[np.float64]:
        one = replace(unknown, size=size)
        curve = np.concatenate(
            [one.measure(question.scenario, np.array([x * unknown.step], dtype=np.float64)) for x in steps]
        )
        return np.where(np.abs(np.diff(curve)) > _ROUNDING * np.abs(curve[1:]), np.diff(curve), 0.0)

    try:
        moved = changes(unknown.size)
        if np.any(moved > 0) != np.any(moved < 0):
            return []
        if np.any(moved):
            what = f"{unknown.name} rises and falls with this field, so that it has no one answer"
            return [entry.problem(f"{what}; solve another field for it", unknown.name, value=False)]
        others = [name for name, size in sizes.items() if np.any(changes(size))]
    except ValueError as error:  # a record's own check of its fields
        remedy = f"write a {MULTIPLE} that leaves only values that it takes"
        return [entry.problem(f"not every value can stand in this field ({error}); {remedy}", value=False)]
    remedy = f"hold what it moves ({', '.join(others)})" if others else "neither does another size; solve another field"
    message = f"{unknown.name} does not depend on this field; {remedy}"
    return [entry.problem(message, unknown.name, value=False)]
