"""One cluster per module: ``CLUSTER``. ``Tier.n_devices`` counts members of the next lower tier, so tiers multiply."""

from __future__ import annotations

from sextant.simulator.types import Cluster, Device, Link, Tier


def nodes_of_eight(
    name: str, device: Device, nvlink: Link, network: Link, *, n_nodes: float = 1.0, topology: str, source: str
) -> Cluster:
    """``n_nodes`` nodes of eight devices behind NVSwitches, every device with a network port of its own.

    One node keeps its ``infiniband`` tier, with one member, so that a scenario can add nodes.
    """
    return Cluster(
        name=name,
        device=device,
        n_devices=8 * n_nodes,
        tiers={"nvlink": Tier(n_devices=8.0, link=nvlink), "infiniband": Tier(n_devices=n_nodes, link=network)},
        topology=topology,
        source={"n_devices": source, "tiers.nvlink": nvlink.source, "tiers.infiniband": network.source},
    )
