"""Multi-head latent attention on the latent cache (absorbed form), as decode runs it.

Shape: batch, heads (of this device), q_len, kv_len, kv_lora_rank, qk_rope_head_dim. All heads share one latent row of
kv_lora_rank + qk_rope_head_dim values per token, which is key and, without its rotary part, value: few bytes and many
FLOPs, so with 128 query rows the kernel meets both limits at once. Query rows fill matrix instructions of 64, so fewer
heads cost the same. A variant may name a library (``decode_bmm``): the block ``mla_<library>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.kernels import BYTES, Work, fit_of, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Cluster, Device, Estimate, Num, Op

#: Query rows of one matrix instruction.
TILE_ROWS = 64.0

#: Latent rows that are loaded together.
TILE_TOKENS = 64.0

#: Of the split kernel: query rows of a short program, latent rows of a step, and the most parts of a cache.
SHORT_ROWS, STEP_TOKENS, MOST_PARTS = 16.0, 32.0, 128.0


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
    """Seconds by the block ``mla``, whose coefficients say which of three kernels it is of (``_streamed``, ``_split``,
    ``_composed``). KeyError if the device has no such block."""
    device = cluster.device
    _, _, library = op.variant.partition("_")
    fit = fit_of(device, *((f"mla_{library}",) if library else ()), "mla")
    model = _split if "step_s" in fit.coefficients else _composed if "score_passes" in fit.coefficients else _streamed
    parts = model(op, fit.coefficients, device)
    floor_s = np.maximum(device.launch_s, fit.coefficients["floor_s"])
    seconds = (floor_s + parts.busy) * correction(fit, features(op, device))
    seconds = np.maximum(seconds, _least_seconds(op, device))
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"math": parts.math, "memory": parts.memory, "launch": floor_s}, provenance=fit.provenance,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Seconds beside the floor: all of them, those of products, those of bytes."""

    busy: Num
    math: Num
    memory: Num


def _streamed(op: Op, c: Mapping[str, Num], device: Device) -> _Parts:
    """A serving engine's kernel: memory_efficiency and matrix_efficiency (shares of the datasheet rates),
    overlap_power (how well the limits hide each other), program_s (fixed cost of one request's 64 query rows on one
    SM), row_passes (times query and output cross HBM), chunk_tokens (least part of a cache that is worth a program
    of its own), program_bytes_per_s (the cache as one SM reads it), split_passes (times the FP32 partial outputs of
    a split cache cross HBM)."""
    s = op.shape
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
    busy_s = core_s + rows_s + tiles * c["program_s"] / device.n_sms
    return _Parts(busy=busy_s, math=math_s, memory=cache_s + rows_s)


def _split(op: Op, c: Mapping[str, Num], device: Device) -> _Parts:
    """Programs of 16 query rows (64 from that many heads on) over a part of a cache, and a kernel that joins the parts.

    step_s and tall_step_s (a program's time for ``STEP_TOKENS``, by its rows), prologue_s, slots and tall_slots
    (programs of an SM at once), whole_waves (0: evenly spread, 1: whole waves), join_s (per part), efficiency (share
    of the HBM bandwidth), reread (share of the cache that further blocks of query rows find no longer in L2),
    overlap_power (how well programs and bytes hide each other), part_efficiency (bandwidth of partial outputs).
    """
    s = op.shape
    rows, tokens = s["heads"] * s["q_len"], s["kv_len"]
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    tall = rows >= TILE_ROWS
    blocks = np.ceil(rows / np.where(tall, TILE_ROWS, SHORT_ROWS))
    programs = s["batch"] * blocks
    wanted = np.minimum(np.ceil(2.0 * device.n_sms / programs), np.floor(tokens / (2.0 * STEP_TOKENS)))
    wanted = np.clip(wanted, 1.0, MOST_PARTS)
    length = np.ceil(tokens / (wanted * STEP_TOKENS)) * STEP_TOKENS
    n_parts = np.ceil(tokens / length)
    waves = np.maximum(programs * n_parts / (device.n_sms * np.where(tall, c["tall_slots"], c["slots"])), 1.0)
    waves = waves + c["whole_waves"] * (np.ceil(waves - 1e-9) - waves)
    step_s = np.where(tall, c["tall_step_s"], c["step_s"])
    math_s = waves * (length / STEP_TOKENS * step_s + c["prologue_s"])
    cache = s["batch"] * tokens * (s["kv_lora_rank"] + s["qk_rope_head_dim"]) * BYTES[op.format]
    memory_s = cache * (1.0 + (blocks - 1.0) * c["reread"]) / (bandwidth * c["efficiency"])
    larger, smaller = np.maximum(math_s, memory_s), np.minimum(math_s, memory_s)
    power = c["overlap_power"]
    busy_s = larger * (1.0 + (smaller / larger) ** power) ** (1.0 / power)
    partial_bytes = 8.0 * s["batch"] * rows * n_parts * s["kv_lora_rank"]
    busy_s = busy_s + c["join_s"] * n_parts + partial_bytes / (bandwidth * c["part_efficiency"])
    return _Parts(busy=busy_s, math=math_s, memory=memory_s)


def _composed(op: Op, c: Mapping[str, Num], device: Device) -> _Parts:
    """Batched products with a softmax between them. Of what does not lie in L2, scores cross HBM ``score_passes``
    times, the cache ``cache_passes``; a program of the last product walks over all keys, ``key_s`` each. Shares of the
    datasheet rates: matrix_efficiency and efficiency."""
    s = op.shape
    rows = s["batch"] * s["heads"] * s["q_len"]
    scores = rows * s["kv_len"] * BYTES[op.format]
    cache = s["batch"] * s["kv_len"] * (s["kv_lora_rank"] + s["qk_rope_head_dim"]) * BYTES[op.format]
    outside = np.maximum(1.0 - device.l2_bytes / (scores + cache), 0.0)
    moved = cache + outside * (c["score_passes"] * scores + (c["cache_passes"] - 1.0) * cache)
    memory_s = moved / (device.memories["hbm"].bandwidth_bytes_per_s * c["efficiency"])
    padded = s["batch"] * np.ceil(s["heads"] * s["q_len"] / TILE_ROWS) * TILE_ROWS * s["kv_len"]
    width = 2 * s["kv_lora_rank"] + s["qk_rope_head_dim"]
    math_s = 2.0 * padded * width / (peak(device, op.format, lasting=False) * c["matrix_efficiency"])
    busy_s = memory_s + math_s + c["key_s"] * s["kv_len"]
    return _Parts(busy=busy_s, math=math_s, memory=memory_s)


def features(op: Op, device: Device) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: caches per SM, blocks of query rows per cache, keys."""
    s = op.shape
    return {
        "log2_caches_per_sm": np.log2(s["batch"] / device.n_sms), "log2_keys": np.log2(s["kv_len"]),
        "log2_row_tiles": np.log2(s["heads"] * s["q_len"] / TILE_ROWS),
    }  # fmt: skip


def _least_seconds(op: Op, device: Device) -> Num:
    """FLOPs at the peak, or what of the bytes cannot lie in L2 at the HBM bandwidth."""
    needed = work(op.shape, op.format, op.variant)
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    read_s = np.maximum(needed.traffic_bytes["hbm"] - device.l2_bytes, 0.0) / bandwidth
    return np.maximum(read_s, needed.flops / peak(device, op.format, lasting=False))
