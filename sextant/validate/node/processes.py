"""The processes that measure together: their groups, what they agree on, and how they wait for each other.

Whatever the processes decide together (how often to repeat, whether one of them failed) travels over a group of its own
on the CPU, so that it neither disturbs what is measured nor hangs with it.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sextant.validate.kernels import Target

#: How long a process waits for another before it gives up; the parent ends a silent family earlier.
TIME_LIMIT = timedelta(seconds=90)
#: NVLink multicast stays off in every library: on a shared host it can put the GPUs of others out of service.
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1",
}  # fmt: skip


@dataclass(slots=True)
class Ranks:
    """One process's view of all: its rank, the device it measures, the groups. ``graphs``: whether calls may be
    captured. ``kept`` holds what several cases of one family share."""

    rank: int
    size: int
    target: Target
    control: Any
    graphs: bool
    groups: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """This process's own device."""
        return torch.device("cuda", self.rank) if self.target.cuda else torch.device("cpu")

    @property
    def library(self) -> str:
        """What moves the bytes."""
        return "nccl" if self.target.cuda else "gloo"

    def group(self, name: str = "", max_ctas: int = 0) -> Any:
        """The group of all processes called ``name``, on at most ``max_ctas`` thread blocks (0: as many as NCCL likes).

        Each is a communicator with a stream of its own, made when it is first asked for, by all processes alike.
        """
        key = f"{name}:{max_ctas}"
        if key not in self.groups:
            options = None
            if max_ctas and self.target.cuda:
                options = getattr(dist, "ProcessGroupNCCL").Options()  # noqa: B009 (absent from builds without GPUs)
                options.config.min_ctas, options.config.max_ctas = 1, max_ctas
            self.groups[key] = dist.new_group(timeout=TIME_LIMIT, backend=self.library, pg_options=options)
        return self.groups[key]

    def wait(self) -> None:
        """Until all processes are here and their devices idle."""
        self.synchronize()
        dist.barrier(group=self.control)

    def synchronize(self) -> None:
        """Until this process's device is idle."""
        if self.target.cuda:
            torch.cuda.synchronize()

    def gathered(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.control)
        return box

    def first(self, value: Any) -> Any:
        """The first process's value, in all processes."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def slowest(self, values: list[float]) -> list[float]:
        """Of each value the largest of all processes'; an empty answer of one of them (infinity) stays infinite."""
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()

    def require(self, error: float, *, what: str, tolerance: float = 1e-2) -> float:
        """The largest relative error of all processes; ``ValueError`` in all of them unless below ``tolerance``."""
        (worst,) = self.slowest([error if math.isfinite(error) else math.inf])
        if not worst < tolerance:
            raise ValueError(f"check: {what} is off by {worst:.3g} (relative norm), allowed {tolerance:g}")
        return worst


def joined(rank: int, size: int, port: int, *, cuda: bool, graphs: bool) -> Ranks:
    """This process as one of ``size``; returns when all have come."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ENVIRONMENT}
    if sys.platform == "linux":  # one host: the control group needs no network, and no name that resolves
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=TIME_LIMIT)
    from sextant.validate.measure import find_target

    target = find_target("cuda" if cuda else "cpu")
    return Ranks(rank=rank, size=size, target=target, control=dist.group.WORLD, graphs=graphs)
