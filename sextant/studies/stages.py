"""Layers on pipeline stages, and the times of a stage's chunk alone and beside another one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import schedule
from sextant.simulator.chunk import alone_s, layer_times, pair_seconds
from sextant.simulator.evaluate import communication_share, time_ops
from sextant.simulator.partition import balance
from sextant.simulator.spread import Pace
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num, Scenario
from sextant.studies.pace import Waits, pace_of
from sextant.workloads import parameters

#: Layers are balanced over stages by their time in steps, so many to the longest layer.
_COST_STEPS = 20

Chunk = tuple[str, ...]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked(Generic[Key]):
    """What was found in the layouts of all points: point i has ``distinct[which[i]]``, or all have the only one."""

    distinct: tuple[Key, ...]
    which: NDArray[np.intp] | None = None

    def of(self, value: Callable[[Key], Num]) -> Num:
        """``value`` of what each point has; called once for each thing found."""
        if self.which is None:
            return value(self.distinct[0])
        rows = np.stack([np.broadcast_to(value(each), self.which.shape) for each in self.distinct])
        return rows[self.which, np.arange(len(self.which))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The layers of every pipeline stage, and which stages each rank holds."""

    chunks: tuple[Chunk, ...]
    ranks: tuple[tuple[int, ...], ...]

    @property
    def n_stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.chunks)

    def counts(self, stage: int) -> dict[str, Num]:
        """How many layers of each part the stage holds."""
        return dict(_counted(self.chunks[stage]))

    def layers(self, rank: int) -> dict[str, Num]:
        """How many layers of each part the rank holds."""
        return _together([self.counts(stage) for stage in self.ranks[rank]])

    def at(self, point: int) -> Stages:
        """The layout of a point: this one."""
        return self

    def pick(self, key: Callable[[Stages], Key]) -> Picked[Key]:
        """What ``key`` finds in the layout, such as the chunk of a stage."""
        return Picked(distinct=(key(self),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Several ways to lay the layers on the same ranks; point i is laid as ``choices[which[i]]``."""

    choices: tuple[Stages, ...]
    which: NDArray[np.intp]

    @property
    def ranks(self) -> tuple[tuple[int, ...], ...]:
        """Which stages each rank holds, the same for all points."""
        return self.choices[0].ranks

    @property
    def n_stages(self) -> int:
        """Stages, the same for all points."""
        return self.choices[0].n_stages

    def counts(self, stage: int) -> dict[str, Num]:
        """How many layers of each part the stage holds, per point where that differs; 0 where a point has none."""
        held = [choice.counts(stage) for choice in self.choices]
        parts = dict.fromkeys(part for each in held for part in each)
        numbers = {part: [each.get(part, 0.0) for each in held] for part in parts}
        return {part: n[0] if len(set(n)) == 1 else np.array(n)[self.which] for part, n in numbers.items()}

    def layers(self, rank: int) -> dict[str, Num]:
        """How many layers of each part the rank holds, as ``counts``."""
        return _together([self.counts(stage) for stage in self.ranks[rank]])

    def at(self, point: int) -> Stages:
        """The layout of a point."""
        return self.choices[int(self.which[point])]

    def pick(self, key: Callable[[Stages], Key]) -> Picked[Key]:
        """What ``key`` finds in each point's layout."""
        keys = [key(choice) for choice in self.choices]
        distinct = {each: i for i, each in enumerate(dict.fromkeys(keys))}
        which = np.array([distinct[each] for each in keys])[self.which] if len(distinct) > 1 else None
        return Picked(distinct=tuple(distinct), which=which)


@lru_cache(maxsize=8192)
def _counted(chunk: Chunk) -> tuple[tuple[str, float], ...]:
    return tuple((part, float(chunk.count(part))) for part in dict.fromkeys(chunk))


def _together(held: Sequence[Mapping[str, Num]]) -> dict[str, Num]:
    """Sums by part."""
    return {part: sum(each.get(part, 0.0) for each in held) for each in held for part in each}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTimes:
    """Seconds of every stage's chunk: alone (F, B, W) and of the pairs that the schedule overlaps; ``backward_late``,
    what B and W in one chunk take longer than apart.

    ``leads``: when messages leave, as in ``ChunkSeconds`` (``early_sends``).
    """

    forward: list[Num]
    backward_input: list[Num]
    backward_weight: list[Num]
    backward_late: list[Num]
    pair: dict[tuple[int, int], Num]
    pair_exposed: dict[tuple[int, int], Num]
    forward_messages: list[Num]
    backward_messages: list[Num]
    leads: Mapping[tuple[str, int, int], tuple[Num, Num]] = field(default_factory=dict)

    def of(self, kind: str, f_stage: int, b_stage: int) -> Num:
        """Seconds of an instruction of the schedule."""
        if kind == "FB":
            return self.pair[f_stage, b_stage]
        if kind == "F":
            return self.forward[f_stage]
        if kind == "W":
            return self.backward_weight[b_stage]
        return self.full(b_stage) if kind == "BW" else self.backward_input[b_stage]

    def full(self, stage: int) -> Num:
        """Both gradients in one chunk."""
        return self.backward_input[stage] + self.backward_weight[stage] + self.backward_late[stage]


def layout(scenario: Scenario, timed: TimedStep, n_points: int) -> Stages | Layouts:
    """The layers of all points on stages."""
    found = list(layouts(scenario, timed, n_points))
    if len(found) == 1:
        return found[0][1]
    which = np.empty(n_points, dtype=np.intp)
    for i, (index, _) in enumerate(found):
        which[index] = i
    return Layouts(choices=tuple(stages for _, stages in found), which=which)


def layouts(scenario: Scenario, timed: TimedStep, n_points: int) -> Iterator[tuple[NDArray[np.intp], Stages]]:
    """Every distinct way to lay the layers on stages, with the points it is for."""
    names, costs = _part_costs(scenario, timed, n_points)
    rows, which = np.unique(costs, axis=0, return_inverse=True)
    found: dict[Stages, list[NDArray[np.intp]]] = {}
    layers = timed.step.layers
    units = tuple(tuple(part for part in unit if part in layers) for unit in parameters.units(scenario.model))
    for i, row in enumerate(rows):
        stages = partition(scenario, units, tuple(zip(names, row.tolist(), strict=True)))
        found.setdefault(stages, []).append(np.flatnonzero(which.ravel() == i))
    for stages, indices in found.items():
        yield np.sort(np.concatenate(indices)), stages


def _part_costs(scenario: Scenario, timed: TimedStep, n_points: int) -> tuple[list[str], NDArray[np.int64]]:
    """Time of one occurrence of each part, in whole steps of the longest layer's, shape (n_points, n_parts).

    What overlapped chunks hide is not counted. Rounding keeps small changes from moving layers.
    """
    hidden = scenario.plan.overlap == "forward_backward"
    table = timed.table()
    columns: dict[str, Num] = {}
    for part in timed.step.layers:
        times = layer_times(table, part)
        messages = times.forward_messages_s + times.backward_messages_s if hidden else 0.0
        columns[part] = times.forward_s + times.backward_input_s + times.backward_weight_s - messages
    costs = np.stack([np.broadcast_to(np.asarray(c, dtype=float), (n_points,)) for c in columns.values()], axis=1)
    longest = np.max(costs[:, [part.endswith("layer") for part in columns]], axis=1, keepdims=True)
    return list(columns), np.rint(costs / longest * _COST_STEPS).astype(np.int64)


def partition(scenario: Scenario, units: tuple[Chunk, ...], costs: tuple[tuple[str, int], ...]) -> Stages:
    """Layers on stages: as ``plan.layers_per_stage`` says, or balanced by ``costs`` per part over the ranks.

    ``units`` (``parameters.units``) says what a cut may not separate.
    """
    plan = scenario.plan
    return _partition(
        plan.schedule, int(plan.pipeline), int(plan.virtual_stages), plan.layers_per_stage, units, costs
    )  # fmt: skip


@lru_cache(maxsize=8192)
def _partition(
    name: str, pipeline: int, virtual: int, layers_per_stage: tuple[float, ...], units: tuple[Chunk, ...],
    costs: tuple[tuple[str, int], ...],
) -> Stages:  # fmt: skip
    ranks = schedule.stages_of_ranks(name, pipeline, virtual)
    n_stages = min(schedule.n_stages(name, pipeline, virtual), len(units))
    if n_stages < len(ranks) * len(ranks[0]) and name not in ("dualpipe", *schedule.VEES):
        ranks = schedule.stages_of_ranks(name, n_stages)
    if layers_per_stage:
        cuts = [0, *np.cumsum(layers_per_stage).astype(int).tolist()]
        cuts[-1] = len(units)
    else:
        each = dict(costs)
        sums = tuple(sum(each[part] for part in unit) for unit in units)
        cuts = list(balance(sums, n_stages, ranks))
    runs = [units[a:b] for a, b in pairwise(cuts)]
    return Stages(chunks=tuple(tuple(p for unit in run for p in unit) for run in runs), ranks=ranks)


def chunk_times(scenario: Scenario, timed: TimedStep, stages: Stages | Layouts) -> ChunkTimes:
    """Times of every chunk alone, and of overlapped pairs, on the HBM bandwidth that communication leaves.

    The SMs of communication are set aside for the whole step: kernels are built for a fixed number of them. All chunks
    take as long as on the slowest of the devices that hold the stage, for these wait for one another."""
    plan, table = scenario.plan, timed.table()
    alone = {part: layer_times(table, part) for part in timed.step.layers}
    pace = pace_of(scenario)
    waits = Waits(pace, timed.varying())
    held = [stages.counts(i) for i in range(stages.n_stages)]

    def of_chunks(phase: str) -> list[Num]:
        return [alone_s(counts, alone, phase + "_s") + waits.alone_s(counts, phase) for counts in held]

    times = ChunkTimes(
        forward=of_chunks("forward"), backward_input=of_chunks("backward_input"),
        backward_weight=of_chunks("backward_weight"), backward_late=[waits.late_s(counts) for counts in held],
        pair={}, pair_exposed={},
        forward_messages=[alone_s(counts, alone, "forward_messages_s") for counts in held],
        backward_messages=[alone_s(counts, alone, "backward_messages_s") for counts in held],
    )  # fmt: skip
    if plan.schedule in schedule.OVERLAPPING:
        # Of a DualPipe two ranks hold the same stages.
        pairs = dict.fromkeys(p for rank in stages.ranks for p in ((rank[0], rank[-1]), (rank[-1], rank[0])))
        _add_pairs(times, list(pairs), timed, stages, pace)
    return times


def _add_pairs(
    times: ChunkTimes, pairs: Sequence[tuple[int, int]], timed: TimedStep, stages: Stages | Layouts, pace: Pace
) -> None:
    """Add to ``times`` the forward chunks of stages beside backward chunks of others, overlapped or in turn.

    What a pair waits for the slowest device is exposed: the mean device has nothing to compute then."""
    if timed.beside is None:
        for f, b in pairs:
            times.pair[f, b] = times.forward[f] + times.full(b)
            times.pair_exposed[f, b] = 0.0
        return
    table = timed.beside.table()
    beside = {part: layer_times(table, part) for part in timed.step.layers}
    waits = Waits(pace, timed.beside.varying())
    found = cache(lambda chunks: pair_seconds(chunks[0], chunks[1], beside))
    for f, b in pairs:
        held = stages.pick(lambda each, f=f, b=b: (each.chunks[f], each.chunks[b]))
        late_s = waits.pair_s(stages.counts(f), stages.counts(b))
        whole, exposed = (held.of(lambda chunks, i=i: found(chunks)[i]) for i in range(2))
        times.pair[f, b], times.pair_exposed[f, b] = whole + late_s, exposed + late_s


def with_beside(scenario: Scenario, timed: TimedStep, at: NDArray[np.intp] | None = None) -> TimedStep:
    """``timed`` with the times of its operators beside another micro-batch's messages, where the plan overlaps them.

    ``at`` as for ``evaluate.time_ops``."""
    if scenario.plan.overlap != "forward_backward":
        return timed
    cluster, n_sms = scenario.cluster, scenario.plan.n_comm_sms
    taken = communication_share(timed, cluster.device)
    return replace(
        timed, beside=time_ops(timed.step, cluster, n_comm_sms=n_sms, hbm_share=taken, at=at, alone=timed)
    )  # fmt: skip
