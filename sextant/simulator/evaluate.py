"""Times of a step's operators, summed the ways an answer needs them: by layer kind, block, phase and stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.kernels import estimate, with_sms, without_hbm
from sextant.simulator.kernels.collective import N_CHANNELS
from sextant.simulator.overlap import exposed_s
from sextant.simulator.types import Cluster, Device, Estimate, Num, Op, Step

#: Messages never take more of the HBM bandwidth than this: compute keeps running beside them.
_MOST_TAKEN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOp:
    """An operator and the time of one execution."""

    op: Op
    time: Estimate

    @property
    def seconds(self) -> Num:
        """Seconds of all ``count`` executions in one occurrence of its part."""
        return self.op.count * self.time.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """Every operator of a step with its time on one cluster."""

    step: Step
    ops: tuple[TimedOp, ...]

    def seconds(self, *, end: str = "seconds", where: Callable[[Op], bool] | None = None) -> Num:
        """Sum of one occurrence of each operator that ``where`` accepts; ``end`` is seconds, low or high."""
        total: Num = 0.0
        for timed in self.ops:
            if where is None or where(timed.op):
                total = total + timed.op.count * getattr(timed.time, end)
        return total

    def table(self, end: str = "seconds") -> dict[tuple[str, str, str, str], Num]:
        """Seconds of one occurrence of each part, keyed by (part, block, phase, stream)."""
        sums: dict[tuple[str, str, str, str], Num] = {}
        for timed in self.ops:
            key = (timed.op.part, timed.op.block, timed.op.phase, timed.op.stream)
            sums[key] = sums.get(key, 0.0) + timed.op.count * getattr(timed.time, end)
        return sums


def time_ops(step: Step, cluster: Cluster, *, n_comm_sms: Num = 0.0, hbm_share: Num = 0.0) -> TimedStep:
    """Time every operator of ``step`` on ``cluster``, each distinct shape once.

    Compute operators run on the SMs that ``n_comm_sms`` leaves, with the HBM bandwidth that ``hbm_share`` of it taken
    by communication leaves; communication has the links to itself. Messages ``beside`` an operator last as long as what
    they add to it.
    """
    device = cluster.device
    if np.any(np.asarray(n_comm_sms) > 0):
        device = with_sms(device, device.n_sms - n_comm_sms)
    if np.any(np.asarray(hbm_share) > 0):
        device = without_hbm(device, hbm_share)
    reduced = replace(cluster, device=device)
    seen: dict[object, Estimate] = {}
    timed = []
    for op in step.ops:
        where = cluster if op.stream == "communication" else reduced
        key = _signature(op)
        if key not in seen:
            seen[key] = estimate(op, where)
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


def is_message(op: Op) -> bool:
    """Whether an operator sends something, on a stream of its own or (tensor parallelism) in line with compute."""
    return op.kind in ("collective", "expert_exchange")


def is_compute(op: Op) -> bool:
    """Whether an operator runs on the SMs that compute: neither a message nor a fetch from host memory."""
    return not is_message(op) and op.stream != "host"


def in_line_s(timed: TimedStep, layers: Mapping[str, Num]) -> Num:
    """Seconds of messages that stand in line with compute, in ``layers`` occurrences of each part: all exposed."""
    inline = (t for t in timed.ops if is_message(t.op) and t.op.stream == "compute")
    return sum((t.seconds * layers.get(t.op.part, 0.0) for t in inline), 0.0)


def communication_share(timed: TimedStep, device: Device) -> Num:
    """Share of the HBM bandwidth that a layer's messages take, on average over its compute, while both run at once."""
    traffic: Num = 0.0
    seconds: Num = 0.0
    parts = {item.op.part for item in timed.ops if item.op.stream == "communication"}
    for item in timed.ops:
        if item.op.part in parts:
            if item.op.stream == "communication":
                traffic = traffic + item.op.count * item.op.traffic_bytes.get("hbm", 0.0)
            else:
                seconds = seconds + item.seconds
    if not np.any(np.asarray(seconds) > 0):
        return 0.0
    return np.minimum(traffic / seconds / device.memories["hbm"].bandwidth_bytes_per_s, _MOST_TAKEN)


def interval(timed: TimedStep, layers: Mapping[str, Num]) -> tuple[Num, Num]:
    """The 90% interval of the step as factors: every operator at its own low or high end at once (fully correlated)."""
    sums = {end: 0.0 for end in ("seconds", "low", "high")}
    for item in timed.ops:
        weight = layers.get(item.op.part, 1.0) * item.op.count
        sums = {end: total + weight * getattr(item.time, end) for end, total in sums.items()}
    return sums["low"] / sums["seconds"], sums["high"] / sums["seconds"]


def provenance_shares(timed: TimedStep, layers: Mapping[str, Num]) -> dict[str, float]:
    """Share of the operator time (averaged over points) by where its rates come from."""
    sums: dict[str, float] = {}
    for item in timed.ops:
        weight = float(np.mean(np.asarray(item.seconds * layers.get(item.op.part, 1.0))))
        sums[item.time.provenance] = sums.get(item.time.provenance, 0.0) + weight
    total = sum(sums.values()) or 1.0
    return {name: value / total for name, value in sorted(sums.items())}


def _signature(op: Op) -> object:
    """Equal for operators of equal kind and shape; an array counts as itself, by identity."""
    shape = tuple((k, v if np.ndim(v) == 0 else id(v)) for k, v in sorted(op.shape.items()))
    return op.kind, op.format, op.variant, op.stream == "communication", shape
