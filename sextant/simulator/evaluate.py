"""Time a step's operators on a cluster, each distinct shape and point once; what their times say of the step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import paths
from sextant.simulator.kernels import COPY_SLOWDOWN, beside_messages, estimate, with_sms
from sextant.simulator.kernels.collective import N_CHANNELS
from sextant.simulator.overlap import exposed_s
from sextant.simulator.points import Values, distinct_points, picked
from sextant.simulator.timed import TimedOp, TimedStep, is_message
from sextant.simulator.types import Cluster, Device, Estimate, Num, Op, Step

#: Messages never take more of the HBM bandwidth than this: compute keeps running beside them.
_MOST_TAKEN = 0.5
#: Kinds whose coefficients follow from format and variant alone, whatever their sizes: most operators are of these.
_OF_ONE_FIT = ("gemm", "memory")


def time_ops(
    step: Step, cluster: Cluster, *, n_comm_sms: Num = 0.0, hbm_share: Num = 0.0,
    at: NDArray[np.intp] | None = None, alone: TimedStep | None = None,
) -> TimedStep:  # fmt: skip
    """Time every operator of ``step`` on ``cluster``, each distinct shape once.

    Compute operators run on the SMs that ``n_comm_sms`` leaves, with the HBM bandwidth that ``hbm_share`` of it taken
    by communication leaves. Communication has the links to itself; kernels of the expert exchange copy more slowly
    beside compute, where there is a share. Messages ``beside`` an operator last as long as what they add to it.
    ``at``: for each point of the cluster which of the step's points it is; without it they have the same.
    ``alone`` is the same step timed otherwise, which tells what operators are equal.
    """
    values = Values()
    keys = [id(item.time) for item in alone.ops] if alone else [_signature(op, values) for op in step.ops]
    return _timed([step], [keys], cluster, (n_comm_sms, hbm_share), values, at)[0]


def time_steps(steps: Sequence[Step], cluster: Cluster, *, n_comm_sms: Num = 0.0) -> list[TimedStep]:
    """``time_ops`` of steps that have the same points, each distinct shape of all of them once."""
    values = Values()
    keys = [[_signature(op, values) for op in step.ops] for step in steps]
    return _timed(steps, keys, cluster, (n_comm_sms, 0.0), values, None)


def _timed(
    steps: Sequence[Step], keys: Sequence[Sequence[object]], cluster: Cluster, taken: tuple[Num, Num], values: Values,
    at: NDArray[np.intp] | None,
) -> list[TimedStep]:  # fmt: skip
    """Timed steps whose operators of one key are equal, while messages take so many SMs and such a share of HBM."""
    ops = [op for step in steps for op in step.ops]
    seen = _seen(ops, [key for own in keys for key in own], cluster, taken, values, at)
    device, found = _left(cluster, *taken).device, []
    for step, own in zip(steps, keys, strict=True):
        timed = [TimedOp(op=_counted(op, at), time=seen[key]) for op, key in zip(step.ops, own, strict=True)]
        found.append(TimedStep(step=step, ops=tuple(_beside(timed, device))))
    return found


def _seen(
    ops: Sequence[Op], keys: Sequence[object], cluster: Cluster, taken: tuple[Num, Num], values: Values,
    at: NDArray[np.intp] | None,
) -> dict[object, Estimate]:  # fmt: skip
    """The estimate of every operator by its key, where those of one key are equal."""
    alike: dict[tuple[bool, bool], dict[object, Op]] = {}
    for op, key in zip(ops, keys, strict=True):
        alike.setdefault((op.stream == "communication", is_message(op)), {}).setdefault(key, op)
    seen: dict[object, Estimate] = {}
    beside = np.asarray(taken[1]) > 0
    for (apart, sent), members in alike.items():
        found = _estimates(list(members.values()), cluster, (0.0, 0.0) if apart else taken, sent, values, at)
        if sent and np.any(beside):
            found = [
                _slower(time, np.where(beside, COPY_SLOWDOWN, 1.0)) if op.kind == "expert_exchange" else time
                for op, time in zip(members.values(), found, strict=True)
            ]
        seen.update(zip(members, found, strict=True))
    return seen


def _counted(op: Op, at: NDArray[np.intp] | None) -> Op:
    """``op`` with what is asked of a timed operator at all points: its count, and the bytes of what communicates."""
    if at is None:
        return op
    count = picked(op.count, at)
    if op.stream != "communication":
        return op if count is op.count else replace(op, count=count)
    return replace(op, count=count, traffic_bytes={tier: picked(size, at) for tier, size in op.traffic_bytes.items()})


def _left(cluster: Cluster, n_comm_sms: Num, hbm_share: Num) -> Cluster:
    """``cluster`` with what communication leaves of its device."""
    device = cluster.device
    if np.any(np.asarray(n_comm_sms) > 0):
        device = with_sms(device, device.n_sms - n_comm_sms)
    if np.any(np.asarray(hbm_share) > 0):
        device = beside_messages(device, hbm_share)
    return cluster if device is cluster.device else replace(cluster, device=device)


def _estimates(
    ops: Sequence[Op], cluster: Cluster, taken: tuple[Num, Num], sent: bool, values: Values,
    at: NDArray[np.intp] | None,
) -> list[Estimate]:  # fmt: skip
    """Estimates of operators, each at its distinct points, on what ``taken`` (SMs, share of HBM) leaves of the device.
    They are messages (``sent``) or none: only messages know of links."""
    points = distinct_points(ops, (cluster.device, cluster.tiers if sent else None, *taken), values, at)
    if points is None:
        return _in_rows(ops if at is None else [paths.take(op, at) for op in ops], _left(cluster, *taken))
    tiers = points.of_record(cluster.tiers) if sent else cluster.tiers
    few = replace(cluster, device=points.of_record(cluster.device), tiers=tiers)
    left = _left(few, *(points.of(share) for share in taken))
    return [_mapped(time, points.all) for time in _in_rows([points.of_op(op) for op in ops], left)]


def _in_rows(ops: Sequence[Op], cluster: Cluster) -> list[Estimate]:
    """Estimates of operators, of which those of one fit are rows of one array where they are swept."""
    alike: dict[Hashable, list[int]] = {}
    for i, op in enumerate(ops):
        alike.setdefault((op.kind, op.format, op.variant, *sorted(op.shape)) if _is_row(op) else i, []).append(i)
    found: dict[int, Estimate] = {}
    for key, rows in alike.items():
        first = ops[rows[0]]
        if isinstance(key, int):
            found[key] = estimate(first, cluster)
            continue
        shape = {name: _stacked([ops[i].shape[name] for i in rows]) for name in first.shape}
        time = estimate(replace(first, shape=shape), cluster)
        found |= {i: _mapped(time, lambda value, row=row: _row(value, row)) for row, i in enumerate(rows)}
    return [found[i] for i in range(len(ops))]


def _is_row(op: Op) -> bool:
    """Whether an operator may be a row: one of numbers alone is timed as such, in whatever company."""
    shapes = {size.shape for size in op.shape.values() if isinstance(size, np.ndarray)}
    return op.kind in _OF_ONE_FIT and len(shapes) == 1 and all(len(shape) == 1 and shape[0] > 1 for shape in shapes)


def _stacked(values: Sequence[Num]) -> Num:
    """A row per value, with a column per point; one number where all are the same."""
    if all(np.ndim(value) == 0 for value in values):
        return values[0] if len(set(values)) == 1 else np.array(values)[:, None]
    return np.stack(np.broadcast_arrays(*values))


def _row(value: Num, row: int) -> Num:
    """What a row has of a value that may be the same for all rows, or for all points."""
    if np.ndim(value) < 2:
        return value
    found = np.asarray(value)[row]
    return found if len(found) > 1 else found[0]


def _mapped(time: Estimate, change: Callable[[Num], Num]) -> Estimate:
    ends = {end: change(getattr(time, end)) for end in ("seconds", "low", "high")}
    limits = {name: change(value) for name, value in time.limits.items()}
    return Estimate(limits=limits, provenance=time.provenance, **ends)


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
        weight = float(np.asarray(item.seconds * layers.get(item.op.part, 1.0)).mean())
        sums[item.time.provenance] = sums.get(item.time.provenance, 0.0) + weight
    total = sum(sums.values()) or 1.0
    return {name: value / total for name, value in sorted(sums.items())}


def seconds_of(step: Step, cluster: Cluster) -> Num:
    """Seconds of every operator of ``step``, one after the other; equal points are timed once."""
    points = distinct_points(step.ops, (cluster.device, cluster.tiers), Values())
    if points is None:
        return time_ops(step, cluster).seconds()
    few = replace(step, ops=tuple(points.of_op(op) for op in step.ops))
    device, tiers = points.of_record(cluster.device), points.of_record(cluster.tiers)
    return points.all(time_ops(few, replace(cluster, device=device, tiers=tiers)).seconds())


def _signature(op: Op, values: Values) -> object:
    """Equal for operators of equal kind and shape; an array counts by its values."""
    sizes = ((name, values.first(size)) for name, size in sorted(op.shape.items()))
    shape = tuple((name, (id(size),) if isinstance(size, np.ndarray) else size) for name, size in sizes)
    return op.kind, op.format, op.variant, op.stream == "communication", shape
