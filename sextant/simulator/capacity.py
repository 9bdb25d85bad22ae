"""Does it fit? Bytes by part against the capacity of a memory tier, with the verdict and the nearest miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.types import Device, Num

#: What a framework, its communication buffers and fragmentation take beside tensors while serving; assumed, no
#: publication says.
RESERVED_BYTES = 3.0e9

#: CUDA's context and the code of the libraries, in training, whose buffers are counted one by one: 1.06 GB on an H100
#: beside what the framework allocated, before NCCL connected its channels (NVIDIA/nccl issue 1685).
CONTEXT_BYTES = 1.06e9

#: What an allocator loses between tensors that come and go, as a share of them; assumed. Training repeats one pattern,
#: for which planned allocation loses next to nothing, while online caching has been seen to lose up to 43%
#: (arXiv:2507.16274).
FRAGMENTATION_SHARE = 0.03


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
