"""One GPU predicted from the fits of another: its datasheet, one copy and one product in the place of measurements.

Coefficients are shares of datasheet rates, ratios or seconds. In another GPU's place

    shares of the tensor peak and of the HBM bandwidth stay, and so do seconds and learned corrections: they belong to
        a library's kernels. Without the corrections BF16 products of an H200 from an H100's fit erred by 7.1% instead
        of 6.4%, and those of an H100 from an H200's by 10.4% instead of 8.9%
    speeds of one SM, of its shared memory and of its port to the L2 cache stay in bytes per second: a faster HBM
        changes none of them. Where a coefficient has them in units of the HBM bandwidth it is restated (``restated``);
        as it stood, the same products erred by 6.8% and 9.6%
    speeds of the whole L2 cache grow with the SMs

Two rates of the target may then correct what its datasheet does not say: how much of it is reached. Each is one row,
measured over predicted, and one row is off for reasons of its own; what the 90% interval of the source's block explains
is therefore no news of the target, and only the rest is applied. (Products of the H200 and the H100 that were chosen by
their size alone took 1.04 and 1.08 of the predicted time; those of 1 TFLOP and more have medians of 0.97 and 1.05.)

    gemm_rate   a large BF16 product, in all shares of the tensor peak: they follow from the clock that the power limit
                leaves, whatever the kernel
    copy_rate   a large copy, in the shares of the HBM bandwidth of kernels that write about as much as they read. Not
                in those that mostly read (products, attention, caches): turning the memory's bus around costs each kind
                of memory differently. An H200 reaches 0.80 of its bandwidth in a copy and up to 0.94 in products that
                only stream their weights, an H100 0.89 and 0.86
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import mhc_post
from sextant.simulator.types import Device, KernelFit, Num
from sextant.validate.prediction import predict
from sextant.validate.solver import alone

#: The largest ratio of two sizes of a product that counts as square.
SQUARE = 4.0

#: Coefficients that are shares of the tensor peak.
MATH_SHARES = ("math_share", "matrix_efficiency")
#: Shares of the HBM bandwidth, and times that bytes cross it, of kernels that write about as much as they read.
_COPY_SHARES, _COPY_PASSES = ("efficiency", "product_efficiency"), ("hidden_passes", "ffn_passes", "token_passes")
_COPYING = ("memory", "mhc_", "engram_gate", "sinkhorn", "moe_", "gather_hbm")
#: Blocks of the tile model: only there is ``padding`` a cost in units of reading from HBM.
_TILED = ("gemm_", "grouped_gemm_")

#: A copy stands for residual streams of this shape, and they for it, where a GPU was measured on one of them alone.
_STREAM_WIDTH, _N_STREAMS = 4096, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One measured kernel: the columns that name its case, and its seconds."""

    case: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The two rates of a GPU; None where its rows have none."""

    copy: Rate | None
    gemm: Rate | None


def transferred(source: Device, target: Device, copy_rate: Rate | None = None, gemm_rate: Rate | None = None) -> Device:
    """``target`` with the kernel blocks of ``source`` in the place of its own, rescaled by up to two measured rates.

    Intervals stay those of the source: how far a transfer is trusted is a ``hwmodels.gpus.Transfer``. InputError where
    the source's blocks cannot predict a rate's case.
    """
    kernels = {name: restated(name, fit, source, target) for name, fit in source.kernels.items()}
    found = replace(target, kernels=kernels)
    copying = 1.0 if copy_rate is None else news(found, copy_rate)
    computing = 1.0 if gemm_rate is None else news(found, gemm_rate)
    return replace(found, kernels={name: _slowed(name, fit, copying, computing) for name, fit in kernels.items()})


def restated(name: str, fit: KernelFit, source: Device, target: Device) -> KernelFit:
    """The block ``name`` of ``source`` for ``target``: what belongs to an SM or to the L2 cache keeps its speed.

    The same object where the two GPUs have the same SMs and HBM bandwidth.
    """
    sms = target.n_sms / source.n_sms
    bandwidth = target.memories["hbm"].bandwidth_bytes_per_s / source.memories["hbm"].bandwidth_bytes_per_s
    # The even share of the bandwidth that falls to one SM.
    share = bandwidth / sms
    factors: dict[str, Num] = {
        "load_ratio": 1.0 / share, "l2_speedup": 1.0 / share, "convert": share, "row_cost": bandwidth,
        "l2_bytes_per_s": sms,
    }  # fmt: skip
    if name.startswith(_TILED):
        factors["padding"] = share
    return _scaled(fit, factors)


def news(device: Device, rate: Rate) -> float:
    """Measured over predicted seconds of a rate, beyond what the 90% interval of the prediction explains: 1.0 inside.

    A copy that ``device`` has no block for is predicted as residual streams of as many bytes, and they as a copy.
    """
    found = _predicted(device, rate.case)
    if found is None:
        stand_in = _stand_in(rate.case)
        found = None if stand_in is None else _predicted(device, stand_in)
    if found is None:
        said = ", ".join(f"{name} {value}" for name, value in rate.case.items() if value)
        raise InputError(f"rate: no block of {device.name} predicts {said}; give another kernel")
    low, high = found
    return rate.seconds / float(np.clip(rate.seconds, low, high))


def named_rates(rows: Sequence[Mapping[str, str]]) -> Rates:
    """The two rates among measured rows (``us``): the largest copy, the faster of two, or where there is none the
    largest write-back of residual streams, which reads five parts and writes four; and the largest BF16 product whose
    sizes are within ``SQUARE`` of each other."""
    timed = [row for row in rows if row.get("us") and not _is_backward(row)]
    copies = [row for row in timed if row["op"] == "copy"]
    streams = [row for row in timed if row["op"] == "mhc_post"]
    products = [row for row in timed if row["op"] == "gemm" and row.get("format") == "bf16" and _is_square(row)]
    return Rates(
        copy=_largest(copies, lambda row: float(row["bytes"])) or _largest(streams, _stream_bytes),
        gemm=_largest(products, lambda row: float(row["m"]) * float(row["n"]) * float(row["k"])),
    )


def _largest(rows: Sequence[Mapping[str, str]], size: Callable[[Mapping[str, str]], float]) -> Rate | None:
    if not rows:
        return None
    row = max(rows, key=lambda row: (size(row), -float(row["us"])))
    # Of the columns, those that name the case: a prediction ignores the others.
    return Rate(case={name: value for name, value in row.items() if value}, seconds=1e-6 * float(row["us"]))


def _is_backward(row: Mapping[str, str]) -> bool:
    return row.get("direction", "") == "backward" or row.get("variant", "") in ("wgrad", "dgrad")


def _is_square(row: Mapping[str, str]) -> bool:
    sizes = [float(row[name]) for name in ("m", "n", "k")]
    return max(sizes) <= SQUARE * min(sizes)


def _stream_bytes(row: Mapping[str, str]) -> float:
    shape = {"n_tokens": 1.0, "hidden": float(row["hidden"]), "n_streams": float(row["n_streams"])}
    return float(row["n_tokens"]) * float(mhc_post.stream(shape, "").token_bytes)


def _stand_in(case: Mapping[str, str]) -> dict[str, str] | None:
    """The other kernel that moves as many bytes as a copy or residual streams do; None for other kernels."""
    if case["op"] == "mhc_post":
        return {"op": "copy", "bytes": str(round(_stream_bytes(case) / 2.0))}
    if case["op"] != "copy":
        return None
    shape = {"hidden": str(_STREAM_WIDTH), "n_streams": str(_N_STREAMS), "n_tokens": "1"}
    n_tokens = max(round(2.0 * float(case["bytes"]) / _stream_bytes(shape)), 1)
    return {"op": "mhc_post", **shape, "n_tokens": str(n_tokens)}


def _predicted(device: Device, case: Mapping[str, str]) -> tuple[float, float] | None:
    """The 90% interval of a case in seconds, at the clock of short runs; None where ``device`` has no block for it."""
    cluster = alone(replace(device, clock_under_load=1.0))
    found = predict({name: [value] for name, value in case.items()}, 1, cluster)
    if found.error[0]:
        return None
    return 1e-6 * float(found.low_us[0]), 1e-6 * float(found.high_us[0])


def _slowed(name: str, fit: KernelFit, copying: float, computing: float) -> KernelFit:
    """A block whose kernels take ``computing`` times as long in tensor cores and ``copying`` times on the HBM bus."""
    factors: dict[str, Num] = dict.fromkeys(MATH_SHARES, 1.0 / computing)
    if name.startswith(_COPYING):
        factors |= dict.fromkeys(_COPY_SHARES, 1.0 / copying) | dict.fromkeys(_COPY_PASSES, copying)
    return _scaled(fit, factors)


def _scaled(fit: KernelFit, factors: Mapping[str, Num]) -> KernelFit:
    """``fit`` with those of its coefficients multiplied; itself where that changes nothing."""
    changed = {
        name: fit.coefficients[name] * by
        for name, by in factors.items()
        if name in fit.coefficients and not np.all(np.asarray(by) == 1.0)
    }
    return replace(fit, coefficients={**fit.coefficients, **changed}) if changed else fit
