"""Sinkhorn's projection of n x n matrices, one per token, onto doubly stochastic ones, as a kernel of its own.

Shape: n_tokens, n_streams (n), sinkhorn_iters; hidden is ignored. FP32 matrices are read and written once, the
iterations run on chip; ``backward`` reads the gradient too and runs the iterations again before it reverses them
(deepseek-ai/TileKernels sinkhorn). ``mhc_pre`` holds its own.

The block ``sinkhorn`` has, per matrix size 2, 4 and 8 (``_2`` ...; between them by the logarithm of n):

    iteration_s   latency of one iteration
    token_s       throughput: seconds per token and iteration of the whole device, where tokens fill it
    floor_s       launch

A device without it takes the rates of the fitted ``mhc_pre``, marked assumed, with a wide interval.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.mhc_pre import iterations_s
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Num, Op

#: Matrix sizes with coefficients of their own.
SIZES = (2, 4, 8)

#: Widening of the interval of what was not measured: an iteration, assumed from cycles, took up to seven times as long
#: on an H200.
LOW, HIGH = 0.5, 6.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """exp, then per iteration n (n - 1) additions and n^2 divisions along columns and again along rows; FP32."""
    n, tokens = shape["n_streams"], shape["n_tokens"]
    passes, tensors = (3.0, 3.0) if variant == "backward" else (1.0, 2.0)
    flops = passes * tokens * (n * n + shape["sinkhorn_iters"] * 2.0 * n * (2.0 * n - 1.0))
    return Work(flops=flops, traffic_bytes={"hbm": tensors * 4.0 * n * n * tokens})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``sinkhorn``, else by efficiency and iteration_s of ``mhc_pre``; KeyError without either."""
    device, s = cluster.device, op.shape
    passes = 3.0 if op.variant == "backward" else 1.0
    fit = fit_of(device, "sinkhorn", "mhc_pre")
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    moved = work(s, op.format, op.variant).traffic_bytes["hbm"]
    if "sinkhorn" in device.kernels:
        return _measured(op, fit, device, passes, moved / bandwidth)
    memory_s = moved / (bandwidth * fit.coefficients["efficiency"])
    launch_s = device.launch_s + passes * iterations_s(s, fit.coefficients)
    seconds = launch_s + memory_s
    return Estimate(
        seconds=seconds, low=seconds * fit.low * LOW, high=seconds * fit.high * HIGH,
        limits={"memory": memory_s, "launch": launch_s}, provenance="assumed",
    )  # fmt: skip


def features(shape: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: tokens, streams, iterations."""
    return {
        "log2_rows": np.log2(np.maximum(shape["n_tokens"], 1.0)), "log2_streams": np.log2(shape["n_streams"]),
        "log2_iterations": np.log2(np.maximum(shape["sinkhorn_iters"], 1.0)),
    }  # fmt: skip


def _measured(op: Op, fit: KernelFit, device: Device, passes: float, least_s: Num) -> Estimate:
    s, c = op.shape, fit.coefficients
    rounds = passes * s["sinkhorn_iters"]
    latency_s, token_s = (_of_size(name, s["n_streams"], c) for name in ("iteration_s", "token_s"))
    busy_s = token_s * s["n_tokens"]
    launch_s = np.maximum(device.launch_s, c["floor_s"]) + rounds * latency_s
    seconds = launch_s + rounds * (np.sqrt(latency_s**2 + busy_s**2) - latency_s)
    seconds = np.maximum(seconds * correction(fit, features(s)), least_s)
    backward = op.variant == "backward"
    low, high = (fit.low * LOW, fit.high * HIGH) if backward else (fit.low, fit.high)
    return Estimate(
        seconds=seconds, low=seconds * low, high=seconds * high,
        limits={"memory": rounds * busy_s, "launch": launch_s}, provenance="assumed" if backward else fit.provenance,
    )  # fmt: skip


def _of_size(name: str, n_streams: Num, c: Mapping[str, Num]) -> Num:
    """A coefficient at ``n_streams``, linear in its logarithm between the measured sizes."""
    return np.interp(np.log2(n_streams), np.log2(SIZES), [float(c[f"{name}_{n}"]) for n in SIZES])[()]
