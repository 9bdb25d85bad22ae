"""What fetches of host rows cost in a pass, beyond the kernel of ``gather`` that has the GPU to itself again and again.

Cold page tables: what a pass computes drives the entries of the page tables out of the L2 cache, and a walk that finds
none goes to HBM. A line of the cache holds the entries of ``span_bytes`` of the table. A fetch with nothing beside it
pays for each line once; beside compute, which drives them out all the time, for each row. A table within the reach of
the translation is not walked.

Few programs: one asks for a tile of rows, waits a round trip, and asks for the next. The slowest of its rows decides,
so walks (a share of rows misses the translation) and cold walks weigh more the more rows are in a tile; together
programs are no faster than the walks of all rows allow.

    rounds   ceil(lookups / (programs x rows)) x (round_s + bytes of a tile x byte_s + walk_s if any row misses +
             cold_s x the expected maximum of as many exponential delays as rows)
    seconds  floor_s + rounds and the time of all rows on all SMs, joined by overlap_power

Blocks: ``gather_host_cold`` (line_s, span_bytes), ``gather_host_few`` (those above; ``beside``, factor while other
kernels run), ``beside_fetch`` (what compute loses: ``product``, ``attention``, ``mla``, ``mhc_pre`` as shares,
``rows_s`` per other kernel; names end in ``_open`` for up to ``OPEN`` rows in flight, in ``_full`` for ``FULL`` and
more, where other kernels' addresses wait in the same queue).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, gather
from sextant.simulator.types import Cluster, Device, KernelFit, Num, Op

#: Programs that fetch beside compute, and rows in flight up to which the page walkers keep up, and with which they are
#: full: eight programs with 8 and 16 rows each (validate/data/measured/h200_fetch.csv).
N_PROGRAMS, OPEN, FULL = 8.0, 64.0, 128.0
_EULER = 0.5772


def block(device: Device, name: str) -> KernelFit:
    """A block of coefficients; InputError where nobody measured it on this device."""
    if name not in device.kernels:
        raise InputError(
            f"device {device.name!r} has no coefficients {name!r}; measure them with sextant.validate.fetch"
        )
    return device.kernels[name]


def cold_s(shape: Mapping[str, Num], device: Device, evicted: bool = False) -> Num:
    """Seconds that cold page tables add to a fetch from host memory; ``evicted``: while it runs, too. Of ``shape``:
    lookups, table_bytes."""
    c, reach = block(device, "gather_host_cold").coefficients, gather.fit_for(device, "host").coefficients
    n_lines = shape["table_bytes"] / c["span_bytes"]
    met = shape["lookups"] if evicted else -n_lines * np.expm1(-shape["lookups"] / n_lines)
    return np.where(shape["table_bytes"] > reach["reach_bytes"], c["line_s"] * met, 0.0)[()]


def all_sms_s(op: Op, cluster: Cluster, evicted: bool = False) -> Num:
    """Seconds of a fetch by all SMs in a pass. Where the link and not the walks hold it up, cold ones hide too."""
    hot = estimate(op, cluster)
    spare_s = np.maximum(hot.limits["link"] - hot.limits["rows"], 0.0)
    return hot.seconds + np.maximum(cold_s(op.shape, cluster.device, evicted) - spare_s, 0.0)


def few_s(op: Op, cluster: Cluster, rows: Num, *, programs: Num = N_PROGRAMS, cold: str = "no") -> Num:
    """Seconds of a fetch by few programs with ``rows`` in a tile, alone. ``cold``: no; first (page tables were driven
    out before it); always (they are while it runs)."""
    c = block(cluster.device, "gather_host_few").coefficients
    reach = gather.fit_for(cluster.device, "host").coefficients["reach_bytes"]
    shape = op.shape
    missed = 1.0 - np.minimum(reach / shape["table_bytes"], 1.0) ** rows
    delay_s = (np.log(rows) + _EULER + 0.5 / rows) * c["cold_s"] if cold != "no" else 0.0
    round_s = c["round_s"] + rows * shape["row_bytes"] * c["byte_s"] + c["walk_s"] * missed + delay_s
    rounds_s = np.ceil(shape["lookups"] / (programs * rows)) * round_s
    whole = estimate(op, cluster).seconds if cold == "no" else all_sms_s(op, cluster, cold == "always")
    power = c["overlap_power"]
    larger, smaller = np.maximum(rounds_s, whole), np.minimum(rounds_s, whole)
    return c["floor_s"] + larger * (1.0 + (smaller / larger) ** power) ** (1.0 / power)


def beside_s(op: Op, cluster: Cluster, rows: Num) -> Num:
    """Seconds of a fetch by few programs while a pass computes beside it."""
    return block(cluster.device, "gather_host_few").coefficients["beside"] * few_s(op, cluster, rows, cold="always")


def slowed_s(op: Op, seconds: Num, device: Device, in_flight: Num) -> Num:
    """Seconds that an operator of so many seconds loses beside a fetch with ``in_flight`` rows at once."""
    c = block(device, "beside_fetch").coefficients
    names = {"gemm": "product", "grouped_gemm": "product", "attention": "attention", "mla": "mla", "mhc_pre": "mhc_pre"}
    name = names.get(op.kind, "rows_s")
    full = np.clip((in_flight - OPEN) / (FULL - OPEN), 0.0, 1.0)
    lost = (1.0 - full) * c[f"{name}_open"] + full * c[f"{name}_full"]
    return lost if name == "rows_s" else lost * seconds


def tile_rows(lookups: Num, row_bytes: Num, n_sms: Num) -> Num:
    """Rows in one program's tile by the rule of the measured kernel: as many as still leave eight programs per SM, at
    most 16 or 4 KiB, of fewer than four one."""
    most = np.minimum(16.0, np.maximum(2048.0 / 2.0 ** np.ceil(np.log2(row_bytes / 2.0)), 1.0))
    spread = 2.0 ** np.ceil(np.log2(np.maximum(np.floor(lookups / (8.0 * n_sms)), 1.0)))
    rows = np.minimum(most, spread)
    return np.where(rows < 4.0, 1.0, rows)[()]
