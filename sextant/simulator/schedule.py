"""Pipeline schedules: the order in which every rank works on its chunks, and the formulas that follow.

A stage is a run of layers; a rank holds one stage, several (interleaved), or one from each end (DualPipe). F is a
stage's forward chunk, B its input gradients, W its weight gradients, BW both, FB a forward chunk overlapped with a full
backward chunk of another micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Num

NAMES = ("gpipe", "1f1b", "interleaved", "zb1p", "dualpipe")
KINDS = ("F", "B", "W", "BW", "FB")

#: What a chunk makes for others: "F" (activations) or "B" (input gradients), of a micro-batch, by a stage.
Output = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """One instruction: forward of micro-batch ``f`` on stage ``f_stage`` and/or backward of ``b`` on ``b_stage``.

    -1 stands for none. Micro-batches that enter a DualPipe at its far end are numbered after the others.
    """

    kind: str
    f: int = -1
    f_stage: int = -1
    b: int = -1
    b_stage: int = -1

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What other instructions may wait for; weight gradients are nobody's input."""
        made: list[Output] = [("F", self.f, self.f_stage)] if self.f >= 0 else []
        if self.kind in ("B", "BW", "FB"):
            made.append(("B", self.b, self.b_stage))
        return tuple(made)

    def inputs(self, n_stages: int) -> tuple[Output, ...]:
        """What this waits for, of ``n_stages`` in all: forward on the stage before, input gradients from the stage
        after, where the last stage has its own forward instead. A weight gradient follows its B on the same rank."""
        needed: list[Output] = [("F", self.f, self.f_stage - 1)] if self.f >= 0 and self.f_stage > 0 else []
        if self.kind in ("B", "BW", "FB"):
            last = self.b_stage == n_stages - 1
            needed.append(("F", self.b, self.b_stage) if last else ("B", self.b, self.b_stage + 1))
        return tuple(needed)


def stages_of_ranks(schedule: str, n_ranks: int, virtual_stages: int = 1) -> tuple[tuple[int, ...], ...]:
    """Which stages each rank holds, in the order in which a token passes them."""
    _known(schedule)
    if schedule == "dualpipe":
        return tuple((rank, n_ranks - 1 - rank) for rank in range(n_ranks))
    return tuple(tuple(rank + i * n_ranks for i in range(virtual_stages)) for rank in range(n_ranks))


@lru_cache(maxsize=1024)
def instructions(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: int, virtual_stages: int = 1
) -> tuple[Work, ...]:
    """What ``rank`` executes, in order. InputError where the schedule does not exist for these numbers."""
    _known(schedule)
    if min(n_ranks, n_micro_batches, virtual_stages) < 1:
        raise InputError(
            f"a pipeline needs at least one rank, micro-batch and virtual stage; got {n_ranks}, {n_micro_batches} and "
            f"{virtual_stages}"
        )
    if schedule != "interleaved" and virtual_stages != 1:
        raise InputError(f"plan.virtual_stages: {schedule} has 1, got {virtual_stages}; use the interleaved schedule")
    if schedule == "dualpipe":
        if n_ranks % 2 or n_micro_batches % 2 or n_micro_batches < 2 * n_ranks:
            raise InputError(
                f"DualPipe needs an even number of ranks and of micro-batches, and at least twice as many of these; "
                f"got {n_ranks} ranks and {n_micro_batches} micro-batches"
            )
        return tuple(_dualpipe(rank, n_ranks, n_micro_batches))
    if schedule == "interleaved":
        if n_micro_batches % n_ranks:
            raise InputError(f"interleaved needs micro-batches in multiples of {n_ranks} ranks, got {n_micro_batches}")
        return tuple(_interleaved(rank, n_ranks, n_micro_batches, virtual_stages))
    one = {"gpipe": _gpipe, "1f1b": _one_f_one_b, "zb1p": _zero_bubble}[schedule]
    return tuple(one(rank, n_ranks, n_micro_batches))


def _gpipe(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """All forward chunks, then all backward chunks."""
    yield from (Work("F", f=i, f_stage=rank) for i in range(m))
    yield from (Work("BW", b=i, b_stage=rank) for i in range(m))


def _one_f_one_b(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """As many forward chunks as there are ranks after this one, then one of each in turn."""
    warm = min(n_ranks - 1 - rank, m)
    yield from (Work("F", f=i, f_stage=rank) for i in range(warm))
    for i in range(m - warm):
        yield Work("F", f=warm + i, f_stage=rank)
        yield Work("BW", b=i, b_stage=rank)
    yield from (Work("BW", b=i, b_stage=rank) for i in range(m - warm, m))


def _zero_bubble(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """ZB-H1: 1F1B whose weight gradients lag behind by ``rank`` micro-batches, to fill the end of the step.

    The activation memory stays that of 1F1B. The first rank postpones nothing; the last one hands its input gradients
    back at once and catches up at the end.
    """
    warm = min(n_ranks - 1 - rank, m)
    yield from (Work("F", f=i, f_stage=rank) for i in range(warm))
    late = 0
    for i in range(m):
        if warm + i < m:
            yield Work("F", f=warm + i, f_stage=rank)
        yield Work("B", b=i, b_stage=rank)
        if i - late >= rank:
            yield Work("W", b=late, b_stage=rank)
            late += 1
    yield from (Work("W", b=i, b_stage=rank) for i in range(late, m))


def _interleaved(rank: int, n_ranks: int, m: int, v: int) -> Iterator[Work]:
    """1F1B over ``v`` chunks per rank: micro-batches go through the chunks in groups of ``n_ranks``."""

    def at(k: int, forward: bool) -> tuple[int, int]:
        group, inside = divmod(k, n_ranks * v)
        chunk = inside // n_ranks
        return group * n_ranks + inside % n_ranks, (chunk if forward else v - 1 - chunk) * n_ranks + rank

    total = m * v
    warm = min((n_ranks - rank - 1) * 2 + (v - 1) * n_ranks, total)
    for k in range(total + warm):
        if k < total:
            i, stage = at(k, True)
            yield Work("F", f=i, f_stage=stage)
        if k >= warm:
            i, stage = at(k - warm, False)
            yield Work("BW", b=i, b_stage=stage)


def _dualpipe(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """DualPipe: micro-batches enter at both ends; most forward chunks overlap a backward chunk of the other direction.

    Direction 0 is that of the rank's nearer end. The eight phases follow the schedule of the DualPipe repository.
    """
    half, near = n_ranks // 2, min(rank, n_ranks - 1 - rank)
    swap = rank >= half
    stage = [n_ranks - 1 - rank, rank] if swap else [rank, n_ranks - 1 - rank]
    base = [m // 2, 0] if swap else [0, m // 2]
    done_f, done_b = [0, 0], [0, 0]
    owed: list[tuple[int, int]] = []
    middle = near == half - 1

    def forward(d: int) -> tuple[int, int]:
        done_f[d] += 1
        return base[d] + done_f[d] - 1, stage[d]

    def backward(d: int, postpone: bool = False) -> Work:
        # The direction of a backward chunk is that of the micro-batch it belongs to.
        done_b[d] += 1
        b = base[d] + done_b[d] - 1
        if postpone:
            owed.append((b, stage[d]))
        return Work("B" if postpone else "BW", b=b, b_stage=stage[d])

    def alone(d: int) -> Work:
        i, s = forward(d)
        return Work("F", f=i, f_stage=s)

    def weights() -> Work:
        b, s = owed.pop(0)
        return Work("W", b=b, b_stage=s)

    def pair(d: int) -> Work:
        i, s = forward(d)
        other = backward(1 - d)
        return Work("FB", f=i, f_stage=s, b=other.b, b_stage=other.b_stage)

    yield from (alone(0) for _ in range(2 * (half - near - 1)))
    for _ in range(near + 1):
        yield alone(0)
        yield alone(1)
    for _ in range(half - near - 1):
        yield backward(1, postpone=True)
        yield weights()
        yield alone(1)
    for i in range(m // 2 - n_ranks + near + 1):
        if i == 0 and middle:
            yield alone(0)
            yield backward(1)
        else:
            yield pair(0)
        yield pair(1)
    for _ in range(half - near - 1):
        yield backward(1)
        yield pair(1)
    late = False
    for i in range(near + 1):
        late = late or (i == (near + 1) // 2 and near % 2 == 1)
        yield backward(1, postpone=late)
        late = late or (i == (near + 1) // 2 and near % 2 == 0)
        yield backward(0, postpone=late)
    for _ in range(half - near - 1):
        yield weights()
        yield backward(0, postpone=True)
    yield from (weights() for _ in range(len(owed)))


def counts(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: Num, virtual_stages: int = 1
) -> dict[tuple[str, int, int], Num]:
    """How often ``rank`` executes (kind, forward stage, backward stage), for any number of micro-batches.

    Beyond a schedule's warm-up every count grows linearly with the micro-batches, so two lists give all of them;
    exact where the schedule exists (DualPipe: at least twice the ranks).
    """
    start = 2 * n_ranks
    slope = (np.asarray(n_micro_batches, dtype=float) - start) / start
    counted = _counted(schedule, rank, n_ranks, virtual_stages)
    return {key: few + (more - few) * slope for key, few, more in counted}


@lru_cache(maxsize=4096)
def _counted(
    schedule: str, rank: int, n_ranks: int, virtual_stages: int
) -> tuple[tuple[tuple[str, int, int], int, int], ...]:
    """(kind, forward stage, backward stage), in order, with its counts for 2 and for 4 micro-batches per rank."""
    few, more = (
        Counter((w.kind, w.f_stage, w.b_stage) for w in instructions(schedule, rank, n_ranks, m, virtual_stages))
        for m in (2 * n_ranks, 4 * n_ranks)
    )
    return tuple((key, few[key], more[key]) for key in sorted({*few, *more}))


def in_flight(schedule: str, rank: int, n_ranks: int, n_micro_batches: Num, virtual_stages: int = 1) -> list[Num]:
    """The most micro-batches whose activations each stage of ``rank`` holds at once, in the order of its stages.

    From forward to the end of the weight gradient. GPipe holds all; the others as many for any number of micro-batches,
    or all of them where there are fewer.
    """
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    if schedule == "gpipe":
        return [n_micro_batches for _ in held]
    return [np.minimum(peak, n_micro_batches) for peak in _peaks(schedule, rank, n_ranks, virtual_stages)]


@lru_cache(maxsize=4096)
def _peaks(schedule: str, rank: int, n_ranks: int, virtual_stages: int) -> tuple[float, ...]:
    """Live activations per stage when the rank's total is largest."""
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    live = dict.fromkeys(held, 0)
    best, peak = -1, (0.0,) * len(held)
    for work in instructions(schedule, rank, n_ranks, 4 * n_ranks, virtual_stages):
        if work.f >= 0:
            live[work.f_stage] += 1
        if sum(live.values()) > best:
            best, peak = sum(live.values()), tuple(float(live[s]) for s in held)
        if work.kind in ("BW", "W", "FB"):
            live[work.b_stage] -= 1
    return peak


def bubble_s(
    schedule: str, n_ranks: Num, forward_s: Num, backward_s: Num, weight_s: Num, pair_s: Num = 0.0,
    virtual_stages: Num = 1.0,
) -> Num:  # fmt: skip
    """Idle seconds of a rank for equal stages and free messages; ``backward_s`` is the full backward chunk.

    DeepSeek-V3 report Table 2: 1F1B (P-1)(F+B), ZB1P (P-1)(F+B-2W), DualPipe (P/2-1)(F&B+B-3W). Interleaved divides
    the bubble of 1F1B, counted in chunks of a whole rank, by its virtual stages. With I = B-W the input gradient, the
    event engine idles

    - exactly so on every rank under GPipe, 1F1B and interleaved;
    - (P-1) max(F, I, F+I-W) under ZB1P from P micro-batches upward, which is returned: the published term is the last
      one, the largest where W is no longer than F and than I;
    - (P/2-1)(F&B-2W) + max((P/2-1) F, (P/2-1) I - F) on the most idle rank under DualPipe, while W is no longer than F
      and than I and a pair takes between max(F, B) and F+B. That is the published term, which is returned, where F = I;
      it is below it by min(F, (P/2-1)(I-F)), so by one forward chunk at most, where I is longer, and above it by
      (P/2-1)(F-I) where I is shorter. Rank r idles max(P/2-2-min(r, P-1-r), 0) (F+B-F&B) less: it overlaps fewer
      chunks, and works longer instead.
    """
    _known(schedule)
    if schedule == "dualpipe":
        return (n_ranks / 2.0 - 1.0) * (pair_s + backward_s - 3.0 * weight_s)
    if schedule == "zb1p":
        inputs = backward_s - weight_s
        return (n_ranks - 1.0) * np.maximum(np.maximum(forward_s, inputs), forward_s + inputs - weight_s)
    return (n_ranks - 1.0) * (forward_s + backward_s) / (virtual_stages if schedule == "interleaved" else 1.0)


def _known(schedule: str) -> None:
    if schedule not in NAMES:
        raise InputError(f"plan.schedule: unknown schedule {schedule!r}; {nearest(schedule, NAMES)}")
