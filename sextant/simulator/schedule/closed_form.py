"""What follows from a schedule's order: counts of instructions, activations in flight, and the bubble."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from sextant.simulator.schedule.orders import instructions, known, stages_of_ranks
from sextant.simulator.types import Num


def counts(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: Num, virtual_stages: int = 1
) -> dict[tuple[str, int, int], Num]:
    """How often ``rank`` executes (kind, forward stage, backward stage), for any number of micro-batches.

    Beyond a schedule's warm-up every count grows linearly with the micro-batches, so two lists give all of them;
    exact where the schedule exists (DualPipe and DualPipeV: at least twice the ranks).
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
    or all of them where there are fewer. ZB-V is counted in the order that it has where all chunks take equal time; in
    any order a rank holds ``2 * n_ranks`` chunks at most.
    """
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    if schedule == "gpipe":
        return [n_micro_batches for _ in held]
    if schedule == "zbv":
        return _few(rank, n_ranks, n_micro_batches)
    return [np.minimum(peak, n_micro_batches) for peak in _peaks(schedule, rank, n_ranks, virtual_stages)]


def _few(rank: int, n_ranks: int, n_micro_batches: Num) -> list[Num]:
    """ZB-V mixes its two chunks in another way where micro-batches are few: each number of them by itself."""
    given = np.minimum(np.asarray(n_micro_batches, dtype=float), 4.0 * n_ranks)
    sizes, which = np.unique(np.round(given), return_inverse=True)
    found = np.array([_peaks("zbv", rank, n_ranks, 1, int(m)) for m in sizes])
    return [found[which.reshape(given.shape), chunk] for chunk in range(2)]


@lru_cache(maxsize=4096)
def _peaks(schedule: str, rank: int, n_ranks: int, virtual_stages: int, m: int = 0) -> tuple[float, ...]:
    """Live activations per stage when the rank's total is largest, of ``m`` micro-batches or of many."""
    held = stages_of_ranks(schedule, n_ranks, virtual_stages)[rank]
    live = dict.fromkeys(held, 0)
    best, peak = -1, (0.0,) * len(held)
    for work in instructions(schedule, rank, n_ranks, m or 4 * n_ranks, virtual_stages):
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

    DualPipeV is a half of a DualPipe over the P = 2 ``n_ranks`` stages that lie on ``n_ranks`` ranks: the same formula
    with that P, the times those of one stage, and what was said of DualPipe holds for its ranks r below P/2.
    ZB-V idles (P-1)F of a stage's chunk where F, I and W take equal time, from P micro-batches upward: the last rank
    waits so long for its first chunk. Elsewhere that is the least it can be; ``pipeline.finish`` gives the rest.
    """
    known(schedule)
    if schedule == "zbv":
        return (n_ranks - 1.0) * forward_s
    if schedule == "dualpipev":
        return (n_ranks - 1.0) * (pair_s + backward_s - 3.0 * weight_s)
    if schedule == "dualpipe":
        return (n_ranks / 2.0 - 1.0) * (pair_s + backward_s - 3.0 * weight_s)
    if schedule == "zb1p":
        inputs = backward_s - weight_s
        return (n_ranks - 1.0) * np.maximum(np.maximum(forward_s, inputs), forward_s + inputs - weight_s)
    return (n_ranks - 1.0) * (forward_s + backward_s) / (virtual_stages if schedule == "interleaved" else 1.0)
