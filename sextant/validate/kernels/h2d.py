"""Copies between pinned host memory and device memory by the copy engine (on the CPU: a plain copy)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, sizes

#: Rotated buffers: pinning is slow, and the caches that matter here are the host's.
N_SETS = 4


def _buffers(n_bytes: int, target: Target) -> tuple[Tensor, Tensor]:
    host = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=target.device)
    if target.cuda:
        host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).copy_(host)
    return host, torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=target.device)


def build(case: Case, target: Target) -> Prepared:
    """One copy of ``bytes``; the direction is the operator's name."""
    (n_bytes,) = sizes(case, "bytes")
    to_device = case["op"] == "h2d"
    pairs = [_buffers(n_bytes, target) for _ in range(N_SETS if n_bytes <= 2**26 else 2)]
    pairs = [(host, device) if to_device else (device, host) for host, device in pairs]

    def move(source: Tensor, destination: Tensor) -> Tensor:
        return destination.copy_(source, non_blocking=True)

    def check() -> float:
        source, destination = pairs[0]
        move(source, destination)
        if target.cuda:
            torch.cuda.synchronize()
        if not torch.equal(source.cpu(), destination.cpu()):
            raise ValueError("check: the copy differs from its source")
        return 0.0

    return Prepared(
        calls=tuple(partial(move, *pair) for pair in pairs),
        check=check,
        read_bytes=float(n_bytes),
        write_bytes=float(n_bytes),
        library=target.library("cuda_memcpy_async"),
    )


BUILDERS = {"h2d": build, "d2h": build}
