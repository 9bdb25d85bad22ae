"""The plans of a search: groups of one structure before they are evaluated, all of them after; the best, and why others
cannot be."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Plan, Result, Scenario
from sextant.studies import answer, metrics, search_space
from sextant.studies.pareto import front


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Plans of one structure: ``numbers`` (n_points,) by field, and ``reasons`` why some cannot be, per point."""

    plan: Plan
    numbers: Mapping[str, NDArray[np.float64]]
    reasons: Mapping[str, NDArray[np.bool_]]

    @property
    def n_points(self) -> int:
        """How many plans there are."""
        return len(self.numbers["tensor"])

    @property
    def possible(self) -> NDArray[np.intp]:
        """The plans that can be evaluated."""
        broken = [hit for hit in self.reasons.values() if hit.any()]
        return np.flatnonzero(~np.any(broken, axis=0)) if broken else np.arange(self.n_points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All plans of a search, (n_plans,) each: fields of the plan, metrics, and by reason where it rules a plan out.

    A plan that cannot exist has no metrics: 0. ``warnings`` are about all plans.
    """

    scenario: Scenario
    plans: Mapping[str, NDArray[Any]]
    columns: Mapping[str, NDArray[np.float64]]
    reasons: Mapping[str, NDArray[np.bool_]]
    warnings: tuple[str, ...]
    n_evaluated: int

    @property
    def n_plans(self) -> int:
        """Plans looked at."""
        return len(self.plans["tensor"])

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Which plans can run."""
        return ~np.any(list(self.reasons.values()), axis=0) if self.reasons else np.ones(self.n_plans, dtype=bool)

    def counts(self) -> dict[str, int]:
        """How many plans each reason rules out, the most first; a plan may have several."""
        numbers = {text: int(hit.sum()) for text, hit in self.reasons.items()}
        return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))

    def best(self, by: str, n: int) -> list[int]:
        """The ``n`` best feasible plans by a metric; of equally good ones only that with the least memory."""
        at = np.flatnonzero(self.feasible)
        values = sign(self.scenario, by) * self.columns[by][at]
        ranked = at[np.lexsort((at, self.columns["hbm_bytes"][at], values))]
        ordered = self.columns[by][ranked]
        kept = np.ones(len(ranked), dtype=bool)
        kept[1:] = ordered[1:] != ordered[:-1]
        return ranked[kept][:n].tolist()

    def front(self) -> list[int]:
        """The feasible plans that no other one beats in step time and memory."""
        at = np.flatnonzero(self.feasible)
        return at[front(self.columns["step_time_s"][at], self.columns["hbm_bytes"][at])].tolist()

    def closest(self) -> int | None:
        """The plan that lacks the least memory, of those that lack nothing else; None if there is none."""
        others = [hit for text, hit in self.reasons.items() if not text.startswith("hbm:")]
        only = ~np.any(others, axis=0) if others else np.ones(self.n_plans, dtype=bool)
        at = np.flatnonzero(only & ~self.feasible)
        return int(at[np.argmax(self.columns["hbm_free_bytes"][at])]) if len(at) else None

    def plan(self, i: int) -> dict[str, Any]:
        """The fields that a search varies, of plan ``i``."""
        return {name: _plain(values[i]) for name, values in self.plans.items()}


def objective(scenario: Scenario) -> str:
    """What makes a plan good where nobody says: the scenario's first objective, or the usual one of its phase."""
    usual = {"training": "step_time_s", "image_generation": "images_per_s_per_device"}
    return next(iter(scenario.objectives), usual.get(scenario.load.phase, "tokens_per_s_per_device"))


def metric(found: Found, by: str) -> str:
    """``by`` if it is a metric of the answer; InputError offers the nearest."""
    if by not in found.columns:
        raise InputError(f"--by {by}: not a metric of this answer; {nearest(by, tuple(found.columns))}")
    return by


def sign(scenario: Scenario, by: str) -> float:
    """1.0 if less of a metric is better, -1.0 if more is; the scenario's objective says so, or else the name."""
    sense = scenario.objectives.get(by)
    more = metrics.more_is_better(by) if sense is None else sense == "max"
    return -1.0 if more else 1.0


def collected(scenario: Scenario, groups: Sequence[Group], results: Sequence[Result]) -> Found:
    """All groups, one after the other, with the ``results`` of their possible plans."""
    n_plans = sum(group.n_points for group in groups)
    plans: dict[str, NDArray[Any]] = {name: np.empty(n_plans, dtype=object) for name in search_space.FIELDS}
    plans |= {name: np.empty(n_plans) for name in search_space.FIELDS if name not in _TEXTS}
    columns: dict[str, NDArray[np.float64]] = {}
    reasons: dict[str, NDArray[np.bool_]] = {}
    start = 0
    for group, found in zip(groups, results, strict=True):
        span, at = slice(start, start + group.n_points), start + group.possible
        for name in search_space.FIELDS:
            plans[name][span] = _filled(group, name)
        for text, hit in group.reasons.items():
            if hit.any():
                _mark(reasons, text, n_plans, start + np.flatnonzero(hit))
        for name, values in found.columns.items():
            if name not in columns:
                columns[name] = np.zeros(n_plans)
            columns[name][at] = values
        alike: dict[tuple[str, ...], list[int]] = {}
        for i in np.flatnonzero(~found.feasible).tolist():
            alike.setdefault(found.limits[i], []).append(i)
        for text, members in ((text, members) for texts, members in alike.items() for text in texts):
            _mark(reasons, _kind(text), n_plans, at[members])
        start = span.stop
    if scenario.load.phase == "training":
        _constrain(scenario, columns, reasons)
    # Fields that a search sets have an effect in some of its plans: notes are about the most of them.
    noted = replace(scenario, plan=replace(groups[0].plan, zero_stage=np.unique(plans["zero_stage"])))
    warnings = dict.fromkeys((*(note for found in results for note in found.warnings), *answer.notes(noted)))
    return Found(
        scenario=scenario, plans=plans, columns=columns, reasons=reasons, warnings=tuple(warnings),
        n_evaluated=sum(len(found.feasible) for found in results),
    )  # fmt: skip


_TEXTS = ("schedule", "overlap", "recompute")


def _filled(group: Group, name: str) -> Any:
    """The values of a field in a group's plans, or the one of all."""
    if name in group.numbers:
        return group.numbers[name]
    value = getattr(group.plan, name)
    if not isinstance(value, tuple):
        return value
    column = np.empty(group.n_points, dtype=object)
    column.fill(value)
    return column


def _mark(reasons: dict[str, NDArray[np.bool_]], text: str, n_plans: int, at: NDArray[np.intp]) -> None:
    """Note that a reason rules out the plans at ``at``."""
    if text not in reasons:
        reasons[text] = np.zeros(n_plans, dtype=bool)
    reasons[text][at] = True


def _kind(text: str) -> str:
    """A reason without the numbers of its point."""
    return text.partition(", got")[0] if text.startswith("constraint:") else text


def _constrain(scenario: Scenario, columns: Mapping[str, NDArray[np.float64]], reasons: dict[str, Any]) -> None:
    """Add the scenario's constraints to ``reasons``, where plans were evaluated."""
    for name, ends in scenario.constraints.items():
        for end, bound in ends.items():
            done = columns["step_time_s"] > 0
            values = columns.get(name)
            beyond = operator.gt if end == "max" else operator.lt
            broken = done if values is None else done & beyond(values, bound)
            if broken.any():
                reasons[f"constraint: {name} {end} {bound:.6g}"] = broken


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
