"""Who shares a cable: paths, and what traffic of experts gains from planes and rails or loses to oversubscription."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from sextant.hwmodels import topologies as t
from sextant.hwmodels.topologies import demands
from sextant.hwmodels.topologies.demands import Flows
from sextant.hwmodels.topologies.fabric import Fabric
from sextant.hwmodels.topologies.routing import ROUTINGS, paths, route
from sextant.simulator.contention import completion_s, link_rates, max_min_rates
from sextant.simulator.errors import InputError

PORT = 50e9
FABRICS = [
    ("fat-tree-2", {"radix": 8}), ("fat-tree-3", {"radix": 4}), ("multi-plane-fat-tree", {"radix": 4}),
    ("rail-optimised", {"radix": 16}), ("slim-fly", {"q": 5}), ("dragonfly", {"radix": 8}),
]  # fmt: skip


def slowdown(fabric: Fabric, flows: Flows, routing: str = "ecmp", seed: int = 0) -> float:
    """Time until all have sent, over that of endpoints that send and hear at full rate."""
    sent, heard = (np.bincount(ends, weights=flows.bytes).max() for ends in (flows.source, flows.target))
    return completion_s(route(fabric, flows, routing=routing, seed=seed), flows.bytes).max() / (max(sent, heard) / PORT)


@pytest.mark.parametrize(("name", "chosen"), FABRICS)
def test_minimal_paths_are_all_shortest_paths(name: str, chosen: dict[str, float]) -> None:
    """As many as networkx finds, parallel cables told apart, each of them a walk from switch to switch."""
    fabric = t.build(name, **chosen)
    graph = t.graph(fabric)
    for a, b in [(0, 1), (0, int(fabric.switch[-1])), (1, 0)]:
        if not nx.has_path(graph, a, b):
            continue
        found = paths(fabric, a, b)
        expected = sum(
            np.prod([graph.number_of_edges(x, y) for x, y in pairwise(nodes)])
            for nodes in nx.all_shortest_paths(nx.Graph(graph), a, b)
        )
        assert len(set(found)) == len(found) == expected
        for path in found:
            at = a
            for cable in path:
                ends = set(fabric.ends[cable].tolist())
                assert at in ends
                at = (ends - {at}).pop()
            assert at == b


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("name", "chosen"), FABRICS)
def test_every_routing_brings_every_byte_and_overloads_nothing(name: str, chosen: dict, routing: str) -> None:
    fabric = t.build(name, **chosen)
    flows = demands.permutation(np.arange(fabric.n_endpoints), 1e9, seed=3)
    uses = route(fabric, flows, routing=routing, seed=1)
    rates = max_min_rates(uses)
    assert np.isfinite(rates).all()
    assert (link_rates(uses, rates) <= uses.bytes_per_s * (1 + 1e-9)).all()
    n = fabric.n_endpoints
    # What enters a switch leaves it: summed over a flow's cables, shares reach from its first switch to its last.
    first = uses.link >= 4 * n
    cable = (uses.link[first] - 4 * n) % fabric.n_links
    back = uses.link[first] >= 4 * n + fabric.n_links
    ends = np.where(back[:, None], fabric.ends[cable][:, ::-1], fabric.ends[cable])
    balance = np.zeros((uses.n_flows, fabric.n_switches))
    np.add.at(balance, (uses.flow[first], ends[:, 0]), uses.share[first])
    np.add.at(balance, (uses.flow[first], ends[:, 1]), -uses.share[first])
    assert np.allclose(np.abs(balance).sum(axis=1), np.where(np.abs(balance).max(axis=1) > 0, 2.0, 0.0))


def test_routing_is_repeatable() -> None:
    fabric = t.build("fat-tree-2", radix=8)
    flows = demands.permutation(np.arange(32), 1e9, seed=5)
    for routing in ROUTINGS:
        a, b = (route(fabric, flows, routing=routing, seed=7) for _ in range(2))
        assert (a.link == b.link).all() and (a.share == b.share).all()
    assert (
        route(fabric, flows, routing="hash", seed=7).link != route(fabric, flows, routing="hash", seed=8).link
    ).any()


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("name", ["multi-plane-fat-tree", "rail-optimised"])
def test_planes_and_rails_give_experts_their_full_rate(name: str, routing: str) -> None:
    """16 nodes of 8 exchange between devices of the same place: all under one leaf of each plane or rail, whatever the
    routing."""
    fabric = t.build(name, n_endpoints=512)
    assert slowdown(fabric, demands.rail_dispatch(fabric, 16, 1e9), routing) == pytest.approx(1.0)


@pytest.mark.parametrize("k", [1.0, 3.0])
def test_an_oversubscribed_tree_loses_what_leaves_the_leaf(k: float) -> None:
    """All 96 endpoints of a k to 1 tree talk to all: (n - 8) / (n - 1) of what one sends leaves its node, and of that
    (n - d) / (n - 1) its leaf of d, through 1 / k of the ports. Spread evenly the larger is the slowdown, exactly."""
    fabric = t.build("fat-tree-2", radix=32, n_endpoints=96, oversubscription=k)
    down = int(np.bincount(fabric.switch).max())
    flows = demands.all_to_all(np.arange(96), 1e9)
    expected = max(96 - 8, k * (96 - down)) / 95
    assert slowdown(fabric, flows) == pytest.approx(expected, rel=1e-6)


def test_hashing_collides_where_spreading_and_choosing_do_not() -> None:
    """A permutation on a full tree: spread evenly it runs at the full rate, on hashed single paths at half or less, and
    pieces that take the least loaded path come close to the former."""
    fabric = t.build("fat-tree-2", radix=16)
    flows = demands.permutation(np.arange(128), 1e9, seed=2)
    spread, hashed, adaptive = (slowdown(fabric, flows, routing) for routing in ("ecmp", "hash", "adaptive"))
    assert spread == pytest.approx(1.0)
    assert hashed >= 2.0
    assert adaptive < 1.3


def test_a_ring_in_order_crosses_each_leaf_once() -> None:
    fabric = t.build("fat-tree-2", radix=16, oversubscription=3)
    assert slowdown(fabric, demands.ring(np.arange(fabric.n_endpoints), 1e9), "hash") == pytest.approx(1.0)


def test_between_planes_traffic_goes_over_nvlink_first() -> None:
    """Device 0 of one node to device 1 of another: NVLink to its neighbour on that plane, then the neighbour's port."""
    fabric = t.build("multi-plane-fat-tree", n_endpoints=128)
    n, flows = 128, Flows(source=np.array([0, 0]), target=np.array([9, 1]), bytes=np.array([1e9, 1e9]))
    uses = route(fabric, flows)
    assert uses.link[uses.flow == 0].tolist() == [2 * n, 3 * n + 1, 1, n + 9]
    assert uses.link[uses.flow == 1].tolist() == [2 * n, 3 * n + 1]


def test_bad_traffic_is_refused() -> None:
    fabric = t.build("fat-tree-2", radix=8)
    flows = demands.ring(np.arange(32), 1.0)
    with pytest.raises(InputError, match="did you mean 'hash'"):
        route(fabric, flows, routing="hashed")
    with pytest.raises(InputError, match="endpoints 0 to 31"):
        route(fabric, demands.ring(np.arange(33), 1.0))
    with pytest.raises(InputError, match="2 to 4 nodes"):
        demands.rail_dispatch(fabric, 5, 1.0)
