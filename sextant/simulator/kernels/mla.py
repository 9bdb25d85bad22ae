"""Multi-head latent attention on the latent cache (absorbed form), as decode runs it.

Shape: batch, heads (of this device), q_len, kv_len, kv_lora_rank, qk_rope_head_dim. All heads share one latent row of
kv_lora_rank + qk_rope_head_dim values per token, which is key and, without its rotary part, value: few bytes and many
FLOPs, so with 128 query rows the kernel meets both limits at once. Query rows fill matrix instructions of 64, so fewer
heads cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES, Work, fit_of, peak
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Query rows of one matrix instruction.
TILE_ROWS = 64.0

#: Latent rows that are loaded together.
TILE_TOKENS = 64.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """FLOPs of both products over the latent rows; bytes of the latent cache, the query and the output, moved once.

    Every query row is counted against all kv_len rows (causality among a few new tokens is not subtracted).
    """
    rank, rope = shape["kv_lora_rank"], shape["qk_rope_head_dim"]
    rows = shape["batch"] * shape["heads"] * shape["q_len"]
    cache = shape["batch"] * shape["kv_len"] * (rank + rope) * BYTES[format]
    return Work(
        flops=2.0 * rows * shape["kv_len"] * (2 * rank + rope),
        traffic_bytes={"hbm": cache + rows * (2 * rank + rope) * BYTES[format]},
    )


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``mla``: memory_efficiency and matrix_efficiency (shares of the datasheet rates),
    overlap_power (how well the limits hide each other), program_s (fixed cost of one request's 64 query rows on one
    SM), row_passes (times query and output cross HBM), chunk_tokens (least part of a cache that is worth a program
    of its own), program_bytes_per_s (the cache as one SM reads it), split_passes (times the FP32 partial outputs of
    a split cache cross HBM), floor_s. KeyError if the device has no such block."""
    device = cluster.device
    fit = fit_of(device, "mla")
    c, s = fit.coefficients, op.shape
    width = 2 * s["kv_lora_rank"] + s["qk_rope_head_dim"]
    size, bandwidth = BYTES[op.format], device.memories["hbm"].bandwidth_bytes_per_s
    latent_bytes = (s["kv_lora_rank"] + s["qk_rope_head_dim"]) * size
    rows = s["heads"] * s["q_len"]
    tiles = s["batch"] * np.ceil(rows / TILE_ROWS)
    tokens = np.ceil(s["kv_len"] / TILE_TOKENS) * TILE_TOKENS

    cache_s = s["batch"] * s["kv_len"] * latent_bytes / (bandwidth * c["memory_efficiency"])
    flops = 2.0 * tiles * TILE_ROWS * tokens * width
    # The published rate of this kernel on an H800 (660 TFLOP/s) is what the coefficients give without throttling.
    math_s = flops / (peak(device, op.format, lasting=False) * c["matrix_efficiency"])
    # A cache is split over idle SMs down to chunk_tokens; the partial outputs are then written, read and added.
    part = np.maximum(np.minimum(tokens, c["chunk_tokens"]), tokens * np.minimum(tiles / device.n_sms, 1.0))
    alone_s = part * latent_bytes / c["program_bytes_per_s"]
    splits = np.maximum(np.minimum(device.n_sms, tiles * tokens / c["chunk_tokens"]) - tiles, 0.0)
    partial_bytes = splits * np.minimum(rows, TILE_ROWS) * s["kv_lora_rank"] * 8.0
    longest = np.maximum(np.maximum(cache_s, math_s), alone_s)
    power = c["overlap_power"]
    core_s = longest * sum((part / longest) ** power for part in (cache_s, math_s, alone_s)) ** (1.0 / power)

    rows_s = s["batch"] * rows * width * size * c["row_passes"] / bandwidth
    rows_s = rows_s + partial_bytes * c["split_passes"] / bandwidth
    floor_s = np.maximum(device.launch_s, c["floor_s"])
    seconds = floor_s + core_s + rows_s + tiles * c["program_s"] / device.n_sms
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"math": math_s, "memory": cache_s + rows_s, "launch": floor_s}, provenance=fit.provenance,
    )  # fmt: skip
