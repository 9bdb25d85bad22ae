"""What a rank of a pipeline holds while it works: activations from forward to backward, operands until the weight
gradient, and the working set of the chunk that runs.

A rank executes its instructions in a fixed order, so that what it holds at each does not depend on time: the peak is
that of the order (``peak``), and the event engine only says when it is (``timeline``). Both walk the same states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.des import Span
from sextant.simulator.schedule import Work, instructions, stages_of_ranks
from sextant.simulator.types import Num

Array = NDArray[np.float64]

#: A rank that holds no more with twice the micro-batches never will: lists of this many per rank show all it holds.
_MICRO_BATCHES_PER_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """Bytes of one micro-batch on one stage.

    ``kept`` lies there from the forward chunk to the end of the backward chunk; ``operands`` from an input-gradient
    chunk to its weight gradients, where a schedule takes them apart; ``forward``, ``backward`` and ``weight`` are
    working sets, there only while such a chunk runs. A pair has both.
    """

    kept: Num
    operands: Num
    forward: Num
    backward: Num
    weight: Num


class State(NamedTuple):
    """Micro-batches held while an instruction runs, per stage of the rank: all of them kept, or operands alone.

    ``runs`` has the stage (by its place on the rank, -1 for none) of the forward, backward and weight chunk.
    """

    kept: tuple[float, ...]
    operands: tuple[float, ...]
    runs: tuple[int, int, int]


def states(works: Iterable[Work], held: Sequence[int]) -> Iterator[State]:
    """The state at every instruction of a rank that holds the stages ``held``: a forward chunk's activations are there
    while it runs, a backward chunk's until it ends."""
    place = {stage: i for i, stage in enumerate(held)}
    kept, operands = [0.0] * len(held), [0.0] * len(held)
    for work in works:
        f, b = place.get(work.f_stage, -1), place.get(work.b_stage, -1)
        if f >= 0:
            kept[f] += 1.0
        backward, weight = (-1, b) if work.kind == "W" else (b, -1)
        yield State(tuple(kept), tuple(operands), (f, backward, weight))
        if work.kind == "W":
            operands[b] -= 1.0
        elif b >= 0:
            kept[b] -= 1.0
            operands[b] += 1.0 if work.kind == "B" else 0.0


def state_bytes(state: State, stages: Sequence[StageBytes]) -> tuple[Num, Num]:
    """Bytes that ``state`` holds of activations, and in working sets; ``stages`` as the rank holds them."""
    activations: Num = 0.0
    for n, left, stage in zip(state.kept, state.operands, stages, strict=True):
        activations = activations + n * stage.kept + left * stage.operands
    forward, backward, weight = state.runs
    working: Num = stages[forward].forward if forward >= 0 else 0.0
    working = working + (stages[backward].backward if backward >= 0 else 0.0)
    return activations, working + (stages[weight].weight if weight >= 0 else 0.0)


def peak(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: Num, stages: Sequence[StageBytes], virtual_stages: int = 1
) -> tuple[Num, Num]:
    """Bytes of activations and of working sets when ``rank`` holds most, each of the broadcast shape.

    Exact for any number of micro-batches for which the schedule exists.
    """
    counts = np.asarray(n_micro_batches, dtype=float)
    most, grows = _MICRO_BATCHES_PER_RANK * n_ranks, _grows(schedule, rank, n_ranks, virtual_stages)
    if grows:
        scale = n_micro_batches / most
        return _largest(_distinct(schedule, rank, n_ranks, most, virtual_stages), stages, scale)
    listed = np.minimum(np.round(counts), most)
    # Most numbers of micro-batches make a rank hold the same.
    alike: dict[bytes, tuple[_Table, list[float]]] = {}
    for m in np.unique(listed).tolist():
        table = _distinct(schedule, rank, n_ranks, int(m), virtual_stages)
        alike.setdefault(table.key, (table, []))[1].append(m)
    found = [(_largest(table, stages), np.isin(listed, numbers)) for table, numbers in alike.values()]
    if len(found) == 1:
        return found[0][0]
    activations, working = (np.select([here for _, here in found], [pair[i] for pair, _ in found]) for i in range(2))
    return activations, working


def timeline(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: int, stages: Sequence[StageBytes], spans: Sequence[Span],
    virtual_stages: int = 1,
) -> list[tuple[float, float, float]]:  # fmt: skip
    """``(start_s, end_s, bytes)`` of every instruction of ``rank``, whose ``spans`` are in its order; scalar bytes.

    Between instructions the rank holds what the next one starts with, less what that one adds.
    """
    works = instructions(schedule, rank, n_ranks, n_micro_batches, virtual_stages)
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    rows: list[tuple[float, float, float]] = []
    for state, span in zip(states(works, held), spans, strict=True):
        activations, working = state_bytes(state, stages)
        rows.append((span.start_s, span.end_s, float(activations + working)))
    return rows


def _largest(found: _Table, stages: Sequence[StageBytes], scale: Num = 1.0) -> tuple[Num, Num]:
    """Activations and working sets of the state that holds most, per point; ``scale`` multiplies the activations."""
    names = ("kept", "operands", "forward", "backward", "weight")
    shape = np.broadcast_shapes(np.shape(scale), *(np.shape(getattr(each, name)) for each in stages for name in names))
    column = (-1, *(1,) * len(shape))
    activations: Num = 0.0
    for i, stage in enumerate(stages):
        kept, operands = found.kept[:, i].reshape(column), found.operands[:, i].reshape(column)
        activations = activations + (kept * stage.kept + operands * stage.operands)
    scaled: Array = np.broadcast_to(np.asarray(scale * activations), (len(found.runs), *shape))
    working: Num = 0.0
    for name, at in zip(names[2:], found.runs.T, strict=True):
        # The last row is of the states in which no such chunk runs.
        rows = np.zeros((len(stages) + 1, *shape))
        for i, stage in enumerate(stages):
            rows[i] = getattr(stage, name)
        working = working + rows[at]
    best = np.argmax(scaled + working, axis=0)[None, ...]
    return np.take_along_axis(scaled, best, axis=0)[0][()], np.take_along_axis(np.asarray(working), best, axis=0)[0][()]


@dataclass(frozen=True, slots=True)
class _Table:
    """States, a row each: micro-batches kept, and operands alone, (n_states, n_stages); what runs, (n_states, 3)."""

    kept: Array
    operands: Array
    runs: NDArray[np.intp]

    @property
    def key(self) -> bytes:
        """The same for equal tables of one schedule."""
        return self.kept.tobytes() + self.operands.tobytes() + self.runs.tobytes()


@lru_cache(maxsize=4096)
def _distinct(schedule: str, rank: int, n_ranks: int, n_micro_batches: int, virtual_stages: int) -> _Table:
    """The states of a rank of which none holds less of everything than another with the same chunks running."""
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    found = list(dict.fromkeys(states(instructions(schedule, rank, n_ranks, n_micro_batches, virtual_stages), held)))
    groups: dict[tuple[int, int, int], list[State]] = {}
    for state in found:
        groups.setdefault(state.runs, []).append(state)
    rest = [state for group in groups.values() for state in _undominated(group)]
    kept, operands, runs = (np.array([getattr(state, name) for state in rest]) for name in ("kept", "operands", "runs"))
    return _Table(kept=kept, operands=operands, runs=runs)


def _undominated(group: Sequence[State]) -> list[State]:
    table = np.array([(*state.kept, *state.operands) for state in group])
    covered = np.all(table[:, None, :] <= table[None, :, :], axis=2) & np.any(table[:, None, :] < table[None], axis=2)
    return [state for state, below in zip(group, covered.any(axis=1), strict=True) if not below]


@lru_cache(maxsize=4096)
def _grows(schedule: str, rank: int, n_ranks: int, virtual_stages: int) -> bool:
    """Whether a rank holds more the more micro-batches there are, as under GPipe."""
    most = _MICRO_BATCHES_PER_RANK * n_ranks
    few, many = (
        (table.kept.sum(axis=1) + table.operands.sum(axis=1)).max()
        for table in (_distinct(schedule, rank, n_ranks, m, virtual_stages) for m in (most // 2, most))
    )
    return bool(many > few)
