"""The time of one operator. Each module is one operator kind, found by its name, and owns two pure functions.

    work(shape, format, variant) -> Work       FLOPs and bytes of one execution: the only place that formula stands
    estimate(op, cluster) -> Estimate          seconds of one execution on one device of the cluster

Shapes hold floats or arrays of shape (n_points,); everything broadcasts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Bytes of one element, scales included where a format has them: FP8 carries an FP32 scale per 128 elements.
BYTES: Mapping[str, float] = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_block": 1.0 + 4.0 / 128, "e5m6": 1.5,
}  # fmt: skip

#: The peak a format's matrix products run at.
PEAK: Mapping[str, str] = {"fp8_block": "fp8", "fp16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one execution needs: FLOPs, bytes moved per memory tier, bytes sent per device."""

    flops: Num = 0.0
    traffic_bytes: Mapping[str, Num] = field(default_factory=dict)
    message_bytes: Num = 0.0


def operator(kind: str, name: str, format: str, shape: Mapping[str, Num], *, variant: str = "", **rest: Any) -> Op:
    """An ``Op`` whose FLOPs and bytes follow from its shape by the one formula of its kind."""
    work = module(kind).work(shape, format, variant)
    return Op(
        kind=kind, name=name, format=format, shape=dict(shape), variant=variant, flops=work.flops,
        traffic_bytes=work.traffic_bytes, message_bytes=work.message_bytes, **rest,
    )  # fmt: skip


def reshape(op: Op, **dims: Num) -> Op:
    """``op`` with other dimensions, its FLOPs and bytes computed anew."""
    shape = {**op.shape, **dims}
    work = module(op.kind).work(shape, op.format, op.variant)
    return replace(
        op, shape=shape, flops=work.flops, traffic_bytes=work.traffic_bytes, message_bytes=work.message_bytes
    )


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds of one execution of ``op`` on one device of ``cluster``, with its 90% interval and provenance."""
    return module(op.kind).estimate(op, cluster)


def peak(device: Device, format: str, *, lasting: bool = True) -> Num:
    """Dense matrix FLOP/s of ``format``; a GPU without FP8 runs it at its BF16 rate (the tensors are converted).

    At the clock that load which lasts leaves, unless the caller's coefficients already hold it (``lasting=False``).
    """
    name = PEAK.get(format, format)
    clock = device.clock_under_load if lasting else 1.0
    return device.peak_flops_per_s.get(name, device.peak_flops_per_s["bf16"]) * clock


#: How the clock of a GPU at its power limit rises when SMs rest: share ~ (all SMs / working SMs) ** this. Products on
#: 112 of 132 SMs of an H200 under lasting load took 4.9% longer than on all
#: (validate/data/measured/h200_sustained.csv).
REST_EXPONENT = 0.71


def with_sms(device: Device, n_sms: Num) -> Device:
    """``device`` when only ``n_sms`` of its SMs compute, e.g. because communication kernels hold the others.

    The peak falls in proportion; a clock that the power limit held back recovers in part.
    """
    share = n_sms / device.n_sms
    peaks = {name: rate * share for name, rate in device.peak_flops_per_s.items()}
    clock = np.minimum(1.0, device.clock_under_load * share**-REST_EXPONENT)
    held_back = np.asarray(device.clock_under_load) < 1.0
    clock = np.where(held_back, clock, device.clock_under_load)[()]
    held = device.n_held_sms + device.n_sms - n_sms
    return replace(device, n_sms=n_sms, n_held_sms=held, peak_flops_per_s=peaks, clock_under_load=clock)


#: Products lose this much of their speed for each unit of the HBM bandwidth that a kernel on other SMs moves, beyond
#: the SMs it holds: 0.22 to 0.35, median 0.29, for four products of an H200 beside copies of 4 to 31% of its bandwidth
#: (validate/data/measured/h200_beside.csv). Attention loses nothing up to 10%, and 0.16 at 30%.
PRODUCT_LOSS = 0.29
#: What a copying kernel takes longer while products run on the other SMs: 1.07 to 1.11, median 1.08 in the same file.
COPY_SLOWDOWN = 1.08


def beside_messages(device: Device, share: Num) -> Device:
    """``device`` when communication on other SMs takes ``share`` of its HBM bandwidth, and slows products by what it
    takes of the L2 cache and of the power besides."""
    hbm = device.memories["hbm"]
    less = replace(hbm, bandwidth_bytes_per_s=hbm.bandwidth_bytes_per_s * (1.0 - share))
    slower = 1.0 + PRODUCT_LOSS * share
    peaks = {name: rate / slower for name, rate in device.peak_flops_per_s.items()}
    return replace(device, memories={**device.memories, "hbm": less}, peak_flops_per_s=peaks)


def fit_of(device: Device, *names: str) -> KernelFit:
    """The first of ``names`` for which ``device`` has fitted coefficients; KeyError names what is missing."""
    for name in names:
        if name in device.kernels:
            return device.kernels[name]
    raise KeyError(f"device {device.name!r} has no kernel coefficients named {' or '.join(names)}")


@cache
def module(kind: str) -> Any:
    """The module of an operator kind; ModuleNotFoundError if there is none."""
    return importlib.import_module(f"{__name__}.{kind}")


def is_kind(name: str) -> bool:
    """Whether the module ``name`` is an operator kind rather than arithmetic that kinds share."""
    return hasattr(module(name), "estimate")
