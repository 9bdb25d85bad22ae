"""What a network costs: switches, ports of endpoints, cables between switches. No network cards, no power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sextant.hwmodels.topologies.fabric import Network
from sextant.simulator.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD of one switch, of one endpoint's cable and port, and of one cable between switches with its transceivers;
    ``local_link_usd`` is what a cable within a group of neighbouring racks costs, None where the same."""

    switch_usd: float
    endpoint_usd: float
    link_usd: float
    local_link_usd: float | None = None
    source: str = ""


#: Unit prices with which all five totals of ISCA25 Insights Table 3 come out as printed. They are solved from the table
#: and so no prediction of it: four equations (two rows are one per endpoint) for four prices. The digits leave a
#: switch between 32 and 83 kUSD, the others follow. Three prices, one for all cables, meet no digits of all five rows:
#: the Dragonfly's many short cables must be a little cheaper than the others.
ISCA25 = Prices(
    switch_usd=40_000.0, endpoint_usd=667.0, link_usd=1_850.0, local_link_usd=1_781.0,
    source="solved from ISCA25 Insights (arXiv:2505.09343v2) Table 3: 64 ports of 400 Gbit/s",
)  # fmt: skip


def cost_usd(network: Network, prices: Prices) -> float:
    """Switches, endpoint cables and switch-to-switch cables at ``prices``; no network cards."""
    local_usd = prices.link_usd if prices.local_link_usd is None else prices.local_link_usd
    return (
        network.n_switches * prices.switch_usd
        + network.n_endpoints * prices.endpoint_usd
        + (network.n_links - network.n_local_links) * prices.link_usd
        + network.n_local_links * local_usd
    )


def solve_prices(costs: Mapping[Network, float], source: str = "") -> Prices:
    """The unit prices that reproduce the total ``costs`` (USD) of three networks or, in least squares, of more.

    Per endpoint, so that a large network does not outweigh a small one; one price for all cables. InputError where the
    networks do not determine three prices. Totals of further networks follow well from published totals, single prices
    do not: in ISCA25 Insights Table 3 the rounding to 1 MUSD alone moves the switch price by tens of thousands of USD.
    """
    rows = np.array([[n.n_switches, n.n_endpoints, n.n_links] for n in costs], dtype=float)
    totals, endpoints = np.array(list(costs.values())), rows[:, 1]
    solution, _, rank, _ = np.linalg.lstsq(rows / endpoints[:, None], totals / endpoints, rcond=None)
    if rank < 3:
        raise InputError("these networks do not determine three prices; give three that differ per endpoint")
    switch, endpoint, link = (float(x) for x in solution)
    return Prices(switch_usd=switch, endpoint_usd=endpoint, link_usd=link, source=source)
