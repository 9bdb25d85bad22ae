"""A network as arrays of cables between switches, and its view as a networkx graph.

A cable joins two switches; the cable of an endpoint counts with the endpoint. Parallel cables are rows of their own,
so that a path is a list of cables and no two flows share one unseen. An endpoint is one network port (one GPU's card);
endpoints of one node also reach each other over NVLink.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Counts of one network; ``n_links`` are the cables between switches, ``n_local_links`` those of them that stay
    within a group of neighbouring racks (a Dragonfly's), which may be cheaper."""

    n_endpoints: int
    n_switches: int
    n_links: int
    n_local_links: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fabric:
    """A built network. ``switch`` (n_endpoints,) is the switch of each endpoint, ``node`` (n_endpoints,) its node;
    ``ends`` (n_links, 2) the switches of each cable, ``local`` (n_links,) whether it stays within a group;
    ``layer`` (n_switches,) is 0 where endpoints may hang and grows upwards. ``n_ports`` is what a switch has.
    ``orbit`` are switches from which the network looks as from any other, where fewer than all do.
    """

    name: str
    n_ports: int
    switch: Ints
    node: Ints
    layer: Ints
    ends: Ints
    local: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    orbit: Ints | None = None

    @property
    def n_endpoints(self) -> int:
        return len(self.switch)

    @property
    def n_switches(self) -> int:
        return len(self.layer)

    @property
    def n_links(self) -> int:
        return len(self.ends)


def counts(fabric: Fabric) -> Network:
    """Endpoints, switches and cables of a built network."""
    return Network(
        n_endpoints=fabric.n_endpoints, n_switches=fabric.n_switches, n_links=fabric.n_links,
        n_local_links=int(fabric.local.sum()),
    )  # fmt: skip


def hanging(fabric: Fabric) -> Ints:
    """Endpoints per switch, shape (n_switches,)."""
    return np.bincount(fabric.switch, minlength=fabric.n_switches)


def used_ports(fabric: Fabric) -> Ints:
    """Ports in use per switch, shape (n_switches,): its endpoints and its cables."""
    return hanging(fabric) + np.bincount(fabric.ends.ravel(), minlength=fabric.n_switches)


def graph(fabric: Fabric) -> nx.MultiGraph:
    """The switches as a graph; a node knows its ``layer`` and how many ``endpoints`` hang on it, an edge is a cable."""
    found, endpoints = nx.MultiGraph(), hanging(fabric)
    for switch in range(fabric.n_switches):
        found.add_node(switch, layer=int(fabric.layer[switch]), endpoints=int(endpoints[switch]))
    found.add_edges_from((int(a), int(b), {"cable": i}) for i, (a, b) in enumerate(fabric.ends))
    return found


def built(
    name: str, n_ports: int, switch: Ints, node: Ints, layer: Ints, ends: Ints, local: NDArray[np.bool_] | None = None,
    notes: tuple[str, ...] = (), orbit: Ints | None = None,
) -> Fabric:  # fmt: skip
    """A fabric whose switches have enough ports; InputError says which has not."""
    ends = np.asarray(ends, dtype=np.int64).reshape(-1, 2)
    made = Fabric(
        name=name, n_ports=n_ports, switch=np.asarray(switch, dtype=np.int64), node=np.asarray(node, dtype=np.int64),
        layer=np.asarray(layer, dtype=np.int64), ends=ends,
        local=np.zeros(len(ends), dtype=bool) if local is None else np.asarray(local, dtype=bool), notes=notes,
        orbit=orbit,
    )  # fmt: skip
    most = int(used_ports(made).max())
    if most > n_ports:
        raise InputError(
            f"{name}: a switch needs {most} ports and has {n_ports}; ask for fewer endpoints or more ports"
        )
    return made


def smallest_divisor(n: int, least: int) -> int:
    """The smallest divisor of ``n`` that is not below ``least``: so many switches share n cables evenly."""
    return next(d for d in range(max(1, least), n + 1) if n % d == 0)
