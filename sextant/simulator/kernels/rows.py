"""Seconds of a kernel that moves rows of tokens: arithmetic that the memory-bound kinds share.

floor_s       launch and drain; also the ramp, as the achieved bandwidth rises with size
cold_s        further latency once the tensors are larger than ``cold_share`` of L2 and come from HBM
row_cost      one SM works on a row at a time: its bytes, in units of the whole device's bandwidth
row_s         latency of one row where an SM takes one after the other; absent: rows overlap
efficiency    share of the HBM bandwidth; a written byte counts ``write_cost`` read ones
padding       cost of a lane between a row's width and the next power of two, which is the block's, in units of a
              value moved (where the rows have a width)
l2_share      of the L2 capacity, whose lines are still there from the kernel before and move ``l2_speedup`` faster
odd           factor on the bytes of a driver's copy whose length is no multiple of a page; absent: none
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sextant.simulator.types import Device, KernelFit, Num

#: Bytes read and written per row where nothing says: 4,096 BF16 values in and out.
_ROW_BYTES = 16384.0
#: A driver's copy is fast where its length is a multiple of this.
_PAGE_BYTES = 4096.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What one execution moves; ``n_rows`` and ``width`` (values of a row) are None where it has no rows. Of the bytes
    read, ``fixed_bytes`` belong to no row: weights."""

    read_bytes: Num
    write_bytes: Num
    n_rows: Num | None = None
    width: Num | None = None
    fixed_bytes: Num = 0.0

    @property
    def bytes(self) -> Num:
        """All bytes moved."""
        return self.read_bytes + self.write_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSeconds:
    """Seconds before any correction: those that grow with the bytes, and the rest."""

    memory: Num
    launch: Num


def row_seconds(moved: Rows, fit: KernelFit, device: Device) -> RowSeconds:
    """Seconds by the coefficients of ``fit``; all Nums broadcast."""
    c, bandwidth = fit.coefficients, device.memories["hbm"].bandwidth_bytes_per_s
    weighed = moved.read_bytes + c["write_cost"] * moved.write_bytes
    if "odd" in c:
        weighed = weighed * np.where(np.mod(moved.write_bytes, _PAGE_BYTES) > 0.0, c["odd"], 1.0)
    resident = np.minimum(weighed, c["l2_share"] * device.l2_bytes)
    memory_s = (weighed - resident + resident / c["l2_speedup"]) / (bandwidth * c["efficiency"])
    launch_s = np.maximum(device.launch_s, c["floor_s"])
    if "cold_s" in c:
        ratio = np.square(np.square(np.square(moved.bytes / (c["cold_share"] * device.l2_bytes))))
        launch_s = launch_s + c["cold_s"] * (ratio / (1.0 + ratio))
    if moved.n_rows is not None:
        row_bytes = (moved.bytes - moved.fixed_bytes) / np.maximum(moved.n_rows, 1.0)
        if "row_cost" in c:
            launch_s = launch_s + c["row_cost"] * row_bytes / bandwidth
        if "row_s" in c:
            memory_s = memory_s + c["row_s"] * moved.n_rows / device.n_sms
    if "padding" in c and moved.width is not None:
        memory_s = memory_s * (1.0 + c["padding"] * (2.0 ** np.ceil(np.log2(moved.width)) / moved.width - 1.0))
    return RowSeconds(memory=memory_s, launch=launch_s)


def row_features(moved: Rows) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: bytes moved, and rows."""
    size = np.maximum(moved.bytes, 1.0)
    n_rows = size / _ROW_BYTES if moved.n_rows is None else moved.n_rows
    return {"log2_bytes": np.log2(size), "log2_rows": np.log2(np.maximum(n_rows, 1.0))}


def least_seconds(moved: Rows, device: Device) -> Num:
    """What cannot lie in L2, at the HBM bandwidth."""
    return np.maximum(moved.bytes - device.l2_bytes, 0.0) / device.memories["hbm"].bandwidth_bytes_per_s
