"""Schedules of two directions that overlap a forward chunk of one with a backward chunk of the other."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.simulator.schedule.work import Work


def dualpipe(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """DualPipe: micro-batches enter at both ends, half of them at each; every rank holds a stage from each end.

    Those that enter at the far end are numbered after the others. Direction 0 is that of the rank's nearer end.
    """
    stages, first = (rank, n_ranks - 1 - rank), (0, m // 2)
    if rank >= n_ranks // 2:
        stages, first = (stages[1], stages[0]), (first[1], first[0])
    return _two_ways(min(rank, n_ranks - 1 - rank), n_ranks // 2, m // 2, stages, first)


def dualpipev(rank: int, n_ranks: int, m: int) -> Iterator[Work]:
    """DualPipeV: one half of a DualPipe of twice the ranks. Its stages lie on the ranks in a V, so that a micro-batch
    passes every rank on its way down (direction 0) and up again (direction 1), and no stage is held twice."""
    return _two_ways(rank, n_ranks, m, (rank, 2 * n_ranks - 1 - rank), (0, 0))


def _two_ways(near: int, half: int, m: int, stage: tuple[int, int], base: tuple[int, int]) -> Iterator[Work]:
    """The eight phases of the DualPipe repository, for a rank ``near`` steps from its end of ``2 * half`` stages.

    ``m`` micro-batches go each way; those of direction d are numbered from ``base[d]`` and meet ``stage[d]`` here.
    """
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
    for i in range(m - 2 * half + near + 1):
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
