"""Every plan that a model can run with on a cluster, evaluated; the best of them, and why the others cannot be.

Plans with the same schedule, pipeline, virtual stages, overlap and recomputation are one evaluation of arrays. The
operators of a micro-batch are timed once for all schedules and pipelines, which only order them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.result import part as part_of
from sextant.simulator.timed import TimedStep, joined
from sextant.simulator.types import Flag, Plan, Result, Scenario
from sextant.studies import answer, memory, search_space, training
from sextant.studies.limits import plan_limits, schedule_limits, undefined
from sextant.studies.memory import StepBytes
from sextant.studies.plans import Found, Group, collected
from sextant.studies.workers import shared
from sextant.workloads.ops import hyperconnection
from sextant.workloads.traffic import pipeline_stages

#: Swept as arrays; what a catalogue calls structural is evaluated value by value instead.
_NUMBERS = ("zero_stage", "tensor", "context", "data", "expert", "micro_batch")
#: Of these, and of the structural ones, those that operators depend on.
_OPERATED = ("pipeline", *_NUMBERS[1:])
#: Most plans of one evaluation: arrays that stay small.
_CHUNK = 16_384


def search(
    scenario: Scenario, progress: Callable[[int, int], None] = lambda done, total: None, n_workers: int = 1
) -> Found:
    """Every plan of ``scenario``'s search space. ``progress`` gets the plans done and their number;
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
    done, total = 0, sum(group.n_points for group in groups)

    def count(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    if n_workers == 1:
        answers = (_evaluated(scenario, part, count) for part in parts)
    else:
        answers = shared(partial(_evaluated, scenario), parts, n_workers)
    results: list[Result] = [answer.nothing(0)] * len(groups)
    for share, found in zip(shares, answers, strict=True):
        for i, each in zip(share, found, strict=True):
            results[i] = each
        if n_workers > 1:
            count(sum(groups[i].n_points for i in share))
    return collected(scenario, groups, results)


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
    """Groups that are evaluated together: of one overlap, whose operators are timed for all its schedules at once;
    pipeline degrees are dealt out to as many shares of each as there are workers."""
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
        limits |= schedule_limits(scenario)
    return {text: np.broadcast_to(np.asarray(hit, dtype=bool), (n_points,)) for text, hit in limits.items()}


def _evaluated(
    scenario: Scenario, groups: Sequence[Group], tell: Callable[[int], None] = lambda n: None
) -> list[Result]:
    """The results of the possible plans of each group; all have one overlap. ``tell`` gets how many more are done."""
    results = [answer.nothing(0)] * len(groups)
    if scenario.load.phase != "training":
        for i, group in enumerate(groups):
            results[i] = answer.evaluate(_possible(scenario, [group]), len(group.possible))
            tell(group.n_points)
        return results
    tell(sum(group.n_points for group in groups if not len(group.possible)))
    if not any(len(group.possible) for group in groups):
        return results
    timed, held, at = _operated(scenario, groups)
    for members in _bundles(groups, sorted(at)):
        index = np.concatenate([at[i] for i in members])
        part = _possible(scenario, [groups[i] for i in members])
        found = training.evaluate_timed(part, timed.take(index), len(index), detail=False, held=held.take(index))
        ends = np.cumsum([0, *(len(at[i]) for i in members)]).tolist()
        for i, (start, stop) in zip(members, pairwise(ends), strict=True):
            results[i] = part_of(found, start, stop)
        tell(sum(groups[i].n_points for i in members))
    return results


def _operated(scenario: Scenario, groups: Sequence[Group]) -> tuple[TimedStep, StepBytes, dict[int, NDArray[np.intp]]]:
    """Times and bytes of all operators that the groups' possible plans have, as points; for each group by its number,
    which point each of its plans is. Plans that differ in what they make again have other operators."""
    sets: dict[tuple[Any, ...], list[int]] = {}
    for i, group in enumerate(groups):
        if len(group.possible):
            sets.setdefault((group.plan.recompute, _stages_per_rank(scenario, group.plan)), []).append(i)
    at: dict[int, NDArray[np.intp]] = {}
    sizes: list[int] = []
    plans: list[Scenario] = []
    alike: dict[bytes, list[int]] = {}
    for members in sets.values():
        rows = [_rows(groups[i]) for i in members]
        distinct, which = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        ends = np.cumsum([len(each) for each in rows])[:-1]
        at |= zip(members, np.split(which.ravel() + sum(sizes), ends), strict=True)
        alike.setdefault(distinct.tobytes(), []).append(len(plans))
        sizes.append(len(distinct))
        plans.append(_with(scenario, groups[members[0]].plan, dict(zip(_OPERATED, distinct.T, strict=True))))
    steps = [training.sharded_step(each) for each in plans]
    held = [memory.step_bytes(each, step) for each, step in zip(plans, steps, strict=True)]
    timed: dict[int, TimedStep] = {}
    for same in alike.values():  # of the same points, with many operators in common
        found = training.timed_steps(plans[same[0]], [steps[i] for i in same])
        timed |= zip(same, (each.merged(lambda op: hyperconnection.is_remade(op.name)) for each in found), strict=True)
    return joined([timed[i] for i in range(len(plans))], sizes), memory.joined(held, sizes), at


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


def _stages_per_rank(scenario: Scenario, plan: Plan) -> float:
    """What operators depend on beside ``_OPERATED`` where streams are made again in blocks that end with their stage
    (mHC); 1 for all other plans."""
    if "mhc" not in plan.recompute or not np.any(np.asarray(scenario.model.n_streams) > 1):
        return 1.0
    return float(pipeline_stages(plan) / plan.pipeline)


def _rows(group: Group) -> NDArray[np.float64]:
    """What the operators of the possible plans may depend on, (n_possible, n_fields)."""
    at = group.possible
    pipeline = np.full(len(at), float(group.plan.pipeline))
    return np.stack([pipeline, *(group.numbers[name][at] for name in _OPERATED[1:])], axis=1)
