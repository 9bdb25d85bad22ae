"""Every plan that a model can run with on a cluster, evaluated; the best of them, and why the others cannot be.

Plans with the same schedule, pipeline, virtual stages, overlap and recomputation are one evaluation of arrays. The
operators of a micro-batch are timed once for all schedules and pipelines, which only order them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.result import part as part_of
from sextant.simulator.timed import joined
from sextant.simulator.types import Flag, Plan, Result, Scenario
from sextant.studies import answer, memory, metrics, search_space, training
from sextant.studies.limits import plan_limits, undefined
from sextant.studies.pareto import front
from sextant.studies.workers import shared
from sextant.workloads.ops import hyperconnection

#: Swept as arrays; what a catalogue calls structural is evaluated value by value instead.
_NUMBERS = ("zero_stage", "tensor", "context", "data", "expert", "micro_batch")
#: Of these, and of the structural ones, those that operators depend on.
_OPERATED = ("pipeline", *_NUMBERS[1:])
#: Most plans of one evaluation: arrays that stay small.
_CHUNK = 16_384


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


def search(
    scenario: Scenario, progress: Callable[[int, int], None] = lambda done, total: None, n_workers: int = 1
) -> Found:
    """Every plan of ``scenario``'s search space. ``progress`` gets the evaluations done and their number;
    ``n_workers`` processes share them, without effect on the result.

    Times are those of the analytic engine. Deterministic, in the order of the nested loops recompute, overlap,
    schedule, pipeline, virtual stages, ZeRO stage, tensor, context, data, expert, micro-batch. InputError if the
    scenario sweeps or solves fields, or nothing is left.
    """
    if scenario.axes or scenario.solve:
        raise InputError("a search varies the plan alone; remove axes and solve, or use `sextant run`")
    scenario = replace(scenario, engine="analytic")
    groups = list(_groups(scenario, search_space.values(scenario)))
    if not groups:
        raise InputError("search: no plan uses this number of devices; widen the lists under search")
    shares = _shares(groups, n_workers)
    parts = [[groups[i] for i in share] for share in shares]
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        progress(done, len(groups))

    if n_workers == 1:
        answers = (_evaluated(scenario, part, count) for part in parts)
    else:
        answers = shared(partial(_evaluated, scenario), parts, n_workers)
    results: list[Result] = [answer.nothing(0)] * len(groups)
    for share, found in zip(shares, answers, strict=True):
        for i, each in zip(share, found, strict=True):
            results[i] = each
        if n_workers > 1:
            count(len(share))
    return _collected(scenario, groups, results)


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


def _groups(scenario: Scenario, space: Mapping[str, Sequence[Any]]) -> Iterator[Group]:
    """Every structure in order."""
    tried = {name: search_space.overlaps(scenario, name) for name in space["schedule"]}
    pairs = list(dict.fromkeys(pair for each in tried.values() for pair in each))
    for recompute, pair in product(space["recompute"], pairs):
        schedules = [name for name in space["schedule"] if pair in tried[name]]
        for name, pipeline, virtual in product(schedules, space["pipeline"], space["virtual_stages"]):
            if not _makes_sense(name, pipeline, virtual, space):
                continue
            overlap, sms = pair
            plan = replace(
                scenario.plan, schedule=name, pipeline=pipeline, virtual_stages=virtual, recompute=recompute,
                overlap=overlap, n_comm_sms=sms, layers_per_stage=(),
            )  # fmt: skip
            numbers = _numbers(scenario, space, pipeline)
            if len(numbers["tensor"]):
                reasons = _reasons(_with(scenario, plan, numbers), len(numbers["tensor"]))
                yield Group(plan=plan, numbers=numbers, reasons=reasons)


def _shares(groups: Sequence[Group], n_workers: int) -> list[list[int]]:
    """Groups that are evaluated together: of one overlap, whose operators are timed for all its schedules at once; as
    many shares of each as there are workers, all with the same pipelines."""
    found: dict[tuple[Any, ...], list[int]] = {}
    pipelines = list(dict.fromkeys(float(group.plan.pipeline) for group in groups))
    for i, group in enumerate(groups):
        share = pipelines.index(float(group.plan.pipeline)) % n_workers
        found.setdefault((group.plan.overlap, group.plan.n_comm_sms, share), []).append(i)
    return list(found.values())


def _makes_sense(name: str, pipeline: float, virtual: float, space: Mapping[str, Sequence[Any]]) -> bool:
    """Whether this is a plan of its own: without a pipeline every schedule is the same, and only interleaved has
    several virtual stages; with one it is 1F1B."""
    if pipeline == 1:
        return virtual == space["virtual_stages"][0] and name == ("1f1b" if "1f1b" in space["schedule"] else name)
    several = any(v > 1 for v in space["virtual_stages"])
    return (virtual > 1) == (name == "interleaved") if several else True


def _numbers(scenario: Scenario, space: Mapping[str, Sequence[Any]], pipeline: float) -> dict[str, NDArray[np.float64]]:
    """Every combination of the numeric fields, (n_points,) each; without ``data`` it takes the devices left over."""
    names = [name for name in _NUMBERS if space[name]]
    grid = np.meshgrid(*(np.asarray(space[name], dtype=float) for name in names), indexing="ij")
    numbers = dict(zip(names, (each.ravel() for each in grid), strict=True))
    if "data" not in numbers:
        data = scenario.cluster.n_devices / (numbers["tensor"] * numbers["context"] * pipeline)
        whole = (data >= 1) & (data == np.floor(data))
        numbers = {name: values[whole] for name, values in {**numbers, "data": data}.items()}
    return {name: numbers[name] for name in _NUMBERS}


def _with(scenario: Scenario, plan: Plan, numbers: Mapping[str, Any]) -> Scenario:
    return replace(scenario, plan=replace(plan, **numbers))


def _reasons(scenario: Scenario, n_points: int) -> dict[str, NDArray[np.bool_]]:
    """Why plans cannot be evaluated, (n_points,) per reason."""
    limits: dict[str, Flag] = {**plan_limits(scenario), **undefined(scenario)}
    if scenario.load.phase == "training":
        limits |= training.schedule_limits(scenario)
    return {text: np.broadcast_to(np.asarray(hit, dtype=bool), (n_points,)) for text, hit in limits.items()}


def _evaluated(
    scenario: Scenario, groups: Sequence[Group], tell: Callable[[int], None] = lambda n: None
) -> list[Result]:
    """The results of the possible plans of each group; all have one overlap. ``tell`` gets how many more are done."""
    results = [answer.nothing(0)] * len(groups)
    if scenario.load.phase != "training":
        for i, group in enumerate(groups):
            results[i] = answer.evaluate(_possible(scenario, [group]), len(group.possible))
            tell(1)
        return results
    sets: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        if len(group.possible):
            sets.setdefault(group.plan.recompute, []).append(i)
    tell(len(groups) - sum(map(len, sets.values())))
    if not sets:
        return results
    # Plans that differ in what they make again have other operators, and are points like all others from here on.
    timed, sizes, held = [], [], []
    at: dict[int, NDArray[np.intp]] = {}
    for members in sets.values():
        rows = [_rows(groups[i]) for i in members]
        distinct, which = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        plans = _with(scenario, groups[members[0]].plan, dict(zip(_OPERATED, distinct.T, strict=True)))
        step = training.sharded_step(plans)
        timed.append(training.timed_step(plans, step).merged(lambda op: hyperconnection.is_remade(op.name)))
        held.append(memory.step_bytes(plans, step))
        at |= zip(
            members, np.split(which.ravel() + sum(sizes), np.cumsum([len(each) for each in rows])[:-1]), strict=True
        )
        sizes.append(len(distinct))
    all_timed, all_held = joined(timed, sizes), memory.joined(held, sizes)
    for members in _bundles(groups, sorted(at)):
        index = np.concatenate([at[i] for i in members])
        part = _possible(scenario, [groups[i] for i in members])
        found = training.evaluate_timed(
            part, all_timed.take(index), len(index), detail=False, held=all_held.take(index)
        )
        ends = np.cumsum([0, *(len(at[i]) for i in members)]).tolist()
        for i, (start, stop) in zip(members, pairwise(ends), strict=True):
            results[i] = part_of(found, start, stop)
        tell(len(members))
    return results


def _bundles(groups: Sequence[Group], members: Sequence[int]) -> Iterator[list[int]]:
    """Groups that differ in nothing but what they make again, at most ``_CHUNK`` plans together, or one group."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i in members:
        plan = groups[i].plan
        alike.setdefault((plan.schedule, plan.pipeline, plan.virtual_stages), []).append(i)
    for same in alike.values():
        bundle: list[int] = []
        for i in same:
            if bundle and sum(len(groups[j].possible) for j in (*bundle, i)) > _CHUNK:
                yield bundle
                bundle = []
            bundle.append(i)
        yield bundle


def _possible(scenario: Scenario, groups: Sequence[Group]) -> Scenario:
    """The scenario with the possible plans of groups, one after the other."""
    numbers = {name: np.concatenate([group.numbers[name][group.possible] for group in groups]) for name in _NUMBERS}
    return _with(scenario, groups[0].plan, numbers)


def _rows(group: Group) -> NDArray[np.float64]:
    """What the operators of the possible plans may depend on, (n_possible, n_fields)."""
    at = group.possible
    pipeline = np.full(len(at), float(group.plan.pipeline))
    return np.stack([pipeline, *(group.numbers[name][at] for name in _OPERATED[1:])], axis=1)


def _collected(scenario: Scenario, groups: Sequence[Group], results: Sequence[Result]) -> Found:
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
