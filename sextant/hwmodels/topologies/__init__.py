"""Networks between devices: their graphs, what they cost, how far and how wide they are, and who shares a cable.

Counts follow from formulas (``two_layer_fat_tree`` ...); ``build`` makes the network itself, for any number of
endpoints, from a name of ``TOPOLOGIES``. ``fabric.graph`` shows it as a networkx graph. Never in a hot path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from sextant.hwmodels.topologies.fabric import Fabric, Network, counts, graph
from sextant.hwmodels.topologies.fat_trees import (
    fat_tree_2,
    fat_tree_3,
    multi_plane_fat_tree,
    multi_plane_fat_tree_2,
    nvswitch,
    nvswitch_node,
    rail_optimised,
    three_layer_fat_tree,
    two_layer_fat_tree,
)
from sextant.hwmodels.topologies.low_diameter import dragonfly, dragonfly_fabric, slim_fly, slim_fly_fabric
from sextant.hwmodels.topologies.prices import Prices, cost_usd, solve_prices
from sextant.simulator.errors import InputError, nearest

__all__ = [
    "TOPOLOGIES", "Fabric", "Network", "Prices", "build", "cost_usd", "counts", "dragonfly", "graph",
    "multi_plane_fat_tree", "nvswitch_node", "settings", "slim_fly", "solve_prices", "three_layer_fat_tree",
    "two_layer_fat_tree",
]  # fmt: skip

#: Every topology by name. Without settings each is as large as its switches of 64 ports allow.
TOPOLOGIES: Mapping[str, Callable[..., Fabric]] = {
    "nvswitch": nvswitch, "rail-optimised": rail_optimised, "fat-tree-2": fat_tree_2, "fat-tree-3": fat_tree_3,
    "multi-plane-fat-tree": multi_plane_fat_tree_2, "slim-fly": slim_fly_fabric, "dragonfly": dragonfly_fabric,
}  # fmt: skip


def settings(name: str) -> Mapping[str, float | None]:
    """What can be set of a topology, with its defaults (None: as large as can be); InputError for an unknown name."""
    return {key: found.default for key, found in inspect.signature(_maker(name)).parameters.items()}


def build(name: str, **chosen: float) -> Fabric:
    """The network called ``name``, e.g. ``build("fat-tree-2", n_endpoints=512, oversubscription=2)``.

    InputError for an unknown topology or setting, or a network that cannot be built.
    """
    known = settings(name)
    for key, value in chosen.items():
        if key not in known:
            raise InputError(f"{name}: unknown setting {key!r}; {nearest(key, known)}")
        if key != "oversubscription" and value != int(value):
            raise InputError(f"{name}: {key} counts something, got {value:g}; take a whole number")
    return _maker(name)(**{k: float(v) if k == "oversubscription" else int(v) for k, v in chosen.items()})


def _maker(name: str) -> Callable[..., Fabric]:
    if name not in TOPOLOGIES:
        raise InputError(f"unknown topology {name!r}; {nearest(name, TOPOLOGIES)}")
    return TOPOLOGIES[name]
