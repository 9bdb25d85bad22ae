"""What ``sextant list topologies`` and ``sextant show topology`` say of a network, and the published ones beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sextant.hwmodels import topologies
from sextant.hwmodels.links import CONNECTX7, NVLINK4_H800
from sextant.hwmodels.topologies import Fabric, Network, latencies, prices
from sextant.hwmodels.topologies.bisection import bisection
from sextant.hwmodels.topologies.distances import distances
from sextant.simulator.errors import InputError
from sextant.simulator.units import parse
from sextant.validate import published
from sextant.validate.published import Comparison

#: The rate of an endpoint's port and of every cable, one direction, unless ``--set port_bytes_per_s`` says otherwise.
_PORT = "port_bytes_per_s"

#: The size of the switches whose prices are known.
_PRICED_PORTS = 64

#: The networks of the published table, switches of 64 ports.
PUBLISHED: Mapping[str, Network] = {
    "ft2": topologies.two_layer_fat_tree(64), "mpft": topologies.multi_plane_fat_tree(64, 8),
    "ft3": topologies.three_layer_fat_tree(64), "slim_fly": topologies.slim_fly(28),
    "dragonfly": topologies.dragonfly(16, 511),
}  # fmt: skip

#: What predictions of networks rest on. A total is predicted with prices that the other networks' totals give.
COUNTS, COST = "none", "prices, to the totals of the other networks"
LATENCY = "what endpoints take, to the latency under one leaf"


def row(name: str) -> dict[str, Any]:
    """One line of the list: a topology as large as switches of 64 ports allow."""
    card = of(name, ())
    return {
        "name": name, **{key: card[key] for key in ("n_endpoints", "n_switches", "n_links")},
        "diameter": card["distance"]["diameter"], "bisection_bytes_per_s": card["bisection"]["bisection_bytes_per_s"],
        "cost_usd": card["cost"].get("cost_usd", "none"),
        "farthest_latency_s": card["latency"]["farthest_latency_s"],
    }  # fmt: skip


def of(name: str, sets: Sequence[str]) -> dict[str, Any]:
    """Everything about one topology, after ``sets`` (``n_endpoints=512`` ...). InputError for a bad setting."""
    chosen = _settings(name, sets)
    inside = name == "nvswitch"
    link = NVLINK4_H800 if inside else CONNECTX7
    port_bytes_per_s = chosen.pop(_PORT, float(link.bandwidth_bytes_per_s))
    fabric = topologies.build(name, **chosen)
    network, far = topologies.counts(fabric), distances(fabric)
    return {
        "name": name, "n_endpoints": network.n_endpoints, "n_switches": network.n_switches,
        "n_links": network.n_links, "n_ports": fabric.n_ports, _PORT: port_bytes_per_s,
        "distance": {"diameter": far.diameter, "average": far.average, "about": "cables between switches"},
        "bisection": _bisection(fabric, port_bytes_per_s),
        "cost": _cost(network, fabric.n_ports),
        "latency": _latency(latencies.NVLINK if inside else latencies.INFINIBAND, far.diameter, far.average),
        "settings": {key: "as many as fit" if value is None else value
                     for key, value in {**topologies.settings(name), **chosen}.items()},
        "notes": {"about": "; ".join(fabric.notes)} if fabric.notes else {},
    }  # fmt: skip


def _bisection(fabric: Fabric, port_bytes_per_s: float) -> dict[str, Any]:
    cut = bisection(fabric)
    bounds = {} if cut.exact else {"at_least_links": cut.low}
    return {
        "links": cut.high, **bounds, "bisection_bytes_per_s": cut.high * port_bytes_per_s,
        "share_of_full": cut.high / (fabric.n_endpoints / 2.0), "how": cut.how,
    }  # fmt: skip


def _cost(network: Network, n_ports: int) -> dict[str, Any]:
    if n_ports != _PRICED_PORTS:
        return {"about": f"known for switches of {_PRICED_PORTS} ports alone"}
    cost_usd = topologies.cost_usd(network, prices.ISCA25)
    return {"cost_usd": cost_usd, "endpoint_usd": cost_usd / network.n_endpoints, "source": prices.ISCA25.source}


def _latency(technology: latencies.Technology, diameter: int, average: float) -> dict[str, Any]:
    return {
        "technology": technology.name, "nearest_latency_s": latencies.latency_s(technology, 0),
        "average_latency_s": latencies.latency_s(technology, average),
        "farthest_latency_s": latencies.latency_s(technology, diameter), "source": technology.source,
    }  # fmt: skip


def _settings(name: str, sets: Sequence[str]) -> dict[str, float]:
    known, chosen = (*topologies.settings(name), _PORT), {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: a field and a value are needed, e.g. {known[0]}=512")
        dimension = "bytes_per_s" if key == _PORT else ""
        try:
            chosen[key] = parse(value, dimension)
        except ValueError as error:
            raise InputError(f"--set {key}: {error}") from error
    if not chosen.get(_PORT, 1.0) > 0:
        raise InputError(f"--set {_PORT}: a positive rate is needed, got {chosen[_PORT]:g}")
    return chosen


def others(name: str) -> prices.Prices:
    """Unit prices from the published totals of all networks of the table but ``name``."""
    rest = {each: network for each, network in PUBLISHED.items() if each != name}
    return topologies.solve_prices(
        {network: published.figure(f"network.{each}.cost_usd").value for each, network in rest.items()}
    )


def comparisons() -> Iterator[tuple[str, Comparison, str]]:
    """Published networks beside their predictions: id, comparison, what it was fitted to."""
    for name, network in PUBLISHED.items():
        cost_usd = topologies.cost_usd(network, others(name))
        predicted = {
            "n_endpoints": network.n_endpoints, "n_switches": network.n_switches, "n_links": network.n_links,
            "cost_usd": cost_usd, "usd_per_endpoint": cost_usd / network.n_endpoints,
        }  # fmt: skip
        for pair in published.compare(predicted, f"network.{name}"):
            yield f"network.{name}.{pair.metric}", pair, COST if "usd" in pair.metric else COUNTS
    for technology in (latencies.ROCE, latencies.INFINIBAND):
        # A leaf, a spine, a leaf: two cables between three switches. The latency under one leaf is the input.
        middle, low, high = latencies.latency_range_s(technology, 2)
        found = published.figure(f"network.latency.{technology.name}.cross_leaf_latency_s")
        yield found.id, published.beside(found, middle, low, high), LATENCY
