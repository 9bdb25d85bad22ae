"""Topologies: the formulas reproduce published counts, agree with graphs, and price a network that was held out."""

from __future__ import annotations

import networkx as nx
import pytest

from sextant.hwmodels import topologies as t
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


@pytest.mark.parametrize("radix", [2, 4, 8])
@pytest.mark.parametrize(("name", "formula", "longest"), [
    ("two_layer_fat_tree", t.two_layer_fat_tree, 2), ("three_layer_fat_tree", t.three_layer_fat_tree, 4),
])  # fmt: skip
def test_formula_counts_a_graph(name: str, formula, longest: int, radix: int) -> None:
    """Counting nodes and edges of the built network gives the formula, and no switch has more ports than it has."""
    graph, network = t.switch_graph(name, radix), formula(radix)
    endpoints = nx.get_node_attributes(graph, "endpoints")
    assert graph.number_of_nodes() == network.n_switches
    assert graph.number_of_edges() == network.n_links
    assert sum(endpoints.values()) == network.n_endpoints
    assert {graph.degree[switch] + endpoints[switch] for switch in graph} == {radix}
    edge = [switch for switch in graph if endpoints[switch]]
    assert max(nx.single_source_shortest_path_length(graph, edge[0])[other] for other in edge) == longest


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


def test_too_few_networks_for_prices() -> None:
    """FT2 and MPFT have the same counts per endpoint, so they are one equation."""
    with pytest.raises(InputError, match="do not determine"):
        t.solve_prices({NETWORKS[name]: total_usd(name) for name in ("ft2", "mpft", "ft3")})


@pytest.mark.parametrize("call", [
    lambda: t.two_layer_fat_tree(63), lambda: t.slim_fly(30), lambda: t.dragonfly(4, 99),
    lambda: t.switch_graph("torus", 8),
])  # fmt: skip
def test_impossible_networks_are_refused(call) -> None:
    with pytest.raises(InputError):
        call()
