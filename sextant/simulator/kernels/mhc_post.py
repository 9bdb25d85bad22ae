"""From the output of a layer function back to the n residual streams of mHC: H_post and H_res applied and added.

Shape: n_tokens, hidden (C), n_streams (n); sinkhorn_iters is ignored (H_res comes ready from ``mhc_pre``). One kernel
that reads n C + C and writes n C elements in BF16 (mHC, arXiv:2512.24880, s4.3.1).

``backward`` reads the gradients and the residual (n C each) and the layer's output, writes the gradients of the
last two and of the mappings: this package's kernel, the block ``mhc_post_backward``. ``training_backward`` is the one
that DeepSeek released (deepseek-ai/TileKernels post), ``mhc_post_training_backward``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import Work, fit_of, mhc_training
from sextant.simulator.kernels.mhc_training import is_backward
from sextant.simulator.kernels.rows import least_seconds
from sextant.simulator.kernels.streams import Stream, StreamSeconds, corrected_stream_seconds, stream_rows
from sextant.simulator.types import Cluster, Estimate, Num, Op


def stream(shape: Mapping[str, Num], variant: str) -> Stream:
    """Bytes of one execution: BF16 tensors, n^2 + n FP32 mappings (backward: with their gradients)."""
    n, width = shape["n_streams"], shape["hidden"]
    maps = 4.0 * n * (n + 1.0)
    backward = is_backward(variant)
    elements = (3.0 * n + 2.0) * width if backward else (2.0 * n + 1.0) * width
    size = 2.0 * elements + (2.0 * maps if backward else maps)
    return Stream(n_tokens=shape["n_tokens"], token_bytes=size, tensor_bytes=size)


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """2 n (n + 1) C FLOPs per token, twice that backward; every tensor read or written once."""
    moved, n = stream(shape, variant), shape["n_streams"]
    passes = 2.0 if is_backward(variant) else 1.0
    flops = passes * 2.0 * n * (n + 1.0) * shape["hidden"] * shape["n_tokens"]
    return Work(flops=flops, traffic_bytes={"hbm": moved.n_tokens * moved.token_bytes})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``mhc_post``, of a backward pass that of the variant, with the coefficients of ``streams``
    or of ``rows``, or of ``mhc_training``; KeyError if the device has none."""
    device, moved = cluster.device, stream(op.shape, op.variant)
    fit = fit_of(device, f"mhc_post_{op.variant}" if is_backward(op.variant) else "mhc_post")
    if op.variant == "backward":
        launch_s, memory_s = mhc_training.fused_post_backward(op.shape, fit.coefficients, device)
        total_s = np.maximum(launch_s + memory_s, least_seconds(stream_rows(moved, op.shape), device))
        parts = StreamSeconds(total=total_s, memory=memory_s, launch=launch_s)
    else:
        parts = corrected_stream_seconds(moved, op.shape, fit, device)
    found = Estimate(
        seconds=parts.total, low=parts.total * fit.low, high=parts.total * fit.high,
        limits={"memory": parts.memory, "launch": parts.launch}, provenance=fit.provenance,
    )  # fmt: skip
    return mhc_training.widened(found, op.shape["n_streams"]) if op.variant == "backward" else found
