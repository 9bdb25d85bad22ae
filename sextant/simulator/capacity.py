"""Does it fit? Bytes by part against the capacity of a memory tier, with the verdict and the nearest miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.types import Device, Num

#: What a framework, its communication buffers and fragmentation take beside tensors; assumed, no publication says.
RESERVED_BYTES = 3.0e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Use of one memory tier: ``parts`` in bytes, their sum, the tier's capacity and whether the sum fits."""

    tier: str
    parts: Mapping[str, Num]
    used_bytes: Num
    capacity_bytes: Num

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether the tier holds it, per point."""
        return np.asarray(self.used_bytes <= self.capacity_bytes)

    @property
    def free_bytes(self) -> Num:
        """What is left; negative is the nearest miss."""
        return self.capacity_bytes - self.used_bytes


def capacity(device: Device, tier: str, parts: Mapping[str, Num], reserved_bytes: Num = RESERVED_BYTES) -> Capacity:
    """The verdict for ``parts`` (bytes by name) and the reserve in ``device.memories[tier]``."""
    full = {**parts, "reserved": reserved_bytes} if tier == "hbm" else dict(parts)
    used: Num = sum(full.values(), 0.0)
    return Capacity(tier=tier, parts=full, used_bytes=used, capacity_bytes=device.memories[tier].capacity_bytes)
