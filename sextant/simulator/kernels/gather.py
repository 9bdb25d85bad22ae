"""Random rows of a table fetched into HBM, from the memory tier that the variant names (``hbm``, ``host``, ``nvme``).

Shape: lookups (rows fetched), row_bytes, table_bytes (of the whole table that the rows are spread over). A row moves
whole sectors of its tier: 32 bytes of an L2 line, 64 bytes of a read over PCIe, a 4 KiB page of a drive; rows start
on a multiple of 32 bytes.

    transfer  sectors over the share of the tier's bandwidth that is reached (hbm: rows are also written)
    rows      lookups x (what each costs to issue + the share that misses the address translation x what a miss costs)
    seconds   floor + latency of the memory + both, the smaller mostly hidden behind the larger

A table smaller than the reach of the address translation is never missed; of a larger one, the share beyond the reach
is, and a miss costs more the further the page walk's own caches are outgrown (a power of the table's size). Rows of
some hundred bytes from a large table in host memory are bound by that, not by the link.

The kernel is one block per row with all SMs at its service and nothing beside it. A gather on few SMs, or by the CPU
with one copy after it, is another machine. Blocks ``gather_<tier>`` hold coefficients; where the device has none,
``ASSUMED`` stands in, with a wide interval: shares of datasheet rates that nobody measured. Measured rows over sizes of
row, table and batch, with fresh row numbers in every repetition, would replace it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Bytes that one access of each tier moves at least.
SECTOR_BYTES: Mapping[str, float] = {"hbm": 32.0, "host": 64.0, "nvme": 4096.0}


def _assumed(efficiency: float, rows_per_s: float, floor_s: float, why: str) -> KernelFit:
    coefficients = {
        "efficiency": efficiency, "rows_per_s": rows_per_s, "miss_s": 0.0, "reach_bytes": 1e9, "growth": 0.0,
        "overlap_power": 4.0, "floor_s": floor_s,
    }  # fmt: skip
    return KernelFit(coefficients=coefficients, low=0.5, high=2.0, provenance="assumed", source=f"assumed: {why}")


#: Stand-ins for what was not measured.
ASSUMED: Mapping[str, KernelFit] = {
    "hbm": _assumed(0.8, 1e9, 3e-6, "0.8 of the bandwidth; one row per nanosecond, a block scheduler's pace"),
    "host": _assumed(0.8, 4e7, 3e-6, "0.8 of the link; 25 ns per row, a page walk in host memory each"),
    "nvme": _assumed(0.8, 1e9, 1e-4, "0.8 of the drive's bandwidth; the memory's own row rate and latency decide"),
}  # fmt: skip


def sectors_bytes(row_bytes: Num, tier: str) -> Num:
    """Bytes that fetching one row moves: whole sectors. InputError for a tier without a sector size."""
    if tier not in SECTOR_BYTES:
        raise InputError(f"gather: unknown memory tier {tier!r}; {nearest(tier, SECTOR_BYTES)}")
    return np.ceil(row_bytes / SECTOR_BYTES[tier]) * SECTOR_BYTES[tier]


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Sectors read from the tier, rows written to HBM."""
    read, written = shape["lookups"] * sectors_bytes(shape["row_bytes"], variant), shape["lookups"] * shape["row_bytes"]
    return Work(traffic_bytes={"hbm": read + written} if variant == "hbm" else {variant: read, "hbm": written})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``gather_<tier>``: efficiency (share of the tier's bandwidth), rows_per_s (issued; the
    memory's own ``rows_per_s`` where that is lower), reach_bytes, miss_s (a miss in a table of twice the reach and
    more, times (table / reach) ** growth), overlap_power (1 adds transfer and rows, more hides the smaller), floor_s;
    the memory's latency_s comes on top. InputError if the device has no such tier.
    """
    device, tier = cluster.device, op.variant
    if tier not in device.memories:
        raise InputError(f"device {device.name!r} has no memory tier {tier!r}; {nearest(tier, device.memories)}")
    fit = fit_for(device, tier)
    memory, c = device.memories[tier], fit.coefficients
    traffic = work(op.shape, op.format, tier).traffic_bytes[tier]
    transfer_s = traffic / (memory.bandwidth_bytes_per_s * c["efficiency"])
    issue_s = 1.0 / np.minimum(memory.rows_per_s, c["rows_per_s"])
    rows_s = op.shape["lookups"] * (issue_s + c["miss_s"] * missed(op.shape["table_bytes"], c))
    power = c["overlap_power"]
    larger, smaller = np.maximum(transfer_s, rows_s), np.minimum(transfer_s, rows_s)
    # Written with the ratio so that no power of a tiny number of seconds underflows.
    both_s = larger * (1.0 + (smaller / np.maximum(larger, 1e-30)) ** power) ** (1.0 / power)
    launch_s = np.maximum(device.launch_s, c["floor_s"]) + memory.latency_s
    seconds = launch_s + both_s
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"memory" if tier == "hbm" else "link": transfer_s, "rows": rows_s, "launch": launch_s},
        provenance=fit.provenance,
    )  # fmt: skip


def missed(table_bytes: Num, coefficients: Mapping[str, Num]) -> Num:
    """Misses of the address translation per row, in units of ``miss_s``; 0 up to the reach."""
    beyond = np.maximum(table_bytes / coefficients["reach_bytes"], 1.0)
    return (1.0 - 1.0 / beyond) * beyond ** coefficients["growth"]


def fit_for(device: Device, tier: str) -> KernelFit:
    """The block ``gather_<tier>`` of ``device``, else the assumed one."""
    return device.kernels.get(f"gather_{tier}", ASSUMED[tier])
