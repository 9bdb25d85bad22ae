"""What a product loses while programs of another kernel stay on some SMs, where its own blocks then have no room.

A block of a tensor-core kernel takes nearly all registers of an SM and nearly all its shared memory, and the split
between cache and shared memory changes only while an SM is empty. Where a program of another kernel sits, no such block
starts before that program ends. The kernels of the libraries start as many blocks as there are SMs, in clusters of two,
and each block then computes one tile of the output after another: those that find no SM start when the first others are
through, with all the tiles that are theirs still to do.

    tiles   those of the tile shape that fills the waves best (the library's choice, by the names of its kernels)
    owned   tile i belongs to cluster i, tile i + clusters too (``OWNED`` in all); further ones to whoever is free
    longer  turns of the last cluster over turns with all SMs, less one

A grouped kernel divides all its tiles up beforehand: its late blocks double the time.
"""

from __future__ import annotations

import numpy as np

from sextant.simulator.types import Num, Op

#: Blocks of one cluster, and tiles that a cluster computes whenever it starts (1 and 3 fit the measured times worse:
#: validate/data/measured/h200_resident.csv).
CLUSTER, OWNED = 2.0, 2
#: Tile heights that kernels are named by, along n; along m a tile has 128 rows, or 64 where there are no more.
HEIGHTS = (*range(8, 184, 8), 192, 256, 320)
_TALL, _SHORT = 128.0, 64.0
#: What a turn costs beside its tile, in columns of it: with 0, many turns of small tiles would win that are not taken.
#: Chosen by the tile counts of 30 kernels whose names tell them (27 agree), not by a time.
_TURN = 16.0


def tiles(m: Num, n: Num, n_sms: Num) -> Num:
    """Tiles of a product y[m, n] by a library that fills its waves; of shapes as good, the largest. Broadcasts."""
    rows = np.ceil(m / np.where(np.asarray(m) > _SHORT, _TALL, _SHORT))
    best: Num = np.inf
    found: Num = 0.0
    for height in HEIGHTS:
        count = rows * np.ceil(n / height)
        cost = np.ceil(count / n_sms) * (height + _TURN)
        found, best = np.where(cost <= best, count, found), np.minimum(best, cost)
    return np.asarray(found, dtype=float)[()]


def longer(op: Op, n_sms: Num, held: Num) -> Num:
    """The share of its time on the tensor cores that a product loses while ``held`` clusters find no SMs, at most half
    of all."""
    if op.kind == "grouped_gemm":
        return np.where(np.asarray(held) > 0, 1.0, 0.0)[()]
    clusters = np.floor(n_sms / CLUSTER)
    jobs = np.ceil(tiles(op.shape["m"], op.shape["n"], n_sms) / CLUSTER)
    left = np.maximum(clusters - np.ceil(held), 1.0)
    started = np.minimum(clusters, jobs)
    owned = sum(np.maximum(np.minimum(started, jobs - i * clusters) - left, 0.0) for i in range(OWNED))
    turns, more = np.divmod(jobs - owned, left)
    # Those that are through a turn earlier make room, if there are as many as wait.
    begins = turns + np.where(left - more < started - left, 1.0, 0.0)
    last = sum(np.where(left + i * clusters < jobs, 1.0, 0.0) for i in range(OWNED))
    ends = np.maximum(begins + last, turns + np.where(more > 0, 1.0, 0.0))
    whole = np.maximum(np.ceil(jobs / clusters), 1.0)
    return np.where(started > left, ends / whole - 1.0, 0.0)[()]
