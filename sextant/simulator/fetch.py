"""Ways of getting rows from another memory while a pass computes. Each is a different machine:

    none         on demand: a kernel on all SMs, when the layer begins
    tokens       ahead, at the rate of that kernel alone, and nothing taken from compute: the best there could be
    copy_engine  ahead: threads of the CPU gather into a pinned buffer, the copy engine takes it over the link
    few_sms      ahead: a kernel of a few programs that stay until all rows are there, and keep products off their SMs
    full_grid    ahead: the kernel on all SMs, launched first. Compute waits behind it: nothing is hidden

Rates are those of kernels alone, in what a pass leaves of the caches: ``kernels.host_rows`` (page tables are cold; few
programs pay in rounds; kernels beside them lose time) and ``kernels.host_copy``. No pass is part of any rate. Devices
of one host share its memory (``shared``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import estimate, gather, host_rows, operator, reshape
from sextant.simulator.prefetch import Beside
from sextant.simulator.timed import TimedOp, is_compute
from sextant.simulator.types import Cluster, Device, Estimate, HostMemory, Num, Op

WAYS = ("none", "tokens", "copy_engine", "few_sms", "full_grid")

#: The link of the machine on which gathers by the CPU were measured: a faster link makes no faster CPU.
_MEASURED_LINK_BYTES_PER_S = 64e9
#: Compute loses so much beside the copy engine; assumed: "a few percent" of a product, no measurement is shipped.
COPY_ENGINE_SLOWDOWN = 0.03
#: Bytes of host memory that a gather by the CPU moves for each byte of a row beyond reading it: the buffer is read
#: before it is written, and read by the copy.
_BUFFER_MOVES = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Seconds of fetching an operator's rows in one way: those of the host and of the link beside compute, and what
    their bytes alone would take of it; ``waited``, the share that is left once compute waits; what it does to all
    compute beside it, and the rows that it has in flight where this decides (``slowdown``); factors to either end of a
    90% interval, on the seconds and on what compute loses; where they come from."""

    prepare_s: Num
    link_s: Num
    carried_s: Num
    beside: Beside
    low: float
    high: float
    provenance: str
    waited: Num = 1.0
    in_flight: Num | None = None
    slowed_low: float = 1.0
    slowed_high: float = 1.0


def fetched(
    op: Op, cluster: Cluster, way: str, n_sharing: Num = 1.0, in_turn: Num = 0.0, share_over_rows: Num = 0.0
) -> Fetched:
    """How the rows of ``op``, a gather from ``host`` or ``nvme``, come to a device of ``cluster`` in one of ``WAYS``.

    ``n_sharing`` devices gather with the CPUs of one host at once; what their links do to each other is in the
    device's memory already (``shared``). Each of few programs asks for ``in_turn`` rows at a time; 0: by the measured
    kernel's rule. ``share_over_rows``: of the time of what runs beside, that of kernels over rows. InputError for a way
    that is not there.
    """
    if way not in WAYS:
        raise InputError(f"prefetch: unknown way {way!r}; {nearest(way, WAYS)}")
    if way == "copy_engine":
        return _staged(op, cluster, n_sharing)
    alone = host_rows.all_sms(op, cluster)
    if way == "few_sms":
        return _by_few(op, cluster, alone, in_turn, share_over_rows)
    low, high = _ends(alone)
    beside = Beside(ahead=way != "none", stands=way == "full_grid")
    return Fetched(
        prepare_s=0.0, link_s=alone.seconds, carried_s=_carried_s(op, alone, cluster.device), beside=beside, low=low,
        high=high, provenance=alone.provenance,
    )  # fmt: skip


def _by_few(op: Op, cluster: Cluster, alone: Estimate, in_turn: Num, share_over_rows: Num) -> Fetched:
    """Few programs; ``alone`` is the kernel on all SMs."""
    device, lookups = cluster.device, op.shape["lookups"]
    tile = gather.tile_rows(op.shape["row_bytes"], lookups, device.n_sms)
    rows = np.where(np.asarray(in_turn) > 0, in_turn, tile)[()]
    link_s = host_rows.beside_s(op, cluster, rows, share_over_rows)
    few, lost = host_rows.block(device, "gather_host_few"), host_rows.block(device, "beside_fetch")
    low, high = _ends(alone)
    return Fetched(
        prepare_s=0.0, link_s=link_s, carried_s=np.minimum(_carried_s(op, alone, device), link_s), beside=Beside(),
        low=min(low, few.low), high=max(high, few.high),
        provenance="assumed" if "assumed" in (alone.provenance, few.provenance) else few.provenance,
        waited=np.minimum(host_rows.few_s(op, cluster, rows, cold="first") / link_s, 1.0),
        in_flight=np.minimum(host_rows.N_PROGRAMS * rows, lookups), slowed_low=lost.low, slowed_high=lost.high,
    )  # fmt: skip


def slowdown(found: Fetched, ops: Iterable[TimedOp], seconds: Num, device: Device) -> Num:
    """How much longer ``ops``, a layer of so many seconds, take beside the fetch, as a share."""
    if found.in_flight is None:
        return found.beside.slowdown_of(0)
    lost_s: Num = 0.0
    for item in ops:
        if is_compute(item.op):
            lost_s = lost_s + item.op.count * host_rows.slowed_s(item.op, item.time, device, found.in_flight)
    return lost_s / seconds


def share_over_rows(ops: Iterable[TimedOp]) -> Num:
    """The share of the time of ``ops``, counted as often as each runs, that kernels over rows take."""
    whole_s: Num = 0.0
    rows_s: Num = 0.0
    for item in ops:
        if is_compute(item.op):
            seconds = item.op.count * item.time.seconds
            whole_s = whole_s + seconds
            rows_s = rows_s + (seconds if host_rows.over_rows(item.op) else 0.0)
    return np.where(np.asarray(whole_s) > 0, rows_s / np.where(np.asarray(whole_s) > 0, whole_s, 1.0), 0.0)[()]


def _ends(whole: Estimate) -> tuple[float, float]:
    """The interval of an estimate, as factors."""
    return float(np.mean(whole.low / whole.seconds)), float(np.mean(whole.high / whole.seconds))


def _carried_s(op: Op, alone: Estimate, device: Device) -> Num:
    """Seconds of the host's link that the rows' bytes take; pages of a drive cross it whole."""
    if op.variant == "host":
        return np.minimum(alone.limits["link"], alone.seconds)
    return np.minimum(op.traffic_bytes[op.variant] / device.memories["host"].bandwidth_bytes_per_s, alone.seconds)


def _staged(op: Op, cluster: Cluster, n_sharing: Num) -> Fetched:
    """Rows gathered by the CPU (from a drive: read into the buffer), then one copy."""
    size = op.shape["lookups"] * op.shape["row_bytes"]
    copy = estimate(operator("host_copy", op.name, "bf16", {"bytes": size}, variant="h2d"), cluster)
    if op.variant == "host":
        prepare_s, whole = _gathered_s(op, cluster, n_sharing)
    else:
        whole = estimate(op, cluster)
        prepare_s = whole.seconds
    low, high = _ends(whole)
    return Fetched(
        prepare_s=prepare_s, link_s=copy.seconds, carried_s=np.minimum(copy.limits["link"], copy.seconds),
        beside=Beside(slowdown=COPY_ENGINE_SLOWDOWN), low=low, high=high,
        provenance=whole.provenance if op.variant == "host" else "assumed",
    )  # fmt: skip


def _gathered_s(op: Op, cluster: Cluster, n_sharing: Num) -> tuple[Num, Estimate]:
    """Seconds of the CPU's part, and the measured whole: what is left of gather and copy without the copy, on the link
    they were measured with; never less than its bytes take of the memory that all share.

    Every device has as many threads of the CPU as the measured one had (assumed).
    """
    host = cluster.device.memories["host"]
    memories = {**cluster.device.memories, "host": replace(host, bandwidth_bytes_per_s=_MEASURED_LINK_BYTES_PER_S)}
    there = replace(cluster, device=replace(cluster.device, memories=memories))
    lookups, row_bytes = op.shape["lookups"], op.shape["row_bytes"]
    whole = estimate(reshape(replace(op, variant="cpu_copy")), there)
    copy = operator("host_copy", op.name, "bf16", {"bytes": lookups * row_bytes}, variant="h2d")
    moved = lookups * (gather.sectors_bytes(row_bytes, "host") + _BUFFER_MOVES * row_bytes)
    least_s = n_sharing * moved / host.node_bytes_per_s if isinstance(host, HostMemory) else 0.0
    return np.maximum(whole.seconds - estimate(copy, there).seconds, least_s), whole


def shared(device: Device, n_sharing: Num) -> Device:
    """``device`` while ``n_sharing`` devices read their host's memory at once, each an equal share: of what all its
    channels give, and of the links between its sockets, which ``remote_fraction`` of the bytes cross."""
    host = device.memories.get("host")
    if not isinstance(host, HostMemory):
        return device
    return replace(device, memories={**device.memories, "host": _share(host, n_sharing)})


def _share(host: HostMemory, n: Num) -> HostMemory:
    remote = n * np.asarray(host.remote_fraction, dtype=float)
    between = np.where(remote > 0, host.between_sockets_bytes_per_s / np.where(remote > 0, remote, 1.0), np.inf)
    rate = np.minimum(np.minimum(host.bandwidth_bytes_per_s, host.node_bytes_per_s / n), between)
    return replace(host, bandwidth_bytes_per_s=rate[()])
