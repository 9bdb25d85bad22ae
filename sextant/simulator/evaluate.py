"""Time a step's operators on a cluster, each distinct shape and point once; what their times say of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.kernels import COPY_SLOWDOWN, beside_messages, estimate, with_sms
from sextant.simulator.kernels.collective import N_CHANNELS
from sextant.simulator.overlap import exposed_s
from sextant.simulator.points import FEW_POINTS, distinct
from sextant.simulator.timed import TimedOp, TimedStep, is_message
from sextant.simulator.types import Cluster, Correction, Device, Estimate, Num, Op, Step

#: Messages never take more of the HBM bandwidth than this: compute keeps running beside them.
_MOST_TAKEN = 0.5


def time_ops(step: Step, cluster: Cluster, *, n_comm_sms: Num = 0.0, hbm_share: Num = 0.0) -> TimedStep:
    """Time every operator of ``step`` on ``cluster``, each distinct shape once.

    Compute operators run on the SMs that ``n_comm_sms`` leaves, with the HBM bandwidth that ``hbm_share`` of it taken
    by communication leaves. Communication has the links to itself; kernels of the expert exchange copy more slowly
    beside compute, where there is a share. Messages ``beside`` an operator last as long as what they add to it.
    """
    device = cluster.device
    if np.any(np.asarray(n_comm_sms) > 0):
        device = with_sms(device, device.n_sms - n_comm_sms)
    beside = np.asarray(hbm_share) > 0
    if np.any(beside):
        device = beside_messages(device, hbm_share)
    reduced = replace(cluster, device=device)
    seen: dict[object, Estimate] = {}
    digests: dict[int, bytes] = {}
    timed = []
    for op in step.ops:
        where = cluster if op.stream == "communication" else reduced
        key = _signature(op, digests)
        if key not in seen:
            seen[key] = estimate(op, where)
            if np.any(beside) and op.kind == "expert_exchange":
                seen[key] = _slower(seen[key], np.where(beside, COPY_SLOWDOWN, 1.0))
        timed.append(TimedOp(op=op, time=seen[key]))
    return TimedStep(step=step, ops=tuple(_beside(timed, device)))


def _beside(timed: Sequence[TimedOp], device: Device) -> Iterator[TimedOp]:
    """``timed`` with messages that run beside an operator reduced to what they add to it.

    KeyError if a message is beside an operator that its part does not have.
    """
    hiders = {(item.op.part, item.op.name): item for item in timed} if any(item.op.beside for item in timed) else {}
    for item in timed:
        if not item.op.beside:
            yield item
            continue
        time = item.time
        added = exposed_s(time.seconds, hiders[item.op.part, item.op.beside].seconds, N_CHANNELS / device.n_sms)
        scale = added / np.maximum(time.seconds, 1e-30)
        yield replace(item, time=replace(time, seconds=added, low=time.low * scale, high=time.high * scale))


def _slower(time: Estimate, factor: Num) -> Estimate:
    return replace(time, seconds=time.seconds * factor, low=time.low * factor, high=time.high * factor)


def in_line_s(timed: TimedStep, layers: Mapping[str, Num]) -> Num:
    """Seconds of messages that stand in line with compute, in ``layers`` occurrences of each part: all exposed."""
    inline = (t for t in timed.ops if is_message(t.op) and t.op.stream == "compute")
    return sum((t.seconds * layers.get(t.op.part, 0.0) for t in inline), 0.0)


def communication_share(timed: TimedStep, device: Device) -> Num:
    """Share of the HBM bandwidth that messages take, on average over the compute of the layers that have any, while
    both run at once."""
    traffic: Num = 0.0
    seconds: Num = 0.0
    parts = {item.op.part for item in timed.ops if item.op.stream == "communication"}
    for item in timed.ops:
        if item.op.part in parts:
            n_layers = timed.step.layers.get(item.op.part, 1.0)
            if item.op.stream == "communication":
                traffic = traffic + n_layers * item.op.count * item.op.traffic_bytes.get("hbm", 0.0)
            else:
                seconds = seconds + n_layers * item.seconds
    if not np.any(np.asarray(seconds) > 0):
        return 0.0
    return np.minimum(traffic / seconds / device.memories["hbm"].bandwidth_bytes_per_s, _MOST_TAKEN)


def interval(timed: TimedStep, layers: Mapping[str, Num]) -> tuple[Num, Num]:
    """The 90% interval of the step as factors: every operator at its own low or high end at once (fully correlated)."""
    sums = {
        end: sum((layers.get(key[0], 1.0) * seconds for key, seconds in timed.table(end).items()), 0.0)
        for end in ("seconds", "low", "high")
    }
    return sums["low"] / sums["seconds"], sums["high"] / sums["seconds"]


def provenance_shares(timed: TimedStep, layers: Mapping[str, Num]) -> dict[str, float]:
    """Share of the operator time (averaged over points) by where its rates come from."""
    sums: dict[str, float] = {}
    for item in timed.ops:
        weight = float(np.mean(np.asarray(item.seconds * layers.get(item.op.part, 1.0))))
        sums[item.time.provenance] = sums.get(item.time.provenance, 0.0) + weight
    total = sum(sums.values()) or 1.0
    return {name: value / total for name, value in sorted(sums.items())}


def seconds_of(step: Step, cluster: Cluster) -> Num:
    """Seconds of every operator of ``step``, one after the other; equal points are timed once."""
    found = distinct_points(step, cluster)
    if found is None:
        return time_ops(step, cluster).seconds()
    return np.asarray(time_ops(found[0], cluster).seconds())[found[1]]


def distinct_points(step: Step, cluster: Cluster) -> tuple[Step, NDArray[np.intp]] | None:
    """The step of the points that differ, and for each point (in the points' shape) which of these it is.

    None where the cluster is swept too, or where to look would not be worth it: few points, or few that are equal.
    """
    arrays = {id(value): value for op in step.ops for value in _numbers(op) if np.ndim(value) > 0}
    shape = np.broadcast_shapes(*(np.shape(value) for value in arrays.values()))
    if math.prod(shape) < FEW_POINTS or _is_swept(_Same(cluster)):
        return None
    columns = {key: np.broadcast_to(np.asarray(value, dtype=float), shape).ravel() for key, value in arrays.items()}
    found = distinct(list(columns.values()))
    if found is None:
        return None
    first, which = found
    rows = {key: column[first] for key, column in columns.items()}

    def pick(value: Num) -> Num:
        return rows[id(value)] if np.ndim(value) > 0 else value

    ops = tuple(
        replace(
            op, shape={name: pick(size) for name, size in op.shape.items()}, count=pick(op.count),
            traffic_bytes={tier: pick(size) for tier, size in op.traffic_bytes.items()}, flops=pick(op.flops),
            message_bytes=pick(op.message_bytes),
        )
        for op in step.ops
    )  # fmt: skip
    return replace(step, ops=ops), which.reshape(shape)


def _numbers(op: Op) -> tuple[Num, ...]:
    return (*op.shape.values(), *op.traffic_bytes.values(), op.count, op.flops, op.message_bytes)


class _Same:
    """A record that equals itself alone; it stays alive as long as it is remembered."""

    __slots__ = ("record",)

    def __init__(self, record: Any) -> None:
        self.record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.record is self.record

    def __hash__(self) -> int:
        return id(self.record)


@lru_cache(maxsize=16)
def _is_swept(same: _Same) -> bool:
    return _swept(same.record)


def _swept(record: Any) -> bool:
    """Whether a record holds an array of points; the tables of a ``Correction`` are none."""
    if isinstance(record, float | str):
        return False
    if isinstance(record, np.ndarray):
        return record.ndim > 0
    if isinstance(record, Mapping):
        return any(_swept(value) for value in record.values())
    if is_dataclass(record) and not isinstance(record, Correction):
        return any(_swept(getattr(record, each.name)) for each in fields(record))
    return False


def _signature(op: Op, digests: dict[int, bytes]) -> object:
    """Equal for operators of equal kind and shape; an array counts by its values. ``digests`` remembers those of the
    arrays seen, by identity: it must not outlive them."""
    shape = tuple((k, v if np.ndim(v) == 0 else _digest(v, digests)) for k, v in sorted(op.shape.items()))
    return op.kind, op.format, op.variant, op.stream == "communication", shape


def _digest(array: Any, digests: dict[int, bytes]) -> bytes:
    """128 bits that tell the values of one array from those of another."""
    found = digests.get(id(array))
    if found is None:
        found = digests[id(array)] = blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
    return found
