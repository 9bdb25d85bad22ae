"""From the n residual streams of mHC to the input of a layer function: mappings, Sinkhorn, weighted sum of streams.

Shape: n_tokens, hidden (C), n_streams (n), sinkhorn_iters. Two kernels: a product of the (n C) residual in BF16 with
the FP32 weights of n^2 + 2 n mappings, with the residual's mean square beside it; and one that makes the mappings
(sigmoid, Sinkhorn) and applies H_pre, reading the residual once more (mHC, arXiv:2512.24880, s4.3.1, Table 2). The
norm that the layer function starts with is not included.

A block has the coefficients of ``streams`` (kernels fused further, as serving engines have them) or those of two
kernels, a product in blocks of 16 or 64 tokens that is split along n C over idle SMs, and one program per token:

    floor_s, column_s, iteration_s   latency: launches, per value of a token's n C, per Sinkhorn iteration
    product_efficiency, efficiency   shares of the HBM bandwidth that the product and the other kernel reach
    short_s, tall_s                  an SM's time for one of the n C values of a block of 16 or of 64 tokens ...
    short_lane_s, tall_lane_s        ... or per mapping, padded to a power of two, whichever is longer
    token_iteration_s                Sinkhorn's time of a token on one SM, per iteration

``backward`` is what the mHC paper describes, by this package's kernels: one reads the residual and the gradient of the
layer's input for H_pre's gradients, one makes those of the mappings, and one product adds to the residual's gradient
(through H_pre, mappings and norm at once) and sums the weights'. ``training`` and ``training_backward`` are the kernels
that DeepSeek released (deepseek-ai/TileKernels pre_apply_mix, pre_norm_fn and what is between). These add to the
residual's gradient twice, and their product of the mappings, whose weight gradient is not split, takes two to nine
times what its bytes do; the package itself recommends another. Both were measured; ``mhc_training`` has their
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import Work, fit_of, mhc_training
from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.mhc_training import is_backward, n_mappings, padded_mappings
from sextant.simulator.kernels.rows import least_seconds
from sextant.simulator.kernels.streams import Stream, stream_features, stream_rows, stream_seconds
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Share of the TF32 peak that the narrow product of the mappings is taken to reach; it binds only for many streams.
MATH_SHARE = 0.5

#: Tokens of a block of the product: the taller one where it fills all SMs.
SHORT_BLOCK, TALL_BLOCK = 16.0, 64.0

#: By variant the arithmetic of training kernels; their block is named after it.
_TRAINING = {
    "training": mhc_training.forward, "training_backward": mhc_training.backward,
    "backward": mhc_training.fused_backward,
}  # fmt: skip


def stream(shape: Mapping[str, Num], variant: str) -> Stream:
    """Bytes of one execution: BF16 tensors, FP32 mappings and weights."""
    n, width, maps = shape["n_streams"], shape["hidden"], n_mappings(shape["n_streams"])
    if is_backward(variant):
        # Released, H_pre's gradients read C + 2 n C and write n C, and the product reads 2 n C and writes n C; fused,
        # the former read C + n C and write none, and the product reads C + 2 n C and writes n C.
        elements = 6.0 * n + 1.0 if variant == "training_backward" else 4.0 * n + 2.0
        return Stream(
            n_tokens=shape["n_tokens"], token_bytes=2.0 * width * elements + 12.0 * maps,
            tensor_bytes=2.0 * width * (2.0 * n + 1.0), fixed_bytes=12.0 * n * width * maps,
        )  # fmt: skip
    passes, once = 2.0 * width * (2.0 * n + 1.0), 2.0 * width * (n + 1.0)
    weights = 4.0 * n * width * maps
    return Stream(n_tokens=shape["n_tokens"], token_bytes=passes + 12.0 * maps, tensor_bytes=once, fixed_bytes=weights)


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """FLOPs of the mappings' product (2 n C (n^2 + 2 n) per token, twice that backward) and of applying H_pre (2 n C,
    4 n C backward), Sinkhorn left out; the bytes of all passes."""
    moved, wide = stream(shape, variant), shape["n_streams"] * shape["hidden"]
    passes = 2.0 if is_backward(variant) else 1.0
    flops = passes * 2.0 * wide * (n_mappings(shape["n_streams"]) + 1.0) * shape["n_tokens"]
    return Work(flops=flops, traffic_bytes={"hbm": moved.n_tokens * moved.token_bytes + moved.fixed_bytes})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``mhc_pre``, with iteration_s per Sinkhorn iteration, which runs on chip; of training
    kernels by the block of the variant. KeyError if the device lacks one."""
    device, s = cluster.device, op.shape
    if op.variant:
        return _training(op, device)
    fit = fit_of(device, "mhc_pre")
    what, math_s = stream(s, op.variant), _math_s(op, device)
    launch_s, memory_s = _parts(s, what, fit, device)
    launch_s = launch_s + iterations_s(s, fit.coefficients)
    seconds = (launch_s + np.maximum(memory_s, math_s)) * correction(fit, features(s, op.variant))
    seconds = np.maximum(seconds, _least_s(op, device))
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"math": math_s, "memory": memory_s, "launch": launch_s}, provenance=fit.provenance,
    )  # fmt: skip


def _training(op: Op, device: Device) -> Estimate:
    """Kernels of the training, part by part, as measured."""
    fit = fit_of(device, f"mhc_pre_{op.variant}")
    parts, math_s = _TRAINING[op.variant](op.shape, fit.coefficients, device), _math_s(op, device)
    parts = replace(parts, product=np.maximum(parts.product, math_s))
    seconds = np.maximum(parts.total, _least_s(op, device))
    found = Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"math": math_s, "memory": parts.product + parts.apply, "launch": parts.sinkhorn + parts.small},
        provenance=fit.provenance,
    )  # fmt: skip
    return mhc_training.widened(found, op.shape["n_streams"]) if op.variant == "backward" else found


def _parts(shape: Mapping[str, Num], what: Stream, fit: KernelFit, device: Device) -> tuple[Num, Num]:
    """Seconds of latency, iterations left out, and of the bytes."""
    if "column_s" in fit.coefficients:
        return _two_kernels(shape, what, fit.coefficients, device)
    parts = stream_seconds(what, fit.coefficients, device)
    return parts.launch, parts.memory


def _math_s(op: Op, device: Device) -> Num:
    return work(op.shape, op.format, op.variant).flops / (_tf32(device) * MATH_SHARE)


def _least_s(op: Op, device: Device) -> Num:
    """What HBM takes for the distinct tensors that L2 cannot hold."""
    what = stream(op.shape, op.variant)
    return least_seconds(stream_rows(replace(what, token_bytes=what.tensor_bytes), op.shape), device)


def features(shape: Mapping[str, Num], variant: str = "") -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: bytes moved, tokens, streams."""
    return stream_features(stream(shape, variant), shape)


def _two_kernels(shape: Mapping[str, Num], what: Stream, c: Mapping[str, Num], device: Device) -> tuple[Num, Num]:
    """Seconds of latency without the iterations, and of the bytes: those of the product, and of the other kernel."""
    n_tokens, wide = shape["n_tokens"], shape["n_streams"] * shape["hidden"]
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    read_s = n_tokens * 2.0 * wide / (bandwidth * c["product_efficiency"])
    height = np.where(n_tokens >= TALL_BLOCK * device.n_sms, TALL_BLOCK, SHORT_BLOCK)
    lanes = padded_mappings(shape["n_streams"])
    tall = height == TALL_BLOCK
    value_s = np.where(tall, c["tall_s"], c["short_s"])
    lanes_s = lanes * np.where(tall, c["tall_lane_s"], c["short_lane_s"])
    value_s = np.sqrt(np.sqrt(value_s**4 + lanes_s**4))
    worked_s = np.ceil(n_tokens / height) * wide * value_s / device.n_sms
    rest_s = n_tokens * (what.token_bytes - 2.0 * wide) / (bandwidth * c["efficiency"])
    rest_s = np.maximum(rest_s, n_tokens / device.n_sms * c["token_iteration_s"] * shape["sinkhorn_iters"])
    product_s = np.sqrt(np.sqrt(read_s**4 + worked_s**4))
    return np.maximum(c["floor_s"], device.launch_s) + c["column_s"] * wide, product_s + rest_s


def iterations_s(shape: Mapping[str, Num], coefficients: Mapping[str, Num]) -> Num:
    """Seconds of Sinkhorn's iterations, one after the other; each token has a thread of its own."""
    return coefficients["iteration_s"] * shape["sinkhorn_iters"]


def _tf32(device: Device) -> Num:
    """TF32 FLOP/s: a GPU that does not state them is taken to have half its BF16 rate."""
    return device.peak_flops_per_s.get("tf32", device.peak_flops_per_s["bf16"] / 2.0) * device.clock_under_load
