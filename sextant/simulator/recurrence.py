"""A pipeline as a max-plus recurrence: when every chunk ends, for arrays of design points or of replicas at once.

The event engine plays the same instruction lists (``pipeline.simulate``); where messages do not queue both agree to the
last digits, which is a law in the tests. Here an instruction is two numpy operations whatever the number of points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import schedule
from sextant.simulator.schedule import Ratio, Work
from sextant.simulator.types import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSeconds:
    """Seconds of every stage's chunks: forward, input gradient, weight gradient, and overlapped (forward stage,
    backward stage) pairs; floats, or arrays of shape (n_points,) for ``finish``.

    ``backward_late``: what a chunk with both gradients takes longer than they do apart; absent: nothing.
    ``leads``: how long before the end of an instruction (kind, forward stage, backward stage; -1: none) its messages
    leave: the one with activations, the one with gradients. Absent ones leave at the end.
    """

    forward: Sequence[Num]
    backward_input: Sequence[Num]
    backward_weight: Sequence[Num]
    pair: Mapping[tuple[int, int], Num]
    backward_late: Sequence[Num] = ()
    leads: Mapping[tuple[str, int, int], tuple[Num, Num]] = field(default_factory=dict)

    def of(self, work: Work) -> Num:
        """Seconds that an instruction holds its rank."""
        if work.kind == "FB":
            return self.pair[work.f_stage, work.b_stage]
        if work.kind == "F":
            return self.forward[work.f_stage]
        if work.kind == "W":
            return self.backward_weight[work.b_stage]
        if work.kind == "B":
            return self.backward_input[work.b_stage]
        late = self.backward_late[work.b_stage] if self.backward_late else 0.0
        return self.backward_input[work.b_stage] + self.backward_weight[work.b_stage] + late

    def lead(self, work: Work, kind: str) -> Num:
        """Seconds before the end of an instruction at which what it makes, "F" or "B", leaves; not before its start."""
        leads = self.leads.get((work.kind, work.f_stage, work.b_stage))
        return 0.0 if leads is None else np.minimum(leads[kind == "B"], self.of(work))

    def ratio(self) -> Ratio:
        """The times of every stage, means over points, as an order of ZB-V is made for them."""
        kinds = self.forward, self.backward_input, self.backward_weight
        forward, inputs, weights = ([float(np.mean(stage)) for stage in kind] for kind in kinds)
        return schedule.ratio(forward, inputs, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """``step_s``: when the last rank ends. ``busy_s`` and ``idle_s`` per rank; each (n_points,) or a float.

    ``starts_s`` and ``ends_s`` hold those of every instruction of every rank, if they were asked for.
    """

    step_s: Num
    busy_s: tuple[Num, ...]
    idle_s: tuple[Num, ...]
    starts_s: tuple[tuple[Num, ...], ...] = ()
    ends_s: tuple[tuple[Num, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class _Instruction:
    """``inputs``: (slot, comes from another rank). ``outputs``: slots."""

    rank: int
    index: int
    work: Work
    inputs: tuple[tuple[int, bool], ...]
    outputs: tuple[int, ...]


def finish(
    name: str, chunks: ChunkSeconds, n_ranks: int, n_micro_batches: int, *, virtual_stages: int = 1, send_s: Num = 0.0,
    factors: Sequence[NDArray[np.float64]] = (), group: int = 1, record: bool = False,
) -> Finish:  # fmt: skip
    """Play schedule ``name`` once for all points. Every time may be an array of shape (n_points,).

    A message arrives ``send_s`` after the chunk that makes it, less its ``lead``; it waits for no other message
    (``pipeline.simulate`` lets messages queue, and is never earlier). ``factors[rank]``, of shape (n_instructions,
    n_replicas), lengthen each instruction of each replica (``jitter.factors``); every ``group`` replicas in a row then
    exchange tokens inside their chunks, so that they start them together, except weight gradients, which exchange
    nothing. ZB-V is ordered for the mean chunk times of all points: pass points whose ratios differ apart.
    InputError where the schedule does not exist; ValueError where the replicas do not divide into groups.
    """
    ratio = chunks.ratio() if name == "zbv" else (1.0, 1.0, 1.0)
    order, n_outputs = _order(name, n_ranks, n_micro_batches, virtual_stages, ratio)
    seconds: dict[tuple[str, int, int], Num] = {}
    leads: dict[tuple[str, int, int, str], Num] = {}
    ends: list[Num] = [0.0] * n_outputs
    leaves: list[Num] = [0.0] * n_outputs
    free: list[Num] = [0.0] * n_ranks
    busy: list[Num] = [0.0] * n_ranks
    starts: list[list[Num]] = [[] for _ in range(n_ranks)]
    stops: list[list[Num]] = [[] for _ in range(n_ranks)]
    for each in order:
        rank, work = each.rank, each.work
        start = free[rank]
        for slot, crosses in each.inputs:
            start = np.maximum(start, leaves[slot] + send_s if crosses else ends[slot])
        if group > 1 and work.kind != "W":
            start = _together(start, group)
        key = work.kind, work.f_stage, work.b_stage
        took = seconds[key] if key in seconds else seconds.setdefault(key, chunks.of(work))
        if factors:
            took = took * factors[rank][each.index]
        end = start + took
        free[rank] = end
        busy[rank] = busy[rank] + took
        for slot, (kind, _, _) in zip(each.outputs, work.outputs, strict=True):
            ends[slot] = leaves[slot] = end
            if chunks.leads:
                where = (*key, kind)
                leaves[slot] = end - (
                    leads[where] if where in leads else leads.setdefault(where, chunks.lead(work, kind))
                )
        if record:
            starts[rank].append(start)
            stops[rank].append(end)
    step: Num = free[0]
    for end in free[1:]:
        step = np.maximum(step, end)
    return Finish(
        step_s=step, busy_s=tuple(busy), idle_s=tuple(step - each for each in busy),
        starts_s=tuple(map(tuple, starts)), ends_s=tuple(map(tuple, stops)),
    )  # fmt: skip


def _together(start: Num, group: int) -> Num:
    """The latest start of each group, for all its members."""
    if np.ndim(start) == 0:
        return start
    array = np.asarray(start)
    return np.repeat(array.reshape(-1, group).max(axis=1), group)


@lru_cache(maxsize=64)
def _order(
    name: str, n_ranks: int, n_micro_batches: int, virtual_stages: int, ratio: Ratio
) -> tuple[tuple[_Instruction, ...], int]:
    """All instructions such that each follows what it waits for, and the number of outputs.

    An AssertionError names the rank and the instruction that would wait for ever.
    """
    programs = schedule.programs(name, n_ranks, n_micro_batches, virtual_stages, ratio)
    n_stages = schedule.n_stages(name, n_ranks, virtual_stages)
    slots: dict[schedule.Output, int] = {}
    owner: list[int] = []
    order: list[_Instruction] = []
    at, left = [0] * n_ranks, sum(map(len, programs))
    while left:
        before = left
        for rank, program in enumerate(programs):
            while at[rank] < len(program) and all(key in slots for key in program[at[rank]].inputs(n_stages)):
                work = program[at[rank]]
                inputs = tuple((slots[key], owner[slots[key]] != rank) for key in work.inputs(n_stages))
                outputs = tuple(range(len(owner), len(owner) + len(work.outputs)))
                slots.update(zip(work.outputs, outputs, strict=True))
                owner += [rank] * len(outputs)
                order.append(_Instruction(rank, at[rank], work, inputs, outputs))
                at[rank] += 1
                left -= 1
        stuck = next((r for r in range(n_ranks) if at[r] < len(programs[r])), 0)
        assert left < before, f"rank {stuck} waits for ever before {programs[stuck][at[stuck]]}"
    return tuple(order), len(owner)
