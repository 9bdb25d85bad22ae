"""Topologies: the formulas reproduce published counts, agree with graphs, and price a network that was held out."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from scipy.optimize import linprog

from sextant.hwmodels import topologies as t
from sextant.hwmodels.topologies.prices import ISCA25
from sextant.simulator.errors import InputError
from sextant.validate import published

NETWORKS = {
    "ft2": t.two_layer_fat_tree(64),
    "mpft": t.multi_plane_fat_tree(64, 8),
    "ft3": t.three_layer_fat_tree(64),
    "slim_fly": t.slim_fly(28),
    "dragonfly": t.dragonfly(16, 511),
}


def total_usd(name: str) -> float:
    return published.figure(f"network.{name}.cost_usd").value


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_the_published_ones(name: str) -> None:
    """Endpoints, switches and links of ISCA25 Insights Table 3 follow exactly from switches of 64 ports."""
    given = {f.metric: f.value for f in published.figures(f"network.{name}")}
    network = NETWORKS[name]
    assert (network.n_endpoints, network.n_switches, network.n_links) == (
        given["n_endpoints"], given["n_switches"], given["n_links"],
    )  # fmt: skip


@pytest.mark.parametrize("radix", [4, 8])
@pytest.mark.parametrize(("name", "formula", "longest"), [
    ("fat-tree-2", t.two_layer_fat_tree, 2), ("fat-tree-3", t.three_layer_fat_tree, 4),
    ("multi-plane-fat-tree", t.multi_plane_fat_tree, 2),
])  # fmt: skip
def test_formula_counts_a_graph(name: str, formula, longest: int, radix: int) -> None:
    """Counting nodes and edges of the built network gives the formula, and every port of every switch is used."""
    fabric, network = t.build(name, radix=radix), formula(radix)
    graph = t.graph(fabric)
    endpoints = nx.get_node_attributes(graph, "endpoints")
    assert t.counts(fabric) == network
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (network.n_switches, network.n_links)
    assert sum(endpoints.values()) == network.n_endpoints
    assert {graph.degree[switch] + endpoints[switch] for switch in graph} == {radix}
    far = nx.single_source_shortest_path_length(graph, 0)
    assert max(far[switch] for switch in far if endpoints[switch]) == longest


def test_ports_are_enough() -> None:
    """Slim Fly and Dragonfly of the published size use 63 of 64 ports."""
    for name in ("slim_fly", "dragonfly"):
        network = NETWORKS[name]
        ports = (2 * network.n_links + network.n_endpoints) / network.n_switches
        assert 62 < ports <= 63


def test_dragonfly_with_all_groups() -> None:
    """With 2p^2 + 1 groups every pair of groups shares exactly one global link."""
    p = 4
    network, groups = t.dragonfly(p), 2 * p**2 + 1
    inside = groups * (2 * p) * (2 * p - 1) // 2
    assert network.n_links - inside == groups * (groups - 1) // 2


def test_nvswitch_node() -> None:
    assert t.nvswitch_node() == t.Network(n_endpoints=8, n_switches=4, n_links=0)


def test_prices_of_three_networks_price_the_fourth() -> None:
    """Prices from MPFT, FT3 and Slim Fly give those totals back, and the Dragonfly's, held out, within 2%."""
    known = ("mpft", "ft3", "slim_fly")
    prices = t.solve_prices({NETWORKS[name]: total_usd(name) for name in known})
    for name in known:
        assert t.cost_usd(NETWORKS[name], prices) == pytest.approx(total_usd(name), rel=1e-9)
    assert t.cost_usd(NETWORKS["dragonfly"], prices) == pytest.approx(total_usd("dragonfly"), rel=0.02)


def test_prices_solved_from_the_table_give_its_totals_as_printed() -> None:
    """An input's own check, no prediction: totals to 1 MUSD, per endpoint to the digits that the table prints."""
    for name, network in NETWORKS.items():
        cost_usd = t.cost_usd(network, ISCA25)
        assert abs(cost_usd - total_usd(name)) <= 0.5e6, name
        digits = 5.0 if name in ("ft2", "mpft") else 50.0
        per_endpoint = published.figure(f"network.{name}.usd_per_endpoint").value
        assert abs(cost_usd / network.n_endpoints - per_endpoint) <= digits, name


def test_no_three_prices_give_all_totals() -> None:
    """Why local cables have a price of their own: with one price for all, no prices meet the five rounded totals."""
    rows = np.array([[n.n_switches, n.n_endpoints, n.n_links] for n in NETWORKS.values()], dtype=float)
    totals = np.array([total_usd(name) for name in NETWORKS])
    bounds = np.concatenate([totals + 0.5e6, 0.5e6 - totals])
    assert linprog(np.zeros(3), A_ub=np.concatenate([rows, -rows]), b_ub=bounds).status == 2


def test_too_few_networks_for_prices() -> None:
    """FT2 and MPFT have the same counts per endpoint, so they are one equation."""
    with pytest.raises(InputError, match="do not determine"):
        t.solve_prices({NETWORKS[name]: total_usd(name) for name in ("ft2", "mpft", "ft3")})


@pytest.mark.parametrize("call", [
    lambda: t.two_layer_fat_tree(63), lambda: t.slim_fly(30), lambda: t.dragonfly(4, 99),
    lambda: t.build("torus"), lambda: t.build("fat-tree-2", n_endpoints=2049), lambda: t.build("fat-tree-2", planes=2),
    lambda: t.build("fat-tree-3", radix=7), lambda: t.build("fat-tree-2", oversubscription=0.5),
    lambda: t.build("slim-fly", q=28), lambda: t.build("slim-fly", n_endpoints=40_000),
    lambda: t.build("slim-fly", q=31),
    lambda: t.build("dragonfly", n_groups=514), lambda: t.build("fat-tree-2", n_endpoints=10.5),
    lambda: t.build("nvswitch", n_endpoints=0), lambda: t.build("fat-tree-2", oversubscription=64),
])  # fmt: skip
def test_impossible_networks_are_refused(call) -> None:
    with pytest.raises(InputError):
        call()
