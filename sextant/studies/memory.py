"""Memory of every rank of a training plan: state, activations in flight, working sets, buffers; and on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import occupancy
from sextant.simulator.capacity import CONTEXT_BYTES, FRAGMENTATION_SHARE, Capacity, capacity
from sextant.simulator.occupancy import StageBytes
from sextant.simulator.pipeline import PipelineRun
from sextant.simulator.types import Num, Scenario, Step
from sextant.studies.stages import Layouts, Stages
from sextant.workloads import buffers, residency, workspace

#: Where a part of the state lies unless ``plan.placement`` says otherwise, by the name that placement gives it.
_PLACED = {"master": "optimizer", "moments": "optimizer", "ema": "ema"}

Parts = dict[str, Num]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes by part in the HBM of one rank at its peak, and what it has on its host."""

    hbm: Mapping[str, Num]
    host: Mapping[str, Num]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Use of the fullest rank, which is ``rank`` (per point), and of the host by the rank that has most there."""

    hbm: Capacity
    host: Capacity
    rank: Num


def memory_use(scenario: Scenario, stages: Stages | Layouts, step: Step) -> Usage:
    """The fullest rank of a training ``step`` (sharded operators) against the capacities of its device."""
    if isinstance(stages, Layouts):
        return _of_points([memory_use(scenario, each, step) for each in stages.choices], stages.which)
    ranks = rank_memories(scenario, stages, step)
    device = scenario.cluster.device
    rank, fullest = _fullest([each.hbm for each in ranks])
    _, host = _fullest([each.host for each in ranks])
    return Usage(hbm=capacity(device, "hbm", fullest, CONTEXT_BYTES), host=capacity(device, "host", host), rank=rank)


def _of_points(uses: Sequence[Usage], which: NDArray[np.intp]) -> Usage:
    """Per point the use under the layout ``which`` names."""

    def chosen(values: Sequence[Num]) -> Num:
        rows = np.stack([np.broadcast_to(value, which.shape) for value in values])
        return rows[which, np.arange(len(which))]

    def tier(each: Sequence[Capacity]) -> Capacity:
        names = dict.fromkeys(name for one in each for name in one.parts)
        return replace(
            each[0], parts={name: chosen([one.parts.get(name, 0.0) for one in each]) for name in names},
            used_bytes=chosen([one.used_bytes for one in each]),
        )  # fmt: skip

    return Usage(
        hbm=tier([use.hbm for use in uses]), host=tier([use.host for use in uses]),
        rank=chosen([use.rank for use in uses]),
    )  # fmt: skip


def rank_memories(scenario: Scenario, stages: Stages, step: Step) -> list[RankMemory]:
    """Bytes by part of every rank, CUDA's context aside (``capacity`` adds it)."""
    plan, load = scenario.plan, scenario.load
    sizes, state = stage_bytes(scenario, stages, step), residency.state_bytes(scenario.model, plan)
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    away = plan.placement.get("activations", "hbm") == "host"
    found: list[RankMemory] = []
    for rank, held in enumerate(stages.ranks):
        hbm, host = _static(scenario, stages, state, rank)
        mine = [sizes[stage] for stage in held]
        schedule = (plan.schedule, rank, len(stages.ranks), micro_batches)
        hbm["activations"], hbm["workspace"] = occupancy.peak(*schedule, mine, len(held) if _virtual(plan) else 1)
        if away:
            kept = [replace(each, kept=_kept(scenario, stages.chunks[s])) for each, s in zip(mine, held, strict=True)]
            total = occupancy.peak(*schedule, kept, len(held) if _virtual(plan) else 1)[0]
            host["activations"] = total - hbm["activations"]
        hbm["fragmentation"] = FRAGMENTATION_SHARE * (hbm["activations"] + hbm["workspace"])
        found.append(RankMemory(hbm=hbm, host=host))
    return found


def stage_bytes(scenario: Scenario, stages: Stages, step: Step) -> list[StageBytes]:
    """What one micro-batch holds on every stage, and the working sets of its chunks.

    Beside the largest operator a backward chunk holds the tensors of one layer that ``recompute`` makes again.
    Activations that live on the host are in HBM while they leave or come back: as the chunk runs, and one chunk on.
    """
    plan, model, load = scenario.plan, scenario.model, scenario.load
    kept = residency.activation_bytes(model, plan, load)
    whole = residency.activation_bytes(model, replace(plan, recompute=()), load)
    largest, waiting = workspace.largest_operands(step), workspace.weight_gradient_operands(step)
    again = {part: np.maximum(whole[part] - kept[part], 0.0) for part in largest}
    away = plan.placement.get("activations", "hbm") == "host"
    found: list[StageBytes] = []
    for chunk in stages.chunks:
        size = _kept(scenario, chunk)
        operands = sum((waiting[p][1] + np.minimum(waiting[p][0], kept[p] + again[p]) for p in chunk), 0.0)
        backward = _most(
            [
                np.maximum(_at(largest[p], "backward_input"), _at(largest[p], "backward_weight")) + again[p]
                for p in chunk
            ]
        )
        leaving = 2.0 * size if away else 0.0
        found.append(
            StageBytes(
                kept=0.0 * size if away else size, operands=operands,
                forward=_most([_at(largest[p], "forward") for p in chunk]) + leaving, backward=backward + leaving,
                weight=_most([_at(largest[p], "backward_weight") for p in chunk]),
            )
        )  # fmt: skip
    return found


def timelines(
    scenario: Scenario, stages: Stages, step: Step, run: PipelineRun
) -> list[list[tuple[float, float, float]]]:
    """Per rank ``(start_s, end_s, bytes)`` of the HBM in use at every instruction of a simulated step of one point."""
    plan, load = scenario.plan, scenario.load
    sizes, ranks = stage_bytes(scenario, stages, step), rank_memories(scenario, stages, step)
    micro_batches = round(float(np.ravel(load.batch / (plan.data * plan.micro_batch))[0]))
    tracks = list(dict.fromkeys(span.track for span in run.spans))
    found: list[list[tuple[float, float, float]]] = []
    for rank, held in enumerate(stages.ranks):
        spans = [span for span in run.spans if span.track == tracks[rank]]
        rows = occupancy.timeline(
            plan.schedule, rank, len(stages.ranks), micro_batches, [sizes[stage] for stage in held], spans,
            len(held) if _virtual(plan) else 1,
        )  # fmt: skip
        moving = ("activations", "workspace", "fragmentation")
        fixed = CONTEXT_BYTES + sum(float(np.ravel(v)[0]) for k, v in ranks[rank].hbm.items() if k not in moving)
        found.append([(a, b, fixed + (1.0 + FRAGMENTATION_SHARE) * size) for a, b, size in rows])
    return found


def _static(
    scenario: Scenario, stages: Stages, state: Mapping[str, Mapping[str, Num]], rank: int
) -> tuple[Parts, Parts]:
    """What lies there all the time on a rank: in HBM, and on the host."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    hbm: Parts = {}
    host: Parts = {}
    layers = stages.layers(rank)
    for part, n in layers.items():
        for name, size in state[part].items():
            place = host if plan.placement.get(_PLACED.get(name, ""), "hbm") == "host" else hbm
            place[name] = place.get(name, 0.0) + n * size
    if model.engram_layers:
        hbm["engram_tables"] = residency.table_bytes(model, plan, load.phase, 1.0)["hbm"]
    if plan.zero_stage >= 2:
        hbm["gathered"] = residency.gathered_bytes(model, plan, layers)
    hbm["exchange_buffers"] = buffers.exchange_bytes(model, plan)
    hbm["collective_buffers"] = buffers.collective_bytes(model, plan)
    hbm["pipeline_buffers"] = buffers.pipeline_bytes(model, plan, load, stages.ranks[rank], len(stages.chunks))
    return hbm, host


def _virtual(plan) -> bool:
    return plan.schedule == "interleaved"


def _kept(scenario: Scenario, chunk: Sequence[str]) -> Num:
    kept = residency.activation_bytes(scenario.model, scenario.plan, scenario.load)
    return sum((kept[part] for part in chunk), 0.0)


def _at(phases: Mapping[str, Num], phase: str) -> Num:
    return phases.get(phase, 0.0)


def _most(values: Sequence[Num]) -> Num:
    most: Num = 0.0
    for value in values:
        most = np.maximum(most, value)
    return most


def _fullest(uses: Sequence[Mapping[str, Num]]) -> tuple[Num, Parts]:
    """Which rank has most in all, per point, and its parts; a part that a rank lacks is 0 there."""
    names = list(dict.fromkeys(name for parts in uses for name in parts))
    totals = np.stack(np.broadcast_arrays(*(sum(parts.values(), 0.0) for parts in uses)))
    fullest = np.argmax(totals, axis=0)
    return fullest, {name: _choose([parts.get(name, 0.0) for parts in uses], fullest) for name in names}


def _choose(values: list[Num], index: np.ndarray) -> Num:
    stack = np.stack(np.broadcast_arrays(*values, np.zeros(index.shape))[:-1])
    return np.take_along_axis(stack, index[None, ...], axis=0)[0] if index.ndim else stack[int(index)]
