"""Networks between nodes: how many endpoints, switches and links a topology of equal switches has, and its price.

A link is a cable between two switches; the cable to an endpoint counts with the endpoint. ``switch_graph`` builds the
same network as a graph, for path lengths and for checking the formulas; it is never in a hot path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np

from sextant.simulator.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Counts of one network; ``n_links`` are the cables between switches."""

    n_endpoints: int
    n_switches: int
    n_links: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD of one switch, of one endpoint's cable and port, and of one cable between switches with its transceivers."""

    switch_usd: float
    endpoint_usd: float
    link_usd: float
    source: str = ""


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


def slim_fly(q: int) -> Network:
    """Slim Fly (Besta and Hoefler 2014) for q = 4w + d, d in -1, 0, 1: 2 q^2 switches with (3q - d) / 2 links each.

    Endpoints per switch are half the network ports, rounded up. The graph exists where q is a prime power; the counts
    are also published for q = 28, which is none.
    """
    delta = {0: 0, 1: 1, 3: -1}.get(q % 4)
    if delta is None or q < 3:
        raise InputError(f"a Slim Fly needs q = 4w - 1, 4w or 4w + 1, got {q}")
    ports = (3 * q - delta) // 2
    return Network(n_endpoints=2 * q**2 * -(-ports // 2), n_switches=2 * q**2, n_links=q**2 * ports)


def dragonfly(n_endpoints_per_switch: int, n_groups: int | None = None) -> Network:
    """Balanced Dragonfly (Kim et al. 2008): groups of 2p fully joined switches, p endpoints and p global links each.

    ``n_groups`` is 2 p^2 + 1 when every pair of groups is joined by exactly one link; fewer groups use the spare ports.
    """
    p = n_endpoints_per_switch
    most = 2 * p**2 + 1
    groups = most if n_groups is None else n_groups
    if not 2 <= groups <= most:
        raise InputError(f"a Dragonfly with {p} endpoints per switch has 2 to {most} groups, got {groups}")
    switches = 2 * p * groups
    return Network(n_endpoints=p * switches, n_switches=switches, n_links=groups * p * (2 * p - 1) + switches * p // 2)


def cost_usd(network: Network, prices: Prices) -> float:
    """Switches, endpoint cables and switch-to-switch cables at ``prices``; no network cards."""
    return (
        network.n_switches * prices.switch_usd
        + network.n_endpoints * prices.endpoint_usd
        + network.n_links * prices.link_usd
    )


def solve_prices(costs: Mapping[Network, float], source: str = "") -> Prices:
    """The unit prices that reproduce the total ``costs`` (USD) of three networks or, in least squares, of more.

    Per endpoint, so that a large network does not outweigh a small one. InputError where the networks do not determine
    three prices. Totals of further networks follow well from published totals, single prices do not: in ISCA25 Insights
    Table 3 the rounding to 1 MUSD alone moves the switch price by tens of thousands of USD.
    """
    rows = np.array([[n.n_switches, n.n_endpoints, n.n_links] for n in costs], dtype=float)
    totals, endpoints = np.array(list(costs.values())), rows[:, 1]
    solution, _, rank, _ = np.linalg.lstsq(rows / endpoints[:, None], totals / endpoints, rcond=None)
    if rank < 3:
        raise InputError("these networks do not determine three prices; give three that differ per endpoint")
    switch, endpoint, link = (float(x) for x in solution)
    return Prices(switch_usd=switch, endpoint_usd=endpoint, link_usd=link, source=source)


def switch_graph(topology: str, radix: int) -> nx.Graph:
    """The switches of ``two_layer_fat_tree`` or ``three_layer_fat_tree`` as a graph.

    A node's ``endpoints`` says how many endpoints hang on that switch.
    """
    half, graph = _half(radix), nx.Graph()
    if topology == "two_layer_fat_tree":
        graph.add_nodes_from((("leaf", i) for i in range(radix)), endpoints=half)
        graph.add_nodes_from((("spine", i) for i in range(half)), endpoints=0)
        graph.add_edges_from((("leaf", i), ("spine", j)) for i in range(radix) for j in range(half))
        return graph
    if topology != "three_layer_fat_tree":
        raise InputError(f"no graph for topology {topology!r}; choose two_layer_fat_tree or three_layer_fat_tree")
    for pod in range(radix):
        for i in range(half):
            graph.add_node(("edge", pod, i), endpoints=half)
            for j in range(half):
                graph.add_edge(("edge", pod, i), ("aggregation", pod, j))
                graph.add_edge(("aggregation", pod, j), ("core", j, i))
    nx.set_node_attributes(graph, {n: 0 for n in graph if n[0] != "edge"}, "endpoints")
    return graph


def _half(radix: int) -> int:
    if radix < 2 or radix % 2:
        raise InputError(f"a fat tree needs switches with an even number of ports, got {radix}")
    return radix // 2
