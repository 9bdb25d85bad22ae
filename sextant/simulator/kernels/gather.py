"""Random rows of a table fetched into HBM, from the memory tier that the variant names (``hbm``, ``host``, ``nvme``).

Shape: lookups (rows fetched), row_bytes, table_bytes (of the whole table that the rows are spread over). A row moves
whole sectors of its tier: 32 bytes of an L2 line, 64 bytes of a read over PCIe, a 4 KiB page of a drive; rows start
on a multiple of 32 bytes, or else are loaded in small pieces (``unaligned`` times the transfer).

    transfer  sectors over the share of the tier's bandwidth that is reached (hbm: rows are also written)
    rows      blocks of threads that fetch them x what each costs to issue: one row each while there are few, ``spread``
              per SM; of many rows, a block takes 4 KiB, 16 at most
    walks     rows that miss the address translation x what a walk costs, ``walkers`` of them at once
    seconds   floor + latency of the memory + cold start + all, smaller ones mostly hidden behind the largest

A table smaller than the reach of the address translation is never missed; of a larger one, the share beyond the reach
is, and a miss costs more the further the page walk's own caches are outgrown (a power of the table's size). Rows of
some hundred bytes from a large table in host memory are bound by that, not by the link.

The kernel has all SMs at its service and nothing beside it. A gather on few SMs is another machine, and so is
``cpu_copy``: threads of the CPU gather into a pinned buffer and one copy takes it over the link. Blocks
``gather_<variant>`` hold coefficients; where the device has none, ``ASSUMED`` stands in, with a wide interval: shares
of datasheet rates that nobody measured. A correction is over ``features``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Bytes that one access of each tier moves at least.
SECTOR_BYTES: Mapping[str, float] = {"hbm": 32.0, "host": 64.0, "nvme": 4096.0}
#: Where a variant that is no tier has its table.
TABLES: Mapping[str, str] = {"cpu_copy": "host"}
#: Rows start on a multiple of this, or are read piece by piece. A block of threads takes a tile of so many bytes, rows
#: padded to a power of two, of so many rows at most; of fewer than the next, one. So many blocks of each SM at least.
_ALIGNMENT_BYTES, _TILE_BYTES, _TILE_ROWS, _FEWEST_ROWS, _BLOCKS_PER_SM = 32.0, 4096.0, 16.0, 4.0, 8.0
#: How sharply the cold start sets in.
_SHARPNESS = 8.0


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
    "cpu_copy": _assumed(0.2, 5e7, 2e-5, "a fifth of the link: the CPU gathers first, at 20 ns per row"),
    "nvme": _assumed(0.8, 1e9, 1e-4, "0.8 of the drive's bandwidth; the memory's own row rate and latency decide"),
}  # fmt: skip


def sectors_bytes(row_bytes: Num, tier: str) -> Num:
    """Bytes that fetching one row moves: whole sectors. InputError for a tier without a sector size."""
    if tier not in SECTOR_BYTES:
        raise InputError(f"gather: unknown memory tier {tier!r}; {nearest(tier, SECTOR_BYTES)}")
    return np.ceil(row_bytes / SECTOR_BYTES[tier]) * SECTOR_BYTES[tier]


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Sectors read from the tier, rows written to HBM."""
    tier = TABLES.get(variant, variant)
    read, written = shape["lookups"] * sectors_bytes(shape["row_bytes"], tier), shape["lookups"] * shape["row_bytes"]
    return Work(traffic_bytes={"hbm": read + written} if tier == "hbm" else {tier: read, "hbm": written})


def features(shape: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction may depend on: logarithms to base 2 of lookups, bytes of a row and of the table; 1 for rows
    that are not aligned."""
    return {
        "log2_lookups": np.log2(np.maximum(shape["lookups"], 1.0)),
        "log2_row_bytes": np.log2(np.maximum(shape["row_bytes"], 1.0)),
        "log2_table_bytes": np.log2(np.maximum(shape["table_bytes"], 1.0)),
        "unaligned": np.where(np.mod(shape["row_bytes"], _ALIGNMENT_BYTES) > 0.0, 1.0, 0.0),
    }


def estimate(op: Op, cluster: Cluster, page_tables_s: Num = 0.0) -> Estimate:
    """Seconds by the block ``gather_<variant>``: efficiency (share of the tier's bandwidth), unaligned, rows_per_s
    (blocks issued; rows never faster than the memory's own ``rows_per_s``), spread, reach_bytes, miss_s (a miss in a
    table of twice the reach and more, times (table / reach) ** growth), walkers, cold_s from cold_share of the L2
    capacity on, overlap_power (1 adds the parts, more hides the smaller), floor_s; the memory's latency_s comes on
    top. ``page_tables_s``: seconds that walks take beyond those in the fit (``host_rows``). InputError if the device
    has no such tier.
    """
    device, tier = cluster.device, TABLES.get(op.variant, op.variant)
    if tier not in device.memories:
        raise InputError(f"device {device.name!r} has no memory tier {tier!r}; {nearest(tier, device.memories)}")
    fit, shape = fit_for(device, op.variant), op.shape
    memory, c = device.memories[tier], fit.coefficients
    traffic = work(shape, op.format, op.variant).traffic_bytes[tier]
    least_s = traffic / memory.bandwidth_bytes_per_s
    aligned = np.mod(shape["row_bytes"], _ALIGNMENT_BYTES) == 0.0
    transfer_s = least_s * np.where(aligned, 1.0, c.get("unaligned", 1.0)) / c["efficiency"]
    rows_s = _blocks(shape, c, device.n_sms) / c["rows_per_s"]
    walks = shape["lookups"] * missed(shape["table_bytes"], c)
    at_once = c.get("walkers", 0.0)
    # Rises as the square of few walks, and by one for every further one of many.
    walks_s = c["miss_s"] * (np.sqrt(np.square(walks) + at_once * at_once) - at_once)
    learned = correction(fit, features(shape))
    rows_s = rows_s + walks_s + page_tables_s / learned
    power = c["overlap_power"]
    larger, smaller = np.maximum(transfer_s, rows_s), np.minimum(transfer_s, rows_s)
    # Written with the ratio so that no power of a tiny number of seconds underflows.
    both_s = larger * (1.0 + (smaller / np.maximum(larger, 1e-30)) ** power) ** (1.0 / power)
    launch_s = np.maximum(device.launch_s, c["floor_s"]) + memory.latency_s
    if "cold_s" in c:
        size = np.minimum(traffic / (c["cold_share"] * device.l2_bytes), 1e3) ** _SHARPNESS
        launch_s = launch_s + c["cold_s"] * (size / (1.0 + size))
    served_s = shape["lookups"] / memory.rows_per_s
    seconds = (launch_s + both_s) * learned
    seconds = np.maximum(seconds, memory.latency_s + np.maximum(least_s, served_s))
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        provenance=fit.provenance,
        limits={
            "memory" if tier == "hbm" else "link": transfer_s, "rows": np.maximum(rows_s, served_s),
            "launch": launch_s,
        },
    )  # fmt: skip


def _blocks(shape: Mapping[str, Num], c: Mapping[str, Num], n_sms: Num) -> Num:
    """Blocks of threads that fetch the rows: one each, or fewer where a block takes several."""
    if "spread" not in c:
        return shape["lookups"]
    rows = tile_rows(shape["row_bytes"], np.inf, n_sms)
    return np.maximum(np.minimum(shape["lookups"], c["spread"] * n_sms), shape["lookups"] / rows)


def tile_rows(row_bytes: Num, lookups: Num, n_sms: Num) -> Num:
    """Rows in a block's tile by the rule of the measured kernel: as many as it has room for and as still leave eight
    blocks per SM; of fewer than four, one."""
    room = np.minimum(_TILE_BYTES / 2.0 ** np.ceil(np.log2(np.maximum(row_bytes, 1.0))), _TILE_ROWS)
    spread = 2.0 ** np.ceil(np.log2(np.maximum(np.floor(lookups / (_BLOCKS_PER_SM * n_sms)), 1.0)))
    rows = np.minimum(room, spread)
    return np.where(rows < _FEWEST_ROWS, 1.0, rows)[()]


def missed(table_bytes: Num, coefficients: Mapping[str, Num]) -> Num:
    """Misses of the address translation per row, in units of ``miss_s``; 0 up to the reach."""
    beyond = np.maximum(table_bytes / coefficients["reach_bytes"], 1.0)
    return (1.0 - 1.0 / beyond) * beyond ** coefficients["growth"]


def fit_for(device: Device, variant: str) -> KernelFit:
    """The block ``gather_<variant>`` of ``device``, else the assumed one."""
    return device.kernels.get(f"gather_{variant}", ASSUMED[variant])
