"""``sextant list topologies`` and ``sextant show topology``: what they say, what may be set, published networks."""

from __future__ import annotations

import pytest

from sextant.hwmodels.topologies import TOPOLOGIES
from sextant.simulator.errors import InputError
from sextant.studies import cards, judged


def test_every_topology_is_listed_with_its_size() -> None:
    rows = {row["name"]: row for row in cards.listing("topologies")}
    assert set(rows) == set(TOPOLOGIES)
    assert rows["multi-plane-fat-tree"]["n_endpoints"] == 16384
    assert rows["multi-plane-fat-tree"]["bisection_bytes_per_s"] == 8192 * 50e9
    assert rows["fat-tree-3"]["diameter"] == 4 and rows["nvswitch"]["cost_usd"] == "none"


def test_a_card_follows_its_settings() -> None:
    card = cards.card(
        "topology", "fat-tree-2", ["n_endpoints=512", "oversubscription=3", "port_bytes_per_s=800 Gbit/s"]
    )
    assert (card["n_endpoints"], card["n_switches"], card["port_bytes_per_s"]) == (512, 15, 100e9)
    assert card["bisection"]["bisection_bytes_per_s"] == card["bisection"]["links"] * 100e9
    assert card["latency"]["nearest_latency_s"] < card["latency"]["farthest_latency_s"]
    assert "cost_usd" not in cards.card("topology", "fat-tree-2", ["radix=32"])["cost"]


@pytest.mark.parametrize(("name", "sets", "message"), [
    ("fat-tree", [], "did you mean 'fat-tree-"), ("fat-tree-2", ["n_endpoint=5"], "did you mean 'n_endpoints'"),
    ("fat-tree-2", ["n_endpoints"], "a field and a value"), ("fat-tree-2", ["n_endpoints=many"], "n_endpoints"),
    ("fat-tree-2", ["n_endpoints=4096"], "take fat-tree-3"),
    ("fat-tree-2", ["port_bytes_per_s=0 GB/s"], "positive rate"),
    ("slim-fly", ["q=28"], "no finite field of 28"),
])  # fmt: skip
def test_a_mistake_is_told_with_its_remedy(name: str, sets: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cards.card("topology", name, sets)


def test_published_networks_are_judged() -> None:
    """Counts exact; totals with prices from the other networks within 2.5%; latencies across leaves, one miss."""
    rows = {row["id"]: row for row in judged.published_errors("network.")}
    counts = [row for id, row in rows.items() if id.rpartition(".")[2].startswith("n_")]
    assert len(counts) == 15 and all(row["error"] == 0 and row["fitted"] == "none" for row in counts)
    costs = [row for id, row in rows.items() if id.endswith("usd_per_endpoint") or id.endswith("cost_usd")]
    assert len(costs) == 10 and all(abs(row["error"]) < 0.025 and row["fitted"] != "none" for row in costs)
    assert rows["network.latency.infiniband.cross_leaf_latency_s"]["inside"]
    assert not rows["network.latency.roce.cross_leaf_latency_s"]["inside"]
