"""Sinkhorn's projection of n x n matrices, one per token, onto doubly stochastic ones, as a kernel of its own.

Shape: n_tokens, n_streams (n), sinkhorn_iters; hidden is ignored. FP32 matrices are read and written once, the
iterations run on chip; ``backward`` reads the gradient too and runs the iterations again before it reverses them
(deepseek-ai/TileKernels sinkhorn). ``mhc_pre`` holds its own.

No such kernel was measured: its rates are those of the fitted ``mhc_pre``, marked assumed, with a wide interval.
"""

from __future__ import annotations

from collections.abc import Mapping

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.mhc_pre import iterations_s
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Widening of the interval: half and twice.
LOW, HIGH = 0.5, 2.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """exp, then per iteration n (n - 1) additions and n^2 divisions along columns and again along rows; FP32."""
    n, tokens = shape["n_streams"], shape["n_tokens"]
    passes, tensors = (3.0, 3.0) if variant == "backward" else (1.0, 2.0)
    flops = passes * tokens * (n * n + shape["sinkhorn_iters"] * 2.0 * n * (2.0 * n - 1.0))
    return Work(flops=flops, traffic_bytes={"hbm": tensors * 4.0 * n * n * tokens})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by efficiency and iteration_s of the block ``mhc_pre`` behind one launch; KeyError without it."""
    device = cluster.device
    fit = fit_of(device, "mhc_pre")
    moved = work(op.shape, op.format, op.variant).traffic_bytes["hbm"]
    memory_s = moved / (device.memories["hbm"].bandwidth_bytes_per_s * fit.coefficients["efficiency"])
    passes = 3.0 if op.variant == "backward" else 1.0
    launch_s = device.launch_s + passes * iterations_s(op.shape, fit.coefficients)
    seconds = launch_s + memory_s
    return Estimate(
        seconds=seconds, low=seconds * fit.low * LOW, high=seconds * fit.high * HIGH,
        limits={"memory": memory_s, "launch": launch_s}, provenance="assumed",
    )  # fmt: skip
