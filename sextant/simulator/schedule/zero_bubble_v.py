"""ZB-V: two chunks per rank in a V, split backward passes, and no more activations than 1F1B keeps on its first rank.

Qi et al. (Zero Bubble Pipeline Parallelism, 2023) build the order with a greedy rule from the chunks' times. So does
this list scheduler: a rank that is free starts the first of these that is ready, and a forward chunk only if the rank
holds fewer than ``2 * n_ranks`` chunks' activations, until their weight gradients. Of the sequences in ``_PREFERENCES``
the one with the shortest step is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache

from sextant.simulator.schedule.work import Work

#: What a free rank prefers: F, B of its first (0) or second (1) chunk, or a weight gradient. The first sequence leaves
#: nothing idle after a rank's first chunk where F, B and W take equal time; the others help where they do not.
_PREFERENCES = (
    ("F1", "F0", "B0", "B1", "W"), ("F1", "F0", "B1", "B0", "W"), ("B0", "F1", "B1", "F0", "W"),
    ("F1", "B1", "B0", "F0", "W"), ("F1", "B1", "B0", "W", "F0"), ("B0", "F1", "F0", "W", "B1"),
)  # fmt: skip

#: Seconds of forward, input-gradient and weight-gradient chunks, each one number or one per stage, up to a factor.
Ratio = tuple[float | tuple[float, ...], float | tuple[float, ...], float | tuple[float, ...]]

#: The same, with one number per stage.
Seconds = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def ratio(forward_s: Sequence[float], backward_input_s: Sequence[float], backward_weight_s: Sequence[float]) -> Ratio:
    """The chunk times of every stage that an order is made for, as shares of the longest: to two digits, so that alike
    steps have one order."""
    kinds = forward_s, backward_input_s, backward_weight_s
    longest = max(max(kind) for kind in kinds)
    if longest <= 0:
        return 1.0, 1.0, 1.0
    forward, inputs, weights = (tuple(round(x / longest, 2) for x in kind) for kind in kinds)
    return forward, inputs, weights


@lru_cache(maxsize=256)
def zero_bubble_v(n_ranks: int, m: int, seconds: Ratio = (1.0, 1.0, 1.0)) -> tuple[tuple[Work, ...], ...]:
    """What every rank executes, in order, made for chunks of ``seconds``."""
    n = 2 * n_ranks
    f, b, w = (kind if isinstance(kind, tuple) else (kind,) * n for kind in seconds)
    # No order is shorter: a rank waits for its first chunk, then has all its work to do.
    total = [f[i] + b[i] + w[i] for i in range(n)]
    least = max(sum(f[:rank]) + m * (total[rank] + total[n - 1 - rank]) for rank in range(n_ranks))
    best: tuple[float, tuple[tuple[Work, ...], ...]] = (float("inf"), ())
    for order in _PREFERENCES:
        found = _Greedy(n_ranks, m, (f, b, w), order, 0).run() or _Greedy(n_ranks, m, (f, b, w), order, 1).run()
        assert found, "micro-batches advance in order, so one kept place is enough for all to leave"
        if found[0] < best[0] - 1e-9:
            best = found
        if best[0] <= least + 1e-9:
            break
    return best[1]


class _Greedy:
    """One pass of the list scheduler: all ranks decide at every moment at which some chunk ends.

    ``kept`` places in memory are closed to forward chunks on the way down, so that those on the way up find one.
    """

    def __init__(self, n_ranks: int, m: int, seconds: Seconds, order: tuple[str, ...], kept: int) -> None:
        self.kept, self.ranks = kept, set(range(n_ranks))
        self.n_ranks, self.m, self.order = n_ranks, m, order
        self.seconds = dict(zip("FBW", seconds, strict=True))
        self.ended: dict[tuple[str, int, int], float] = {}
        self.next = [{"F0": 0, "F1": 0, "B0": 0, "B1": 0} for _ in range(n_ranks)]
        self.owed: list[list[tuple[int, int]]] = [[] for _ in range(n_ranks)]
        self.live, self.free = [0] * n_ranks, [0.0] * n_ranks
        self.programs: list[list[Work]] = [[] for _ in range(n_ranks)]

    def run(self) -> tuple[float, tuple[tuple[Work, ...], ...]] | None:
        """When the last chunk ends, and the programs of all ranks; None if memory is full before all is done."""
        ends = [(0.0, rank) for rank in range(self.n_ranks)]
        left = 6 * self.m * self.n_ranks
        while left:
            if not ends:
                return None
            now = ends[0][0]
            # What a rank may start changes with its own chunks and with those of its neighbours.
            touched: set[int] = set()
            while ends and ends[0][0] == now:
                rank = heapq.heappop(ends)[1]
                touched.update((rank - 1, rank, rank + 1))
            for rank in sorted(touched & self.ranks):
                what = self._choice(rank, now) if self.free[rank] <= now else ""
                if what:
                    self._start(rank, what, now)
                    heapq.heappush(ends, (self.free[rank], rank))
                    left -= 1
        return max(self.free), tuple(tuple(program) for program in self.programs)

    def _stage(self, rank: int, chunk: str) -> int:
        return rank if chunk == "0" else 2 * self.n_ranks - 1 - rank

    def _choice(self, rank: int, now: float) -> str:
        return next((what for what in self.order if self._ready(rank, what, now)), "")

    def _ready(self, rank: int, what: str, now: float) -> bool:
        if what == "W":
            return bool(self.owed[rank])
        i, stage, last = self.next[rank][what], self._stage(rank, what[1]), 2 * self.n_ranks - 1
        if i == self.m:
            return False
        if what[0] == "F":
            if self.live[rank] >= 2 * self.n_ranks - (self.kept if what == "F0" else 0):
                return False
            return stage == 0 or self.ended.get(("F", i, stage - 1), float("inf")) <= now
        needed = ("F", i, stage) if stage == last else ("B", i, stage + 1)
        return self.ended.get(needed, float("inf")) <= now

    def _start(self, rank: int, what: str, now: float) -> None:
        # Rounding makes moments that are equal on paper equal here; zero-length chunks still take a moment.
        stage = self.owed[rank][0][1] if what == "W" else self._stage(rank, what[1])
        end = round(now + max(self.seconds[what[0]][stage], 1e-6), 9)
        self.free[rank] = end
        if what == "W":
            b, stage = self.owed[rank].pop(0)
            self.live[rank] -= 1
            self.programs[rank].append(Work("W", b=b, b_stage=stage))
            return
        i = self.next[rank][what]
        self.next[rank][what] += 1
        self.ended[what[0], i, stage] = end
        if what[0] == "F":
            self.live[rank] += 1
            self.programs[rank].append(Work("F", f=i, f_stage=stage))
        else:
            self.owed[rank].append((i, stage))
            self.programs[rank].append(Work("B", b=i, b_stage=stage))
