"""What a step computes and moves, by layer kind, block and phase: FLOPs and bytes of its operators, before any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.types import Device, Num, Step

#: (part, block, phase) of an operator.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """FLOPs, and bytes that cross the HBM, the host's memory and the links; each a Num."""

    flops: Num = 0.0
    hbm_bytes: Num = 0.0
    host_bytes: Num = 0.0
    message_bytes: Num = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            flops=self.flops + other.flops,
            hbm_bytes=self.hbm_bytes + other.hbm_bytes,
            host_bytes=self.host_bytes + other.host_bytes,
            message_bytes=self.message_bytes + other.message_bytes,
        )

    def __mul__(self, factor: Num) -> Costs:
        return Costs(
            flops=self.flops * factor,
            hbm_bytes=self.hbm_bytes * factor,
            host_bytes=self.host_bytes * factor,
            message_bytes=self.message_bytes * factor,
        )

    @property
    def intensity(self) -> Num:
        """FLOPs per HBM byte; 0 where no byte is moved."""
        flops, moved = np.asarray(self.flops, dtype=float), np.asarray(self.hbm_bytes, dtype=float)
        return np.divide(flops, moved, out=np.zeros(np.broadcast(flops, moved).shape), where=moved > 0)[()]


def step_costs(step: Step) -> dict[Key, Costs]:
    """Costs of the whole step by (part, block, phase), over all ``layers`` and executions, in the operators' order.

    As one device runs it: of a step that ``shard`` has divided, that device's share. A part that ``layers`` does not
    name counts once. The optimizer is a step of its own. Everything broadcasts over points.
    """
    found: dict[Key, Costs] = {}
    for op in step.ops:
        key = (op.part, op.block, op.phase)
        once = Costs(
            flops=op.flops,
            hbm_bytes=op.traffic_bytes.get("hbm", 0.0),
            host_bytes=op.traffic_bytes.get("host", 0.0),
            message_bytes=op.message_bytes,
        )
        found[key] = found.get(key, Costs()) + once * (op.count * step.layers.get(op.part, 1.0))
    return found


def total(costs: Mapping[Key, Costs], keep: Callable[[Key], bool] | None = None) -> Costs:
    """The sum of those costs whose key ``keep`` accepts; of all by default."""
    return sum((cost for key, cost in costs.items() if keep is None or keep(key)), Costs())


def ridge_flops_per_byte(device: Device, format: str = "bf16") -> Num:
    """FLOPs per HBM byte at which a device's datasheet peak of ``format`` and its HBM bandwidth take equally long."""
    return device.peak_flops_per_s[format] / device.memories["hbm"].bandwidth_bytes_per_s
