"""How far endpoints lie apart: cables between the switches of the two, along a shortest path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path

from sextant.hwmodels.topologies.fabric import Fabric, Ints, hanging


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """``diameter`` and ``average`` cables between the switches of two different endpoints that switches connect."""

    diameter: int
    average: float


def adjacency(fabric: Fabric, below: int | None = None) -> csr_array:
    """Cables between switches, shape (n_switches, n_switches); with ``below`` only those of layers under it."""
    ends = fabric.ends
    if below is not None:
        ends = ends[(fabric.layer[ends] < below).all(axis=1)]
    a, b = np.concatenate([ends, ends[:, ::-1]]).T
    n = fabric.n_switches
    return csr_array((np.ones(len(a)), (a, b)), shape=(n, n))


def hops(fabric: Fabric, sources: Ints) -> NDArray[np.float64]:
    """Cables from each of ``sources`` to every switch, (n_sources, n_switches); infinite where no way leads."""
    return np.asarray(shortest_path(adjacency(fabric), unweighted=True, indices=sources))


def distances(fabric: Fabric) -> Distances:
    """Diameter and average. In a fat tree two endpoints meet in the lowest layer whose switches connect them, and are
    twice its height apart; other networks are searched from every switch, or from an orbit of them."""
    return _layered(fabric) if fabric.layer.any() else _searched(fabric)


def _layered(fabric: Fabric) -> Distances:
    apart, pairs, diameter, met = 0.0, 0.0, 0, 0.0
    for height in range(int(fabric.layer.max()) + 1):
        _, group = connected_components(adjacency(fabric, height + 1), directed=False)
        size = np.bincount(group[fabric.switch]).astype(float)
        within = float((size * (size - 1.0)).sum())
        if within > met:
            apart, diameter = apart + 2 * height * (within - met), 2 * height
        met = pairs = within
    return Distances(diameter=diameter, average=apart / max(pairs, 1.0))


def _searched(fabric: Fabric) -> Distances:
    weight = hanging(fabric).astype(float)
    sources = np.flatnonzero(weight) if fabric.orbit is None else fabric.orbit[weight[fabric.orbit] > 0]
    far = hops(fabric, sources)
    reached = np.isfinite(far)
    pairs = weight[sources][:, None] * weight[None, :] * reached
    others = pairs.sum() - weight[sources].sum()
    apart = float((pairs * np.where(reached, far, 0.0)).sum())
    diameter = int(far[(pairs > 0) & reached].max())
    return Distances(diameter=diameter, average=apart / max(float(others), 1.0))
