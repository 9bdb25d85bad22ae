"""The narrowest cut between two halves of a network's endpoints, in cables and bytes/s of one direction.

Fat trees have a closed form. A division that puts m of L leaves, each with n_up cables, on one side cuts at least
min(m, L - m) n_up cables: every tree of switches above the leaves would have to carry that much (for two layers each
spine contributes its share; for three, moving a pod's middle switches never saves more than it costs). Endpoints
that must change sides to make halves are cut at their own port. With full leaves that is exact; a partly filled leaf
makes it a bound from above. Nodes stay whole: cutting NVLink between planes of one node is not counted.

Other networks get two bounds: from below N lambda / 4 with the second eigenvalue of the Laplacian (Fiedler, 1973), from
above the best division that a search by swaps found. Both are of halves of the switches, all with equal endpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from sextant.hwmodels.topologies.distances import adjacency
from sextant.hwmodels.topologies.fabric import Fabric, hanging

#: Switches up to which eigenvalues and swaps take seconds.
_MOST = 2_000

#: Switches of each side that are tried for a swap.
_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """Cables cut at best: ``low`` and ``high`` are equal where the number is exact, ``low`` 0 where no bound is known.
    ``how`` says where it comes from."""

    low: float
    high: float
    how: str

    @property
    def exact(self) -> bool:
        return self.low == self.high


def bisection(fabric: Fabric) -> Bisection:
    """The bisection of ``fabric``; of separate planes the sum."""
    n_parts, part = connected_components(adjacency(fabric), directed=False)
    if not fabric.n_links or fabric.layer.any():
        cuts = [_tree_cut(fabric, part == each) for each in range(n_parts)]
        exact = all(full for _, full in cuts)
        cut = float(sum(cut for cut, _ in cuts))
        how = "exact: closed form" if exact else "bound: closed form for full leaves, the last is not"
        return Bisection(low=cut if exact else 0.0, high=cut, how=how)
    cables = adjacency(fabric).toarray() if fabric.n_switches <= _MOST else None
    if fabric.orbit is not None:
        cut, how = (
            _half_cut(fabric, fabric.n_switches // len(fabric.orbit) * len(fabric.orbit) // 2),
            "groups kept whole",
        )
    elif cables is None:
        cut, how = _half_cut(fabric, fabric.n_switches // 2), "switches in order"
    else:
        cut, how = _swapped_cut(cables), "a division found by swaps"
    if cables is None:
        return Bisection(low=0.0, high=cut, how=f"bound: {how}")
    return Bisection(low=min(cut, _eigenvalue_cut(cables)), high=cut, how=f"bounds: eigenvalue below, {how} above")


def _tree_cut(fabric: Fabric, mine: NDArray[np.bool_]) -> tuple[float, bool]:
    """The cut of one tree, and whether all of its leaves are equally full."""
    endpoints = hanging(fabric)[mine & (fabric.layer == 0)]
    leaves = np.sort(endpoints)[::-1]
    n_leaves, n, full = len(leaves), int(leaves.sum()), leaves.max()
    first = np.flatnonzero(mine & (fabric.layer == 0))[0]
    n_up = int((fabric.ends == first).sum())
    best = np.inf
    for start in (0, 1):  # with and without the fullest; the others are as full, but for the last
        for m in range(n_leaves + 1 - start):
            chosen = leaves[start : start + m].sum() if start == 0 else leaves[n_leaves - m :].sum()
            best = min(best, min(m, n_leaves - m) * n_up + abs(int(chosen) - n // 2))
    return float(best), bool((leaves == full).all())


def _half_cut(fabric: Fabric, n_first: int) -> float:
    """The first ``n_first`` switches against the others. Of a Dragonfly's groups, an odd one is split in the middle;
    other rotations cut the same, for the groups look alike."""
    side = np.arange(fabric.n_switches) < n_first
    return float((side[fabric.ends[:, 0]] != side[fabric.ends[:, 1]]).sum())


def _eigenvalue_cut(cables: NDArray[np.float64]) -> float:
    """Cables that any halves cut at least. The eigenvalue is the second largest of a matrix that turns the order of the
    Laplacian's round: large ones come fast and exactly from an iteration with a fixed start."""
    n, degree = len(cables), cables.sum(axis=1)
    turned = 2.0 * degree.max() * np.eye(n) - np.diag(degree) + cables
    start = np.sin(np.arange(1.0, n + 1.0))
    largest = np.asarray(eigsh(turned, k=2, which="LA", v0=start, return_eigenvectors=False))
    second = 2.0 * degree.max() - float(largest.min())
    # A cut is whole: what rounding has added is less than the next whole number is away.
    return float(np.ceil(second * (n // 2) * (n - n // 2) / n - 1e-6))


def _swapped_cut(cables: NDArray[np.float64]) -> float:
    """From the first half against the second, swap the pair that saves most until none does (Kernighan and Lin, 1970,
    without its look-ahead); the better of that and of even against odd numbers."""
    n = len(cables)
    starts = [np.arange(n) < n // 2, np.arange(n) % 2 == 0]
    return min(_descend(cables, np.where(side, 1.0, -1.0)) for side in starts)


def _descend(cables: NDArray[np.float64], side: NDArray[np.float64]) -> float:
    """Swaps among the switches that gain most on either side; ``side`` (n_switches,) is 1 or -1 and is changed."""
    across = cables @ side
    while True:
        gain = -side * across  # cables across minus cables within, per switch
        a, b = (_best(gain, side == which) for which in (1.0, -1.0))
        saved = gain[a][:, None] + gain[b][None, :] - 2.0 * cables[np.ix_(a, b)]
        i, j = np.unravel_index(np.argmax(saved), saved.shape)
        if saved[i, j] <= 0:
            return float(np.sum(cables * (side[:, None] != side[None, :])) / 2.0)
        side[a[i]], side[b[j]] = -1.0, 1.0
        across += 2.0 * (cables[b[j]] - cables[a[i]])


def _best(gain: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The switches of one side that gain most, lower numbers first among equals."""
    mine = np.flatnonzero(among)
    return mine[np.argsort(-gain[mine], kind="stable")[:_CANDIDATES]]
