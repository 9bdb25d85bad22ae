"""A ring collective step by step: the tasks of every rank, for either engine, and the closed form they must meet.

In step s every rank sends on the part that it received in step s - 1, over its own link. ``overlap.makespan_s`` gives
the end as a max-plus recurrence for arrays of points, ``des.simulate_tasks`` plays the same tasks; with equal links
both give ``ring_s``. What only the steps show is a ring whose links differ: one slow link holds every part up.
"""

from __future__ import annotations

from collections.abc import Sequence

from sextant.simulator.overlap import Task
from sextant.simulator.types import Num

#: Turns of the ring: parts are added on the first, handed round on the second.
TURNS = {"reduce_scatter": 1, "all_gather": 1, "all_reduce": 2}


def ring_tasks(variant: str, message_bytes: Num, latency_s: Sequence[Num], bytes_per_s: Sequence[Num]) -> list[Task]:
    """The sends of a ring over ``len(latency_s)`` ranks; link r leads from rank r to the next and takes its latency
    and the time of one part. Bytes of the larger buffer of a rank; each may be an array of shape (n_points,).

    KeyError for a collective that is no ring.
    """
    n = len(latency_s)
    part = [latency_s[r] + message_bytes / n / bytes_per_s[r] for r in range(n)]
    return [
        Task(
            name=f"{step}.{r}", stream=f"link {r}", seconds=part[r],
            after=(f"{step - 1}.{(r - 1) % n}",) if step else (),
        )
        for step in range(TURNS[variant] * (n - 1))
        for r in range(n)
    ]  # fmt: skip


def ring_s(variant: str, message_bytes: Num, n_ranks: int, latency_s: Num, bytes_per_s: Num) -> Num:
    """Seconds of the ring over equal links: (n - 1) steps a turn, each the latency and 1 / n of the bytes."""
    return TURNS[variant] * (n_ranks - 1) * (latency_s + message_bytes / n_ranks / bytes_per_s)
