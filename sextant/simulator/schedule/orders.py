"""Schedules by name: which stages a rank holds, and what it executes in which order."""

from __future__ import annotations

from functools import lru_cache

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.schedule.bidirectional import dualpipe, dualpipev
from sextant.simulator.schedule.chain import gpipe, interleaved, one_f_one_b, zero_bubble
from sextant.simulator.schedule.work import Work
from sextant.simulator.schedule.zero_bubble_v import Ratio, zero_bubble_v

NAMES = ("gpipe", "1f1b", "interleaved", "zb1p", "zbv", "dualpipe", "dualpipev")

#: Schedules that overlap a forward chunk with a backward chunk, and those whose two stages per rank lie in a V.
OVERLAPPING = ("dualpipe", "dualpipev")
VEES = ("zbv", "dualpipev")


def known(schedule: str) -> None:
    """InputError with the nearest names unless ``schedule`` is one."""
    if schedule not in NAMES:
        raise InputError(f"plan.schedule: unknown schedule {schedule!r}; {nearest(schedule, NAMES)}")


def n_stages(schedule: str, n_ranks: int, virtual_stages: int = 1) -> int:
    """Into how many stages the layers are cut: one or ``virtual_stages`` per rank, two per rank in a V."""
    known(schedule)
    return n_ranks * (2 if schedule in VEES else virtual_stages)


def stages_of_ranks(schedule: str, n_ranks: int, virtual_stages: int = 1) -> tuple[tuple[int, ...], ...]:
    """Which stages each rank holds, in the order in which a token passes them."""
    known(schedule)
    if schedule == "dualpipe":
        return tuple((rank, n_ranks - 1 - rank) for rank in range(n_ranks))
    if schedule in VEES:
        return tuple((rank, 2 * n_ranks - 1 - rank) for rank in range(n_ranks))
    return tuple(tuple(rank + i * n_ranks for i in range(virtual_stages)) for rank in range(n_ranks))


@lru_cache(maxsize=1024)
def instructions(
    schedule: str, rank: int, n_ranks: int, n_micro_batches: int, virtual_stages: int = 1,
    seconds: Ratio = (1.0, 1.0, 1.0),
) -> tuple[Work, ...]:  # fmt: skip
    """What ``rank`` executes, in order. InputError where the schedule does not exist for these numbers.

    ``seconds`` is the ``ratio`` of forward, input-gradient and weight-gradient chunks that a ZB-V is ordered for;
    the other schedules have one order whatever their chunks take.
    """
    _exists(schedule, n_ranks, n_micro_batches, virtual_stages)
    if schedule == "zbv":
        return zero_bubble_v(n_ranks, n_micro_batches, seconds)[rank]
    if schedule == "interleaved":
        return tuple(interleaved(rank, n_ranks, n_micro_batches, virtual_stages))
    one = {"gpipe": gpipe, "1f1b": one_f_one_b, "zb1p": zero_bubble, "dualpipe": dualpipe, "dualpipev": dualpipev}
    return tuple(one[schedule](rank, n_ranks, n_micro_batches))


def programs(
    schedule: str, n_ranks: int, n_micro_batches: int, virtual_stages: int = 1,
    seconds: Ratio = (1.0, 1.0, 1.0),
) -> tuple[tuple[Work, ...], ...]:  # fmt: skip
    """``instructions`` of every rank."""
    made_for = seconds if schedule == "zbv" else (1.0, 1.0, 1.0)
    ranks = range(n_ranks)
    return tuple(instructions(schedule, r, n_ranks, n_micro_batches, virtual_stages, made_for) for r in ranks)


def clear() -> None:
    """Forget the orders made so far; only speed depends on it."""
    instructions.cache_clear()
    zero_bubble_v.cache_clear()


def _exists(schedule: str, n_ranks: int, n_micro_batches: int, virtual_stages: int) -> None:
    """InputError where the schedule has no order for these numbers."""
    known(schedule)
    if min(n_ranks, n_micro_batches, virtual_stages) < 1:
        raise InputError(
            f"a pipeline needs at least one rank, micro-batch and virtual stage; got {n_ranks}, {n_micro_batches} and "
            f"{virtual_stages}"
        )
    if schedule != "interleaved" and virtual_stages != 1:
        raise InputError(f"plan.virtual_stages: {schedule} has 1, got {virtual_stages}; use the interleaved schedule")
    if schedule == "dualpipe" and (n_ranks % 2 or n_micro_batches % 2 or n_micro_batches < 2 * n_ranks):
        raise InputError(
            f"DualPipe needs an even number of ranks and of micro-batches, and at least twice as many of these; "
            f"got {n_ranks} ranks and {n_micro_batches} micro-batches"
        )
    if schedule == "dualpipev" and n_micro_batches < 2 * n_ranks:
        raise InputError(
            f"DualPipeV needs at least twice as many micro-batches as ranks; got {n_ranks} ranks and "
            f"{n_micro_batches} micro-batches"
        )
    if schedule == "interleaved" and n_micro_batches % n_ranks:
        raise InputError(f"interleaved needs micro-batches in multiples of {n_ranks} ranks, got {n_micro_batches}")
