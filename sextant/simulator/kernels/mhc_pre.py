"""From the n residual streams of mHC to the input of a layer function: mappings, Sinkhorn, weighted sum of streams.

Shape: n_tokens, hidden (C), n_streams (n), sinkhorn_iters. Two kernels: a product of the (n C) residual in BF16 with
the FP32 weights of n^2 + 2 n mappings, with the residual's mean square beside it; and one that makes the mappings
(sigmoid, Sinkhorn) and applies H_pre, reading the residual once more (mHC, arXiv:2512.24880, s4.3.1, Table 2). The
norm that the layer function starts with is not included.

``backward`` reads the residual and the gradients of the layer's input, adds to the residual's gradient twice (through
H_pre and through the mappings) and sums the weight gradient: the kernels of deepseek-ai/TileKernels pre_apply_mix and
pre_norm_fn. It was not measured: the forward's coefficients, marked assumed, with a wider interval.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.streams import Stream, stream_seconds
from sextant.simulator.types import Cluster, Device, Estimate, Num, Op

#: Share of the TF32 peak that the narrow product of the mappings is taken to reach; it binds only for many streams.
MATH_SHARE = 0.5

#: Kernels of the backward pass beside those of the forward: apply, Sinkhorn with split, product.
BACKWARD_KERNELS = 1.5

#: Widening of the interval for the backward pass.
BACKWARD_LOW, BACKWARD_HIGH = 0.9, 1.4


def n_mappings(n_streams: Num) -> Num:
    """Coefficients per token: n of H_pre, n of H_post, n^2 of H_res."""
    return n_streams * (n_streams + 2.0)


def stream(shape: Mapping[str, Num], variant: str) -> Stream:
    """Bytes of one execution: BF16 tensors, FP32 mappings and weights."""
    n, width, maps = shape["n_streams"], shape["hidden"], n_mappings(shape["n_streams"])
    weights = 4.0 * n * width * maps
    if variant == "backward":
        # apply: grad C, residual n C, its gradient n C read, n C written; product: residual, gradient read, written.
        passes, once = 2.0 * width * (6.0 * n + 1.0), 2.0 * width * (2.0 * n + 1.0)
        return Stream(
            n_tokens=shape["n_tokens"], token_bytes=passes + 12.0 * maps, tensor_bytes=once, fixed_bytes=3.0 * weights
        )
    passes, once = 2.0 * width * (2.0 * n + 1.0), 2.0 * width * (n + 1.0)
    return Stream(n_tokens=shape["n_tokens"], token_bytes=passes + 12.0 * maps, tensor_bytes=once, fixed_bytes=weights)


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """FLOPs of the mappings' product (2 n C (n^2 + 2 n) per token, twice that backward) and of applying H_pre (2 n C,
    4 n C backward), Sinkhorn left out; the bytes of all passes."""
    moved, wide = stream(shape, variant), shape["n_streams"] * shape["hidden"]
    passes = 2.0 if variant == "backward" else 1.0
    flops = passes * 2.0 * wide * (n_mappings(shape["n_streams"]) + 1.0) * shape["n_tokens"]
    return Work(flops=flops, traffic_bytes={"hbm": moved.n_tokens * moved.token_bytes + moved.fixed_bytes})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``mhc_pre``: those of ``streams``, and iteration_s per Sinkhorn iteration, which runs on
    chip. KeyError if the device has no such block."""
    device, s = cluster.device, op.shape
    fit = fit_of(device, "mhc_pre")
    parts = stream_seconds(stream(s, op.variant), fit.coefficients, device)
    math_s = work(s, op.format, op.variant).flops / (_tf32(device) * MATH_SHARE)
    backward = op.variant == "backward"
    launch_s = (BACKWARD_KERNELS if backward else 1.0) * parts.launch + iterations_s(s, fit.coefficients)
    seconds = launch_s + np.maximum(parts.memory, math_s)
    low, high = (fit.low * BACKWARD_LOW, fit.high * BACKWARD_HIGH) if backward else (fit.low, fit.high)
    return Estimate(
        seconds=seconds, low=seconds * low, high=seconds * high,
        limits={"math": math_s, "memory": parts.memory, "launch": launch_s},
        provenance="assumed" if backward else fit.provenance,
    )  # fmt: skip


def iterations_s(shape: Mapping[str, Num], coefficients: Mapping[str, Num]) -> Num:
    """Seconds of Sinkhorn's iterations, one after the other; each token has a thread of its own."""
    return coefficients["iteration_s"] * shape["sinkhorn_iters"]


def _tf32(device: Device) -> Num:
    """TF32 FLOP/s: a GPU that does not state them is taken to have half its BF16 rate."""
    return device.peak_flops_per_s.get("tf32", device.peak_flops_per_s["bf16"] / 2.0) * device.clock_under_load
