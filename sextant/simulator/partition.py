"""Divide a sequence of layers into pipeline stages so that the most loaded rank has the least to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@lru_cache(maxsize=8192)
def balance(costs: tuple[int, ...], n_stages: int, ranks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Boundaries ``(0, ..., len(costs))`` of ``n_stages`` consecutive runs of layers, none empty.

    ``costs`` are whole numbers of any unit: their sums are exact, so that ties are ties. ``ranks`` lists which stages
    share a device: one each for most schedules, ``(r, n-1-r)`` for DualPipe, interleaved chunks for virtual stages.
    Minimises the largest rank cost, then the sum of squares of the rank and of the stage costs, by moving runs of
    boundaries one layer at a time from the even split until nothing improves. Deterministic; at least as good as the
    even split, not proven optimal. ValueError if there are fewer layers than stages.
    """
    n = len(costs)
    if n < n_stages:
        raise ValueError(f"{n} layers cannot fill {n_stages} stages")
    total = np.array([0, *accumulate(costs)])
    bounds = _even(total, n_stages)
    moves = _moves(n_stages)
    holders, next_move = np.array(ranks), 0
    # Moves are tried in order, and after the last one from the beginning.
    while len(better := _better(bounds, total, moves, holders)):
        later = better[better >= next_move]
        move = int((later if len(later) else better)[0])
        bounds, next_move = bounds + moves.shift[move], move + 1
    return tuple(bounds.tolist())


@dataclass(frozen=True, slots=True)
class _Moves:
    """Every run of boundaries one layer left and right, in the order of trial: what is added to the boundaries, of
    shape (n_moves, n_stages + 1); the stage that grows and the one that shrinks, (n_moves,) each."""

    shift: Ints
    grows: Ints
    shrinks: Ints


@cache
def _moves(n_stages: int) -> _Moves:
    runs = [(first, last) for first in range(1, n_stages) for last in range(first, n_stages)]
    first, last = np.repeat(np.array(runs, dtype=np.int64).reshape(-1, 2), 2, axis=0).T
    sign = np.tile(np.array([-1, 1]), len(runs))
    boundary = np.arange(n_stages + 1)
    inside = (first[:, None] <= boundary) & (boundary <= last[:, None])
    right = sign > 0
    return _Moves(
        shift=inside * sign[:, None], grows=np.where(right, first - 1, last), shrinks=np.where(right, last, first - 1)
    )


def _better(bounds: Ints, total: Ints, moves: _Moves, ranks: Ints) -> Ints:
    """The moves that lower the score of ``bounds``, in order."""
    holder = np.empty(len(bounds) - 1, dtype=np.int64)
    # DualPipe has every stage on two ranks, which hold the same: either tells.
    holder[ranks] = np.arange(len(ranks))[:, None]
    largest, squares, own = (part[0] for part in _score(np.diff(total[bounds])[None], ranks))
    at = np.flatnonzero(np.diff(bounds)[moves.shrinks] > 1)
    # Most moves overload the rank whose stage grows, which is seen without the others.
    held = ranks[holder[moves.grows[at]]]
    moved = bounds + moves.shift[at]
    rows = np.arange(len(at))[:, None]
    grown = (total[moved[rows, held + 1]] - total[moved[rows, held]]).sum(axis=1) <= largest
    at, moved = at[grown], moved[grown]
    new_largest, new_squares, new_own = _score(np.diff(total[moved], axis=1), ranks)
    lower = (new_squares < squares) | ((new_squares == squares) & (new_own < own))
    return at[(new_largest < largest) | ((new_largest == largest) & lower)]


def _score(stages: Ints, ranks: Ints) -> tuple[Ints, Ints, Ints]:
    """What ``balance`` minimises, of stage costs of shape (n_trials, n_stages)."""
    loads = stages if ranks.shape[1] == 1 else stages[:, ranks].sum(axis=2)
    return loads.max(axis=1), np.square(loads).sum(axis=1), np.square(stages).sum(axis=1)


def _even(total: Ints, n_stages: int) -> Ints:
    """Boundaries at equal shares of the total cost, pushed apart where that would leave a stage empty."""
    n = len(total) - 1
    bounds = [0]
    for stage in range(1, n_stages):
        nearest = int(np.argmin(np.abs(total - total[-1] * stage / n_stages)))
        bounds.append(min(max(nearest, bounds[-1] + 1), n - (n_stages - stage)))
    return np.array([*bounds, n])
