"""The time of a short message from end to end: what the endpoints take, the switches crossed, the cables.

Switches and cables are published figures and physics. What the endpoints take is not published on its own; it is what a
published latency under one switch leaves when that switch and its two cables are taken away. So the latency under one
leaf is an input here, and the one across leaves a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

from sextant.hwmodels.links import INFINIBAND_SAME_LEAF_LATENCY_S, NVLINK_LATENCY_S

#: Light in glass, and signals in copper: 5 ns a metre.
S_PER_M = 5e-9

#: From an endpoint to its switch, and between switches of different racks. Assumed: a rack, and a row of a hall.
ENDPOINT_M, CABLE_M = 3.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Technology:
    """A kind of network. ``same_leaf_s`` is the published latency under one switch; a switch takes ``switch_s`` from
    port to port, between ``switch_low_s`` and ``switch_high_s`` by what its sources say."""

    name: str
    same_leaf_s: float
    switch_s: float
    switch_low_s: float
    switch_high_s: float
    source: str


_TABLE = "latency under one switch: ISCA25 Insights (arXiv:2505.09343v2) Table 5, an input"

INFINIBAND = Technology(
    name="infiniband", same_leaf_s=INFINIBAND_SAME_LEAF_LATENCY_S, switch_s=240e-9, switch_low_s=150e-9,
    switch_high_s=330e-9,
    source=f"{_TABLE}; Quantum-2 from port to port: under 150 ns (router-switch.com, QM9700 beside SN5400) to about "
    "330 ns (yobitel.com, NVIDIA Quantum-2), their middle",
)  # fmt: skip
ROCE = Technology(
    name="roce", same_leaf_s=3.6e-6, switch_s=500e-9, switch_low_s=400e-9, switch_high_s=600e-9,
    source=f"{_TABLE}; cut-through Ethernet switches: 400 to 600 ns (kentino.com, Latency Dissection), their middle",
)  # fmt: skip
NVLINK = Technology(
    name="nvlink", same_leaf_s=NVLINK_LATENCY_S, switch_s=0.0, switch_low_s=0.0, switch_high_s=0.0,
    source=f"{_TABLE}; no time of an NVSwitch alone is published, and no path crosses two of them",
)  # fmt: skip
TECHNOLOGIES = {each.name: each for each in (INFINIBAND, ROCE, NVLINK)}


def endpoint_s(technology: Technology, switch_s: float | None = None) -> float:
    """Seconds that the two endpoints take: the latency under one switch without the switch and its two cables."""
    switch_s = technology.switch_s if switch_s is None else switch_s
    return technology.same_leaf_s - switch_s - 2.0 * ENDPOINT_M * S_PER_M


def latency_s(technology: Technology, n_cables: float, switch_s: float | None = None) -> float:
    """Seconds of a short message over ``n_cables`` cables between switches, and so over one switch more; ``switch_s``
    in place of the technology's own. Queues are not included."""
    switch_s = technology.switch_s if switch_s is None else switch_s
    cables_m = 2.0 * ENDPOINT_M + n_cables * CABLE_M
    return endpoint_s(technology, switch_s) + (n_cables + 1.0) * switch_s + cables_m * S_PER_M


def latency_range_s(technology: Technology, n_cables: float) -> tuple[float, float, float]:
    """Seconds with the switch in the middle, at the least and at the most of what its sources say."""
    switches = (technology.switch_s, technology.switch_low_s, technology.switch_high_s)
    middle, low, high = (latency_s(technology, n_cables, switch_s) for switch_s in switches)
    return middle, low, high
