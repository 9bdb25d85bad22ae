"""An optimizer's update by the host's processors: state in host memory read and written once.

Shape: read_bytes and write_bytes. Seconds = bytes over the share of the device's host bandwidth that is reached. Vector
units update faster than memory delivers, so that the memory bounds it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Nothing was measured: STREAM reaches some 80 to 85% of what DRAM can deliver; half of that if the threads are not
#: where their memory is.
EFFICIENCY, LOW, HIGH = 0.8, 0.95, 2.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Every byte read once and written once, in host memory."""
    return Work(traffic_bytes={"host": shape["read_bytes"] + shape["write_bytes"]})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds at ``EFFICIENCY`` of the bandwidth of ``memories["host"]``; InputError for a device without that."""
    memories = cluster.device.memories
    if "host" not in memories:
        raise InputError(f"device {cluster.device.name!r} has no memory tier 'host'; {nearest('host', memories)}")
    total = op.shape["read_bytes"] + op.shape["write_bytes"]
    seconds = total / (memories["host"].bandwidth_bytes_per_s * EFFICIENCY)
    return Estimate(
        seconds=seconds, low=seconds * LOW, high=seconds * HIGH, limits={"memory": seconds}, provenance="assumed"
    )
