"""Jitter and stragglers: factors on chunk times that differ from replica to replica and from chunk to chunk.

A chunk's factor is lognormal with mean 1, so jitter alone adds no work, only waiting. Replicas of a pipeline wait for
each other at the end of the step. Where they exchange tokens, as experts spread over several devices make them, they
wait inside every chunk: each exchange ends when the slowest member of the group arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.schedule import Work

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """How chunk times vary.

    ``variation``: standard deviation of a chunk's seconds over their mean. ``n_stragglers`` devices, drawn with the
    seed, take ``slowdown`` times as long for everything. ``group`` devices of one stage exchange tokens ``n_exchanges``
    times in a forward chunk, as often in a backward one, and twice as often in an overlapped pair. A weight gradient
    exchanges nothing.
    """

    variation: float = 0.0
    n_stragglers: int = 0
    slowdown: float = 1.0
    group: int = 1
    n_exchanges: int = 1
    seed: int = 0


def factors(programs: Sequence[Sequence[Work]], n_replicas: int, jitter: Jitter) -> list[Array]:
    """Per rank the factors on the seconds of its instructions, shape (n_instructions, n_replicas).

    A chunk of a device in a group is as long as its pieces between exchanges, each as long as the slowest member takes;
    the pieces vary independently, such that a chunk of one device alone varies by ``variation``.
    ValueError if groups do not divide the replicas.
    """
    if n_replicas % jitter.group:
        raise ValueError(f"{n_replicas} replicas do not divide into groups of {jitter.group}")
    slow = slow_devices(len(programs), n_replicas, jitter)
    return [_rank(program, slow[rank], jitter, rank) for rank, program in enumerate(programs)]


def slow_devices(n_ranks: int, n_replicas: int, jitter: Jitter) -> Array:
    """The factor of every device on all it does: ``slowdown`` for stragglers, else 1; shape (n_ranks, n_replicas)."""
    n_devices = n_ranks * n_replicas
    slow = np.ones(n_devices)
    random = np.random.default_rng([jitter.seed, 0])
    slow[random.permutation(n_devices)[: min(jitter.n_stragglers, n_devices)]] = jitter.slowdown
    return slow.reshape(n_ranks, n_replicas)


def _rank(program: Sequence[Work], slow: Array, jitter: Jitter, rank: int) -> Array:
    """Factors of one rank's instructions, shape (n_instructions, n_replicas); each kind has its own random numbers."""
    found = np.empty((len(program), len(slow)))
    for i, kind in enumerate(("F", "B", "W", "BW", "FB")):
        at = [j for j, work in enumerate(program) if work.kind == kind]
        random = np.random.default_rng([jitter.seed, 1 + rank, i])
        if kind == "W" or jitter.group == 1:
            found[at] = slow * _lognormal(random, (len(at), len(slow)), jitter.variation)
        else:
            n = jitter.n_exchanges * (2 if kind == "FB" else 1)
            found[at] = _exchanging(random, len(at), n, slow, jitter)
    return found


def _exchanging(random: np.random.Generator, n_chunks: int, n_pieces: int, slow: Array, jitter: Jitter) -> Array:
    """Factors of chunks in ``n_pieces`` pieces, at whose ends a group waits for its slowest member."""
    total = np.zeros((n_chunks, len(slow)))
    for _ in range(n_pieces):
        piece = slow * _lognormal(random, (n_chunks, len(slow)), jitter.variation * n_pieces**0.5)
        slowest = piece.reshape(n_chunks, len(slow) // jitter.group, jitter.group).max(axis=2)
        total += np.repeat(slowest, jitter.group, axis=1)
    return total / n_pieces


def _lognormal(random: np.random.Generator, shape: tuple[int, int], variation: float) -> Array:
    """Lognormal numbers with mean 1 and standard deviation ``variation``."""
    if variation <= 0:
        return np.ones(shape)
    sigma = np.log1p(variation**2) ** 0.5
    return np.exp(sigma * random.standard_normal(shape) - sigma**2 / 2.0)
