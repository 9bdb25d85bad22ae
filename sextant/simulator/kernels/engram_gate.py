"""Engram's gate: keys against the residual streams, the value scaled by what comes out (arXiv:2601.07372, s2.3).

Shape: n_tokens, hidden (C), n_streams (n); sinkhorn_iters is ignored. One fused kernel reads the n C residual, n C
keys and the C value, normalises keys and residual (n C weights each) and writes the n C gated values
(deepseek-ai/TileKernels engram_gate). ``backward`` reads the gradient as well and writes gradients of all three inputs
(own count).

Where a device has no block of its own the gate takes that of ``mhc_post``, which streams n C tensors token by token as
well: assumed, with a wide interval. So is the backward pass everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.streams import Stream, corrected_stream_seconds
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Widening of the interval.
LOW, HIGH = 0.7, 1.5


def stream(shape: Mapping[str, Num], variant: str) -> Stream:
    """Bytes of one execution: BF16 tensors, FP32 norm weights (backward: with their gradients) once."""
    n, width = shape["n_streams"], shape["hidden"]
    elements = (5.0 * n + 2.0) * width if variant == "backward" else (3.0 * n + 1.0) * width
    weights = 4.0 * 2.0 * n * width * (3.0 if variant == "backward" else 1.0)
    return Stream(
        n_tokens=shape["n_tokens"], token_bytes=2.0 * elements, tensor_bytes=2.0 * elements, fixed_bytes=weights
    )


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Two norms (4 n C each), their product (2 n C) and the scaled value (n C) per token, twice that backward."""
    moved = stream(shape, variant)
    passes = 2.0 if variant == "backward" else 1.0
    flops = passes * 11.0 * shape["n_streams"] * shape["hidden"] * shape["n_tokens"]
    return Work(flops=flops, traffic_bytes={"hbm": moved.n_tokens * moved.token_bytes + moved.fixed_bytes})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the coefficients of ``streams`` in the block ``engram_gate``, else ``mhc_post``; KeyError without."""
    fit = fit_of(cluster.device, "engram_gate", "mhc_post")
    measured = "engram_gate" in cluster.device.kernels and op.variant != "backward"
    parts = corrected_stream_seconds(stream(op.shape, op.variant), op.shape, fit, cluster.device)
    low, high = (1.0, 1.0) if measured else (LOW, HIGH)
    return Estimate(
        seconds=parts.total, low=parts.total * fit.low * low, high=parts.total * fit.high * high,
        limits={"memory": parts.memory, "launch": parts.launch},
        provenance=fit.provenance if measured else "assumed",
    )  # fmt: skip
