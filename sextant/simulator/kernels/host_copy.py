"""A copy between pinned host memory and device memory by the copy engine; the variant is its direction, h2d or d2h.

Shape: bytes. Seconds = floor + bytes over the share of the host link that is reached, times the correction. Both are of
one copy at a time: copies of both directions share the host's memory, and pageable memory is copied twice.

Blocks ``host_copy_<direction>`` hold coefficients; where the device has none, ``ASSUMED`` stands in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Cluster, Estimate, KernelFit, Num, Op

DIRECTIONS = ("h2d", "d2h")

#: A PCIe link carries some 85% of its line rate in packets of 256 bytes; a copy starts within some microseconds.
ASSUMED = KernelFit(
    coefficients={"efficiency": 0.85, "floor_s": 2.5e-6}, low=0.7, high=1.4, provenance="assumed",
    source="assumed: 0.85 of the link's line rate and 2.5 us to start",
)  # fmt: skip


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Every byte moves once in each memory."""
    return Work(traffic_bytes={"host": shape["bytes"], "hbm": shape["bytes"]})


def features(shape: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction may depend on: the logarithm to base 2 of the bytes."""
    return {"log2_bytes": np.log2(np.maximum(shape["bytes"], 1.0))}


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``host_copy_<direction>``: efficiency (share of the bandwidth of ``memories["host"]``) and
    floor_s; never less than the bytes take at that bandwidth. InputError for a direction or a memory that is absent."""
    device = cluster.device
    if op.variant not in DIRECTIONS:
        raise InputError(f"host_copy: unknown direction {op.variant!r}; {nearest(op.variant, DIRECTIONS)}")
    if "host" not in device.memories:
        raise InputError(f"device {device.name!r} has no memory tier 'host'; {nearest('host', device.memories)}")
    fit = device.kernels.get(f"host_copy_{op.variant}", ASSUMED)
    least_s = op.shape["bytes"] / device.memories["host"].bandwidth_bytes_per_s
    transfer_s = least_s / fit.coefficients["efficiency"]
    floor_s = np.maximum(device.launch_s, fit.coefficients["floor_s"])
    seconds = np.maximum((floor_s + transfer_s) * correction(fit, features(op.shape)), least_s)
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"link": transfer_s, "launch": floor_s}, provenance=fit.provenance,
    )  # fmt: skip
