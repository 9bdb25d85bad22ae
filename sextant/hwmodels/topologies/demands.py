"""Ready-made traffic between endpoints: who sends how many bytes to whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.hwmodels.topologies.fabric import Fabric, Ints
from sextant.simulator.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flows:
    """``source``, ``target`` (endpoints) and ``bytes``, each (n_flows,)."""

    source: Ints
    target: Ints
    bytes: NDArray[np.float64]


def ring(endpoints: Ints, size_bytes: float) -> Flows:
    """Each of ``endpoints`` sends to the next, the last to the first."""
    return _flows(endpoints, np.roll(endpoints, -1), size_bytes)


def all_to_all(endpoints: Ints, size_bytes: float) -> Flows:
    """Each of ``endpoints`` sends ``size_bytes`` in all, equal parts to every other."""
    n = len(endpoints)
    source, target = np.repeat(endpoints, n), np.tile(endpoints, n)
    other = source != target
    return _flows(source[other], target[other], size_bytes / max(n - 1, 1))


def permutation(endpoints: Ints, size_bytes: float, seed: int = 0) -> Flows:
    """Each of ``endpoints`` sends to one other and hears from one other, drawn by ``seed``: one cycle through all."""
    shuffled = np.random.default_rng(seed).permutation(endpoints)
    return ring(shuffled, size_bytes)


def rail_dispatch(fabric: Fabric, n_nodes: int, size_bytes: float) -> Flows:
    """Expert dispatch among the first ``n_nodes`` nodes as deployed: a device sends to the device of the same place in
    every other node, ``size_bytes`` in all, and NVLink forwards inside (DeepSeek-V3 report section 3.2.2).

    InputError if there are fewer nodes, or they differ in their number of devices.
    """
    members = [np.flatnonzero(fabric.node == node) for node in range(n_nodes)]
    sizes = {len(each) for each in members}
    if n_nodes < 2 or len(sizes) != 1 or 0 in sizes:
        most = int(np.bincount(fabric.node).size)
        raise InputError(f"n_nodes: 2 to {most} nodes with as many devices each are needed, got {n_nodes}")
    parts = [all_to_all(rail, size_bytes) for rail in np.stack(members, axis=1)]
    return Flows(
        source=np.concatenate([p.source for p in parts]), target=np.concatenate([p.target for p in parts]),
        bytes=np.concatenate([p.bytes for p in parts]),
    )  # fmt: skip


def _flows(source: Ints, target: Ints, size_bytes: float) -> Flows:
    return Flows(source=source, target=target, bytes=np.full(len(source), float(size_bytes)))
