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

Rows of a drive have no page tables on the way, and a round trip longer by the drive's latency.

Blocks: ``gather_host_cold`` (line_s, span_bytes), ``gather_host_few`` (those above; factors while other kernels run:
``beside``, and ``beside_rows`` beside kernels over rows, which stream through the cache and fill the memory's queues),
``beside_fetch`` (what compute loses). A product has no room where a program sits (``held_sms``): ``held``
clusters start late, and their tiles take ``late`` times as long as others. ``attention``, ``mla``, ``mhc_pre`` lose a
share of their time, every other kernel ``rows_s``; names end in ``_open`` for up to ``OPEN`` rows in flight, in
``_full`` for ``FULL`` and more, where other kernels' addresses wait in the same queue. Where a device has none,
``ASSUMED`` stands in, with a wide interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import gather, held_sms
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Programs that fetch beside compute, and rows in flight up to which the page walkers keep up, and with which they are
#: full: eight programs with 8 and 16 rows each (validate/data/measured/h200_fetch.csv).
N_PROGRAMS, OPEN, FULL = 8.0, 64.0, 128.0
_EULER = 0.5772
_PRODUCTS = ("gemm", "grouped_gemm")
SHARES = ("attention", "mla", "mhc_pre")


def _assumed(why: str, **coefficients: float) -> KernelFit:
    return KernelFit(coefficients=coefficients, low=0.5, high=2.0, provenance="assumed", source=f"assumed: {why}")


#: Stand-ins for what was not measured: round numbers, none from a pass.
ASSUMED: Mapping[str, KernelFit] = {
    "gather_host_cold": _assumed("page tables stay in the cache", line_s=0.0, span_bytes=65536.0),
    "gather_host_few": _assumed(
        "2 us from request to row over PCIe; twice as long beside kernels that stream", round_s=2e-6, byte_s=0.0,
        walk_s=0.0, cold_s=0.0, overlap_power=4.0, floor_s=3e-6, beside=1.0, beside_rows=2.0,
    ),
    "beside_fetch": _assumed(
        "each program holds a cluster; a tenth of the time, the SMs held and as much again; 2 us per kernel over rows",
        held=N_PROGRAMS, late=1.0, **{f"{name}_{end}": 0.1 for name in SHARES for end in ("open", "full")},
        rows_s_open=2e-6, rows_s_full=2e-6,
    ),
}  # fmt: skip


def block(device: Device, name: str) -> KernelFit:
    """A block of coefficients, else the assumed one."""
    return device.kernels.get(name, ASSUMED[name])


def cold_s(shape: Mapping[str, Num], device: Device, evicted: bool = False) -> Num:
    """Seconds that cold page tables add to a fetch from host memory; ``evicted``: while it runs, too. Of ``shape``:
    lookups, table_bytes."""
    c, reach = block(device, "gather_host_cold").coefficients, gather.fit_for(device, "host").coefficients
    n_lines = shape["table_bytes"] / c["span_bytes"]
    met = shape["lookups"] if evicted else -n_lines * np.expm1(-shape["lookups"] / n_lines)
    return np.where(shape["table_bytes"] > reach["reach_bytes"], c["line_s"] * met, 0.0)[()]


def all_sms(op: Op, cluster: Cluster, evicted: bool = False) -> Estimate:
    """A fetch by all SMs in a pass. Where the link and not the walks hold it up, cold ones hide too."""
    if op.variant != "host":
        return gather.estimate(op, cluster)
    found = gather.estimate(op, cluster, cold_s(op.shape, cluster.device, evicted))
    cold = block(cluster.device, "gather_host_cold")
    ends = np.minimum(found.low, found.seconds * cold.low), np.maximum(found.high, found.seconds * cold.high)
    return replace(
        found, low=ends[0], high=ends[1],
        provenance=cold.provenance if found.provenance == "fitted" else found.provenance,
    )  # fmt: skip


def few_s(op: Op, cluster: Cluster, rows: Num, *, programs: Num = N_PROGRAMS, cold: str = "no") -> Num:
    """Seconds of a fetch by few programs with ``rows`` in a tile, alone. ``cold``: no; first (page tables were driven
    out before it); always (they are while it runs)."""
    c, shape = block(cluster.device, "gather_host_few").coefficients, op.shape
    round_s = c["round_s"] + rows * shape["row_bytes"] * c["byte_s"]
    if op.variant == "host":
        reach = gather.fit_for(cluster.device, "host").coefficients["reach_bytes"]
        missed = 1.0 - np.minimum(reach / shape["table_bytes"], 1.0) ** rows
        delay_s = (np.log(rows) + _EULER + 0.5 / rows) * c["cold_s"] if cold != "no" else 0.0
        round_s = round_s + c["walk_s"] * missed + delay_s
    else:
        round_s = round_s + cluster.device.memories[op.variant].latency_s
    rounds_s = np.ceil(shape["lookups"] / (programs * rows)) * round_s
    whole_s = (gather.estimate(op, cluster) if cold == "no" else all_sms(op, cluster, cold == "always")).seconds
    power = c["overlap_power"]
    larger, smaller = np.maximum(rounds_s, whole_s), np.minimum(rounds_s, whole_s)
    return c["floor_s"] + larger * (1.0 + (smaller / larger) ** power) ** (1.0 / power)


def over_rows(op: Op) -> bool:
    """Whether a kernel of ``op`` runs over rows of activations, and is bound by memory."""
    return op.kind not in (*_PRODUCTS, *SHARES)


def beside_s(op: Op, cluster: Cluster, rows: Num, share_over_rows: Num = 0.0) -> Num:
    """Seconds of a fetch by few programs while a pass computes beside it, that share of the time over rows."""
    c = block(cluster.device, "gather_host_few").coefficients
    rate = (1.0 - share_over_rows) / c["beside"] + share_over_rows / c["beside_rows"]
    return few_s(op, cluster, rows, cold="always") / rate


def slowed_s(op: Op, time: Estimate, device: Device, in_flight: Num) -> Num:
    """Seconds that an operator, which alone takes ``time``, loses beside a fetch with ``in_flight`` rows at once; none
    where it takes none."""
    c, seconds = block(device, "beside_fetch").coefficients, time.seconds
    if op.kind in _PRODUCTS:
        on_cores = np.minimum(time.limits.get("math", seconds), seconds)
        return c["late"] * held_sms.longer(op, device.n_sms, c["held"]) * on_cores
    full = np.clip((in_flight - OPEN) / (FULL - OPEN), 0.0, 1.0)
    name = "rows_s" if over_rows(op) else op.kind
    lost = (1.0 - full) * c[f"{name}_open"] + full * c[f"{name}_full"]
    return np.where(np.asarray(seconds) > 0.0, lost, 0.0)[()] if name == "rows_s" else lost * seconds
