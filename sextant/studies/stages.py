"""Layers on pipeline stages, and the times of a stage's chunk alone and beside another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import schedule
from sextant.simulator.chunk import LayerTimes, alone_s, layer_times, pair_exposed_s, pair_s
from sextant.simulator.evaluate import TimedStep, communication_share, time_ops
from sextant.simulator.partition import balance
from sextant.simulator.spread import paced
from sextant.simulator.types import Cluster, Num, Scenario
from sextant.workloads import parameters

#: Layers are balanced over stages by their time in steps of this share of the longest layer.
_COST_STEP = 0.05

Chunk = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The layers of every pipeline stage, and which stages each rank holds."""

    chunks: tuple[Chunk, ...]
    ranks: tuple[tuple[int, ...], ...]

    def layers(self, rank: int) -> dict[str, float]:
        """How many layers of each part the rank holds."""
        parts = [part for stage in self.ranks[rank] for part in self.chunks[stage]]
        return {part: float(parts.count(part)) for part in dict.fromkeys(parts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTimes:
    """Seconds of every stage's chunk: alone (F, B, W) and of the pairs that the schedule overlaps."""

    forward: list[Num]
    backward_input: list[Num]
    backward_weight: list[Num]
    pair: dict[tuple[int, int], Num]
    pair_exposed: dict[tuple[int, int], Num]
    forward_messages: list[Num]
    backward_messages: list[Num]

    def of(self, kind: str, f_stage: int, b_stage: int) -> Num:
        """Seconds of an instruction of the schedule."""
        if kind == "FB":
            return self.pair[f_stage, b_stage]
        if kind == "F":
            return self.forward[f_stage]
        if kind == "W":
            return self.backward_weight[b_stage]
        return self.backward_input[b_stage] + (self.backward_weight[b_stage] if kind == "BW" else 0.0)


def layouts(scenario: Scenario, timed: TimedStep, n_points: int) -> Iterator[tuple[NDArray[np.intp], Stages]]:
    """Every distinct way to lay the layers on stages, with the points it is for."""
    names, costs = _part_costs(scenario, timed, n_points)
    rows, which = np.unique(costs, axis=0, return_inverse=True)
    found: dict[Stages, list[NDArray[np.intp]]] = {}
    for i, row in enumerate(rows):
        stages = partition(scenario, timed.step.layers, dict(zip(names, row.tolist(), strict=True)))
        found.setdefault(stages, []).append(np.flatnonzero(which.ravel() == i))
    for stages, indices in found.items():
        yield np.sort(np.concatenate(indices)), stages


def _part_costs(scenario: Scenario, timed: TimedStep, n_points: int) -> tuple[list[str], NDArray[np.float64]]:
    """Seconds of one occurrence of each part, relative to the longest layer and rounded, shape (n_points, n_parts).

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
    return list(columns), np.round(costs / longest / _COST_STEP) * _COST_STEP


def partition(scenario: Scenario, layers: Mapping[str, Num], costs: Mapping[str, float]) -> Stages:
    """Layers on stages: as ``plan.layers_per_stage`` says, or balanced by ``costs`` per part over the ranks.

    ``parameters.units`` says what a cut may not separate.
    """
    plan = scenario.plan
    units: list[Chunk] = [tuple(part for part in unit if part in layers) for unit in parameters.units(scenario.model)]
    ranks = schedule.stages_of_ranks(plan.schedule, int(plan.pipeline), int(plan.virtual_stages))
    n_stages = min(schedule.n_stages(plan.schedule, int(plan.pipeline), int(plan.virtual_stages)), len(units))
    if n_stages < len(ranks) * len(ranks[0]) and plan.schedule not in ("dualpipe", *schedule.VEES):
        ranks = schedule.stages_of_ranks(plan.schedule, n_stages)
    if plan.layers_per_stage:
        cuts = [0, *np.cumsum(plan.layers_per_stage).astype(int).tolist()]
        cuts[-1] = len(units)
    else:
        sums = tuple(round(sum(costs[part] for part in unit), 6) for unit in units)
        cuts = list(balance(sums, n_stages, ranks))
    runs = [units[a:b] for a, b in pairwise(cuts)]
    return Stages(chunks=tuple(tuple(p for unit in run for p in unit) for run in runs), ranks=ranks)


def paced_cluster(scenario: Scenario) -> Cluster:
    """The cluster at the pace of the slowest device that holds a stage: all of them wait for one another, in every
    layer that exchanges tokens or at the end of the step."""
    plan, cluster = scenario.plan, scenario.cluster
    return replace(cluster, device=paced(cluster.device, plan.tensor * plan.context * plan.data))


def chunk_times(scenario: Scenario, timed: TimedStep, stages: Stages) -> ChunkTimes:
    """Times of every chunk alone, and of overlapped pairs, on the HBM bandwidth that communication leaves.

    The SMs of communication are set aside for the whole step: kernels are built for a fixed number of them."""
    plan = scenario.plan
    alone = {part: layer_times(timed.table(), part) for part in timed.step.layers}
    overlapped = plan.overlap == "forward_backward"
    beside = alone
    if overlapped:
        cluster = paced_cluster(scenario)
        taken = communication_share(timed, cluster.device)
        table = time_ops(timed.step, cluster, n_comm_sms=plan.n_comm_sms, hbm_share=taken).table()
        beside = {part: layer_times(table, part) for part in timed.step.layers}
    times = ChunkTimes(
        forward=[alone_s(c, alone, "forward_s") for c in stages.chunks],
        backward_input=[alone_s(c, alone, "backward_input_s") for c in stages.chunks],
        backward_weight=[alone_s(c, alone, "backward_weight_s") for c in stages.chunks],
        pair={}, pair_exposed={},
        forward_messages=[alone_s(c, alone, "forward_messages_s") for c in stages.chunks],
        backward_messages=[alone_s(c, alone, "backward_messages_s") for c in stages.chunks],
    )  # fmt: skip
    if plan.schedule in schedule.OVERLAPPING:
        for rank in stages.ranks:
            for f, b in ((rank[0], rank[-1]), (rank[-1], rank[0])):
                times.pair[f, b], times.pair_exposed[f, b] = _pair(stages, beside, times, f, b, overlapped)
    return times


def _pair(
    stages: Stages, beside: Mapping[str, LayerTimes], times: ChunkTimes, f: int, b: int, overlapped: bool
) -> tuple[Num, Num]:
    if not overlapped:
        return times.forward[f] + times.backward_input[b] + times.backward_weight[b], 0.0
    forward, backward = stages.chunks[f], stages.chunks[b]
    return pair_s(forward, backward, beside), pair_exposed_s(forward, backward, beside)
