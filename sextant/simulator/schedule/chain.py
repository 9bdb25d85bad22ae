"""Schedules in which every micro-batch enters at the first rank: GPipe, 1F1B, ZB1P (ZB-H1) and interleaved 1F1B."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.simulator.schedule.work import Work


def gpipe(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """All forward chunks, then all backward chunks."""
    yield from (Work("F", f=i, f_stage=rank) for i in range(m))
    yield from (Work("BW", b=i, b_stage=rank) for i in range(m))


def one_f_one_b(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """As many forward chunks as there are ranks after this one, then one of each in turn."""
    warm = min(n_ranks - 1 - rank, m)
    yield from (Work("F", f=i, f_stage=rank) for i in range(warm))
    for i in range(m - warm):
        yield Work("F", f=warm + i, f_stage=rank)
        yield Work("BW", b=i, b_stage=rank)
    yield from (Work("BW", b=i, b_stage=rank) for i in range(m - warm, m))


def zero_bubble(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
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


def interleaved(rank: int, n_ranks: int, m: int, v: int) -> Iterator[Work]:
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
