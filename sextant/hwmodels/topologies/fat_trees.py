"""Fat trees of two and three layers, several planes of them, and rails: how endpoints and cables are laid out.

Leaves have ``n_down`` ports for endpoints and ``n_up`` for cables, in the ratio that ``oversubscription`` gives. A tree
for fewer endpoints than its switches could carry has fewer leaves, and just as many spines as keep every leaf's cables
evenly spread over all of them: the smallest divisor of ``n_up`` that suffices.

Three layers: leaves and aggregation switches form equal pods, aggregation switches of the same place in every pod share
their core switches (Al-Fares, Loukissas and Vahdat, 2008, for the full tree).
"""

from __future__ import annotations

import numpy as np

from sextant.hwmodels.topologies.fabric import Fabric, Ints, Network, built, smallest_divisor
from sextant.simulator.errors import InputError

#: GPUs of a node, each with a network port of its own.
PER_NODE = 8

_ONE_LAYER, _NO_CABLES = np.zeros(1, dtype=np.int64), np.empty((0, 2), dtype=np.int64)


def nvswitch_node(n_devices: int = 8, n_switches: int = 4) -> Network:
    """One node: every device has links to every NVSwitch, and no switch talks to another."""
    return Network(n_endpoints=n_devices, n_switches=n_switches, n_links=0)


def two_layer_fat_tree(radix: int) -> Network:
    """Leaf and spine without oversubscription, all ``radix`` ports used: radix^2 / 2 endpoints."""
    half = _half(radix)
    return Network(n_endpoints=radix * half, n_switches=radix + half, n_links=radix * half)


def three_layer_fat_tree(radix: int) -> Network:
    """The k-ary fat tree of Al-Fares et al. (2008): radix^3 / 4 endpoints, 5 radix^2 / 4 switches."""
    half = _half(radix)
    return Network(n_endpoints=radix * half**2, n_switches=5 * half**2, n_links=2 * radix * half**2)


def multi_plane_fat_tree(radix: int, n_planes: int = 8) -> Network:
    """``n_planes`` separate two-layer fat trees, one per network port of a node (ISCA25 Insights Table 3)."""
    plane = two_layer_fat_tree(radix)
    return Network(
        n_endpoints=n_planes * plane.n_endpoints,
        n_switches=n_planes * plane.n_switches,
        n_links=n_planes * plane.n_links,
    )


def nvswitch(n_endpoints: int = PER_NODE, n_switches: int = 4) -> Fabric:
    """One node of ``n_endpoints`` devices. Every device has links to each of ``n_switches`` NVSwitches, which together
    act as one switch that carries all of them at full rate: one switch here."""
    _positive(n_endpoints=n_endpoints, n_switches=n_switches)
    zeros = np.zeros(n_endpoints, dtype=np.int64)
    notes = (f"{n_switches} NVSwitches act as one: every device has links to each",)
    return built("nvswitch", n_endpoints, zeros, zeros, _ONE_LAYER, _NO_CABLES, notes=notes)


def fat_tree_2(n_endpoints: int | None = None, radix: int = 64, oversubscription: float = 1.0) -> Fabric:
    """Leaves and spines, endpoints in order of their leaves; all the tree can carry without ``n_endpoints``."""
    n_down, n_up = _division(radix, oversubscription)
    n = radix * n_down if n_endpoints is None else n_endpoints
    _within("fat-tree-2", n, radix * n_down, "take fat-tree-3")
    leaf = np.arange(n) // n_down
    return _leaf_spine("fat-tree-2", radix, leaf, np.arange(n) // PER_NODE, n_up)


def multi_plane_fat_tree_2(
    n_endpoints: int | None = None, radix: int = 64, n_planes: int = PER_NODE, oversubscription: float = 1.0
) -> Fabric:
    """``n_planes`` two-layer trees; port i of every node of ``n_planes`` endpoints belongs to plane i.

    Endpoints are numbered node by node. ISCA25 Insights section 5.1: traffic between planes goes over NVLink.
    """
    _positive(n_planes=n_planes)
    n_down, _ = _division(radix, oversubscription)
    n = n_planes * radix * n_down if n_endpoints is None else n_endpoints
    _within("multi-plane-fat-tree", n, n_planes * radix * n_down, "add planes or ports")
    node, plane = np.divmod(np.arange(n), n_planes)
    planes = [
        fat_tree_2(int((plane == p).sum()), radix, oversubscription) for p in range(n_planes) if (plane == p).any()
    ]
    first = np.cumsum([0, *(each.n_switches for each in planes)])
    switch = np.empty(n, dtype=np.int64)
    for p, each in enumerate(planes):
        switch[plane == p] = each.switch + first[p]
    return built(
        "multi-plane-fat-tree", radix, switch, node, np.concatenate([each.layer for each in planes]),
        np.concatenate([each.ends + first[p] for p, each in enumerate(planes)]),
    )  # fmt: skip


def rail_optimised(
    n_endpoints: int | None = None, radix: int = 64, n_per_node: int = PER_NODE, oversubscription: float = 1.0
) -> Fabric:
    """A two-layer tree in which device i of all nodes of a block hangs on leaf i of that block; spines join all leaves.

    A block has as many nodes as a leaf has ports for endpoints, and ``n_per_node`` leaves (NVIDIA's rails).
    """
    _positive(n_per_node=n_per_node)
    n_down, n_up = _division(radix, oversubscription)
    most = radix // n_per_node * n_per_node * n_down
    n = most if n_endpoints is None else n_endpoints
    _within("rail-optimised", n, most, "take multi-plane-fat-tree or fat-tree-3")
    node, rail = np.divmod(np.arange(n), n_per_node)
    leaf = node // n_down * n_per_node + rail
    return _leaf_spine("rail-optimised", radix, np.unique(leaf, return_inverse=True)[1], node, n_up)


def fat_tree_3(n_endpoints: int | None = None, radix: int = 64, oversubscription: float = 1.0) -> Fabric:
    """Pods of leaves and aggregation switches under core switches; leaves alone are oversubscribed."""
    n_down, n_up = _division(radix, oversubscription)
    half = radix // 2
    most = radix * half * n_down
    n = most if n_endpoints is None else n_endpoints
    _within("fat-tree-3", n, most, "take a Dragonfly or more planes")
    n_pods = -(-n // (half * n_down))
    n_leaves = -(-n // (n_pods * n_down))
    n_middle = smallest_divisor(n_up, -(-n_leaves * n_up // half))
    up = n_leaves * n_up // n_middle
    n_core = smallest_divisor(up, -(-n_pods * up // radix))
    n_core = n_core if n_pods > 1 else 0  # a single pod needs nothing above it
    leaves, middles = n_pods * n_leaves, n_pods * n_middle
    pod, position = np.arange(leaves) // n_leaves, np.arange(middles) % n_middle
    ends = [_spread(np.arange(leaves), leaves + pod * n_middle, n_up, n_middle)]
    if n_core:
        ends.append(_spread(leaves + np.arange(middles), leaves + middles + position * n_core, up, n_core))
    layer = np.repeat([0, 1, 2], [leaves, middles, n_middle * n_core])
    return built("fat-tree-3", radix, np.arange(n) // n_down, np.arange(n) // PER_NODE, layer, np.concatenate(ends))


def _leaf_spine(name: str, radix: int, leaf: Ints, node: Ints, n_up: int) -> Fabric:
    n_leaves = int(leaf.max()) + 1
    if n_leaves == 1:  # one leaf carries them all: nothing above it
        return built(name, radix, leaf, node, _ONE_LAYER, _NO_CABLES)
    n_spines = smallest_divisor(n_up, -(-n_leaves * n_up // radix))
    ends = _spread(np.arange(n_leaves), np.full(n_leaves, n_leaves), n_up, n_spines)
    return built(name, radix, leaf, node, np.repeat([0, 1], [n_leaves, n_spines]), ends)


def _spread(below: Ints, first_above: Ints, n_up: int, n_above: int) -> Ints:
    """Cables (len(below) n_up, 2): each lower switch spreads ``n_up`` over the ``n_above`` from ``first_above`` on."""
    turn = np.arange(n_up) % n_above
    return np.stack([np.repeat(below, n_up), (first_above[:, None] + turn[None, :]).ravel()], axis=1)


def _division(radix: int, oversubscription: float) -> tuple[int, int]:
    """Ports of a leaf for endpoints and for cables; those that the ratio leaves over stay empty."""
    _half(radix)
    if not oversubscription >= 1:
        raise InputError(
            f"oversubscription: endpoints' ports per cable of a leaf, at least 1, got {oversubscription:g}"
        )
    n_up = int(radix / (1.0 + oversubscription))
    if n_up < 1:
        raise InputError(
            f"oversubscription {oversubscription:g} leaves no cable on a switch of {radix} ports; lower it"
        )
    return min(radix - n_up, int(n_up * oversubscription)), n_up


def _half(radix: int) -> int:
    if radix < 2 or radix % 2:
        raise InputError(f"a fat tree needs switches with an even number of ports, got {radix}")
    return radix // 2


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: at least 1 is needed, got {count}")


def _within(name: str, n: int, most: int, remedy: str) -> None:
    if not 1 <= n <= most:
        raise InputError(f"{name}: n_endpoints: 1 to {most} fit these switches, got {n}; {remedy}")
