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
from sextant.simulator.chunk import alone_s, layer_times, pair_exposed_s, pair_s
from sextant.simulator.evaluate import TimedStep, communication_share, time_ops
from sextant.simulator.partition import balance
from sextant.simulator.spread import Pace, Varying
from sextant.simulator.types import Num, Scenario
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

    def layers(self, rank: int) -> dict[str, Num]:
        """How many layers of each part the rank holds."""
        parts = [part for stage in self.ranks[rank] for part in self.chunks[stage]]
        return {part: float(parts.count(part)) for part in dict.fromkeys(parts)}

    def at(self, point: int) -> Stages:
        """The layout of a point: this one."""
        return self

    def all(self) -> tuple[Stages, ...]:
        """The layouts that any point has: this one."""
        return (self,)

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

    def layers(self, rank: int) -> dict[str, Num]:
        """How many layers of each part the rank holds, per point where that differs; 0 where a point has none."""
        held = [choice.layers(rank) for choice in self.choices]
        numbers = {part: [each.get(part, 0.0) for each in held] for each in held for part in each}
        return {part: n[0] if len(set(n)) == 1 else np.array(n)[self.which] for part, n in numbers.items()}

    def all(self) -> tuple[Stages, ...]:
        """The layouts that any point has."""
        return self.choices

    def at(self, point: int) -> Stages:
        """The layout of a point."""
        return self.choices[int(self.which[point])]

    def pick(self, key: Callable[[Stages], Key]) -> Picked[Key]:
        """What ``key`` finds in each point's layout."""
        keys = [key(choice) for choice in self.choices]
        distinct = {each: i for i, each in enumerate(dict.fromkeys(keys))}
        which = np.array([distinct[each] for each in keys])[self.which] if len(distinct) > 1 else None
        return Picked(distinct=tuple(distinct), which=which)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTimes:
    """Seconds of every stage's chunk: alone (F, B, W) and of the pairs that the schedule overlaps.

    ``leads``: when messages leave, as in ``ChunkSeconds`` (``early_sends``).
    """

    forward: list[Num]
    backward_input: list[Num]
    backward_weight: list[Num]
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
        return self.backward_input[b_stage] + (self.backward_weight[b_stage] if kind == "BW" else 0.0)


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
    waits = _Waits(pace=pace, varying=timed.varying())

    held = [stages.pick(lambda each, i=i: each.chunks[i]) for i in range(stages.n_stages)]

    def of_chunks(phase: str) -> list[Num]:
        # Most stages hold the same layers.
        seconds = cache(lambda chunk: alone_s(chunk, alone, phase + "_s") + waits.alone_s(chunk, phase))
        return [each.of(seconds) for each in held]

    def messages(phase: str) -> list[Num]:
        seconds = cache(lambda chunk: alone_s(chunk, alone, phase))
        return [each.of(seconds) for each in held]

    times = ChunkTimes(
        forward=of_chunks("forward"), backward_input=of_chunks("backward_input"),
        backward_weight=of_chunks("backward_weight"), pair={}, pair_exposed={},
        forward_messages=messages("forward_messages_s"), backward_messages=messages("backward_messages_s"),
    )  # fmt: skip
    if plan.schedule in schedule.OVERLAPPING:
        pairs = [p for rank in stages.ranks for p in ((rank[0], rank[-1]), (rank[-1], rank[0]))]
        _add_pairs(times, pairs, timed, stages, pace)
    return times


def pace_of(scenario: Scenario) -> Pace:
    """All devices that hold a stage wait for one another: in each layer that exchanges tokens, else at the end."""
    plan = scenario.plan
    n_devices = plan.tensor * plan.context * plan.data
    return Pace(
        n_devices=n_devices, n_exchanging=np.minimum(plan.expert, n_devices),
        clock_spread=scenario.cluster.device.clock_spread, routing_spread=scenario.load.routing_spread,
    )  # fmt: skip


def lasting_s(scenario: Scenario, timed: TimedStep) -> Num:
    """Standard deviation over the devices of the seconds that a whole step of a mean stage takes, for their clocks."""
    plan, load = scenario.plan, scenario.load
    waits = _Waits(pace=pace_of(scenario), varying=(timed.beside or timed).varying())
    layers: list[tuple[Num, Varying]] = []
    for part, n in timed.step.layers.items():
        layers += [(n / plan.pipeline, waits.of(part, "forward")), (n / plan.pipeline, waits.backward(part))]
    return load.batch / (plan.data * plan.micro_batch) * waits.pace.lasting_s(layers)


class _Waits:
    """What chunks wait for the slowest device that holds them; ``varying`` as ``TimedStep.varying`` finds it."""

    def __init__(self, pace: Pace, varying: Mapping[tuple[str, str, str], Varying]) -> None:
        self.pace = pace
        # What a layer does between two exchanges: the experts, and all else.
        self._pieces: dict[tuple[str, str], list[Varying]] = {}
        for (part, block, phase), each in varying.items():
            pieces = self._pieces.setdefault((part, phase), [Varying(), Varying()])
            pieces[block == "mlp"] += each

    def alone_s(self, chunk: Chunk, phase: str) -> Num:
        """Of a chunk that nothing overlaps: devices meet in every exchange, before and after the experts. A weight
        gradient exchanges nothing."""
        if phase == "backward_weight":
            return self.pace.waits_s(self.of(part, phase) for part in chunk)
        return sum((self.pace.waits_s([piece]) for part in chunk for piece in self._of(part, phase)), 0.0)

    def pair_s(self, chunks: tuple[Chunk, Chunk]) -> Num:
        """Of two that overlap: a device that comes late to an exchange computes the other chunk meanwhile, so that the
        slowest over the whole pair sets its pace (played device by device in the tests)."""
        forward, backward = chunks
        return self.pace.waits_s([*(self.of(part, "forward") for part in forward), *map(self.backward, backward)])

    def backward(self, part: str) -> Varying:
        """Both gradients of a layer, which are of the same tokens."""
        return self.of(part, "backward_input") + self.of(part, "backward_weight")

    def of(self, part: str, phase: str) -> Varying:
        """A whole layer."""
        first, second = self._of(part, phase)
        return first + second

    def _of(self, part: str, phase: str) -> Sequence[Varying]:
        return self._pieces.get((part, phase), (Varying(), Varying()))


def _add_pairs(
    times: ChunkTimes, pairs: Sequence[tuple[int, int]], timed: TimedStep, stages: Stages | Layouts, pace: Pace
) -> None:
    """Add to ``times`` the forward chunks of stages beside backward chunks of others, overlapped or in turn.

    What a pair waits for the slowest device is exposed: the mean device has nothing to compute then."""
    if timed.beside is None:
        for f, b in pairs:
            times.pair[f, b] = times.forward[f] + times.backward_input[b] + times.backward_weight[b]
            times.pair_exposed[f, b] = 0.0
        return
    table = timed.beside.table()
    beside = {part: layer_times(table, part) for part in timed.step.layers}
    waits = _Waits(pace=pace, varying=timed.beside.varying())
    whole = cache(lambda chunks: pair_s(chunks[0], chunks[1], beside) + waits.pair_s(chunks))
    exposed = cache(lambda chunks: pair_exposed_s(chunks[0], chunks[1], beside) + waits.pair_s(chunks))
    for f, b in pairs:
        held = stages.pick(lambda each, f=f, b=b: (each.chunks[f], each.chunks[b]))
        times.pair[f, b], times.pair_exposed[f, b] = held.of(whole), held.of(exposed)


def with_beside(scenario: Scenario, timed: TimedStep) -> TimedStep:
    """``timed`` with the times of its operators beside another micro-batch's messages, where the plan overlaps them."""
    if scenario.plan.overlap != "forward_backward":
        return timed
    taken = communication_share(timed, scenario.cluster.device)
    beside = time_ops(timed.step, scenario.cluster, n_comm_sms=scenario.plan.n_comm_sms, hbm_share=taken)
    return replace(timed, beside=beside)
