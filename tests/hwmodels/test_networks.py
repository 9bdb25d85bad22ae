"""Built networks: distances and bisection against exhaustive search, the graph of a Slim Fly, networks of any size."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.hwmodels import topologies as t
from sextant.hwmodels.topologies import latencies
from sextant.hwmodels.topologies.bisection import bisection
from sextant.hwmodels.topologies.distances import distances
from sextant.hwmodels.topologies.fabric import Fabric, hanging, used_ports
from sextant.hwmodels.topologies.finite_field import field, prime_power
from sextant.validate import published

FIELDS = [3, 4, 5, 7, 8, 9, 11, 13, 16, 25, 27]
SMALL = [
    ("fat-tree-2", {"radix": 4}), ("fat-tree-2", {"radix": 8, "n_endpoints": 19}),
    ("fat-tree-2", {"radix": 8, "oversubscription": 3}), ("fat-tree-3", {"radix": 4}),
    ("fat-tree-3", {"radix": 8, "n_endpoints": 90}), ("multi-plane-fat-tree", {"radix": 4, "n_planes": 2}),
    ("rail-optimised", {"radix": 8, "n_per_node": 2}), ("slim-fly", {"radix": 16, "q": 5}),
    ("dragonfly", {"radix": 8}), ("dragonfly", {"radix": 8, "n_groups": 4}),
    ("dragonfly", {"radix": 11, "n_groups": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "chosen"), SMALL)
def test_distances_are_those_of_networkx(name: str, chosen: dict[str, float]) -> None:
    fabric = t.build(name, **chosen)
    graph, endpoints = t.graph(fabric), hanging(fabric)
    apart = pairs = longest = 0
    for a, far in nx.all_pairs_shortest_path_length(graph):
        for b, cables in far.items():
            n = int(endpoints[a] * (endpoints[b] - (a == b)))
            apart, pairs = apart + n * cables, pairs + n
            longest = max(longest, cables if n else 0)
    found = distances(fabric)
    assert found.diameter == longest
    assert found.average == pytest.approx(apart / pairs, rel=1e-12)


def narrowest(fabric: Fabric) -> int:
    """The smallest cut over all halves of the endpoints, each half's best cut by maximum flow."""
    graph = nx.DiGraph()
    for a, b in np.concatenate([fabric.ends, fabric.ends[:, ::-1]]):
        before = graph.get_edge_data(int(a), int(b), {"capacity": 0})["capacity"]
        graph.add_edge(int(a), int(b), capacity=before + 1)
    n = fabric.n_endpoints
    best = n
    for half in combinations(range(n), n // 2):
        whole = graph.copy()
        for endpoint in range(n):
            switch, end = int(fabric.switch[endpoint]), ("from" if endpoint in half else "to")
            before = whole.get_edge_data("from", switch, {"capacity": 0})["capacity"] if end == "from" else 0
            if end == "from":
                whole.add_edge("from", switch, capacity=before + 1)
            else:
                before = whole.get_edge_data(switch, "to", {"capacity": 0})["capacity"]
                whole.add_edge(switch, "to", capacity=before + 1)
        best = min(best, nx.maximum_flow_value(whole, "from", "to"))
    return best


@pytest.mark.parametrize(("name", "chosen"), [
    ("fat-tree-2", {"radix": 4}), ("fat-tree-2", {"radix": 4, "n_endpoints": 6}),
    ("fat-tree-2", {"radix": 4, "oversubscription": 3, "n_endpoints": 12}),
    ("fat-tree-2", {"radix": 6, "oversubscription": 2, "n_endpoints": 8}), ("nvswitch", {}),
    ("fat-tree-3", {"radix": 4, "n_endpoints": 8}),
    ("fat-tree-3", {"radix": 4, "oversubscription": 3, "n_endpoints": 12}),
])  # fmt: skip
def test_the_closed_form_is_the_narrowest_of_all_halves(name: str, chosen: dict[str, float]) -> None:
    fabric = t.build(name, **chosen)
    found = bisection(fabric)
    assert found.exact and found.high == narrowest(fabric)


def test_bisections_that_are_known() -> None:
    """Full for trees without oversubscription, 1 / k of it for k to one, planes add up."""
    for name in ("fat-tree-2", "fat-tree-3", "multi-plane-fat-tree", "rail-optimised"):
        fabric = t.build(name, radix=16)
        assert bisection(fabric).exact and bisection(fabric).high == fabric.n_endpoints / 2
    third = t.build("fat-tree-2", radix=64, oversubscription=3)
    assert bisection(third).high == third.n_endpoints / 2 / 3


@pytest.mark.parametrize("q", [3, 5, 7, 9])
def test_bounds_of_other_networks_enclose_random_halves(q: int) -> None:
    fabric = t.build("slim-fly", q=q)
    found, rng = bisection(fabric), np.random.default_rng(q)
    assert 0 < found.low <= found.high
    for _ in range(50):
        side = rng.permutation(fabric.n_switches) < fabric.n_switches // 2
        assert (side[fabric.ends[:, 0]] != side[fabric.ends[:, 1]]).sum() >= found.high


@pytest.mark.parametrize("q", FIELDS)
def test_fields_obey_their_laws(q: int) -> None:
    """Both tables commute, sums and products of nonzero elements are permutations, products distribute over sums."""
    f, all_of_it = field(q), list(range(q))
    assert (f.add == f.add.T).all() and (f.multiply == f.multiply.T).all()
    assert (np.sort(f.add, axis=1) == all_of_it).all() and (np.sort(f.multiply[1:], axis=1) == all_of_it).all()
    a, b, c = np.meshgrid(*[np.arange(q)] * 3, indexing="ij")
    assert (f.multiply[a, f.add[b, c]] == f.add[f.multiply[a, b], f.multiply[a, c]]).all()
    assert sorted(f.powers) == all_of_it[1:]


def test_prime_powers() -> None:
    assert [q for q in range(1, 33) if prime_power(q)] == [
        2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32,
    ]  # fmt: skip
    assert prime_power(27) == (3, 3) and prime_power(28) is None


@pytest.mark.parametrize("q", FIELDS)
def test_a_slim_fly_is_regular_and_two_cables_wide(q: int) -> None:
    """Counts of the formula, equal degrees, no parallel cables, diameter 2: also over fields of prime powers."""
    fabric = t.build("slim-fly", q=q)
    network = t.slim_fly(q)
    assert t.counts(fabric) == network
    degrees = np.bincount(fabric.ends.ravel())
    assert set(degrees) == {2 * network.n_links // network.n_switches}
    assert len(np.unique(fabric.ends, axis=0)) == fabric.n_links and (fabric.ends[:, 0] != fabric.ends[:, 1]).all()
    assert distances(fabric).diameter == 2


@pytest.mark.parametrize(("p", "groups"), [(1, 3), (2, 9), (2, 8), (2, 5), (2, 2), (3, 12), (4, 33)])
def test_a_dragonfly_joins_all_groups_evenly(p: int, groups: int) -> None:
    """Counts of the formula, every port used, as many cables between any two groups, to within one."""
    fabric = t.build("dragonfly", radix=4 * p - 1, n_groups=groups)
    assert t.counts(fabric) == t.dragonfly(p, groups)
    assert set(used_ports(fabric)) == {4 * p - 1}
    group = fabric.ends[~fabric.local] // (2 * p)
    between = np.zeros((groups, groups), dtype=int)
    np.add.at(between, (group.min(axis=1), group.max(axis=1)), 1)
    joined = between[np.triu_indices(groups, 1)]
    assert joined.min() >= 1 and joined.max() - joined.min() <= 1 and between.trace() == 0
    assert distances(fabric).diameter <= 3


@settings(max_examples=60)
@given(st.sampled_from(sorted(set(t.TOPOLOGIES) - {"nvswitch"})), st.integers(1, 250), st.sampled_from([1.0, 2.0, 3.0]))
def test_any_number_of_endpoints(name: str, n: int, k: float) -> None:
    """No switch has more ports than it has, every endpoint is there, leaves spread their cables evenly."""
    chosen = {"oversubscription": k} if "oversubscription" in t.settings(name) else {}
    radix = 64 if name in ("multi-plane-fat-tree", "rail-optimised", "fat-tree-2") else 32
    fabric = t.build(name, n_endpoints=n, radix=radix, **chosen)
    assert fabric.n_endpoints == n and used_ports(fabric).max() <= radix
    up = np.bincount(fabric.ends[:, 0], minlength=fabric.n_switches)[fabric.layer == 0]
    if fabric.layer.any():
        assert len(set(up[up > 0])) == 1
    cut = bisection(fabric)
    assert 0 <= cut.low <= cut.high


def test_latency_across_leaves_is_predicted_from_switches_and_cables() -> None:
    """InfiniBand 3.58 us against 3.7, RoCE 4.9 us against 5.6: a hop of the latter took twice a cut-through switch.
    The latency under one leaf is an input; so is NVLink's only figure."""
    errors = {}
    for each in (latencies.INFINIBAND, latencies.ROCE):
        same, cross = (published.figure(f"network.latency.{each.name}.{where}_leaf_latency_s").value
                       for where in ("same", "cross"))  # fmt: skip
        assert latencies.latency_s(each, 0) == pytest.approx(same)
        errors[each.name] = latencies.latency_s(each, 2) / cross - 1
        middle, low, high = latencies.latency_range_s(each, 2)
        assert low < middle < high
    assert abs(errors["infiniband"]) < 0.05
    assert -0.13 < errors["roce"] < -0.10  # a miss, beyond the 10% that was hoped for
