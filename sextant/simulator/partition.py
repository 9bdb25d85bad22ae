"""Divide a sequence of layers into pipeline stages so that the most loaded rank has the least to do."""

from __future__ import annotations

import functools
from itertools import accumulate, pairwise
from math import inf


@functools.lru_cache(maxsize=4096)
def balance(costs: tuple[float, ...], n_stages: int, ranks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Boundaries ``(0, ..., len(costs))`` of ``n_stages`` consecutive runs of layers, none empty.

    ``ranks`` lists which stages share a device: one each for most schedules, ``(r, n-1-r)`` for DualPipe, interleaved
    chunks for virtual stages. Minimises the largest rank cost, then the sum of squares of the rank and of the stage
    costs, by moving runs of boundaries one layer at a time from the even split until nothing improves. Deterministic;
    at least as good as the even split, not proven optimal.
    """
    n = len(costs)
    if n < n_stages:
        raise ValueError(f"{n} layers cannot fill {n_stages} stages")
    total = (0.0, *accumulate(costs))
    bounds = _even(total, n, n_stages)
    best = _score(bounds, total, ranks)
    # DualPipe has every stage on two ranks, which hold the same: either tells.
    holders = {stage: rank for rank in ranks for stage in rank}
    improved = True
    while improved:
        improved = False
        for first in range(1, n_stages):
            for last in range(first, n_stages):
                for move in (-1, 1):
                    # The stage that grows, and the one that shrinks.
                    more, less = (first - 1, last) if move > 0 else (last, first - 1)
                    if bounds[less + 1] - bounds[less] == 1:
                        continue
                    # Most trials overload the rank whose stage grows, which is seen without the others.
                    grown = 0.0
                    for s in holders[more]:
                        a, b = bounds[s], bounds[s + 1]
                        grown += (
                            total[b + move if first <= s + 1 <= last else b]
                            - total[a + move if first <= s <= last else a]
                        )
                    if round(grown, 9) > best[0]:
                        continue
                    trial = (*bounds[:first], *(b + move for b in bounds[first : last + 1]), *bounds[last + 1 :])
                    score = _score(trial, total, ranks, best[0])
                    if score < best:
                        bounds, best, improved = trial, score, True
    return bounds


def _even(total: tuple[float, ...], n: int, n_stages: int) -> tuple[int, ...]:
    """Boundaries at equal shares of the total cost, pushed apart where that would leave a stage empty."""
    bounds = [0]
    for stage in range(1, n_stages):
        share = total[-1] * stage / n_stages
        nearest = min(range(n + 1), key=lambda i: abs(total[i] - share))
        bounds.append(min(max(nearest, bounds[-1] + 1), n - (n_stages - stage)))
    return (*bounds, n)


def _score(
    bounds: tuple[int, ...], total: tuple[float, ...], ranks: tuple[tuple[int, ...], ...], most: float = inf
) -> tuple[float, float, float]:
    """What ``balance`` minimises; its last two parts are not looked at where the first is above ``most``."""
    stages = [total[b] - total[a] for a, b in pairwise(bounds)]
    loads = stages if len(ranks[0]) == 1 else [sum([stages[s] for s in rank]) for rank in ranks]
    # Rounding keeps the order of trials from deciding between scores that differ by summation error alone.
    largest = round(max(loads), 9)
    if largest > most:
        return largest, 0.0, 0.0
    return largest, round(sum([x * x for x in loads]), 9), round(sum([x * x for x in stages]), 9)
