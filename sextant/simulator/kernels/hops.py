"""Where a group of devices lies: in how many nodes, and over which links its members reach each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.types import Cluster, Link, Num


def nodes(shape: Mapping[str, Num]) -> tuple[Num, Num]:
    """Number of nodes of a group of ``n_gpus``, and how many of its devices lie in each (``n_gpus_per_node``)."""
    local = np.minimum(shape["n_gpus"], shape["n_gpus_per_node"])
    return np.ceil(shape["n_gpus"] / local), local


def links(cluster: Cluster, n_nodes: Num) -> tuple[Link, Link]:
    """The links within a node and between nodes; InputError if a group spans nodes and there is no second tier."""
    tiers = list(cluster.tiers.values())
    if len(tiers) < 2 and np.any(np.asarray(n_nodes) > 1):
        raise InputError(
            f"cluster {cluster.name!r} has {len(tiers)} tier of links; a group of {np.max(n_nodes):.0f} nodes needs two"
        )
    return tiers[0].link, tiers[min(1, len(tiers) - 1)].link
