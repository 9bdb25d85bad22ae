"""A memory-bound operator: copy, cast, RMSNorm, SwiGLU, addition and other kernels that only move their tensors.

Shape: read_bytes and write_bytes; other dimensions are ignored. Time = floor + bytes over the share of bandwidth that
such kernels reach. The fixed floor is also the ramp: the achieved bandwidth rises with size. What fits in a share of
the L2 cache moves faster than HBM delivers, because the writer's lines are still there; a kernel larger than that
saves only this share.

Variants name a kind of access with coefficients of its own (block ``memory_<variant>``, else ``memory``): ``permute``
gathers rows by index, ``transpose`` re-quantises along the other dimension, ``norm_backward`` also sums over tokens;
``topk`` and ``index`` are the many small library kernels with which training code selects experts and sorts pairs by
expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.types import Cluster, Estimate, Num, Op


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """No FLOPs worth counting; every byte read once and written once."""
    return Work(traffic_bytes={"hbm": shape["read_bytes"] + shape["write_bytes"]})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``memory_<variant>`` or ``memory``: efficiency (share of HBM bandwidth), write_cost (a
    written byte counts so many read ones), l2_share (of the L2 capacity that holds lines for the next kernel),
    l2_speedup (over HBM), floor_s. KeyError if the device has no such block."""
    device = cluster.device
    fit = fit_of(device, f"memory_{op.variant}", "memory")
    c = fit.coefficients
    moved = op.shape["read_bytes"] + c["write_cost"] * op.shape["write_bytes"]
    rate = device.memories["hbm"].bandwidth_bytes_per_s * c["efficiency"]
    resident = np.minimum(moved, c["l2_share"] * device.l2_bytes)
    memory_s = (moved - resident + resident / c["l2_speedup"]) / rate
    floor_s = np.maximum(device.launch_s, c["floor_s"])
    seconds = floor_s + memory_s
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"memory": memory_s, "launch": floor_s}, provenance=fit.provenance,
    )  # fmt: skip
