"""Memory of every rank of a training plan: state, activations in flight, working sets, buffers; and on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sextant.simulator import occupancy, paths
from sextant.simulator.capacity import CONTEXT_BYTES, FRAGMENTATION_SHARE, Capacity, capacity
from sextant.simulator.occupancy import StageBytes
from sextant.simulator.pipeline import PipelineRun
from sextant.simulator.timed import together
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """Bytes of one micro-batch by part: the largest operands of each phase and what waits for weight gradients, what
    is kept until the backward pass, and ``block``, what of mHC's recompute block any layer holds beside itself."""

    largest: Mapping[str, Mapping[str, Num]]
    waiting: Mapping[str, tuple[Num, Num]]
    kept: Mapping[str, Num]
    block: Num

    def take(self, index: Any) -> StepBytes:
        """Those of the points at ``index``."""
        return paths.take(self, index)


def step_bytes(scenario: Scenario, step: Step) -> StepBytes:
    """Those of a training ``step`` (sharded operators)."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    return StepBytes(
        largest=workspace.largest_operands(step), waiting=workspace.weight_gradient_operands(step),
        kept=residency.activation_bytes(model, plan, load), block=residency.block_bytes(model, plan, load),
    )  # fmt: skip


def joined(parts: Sequence[StepBytes], sizes: Sequence[int]) -> StepBytes:
    """Those of the points of several plans, one after the other, each of so many."""

    def all_of(value: Callable[[StepBytes], Num]) -> Num:
        return together([value(each) for each in parts], sizes)

    names = dict.fromkeys(part for each in parts for part in each.largest)
    phases = dict.fromkeys(phase for each in parts for part in each.largest.values() for phase in part)
    return StepBytes(
        largest={p: {f: all_of(lambda e, p=p, f=f: e.largest[p].get(f, 0.0)) for f in phases} for p in names},
        waiting={p: (all_of(lambda e, p=p: e.waiting[p][0]), all_of(lambda e, p=p: e.waiting[p][1])) for p in names},
        kept={p: all_of(lambda e, p=p: e.kept.get(p, 0.0)) for p in names},
        block=all_of(lambda e: e.block),
    )


def memory_use(scenario: Scenario, stages: Stages | Layouts, held: StepBytes) -> Usage:
    """The fullest rank of a training step against the capacities of its device."""
    ranks = rank_memories(scenario, stages, held)
    device = scenario.cluster.device
    rank, fullest = _fullest([each.hbm for each in ranks])
    _, host = _fullest([each.host for each in ranks])
    return Usage(hbm=capacity(device, "hbm", fullest, CONTEXT_BYTES), host=capacity(device, "host", host), rank=rank)


def rank_memories(scenario: Scenario, stages: Stages | Layouts, held: StepBytes) -> list[RankMemory]:
    """Bytes by part of every rank, CUDA's context aside (``capacity`` adds it)."""
    sizes = _sizes(scenario, held)
    counts = [stages.counts(i) for i in range(stages.n_stages)]
    return [_rank_memory(sizes, stages, rank, [counts[i] for i in places]) for rank, places in enumerate(stages.ranks)]


def _rank_memory(sizes: _Sizes, stages: Stages | Layouts, rank: int, held: Sequence[Mapping[str, Num]]) -> RankMemory:
    """Bytes by part of a rank whose stages hold so many layers of each part."""
    plan, load = sizes.scenario.plan, sizes.scenario.load
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    hbm, host = _static(sizes, stages.layers(rank))
    hbm["pipeline_buffers"] = buffers.pipeline_bytes(
        sizes.scenario.model, plan, load, tuple(stages.ranks[rank]), stages.n_stages
    )
    schedule = (plan.schedule, rank, len(stages.ranks), micro_batches)
    mine, virtual = [sizes.stage(counts) for counts in held], len(held) if _virtual(plan) else 1
    hbm["activations"], hbm["workspace"] = occupancy.peak(*schedule, mine, virtual)
    if sizes.away:
        kept = [replace(each, kept=sizes.kept_of(counts)) for each, counts in zip(mine, held, strict=True)]
        host["activations"] = occupancy.peak(*schedule, kept, virtual)[0] - hbm["activations"]
    hbm["fragmentation"] = FRAGMENTATION_SHARE * (hbm["activations"] + hbm["workspace"])
    return RankMemory(hbm=hbm, host=host)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes of one occurrence of each part, whatever rank holds it: kept by a micro-batch, made again under
    ``recompute``, the largest operands and those that wait for a weight gradient, state (``whole``: without ZeRO),
    buffers of libraries."""

    scenario: Scenario
    kept: Mapping[str, Num]
    again: Mapping[str, Num]
    largest: Mapping[str, Mapping[str, Num]]
    waiting: Mapping[str, tuple[Num, Num]]
    state: Mapping[str, Mapping[str, Num]]
    whole: Mapping[str, Mapping[str, Num]]
    tables: Num
    exchange: Num
    collectives: Num

    @property
    def away(self) -> bool:
        """Whether activations live on the host."""
        return self.scenario.plan.placement.get("activations", "hbm") == "host"

    def kept_of(self, counts: Mapping[str, Num]) -> Num:
        """What one micro-batch keeps of a chunk with so many layers of each part."""
        return sum((n * self.kept[part] for part, n in counts.items()), 0.0)

    def stage(self, counts: Mapping[str, Num]) -> StageBytes:
        """What one micro-batch holds on a stage, and the working sets of its chunks.

        Beside the largest operator a backward chunk holds the tensors of one layer that ``recompute`` makes again.
        Activations that live on the host are in HBM while they leave or come back: as the chunk runs, and one chunk on.
        """
        size = self.kept_of(counts)
        operands: Num = 0.0
        for part, n in counts.items():
            inputs, gradients = self.waiting[part]
            operands = operands + n * (gradients + np.minimum(inputs, self.kept[part] + self.again[part]))
        leaving = 2.0 * size if self.away else 0.0
        backward = {
            part: np.maximum(self._at(part, "backward_input"), self._at(part, "backward_weight")) + self.again[part]
            for part in counts
        }
        return StageBytes(
            kept=0.0 * size if self.away else size, operands=operands,
            forward=_most(counts, {part: self._at(part, "forward") for part in counts}) + leaving,
            backward=_most(counts, backward) + leaving,
            weight=_most(counts, {part: self._at(part, "backward_weight") for part in counts}),
        )  # fmt: skip

    def _at(self, part: str, phase: str) -> Num:
        return self.largest[part].get(phase, 0.0)


def _sizes(scenario: Scenario, held: StepBytes) -> _Sizes:
    plan, model, load = scenario.plan, scenario.model, scenario.load
    whole = residency.activation_bytes(model, replace(plan, recompute=()), load)
    again = {
        part: np.maximum(whole[part] - held.kept[part], 0.0) + (held.block if part.endswith("layer") else 0.0)
        for part in held.largest
    }
    return _Sizes(
        scenario=scenario, kept=held.kept, again=again,
        largest=held.largest, waiting=held.waiting, state=residency.state_bytes(model, plan),
        whole=residency.state_bytes(model, replace(plan, zero_stage=0.0)),
        tables=residency.table_bytes(model, plan, load.phase, 1.0)["hbm"] if model.engram_layers else 0.0,
        exchange=buffers.exchange_bytes(model, plan), collectives=buffers.collective_bytes(model, plan),
    )  # fmt: skip


def timelines(
    scenario: Scenario, stages: Stages, held: StepBytes, run: PipelineRun
) -> list[list[tuple[float, float, float]]]:
    """Per rank ``(start_s, end_s, bytes)`` of the HBM in use at every instruction of a simulated step of one point."""
    plan, load = scenario.plan, scenario.load
    sizes, ranks = _sizes(scenario, held), rank_memories(scenario, stages, held)
    micro_batches = round(float(np.ravel(load.batch / (plan.data * plan.micro_batch))[0]))
    tracks = list(dict.fromkeys(span.track for span in run.spans))
    found: list[list[tuple[float, float, float]]] = []
    for rank, places in enumerate(stages.ranks):
        spans = [span for span in run.spans if span.track == tracks[rank]]
        chunks, virtual = [sizes.stage(stages.counts(i)) for i in places], len(places) if _virtual(plan) else 1
        rows = occupancy.timeline(
            plan.schedule, rank, len(stages.ranks), micro_batches, chunks, spans, virtual
        )  # fmt: skip
        moving = ("activations", "workspace", "fragmentation")
        fixed = CONTEXT_BYTES + sum(float(np.ravel(v)[0]) for k, v in ranks[rank].hbm.items() if k not in moving)
        found.append([(a, b, fixed + (1.0 + FRAGMENTATION_SHARE) * size) for a, b, size in rows])
    return found


def _static(sizes: _Sizes, layers: Mapping[str, Num]) -> tuple[Parts, Parts]:
    """What lies there all the time on a rank with so many layers of each part: in HBM, and on the host."""
    model, plan = sizes.scenario.model, sizes.scenario.plan
    hbm: Parts = {}
    host: Parts = {}
    for part, n in layers.items():
        for name, size in sizes.state[part].items():
            place = host if plan.placement.get(_PLACED.get(name, ""), "hbm") == "host" else hbm
            place[name] = place.get(name, 0.0) + n * size
    if model.engram_layers:
        hbm["engram_tables"] = sizes.tables
    if np.any(np.asarray(plan.zero_stage) >= 2):
        hbm["gathered"] = residency.gathered_bytes(plan, sizes.whole, layers)
    hbm["exchange_buffers"], hbm["collective_buffers"] = sizes.exchange, sizes.collectives
    return hbm, host


def _virtual(plan) -> bool:
    return plan.schedule == "interleaved"


def _most(counts: Mapping[str, Num], sizes: Mapping[str, Num]) -> Num:
    """The largest of the parts that are there."""
    most: Num = 0.0
    for part, n in counts.items():
        most = np.maximum(most, np.where(np.asarray(n) > 0.0, sizes[part], 0.0)[()])
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
