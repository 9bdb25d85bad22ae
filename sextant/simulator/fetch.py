"""Ways of getting rows from another memory while a pass computes. Each is a different machine:

    none         on demand: a kernel on all SMs, when the layer begins
    tokens       ahead, at the rate of that kernel alone, and nothing taken from compute: the best there could be
    copy_engine  ahead: threads of the CPU gather into a pinned buffer, the copy engine takes it over the link
    few_sms      ahead: a kernel of a few programs that stay, and hold their SMs, until all rows are there
    full_grid    ahead: the kernel on all SMs, launched first. Compute waits behind it: nothing is hidden

Rates are those of ``kernels.gather`` (a block per way of fetching) and ``kernels.host_copy``. Few programs are as fast
as their reads in flight: a program asks for one tile of rows, waits a round trip, and asks for the next; together they
are no faster than the link is beside compute. What they cost compute is the SMs they hold, or more: its kernels wait
behind the reads in the address translation, for the share of the time in which that is busy. Devices of one host share
its memory (``shared``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import estimate, gather, operator, reshape
from sextant.simulator.prefetch import Beside
from sextant.simulator.types import Cluster, Device, Estimate, HostMemory, Num, Op

WAYS = ("none", "tokens", "copy_engine", "few_sms", "full_grid")

#: Programs of the kernel that fetches beside compute: with 4 or 8 the pass of
#: validate/data/measured/h200_prefetch.csv is shortest.
N_PROGRAMS = 8.0
#: A program's round, in which it asks for a tile of rows and waits for them: two programs took 5.27 ms for 65,536 rows
#: of 160 bytes, 16 at a time (h200_prefetch.csv); one machine, one size of row.
ROUND_S = 2.58e-6
#: The link of the machine on which gathers by the CPU were measured: a faster link makes no faster CPU.
_MEASURED_LINK_BYTES_PER_S = 64e9
#: How much longer than the kernel on all SMs alone, with the link full: 2,553 us by eight programs, 1,921 alone.
BESIDE = 1.33
#: What compute takes longer while the address translation is busy all the time, from four programs: 6,638 us for a pass
#: of 5,921 without fetching, in 2,866 us of which the link was busy 1,921 (h200_prefetch.csv, h200_models.csv).
QUEUED = 0.5
#: Factors on the seconds of few programs that hold what 2 to 128 of them took in h200_prefetch.csv.
_FEW_LOW, _FEW_HIGH = 0.6, 1.2
#: Compute loses so much beside the copy engine; assumed: "a few percent" of a product, no measurement is shipped.
COPY_ENGINE_SLOWDOWN = 0.03
#: Bytes of host memory that a gather by the CPU moves for each byte of a row beyond reading it: the buffer is read
#: before it is written, and read by the copy.
_BUFFER_MOVES = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Seconds of fetching an operator's rows in one way: those of the host and of the link, and what their bytes alone
    would take of it; what it does to compute beside it, factors on the seconds to either end of a 90% interval, and
    where they come from."""

    prepare_s: Num
    link_s: Num
    carried_s: Num
    beside: Beside
    low: float
    high: float
    provenance: str


def fetched(op: Op, cluster: Cluster, way: str, n_sharing: Num = 1.0) -> Fetched:
    """How the rows of ``op``, a gather from ``host`` or ``nvme``, come to a device of ``cluster`` in one of ``WAYS``.

    ``n_sharing`` devices gather with the CPUs of one host at once; what their links do to each other is in the
    device's memory already (``shared``). InputError for a way that is not there.
    """
    if way not in WAYS:
        raise InputError(f"prefetch: unknown way {way!r}; {nearest(way, WAYS)}")
    alone = estimate(op, cluster)
    low, high = (float(np.mean(end / alone.seconds)) for end in (alone.low, alone.high))
    if way == "copy_engine":
        return _staged(op, cluster, n_sharing)
    carried_s = _carried_s(op, alone, cluster.device)
    if way == "few_sms":
        programs = np.minimum(N_PROGRAMS, np.maximum(op.shape["lookups"], 1.0))
        link_s = np.maximum(_rounds_s(op) / programs, BESIDE * alone.seconds)
        share = programs / cluster.device.n_sms
        beside = Beside(slowdown=np.maximum(share / (1.0 - share), QUEUED * alone.seconds / link_s))
        return Fetched(
            prepare_s=0.0, link_s=link_s, carried_s=carried_s, beside=beside, low=min(low, _FEW_LOW),
            high=max(high, _FEW_HIGH), provenance=alone.provenance,
        )  # fmt: skip
    beside = Beside(ahead=way != "none", stands=way == "full_grid")
    return Fetched(
        prepare_s=0.0, link_s=alone.seconds, carried_s=carried_s, beside=beside, low=low, high=high,
        provenance=alone.provenance,
    )  # fmt: skip


def _carried_s(op: Op, alone: Estimate, device: Device) -> Num:
    """Seconds of the host's link that the rows' bytes take; pages of a drive cross it whole."""
    if op.variant == "host":
        return np.minimum(alone.limits["link"], alone.seconds)
    return np.minimum(op.traffic_bytes[op.variant] / device.memories["host"].bandwidth_bytes_per_s, alone.seconds)


def _rounds_s(op: Op) -> Num:
    """Seconds in which one program fetches all rows, tile by tile."""
    return op.shape["lookups"] / gather.tile_rows(op.shape["row_bytes"]) * ROUND_S


def _staged(op: Op, cluster: Cluster, n_sharing: Num) -> Fetched:
    """Rows gathered by the CPU (from a drive: read into the buffer), then one copy."""
    size = op.shape["lookups"] * op.shape["row_bytes"]
    copy = estimate(operator("host_copy", op.name, "bf16", {"bytes": size}, variant="h2d"), cluster)
    if op.variant == "host":
        prepare_s, whole = _gathered_s(op, cluster, n_sharing)
    else:
        whole = estimate(op, cluster)
        prepare_s = whole.seconds
    low, high = (float(np.mean(end / whole.seconds)) for end in (whole.low, whole.high))
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
