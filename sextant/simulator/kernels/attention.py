"""Attention with materialised heads: prefill, encoder, training (forward and backward) and decode against a cache.

Shape: batch, heads, kv_heads (default heads), q_len, kv_len, head_dim, v_head_dim (default head_dim) and causal
(1 or 0, default 1; a causal query sees the keys up to its own place, the last query being aligned with the last key);
of a decode step over caches of different lengths, whose mean is kv_len, ``uneven`` (default 1) is how much later the
last of all programs ends than if all were alike (``simulator.serving.uneven``).

Prefill and training follow the tiles of a fused kernel: one program per 128 query rows of a head walks over tiles of
keys, and pays matrix products and exponentials, which overlap in part. Programs run in waves over the SMs. The tile of
keys holds a fixed number of elements, so narrow heads walk in longer strides and waste more on short sequences.
Decode streams the cache: bandwidth, the speed of a single program, and a fixed cost per program.

Coefficient blocks, each falling back to the one before it: ``attention_forward``; ``attention_encoder`` (not causal);
``mla_prefill`` (key and value widths differ); ``attention_backward``, of encoders and of latent heads; and
``attention_decode``. A variant may name a library beside its direction (``forward_flash``): its blocks end in that name
(``attention_forward_flash``). Without one it is the library that the block's source names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import BYTES, Work, fit_of, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import PROVENANCES, Cluster, Device, Estimate, KernelFit, Num, Op

#: Query rows of one program: two warp groups of 64 rows.
TILE_ROWS = 128.0

#: Decode is at most this many new tokens per request against a longer cache (speculative tokens included).
DECODE_ROWS = 8.0

#: Factors on the interval when backward is predicted from forward coefficients: no backward was measured.
ASSUMED_LOW, ASSUMED_HIGH = 0.7, 1.6


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """FLOPs of the products on visible pairs, and HBM bytes with each tensor moved once per pass.

    Forward: S = Q K^T and O = P V. Backward: S again, dP = dO V^T, dV = P^T dO, dQ = dS K, dK = dS^T Q; its passes are
    a reduction of O * dO to one FP32 per row, the main kernel with FP32 dQ, and the conversion of dQ.
    """
    d = _dims(shape)
    pairs = d["batch"] * d["heads"] * visible_pairs(d["q_len"], d["kv_len"], d["causal"])
    size = BYTES[format]
    rows, keys = d["batch"] * d["heads"] * d["q_len"], d["batch"] * d["kv_heads"] * d["kv_len"]
    query, output = rows * d["head_dim"] * size, rows * d["v_head_dim"] * size
    cache = keys * (d["head_dim"] + d["v_head_dim"]) * size
    flops = 2.0 * pairs * _product_width(d, variant)
    if not _backward(variant):
        return Work(flops=flops, traffic_bytes={"hbm": query + output + cache})
    dq_fp32 = rows * d["head_dim"] * 4.0
    before = 2 * output + 4.0 * rows
    main = query + output + 2 * cache + dq_fp32 + 8.0 * rows
    after = dq_fp32 + query
    return Work(flops=flops, traffic_bytes={"hbm": before + main + after})


def visible_pairs(q_len: Num, kv_len: Num, causal: Num) -> Num:
    """(query, key) pairs that are computed, per head: all of them, or with ``causal`` 1 those not in the future."""
    seen = np.minimum(q_len, kv_len)
    return q_len * kv_len - causal * (q_len * kv_len - seen * kv_len + seen * (seen - 1) / 2)


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds of one execution; KeyError names the coefficient block that the device lacks."""
    d, device = _dims(op.shape), cluster.device
    latent = np.asarray(d["head_dim"]) != d["v_head_dim"]
    encoder = ~latent & (np.asarray(d["causal"]) == 0)
    _, _, library = op.variant.partition("_")
    if _backward(op.variant):
        decode = np.asarray(False)
        names = ("attention_backward", "attention_encoder_backward", "mla_prefill_backward")
    else:
        decode = (np.asarray(d["q_len"]) <= DECODE_ROWS) & (np.asarray(d["kv_len"]) > d["q_len"])
        names = ("attention_forward", "attention_encoder", "mla_prefill")
    regimes = [
        (decode, ("attention_decode",), _decode), (~decode & latent, (names[2], names[0]), _tiled),
        (~decode & encoder, (names[1], names[0]), _tiled), (~decode & ~latent & ~encoder, (names[0],), _tiled),
    ]  # fmt: skip
    found: list[tuple[np.ndarray, Estimate]] = []
    for mask, blocks, model in regimes:
        if mask.any():
            fit = _fit(device, blocks, library, backward=_backward(op.variant), latent=bool(latent.any()))
            part = model(op, d, device, fit)
            seconds = np.maximum(part.seconds * correction(fit, features(op, device)), _least_seconds(op, device))
            low, high = seconds * fit.low, seconds * fit.high
            found.append((mask, replace(part, seconds=seconds, low=low, high=high)))
    return _merge(found)


def _least_seconds(op: Op, device: Device) -> Num:
    """FLOPs at the peak, or what of the bytes cannot lie in L2 at the HBM bandwidth."""
    needed = work(op.shape, op.format, op.variant)
    read_s = (needed.traffic_bytes["hbm"] - device.l2_bytes) / device.memories["hbm"].bandwidth_bytes_per_s
    return np.maximum(read_s, needed.flops / peak(device, op.format, lasting=False))


def features(op: Op, device: Device) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: programs per SM, keys, width of a head, query heads per
    key head; of a decode step the caches per SM instead of the programs."""
    d = _dims(op.shape)
    programs = d["batch"] * d["heads"] * np.ceil(d["q_len"] / TILE_ROWS)
    return {
        "log2_programs_per_sm": np.log2(programs / device.n_sms), "log2_keys": np.log2(d["kv_len"]),
        "log2_width": np.log2(d["head_dim"]), "log2_group": np.log2(d["heads"] / d["kv_heads"]),
        "log2_caches_per_sm": np.log2(d["batch"] * d["kv_heads"] / device.n_sms),
    }  # fmt: skip


def _backward(variant: str) -> bool:
    return variant.startswith("backward")


def _fit(device: Device, blocks: tuple[str, ...], library: str, *, backward: bool, latent: bool) -> KernelFit:
    """The block of a library, else of any; backward from forward coefficients where no backward was measured."""
    for name in (*(f"{block}_{library}" for block in blocks if library), *blocks):
        if name in device.kernels:
            return device.kernels[name]
    if not backward:
        return fit_of(device, *blocks)
    forward = fit_of(device, *(("mla_prefill", "attention_forward") if latent else ("attention_forward",)))
    return replace(
        forward, low=forward.low * ASSUMED_LOW, high=forward.high * ASSUMED_HIGH, provenance="assumed",
        source="forward efficiency: no backward kernel measured; " + forward.source, correction=None,
    )  # fmt: skip


def _dims(shape: Mapping[str, Num]) -> dict[str, Num]:
    d = dict(shape)
    d.setdefault("kv_heads", d["heads"])
    d.setdefault("v_head_dim", d["head_dim"])
    d.setdefault("causal", 1.0)
    d.setdefault("uneven", 1.0)
    return d


def _product_width(d: Mapping[str, Num], variant: str) -> Num:
    if _backward(variant):
        return 3.0 * d["head_dim"] + 2.0 * d["v_head_dim"]
    return d["head_dim"] + d["v_head_dim"]


def _tiled(op: Op, d: Mapping[str, Num], device: Device, fit: KernelFit) -> Estimate:
    """Coefficients: matrix_efficiency, exp_per_s_per_sm, overlap_power (1: products and exponentials take turns,
    large: the longer hides the shorter), kv_tile_elements, prologue_tiles (fixed cost of a program, in tiles),
    wave_share (0: programs spread evenly, 1: whole waves), tail, passes (times the tensors cross HBM), token_s,
    serial_power (1: passes come after each other), floor_s."""
    c = fit.coefficients
    width, value = _padded(d["head_dim"], 64.0), _padded(d["v_head_dim"], 64.0)
    tile_keys = np.clip(c["kv_tile_elements"] / width, 64.0, 256.0)
    rows, keys = _padded(d["q_len"], TILE_ROWS), _padded(d["kv_len"], tile_keys)
    diagonal = np.maximum(TILE_ROWS, tile_keys)
    seen = np.minimum(rows, keys)
    pairs = rows * keys - d["causal"] * np.maximum(rows * keys - seen * keys + seen * (seen - diagonal) / 2, 0.0)

    padded = {"head_dim": width, "v_head_dim": value}
    unit = TILE_ROWS * TILE_ROWS
    sm_flops_per_s = peak(device, op.format) / device.n_sms * c["matrix_efficiency"]
    matrix_s = 2.0 * unit * _product_width(padded, op.variant) / sm_flops_per_s
    exp_s = unit / (c["exp_per_s_per_sm"] * device.clock_under_load)
    tile_s = _combined(c["overlap_power"], matrix_s, exp_s)

    programs = d["batch"] * d["heads"] * rows / TILE_ROWS
    waves = programs / device.n_sms
    mean_s = (pairs / (rows * TILE_ROWS) + c["prologue_tiles"]) * tile_s
    longest_s = (keys / TILE_ROWS + c["prologue_tiles"]) * tile_s
    spread = (1 - c["wave_share"]) * np.maximum(waves, 1.0) + c["wave_share"] * np.ceil(waves)
    tail_s = c["tail"] * longest_s * np.clip(waves - 1.0, 0.0, 1.0)
    math_s = np.maximum(mean_s * spread + tail_s, longest_s)

    traffic = work(op.shape, op.format, op.variant).traffic_bytes["hbm"]
    memory_s = traffic * c["passes"] / device.memories["hbm"].bandwidth_bytes_per_s
    memory_s = memory_s + d["batch"] * d["q_len"] * c["token_s"]
    return _timed(_combined(c["serial_power"], math_s, memory_s), math_s, memory_s, device, fit)


def _decode(op: Op, d: Mapping[str, Num], device: Device, fit: KernelFit) -> Estimate:
    """Coefficients: efficiency (share of HBM bandwidth), l2_share (of the L2 capacity: a smaller cache stays there
    between calls) and l2_bytes_per_s, shared_group (the largest group of query heads that shares one read of the
    cache; a larger one reads it per head, from L2), split_share (a cache is split when programs fill less than this
    share of the SMs, into parts of at least chunk_tokens), program_bytes_per_s (what one SM streams), program_s and
    light_program_s (fixed cost of a program with and without a group), row_s (per query value), drain_s and
    light_drain_s (the most that filling and draining the stream adds), overlap_power, floor_s."""
    c = fit.coefficients
    group = d["heads"] / d["kv_heads"]
    shared = group <= c["shared_group"]
    grouped = shared & (group > 1)
    streams = d["batch"] * np.where(shared, d["kv_heads"], d["heads"])
    size = BYTES[op.format]
    row_bytes = (d["head_dim"] + d["v_head_dim"]) * size

    traffic = work(op.shape, op.format, op.variant).traffic_bytes["hbm"]
    kept = np.maximum(c["l2_share"] * device.l2_bytes, 1.0)
    # Least-recently-used lines help no more once the cache is twice what is kept.
    resident = np.minimum(traffic, kept) * np.clip(2.0 - traffic / kept, 0.0, 1.0)
    hbm_s = (traffic - resident) / (device.memories["hbm"].bandwidth_bytes_per_s * c["efficiency"])
    l2_s = (resident + np.where(shared, 0.0, streams * d["kv_len"] * row_bytes)) / c["l2_bytes_per_s"]
    part = np.maximum(np.minimum(d["kv_len"], c["chunk_tokens"]), d["kv_len"] * streams / device.n_sms)
    whole = d["kv_len"] * np.maximum(streams / device.n_sms, 1.0) * d["uneven"]
    tokens = np.where(streams < c["split_share"] * device.n_sms, np.minimum(part, whole), whole)
    memory_s = np.maximum(np.maximum(hbm_s, l2_s), tokens * row_bytes / c["program_bytes_per_s"])

    fixed_s = np.where(grouped, c["program_s"], c["light_program_s"]) * streams / device.n_sms
    fixed_s = fixed_s + c["row_s"] * d["batch"] * d["heads"] * d["q_len"] * d["head_dim"]
    # Query rows fill a matrix instruction of 64 rows at least.
    rows = _padded(d["q_len"] * np.where(shared, group, 1.0), 64.0)
    math_s = 2.0 * streams * rows * d["kv_len"] * row_bytes / size / peak(device, op.format)
    busy_s = _combined(c["overlap_power"], np.maximum(memory_s, math_s), fixed_s)
    drain_s = np.minimum(memory_s, np.where(grouped, c["drain_s"], c["light_drain_s"]))
    return _timed(busy_s + drain_s, math_s, memory_s, device, fit)


def _padded(length: Num, tile: Num) -> Num:
    return np.ceil(length / tile) * tile


def _combined(power: Num, first: Num, second: Num) -> Num:
    """Between the sum (power 1) and the larger (power to infinity), scaled so that powers cannot overflow."""
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    ratio = smaller / np.maximum(larger, 1e-300)
    return larger * (1.0 + ratio**power) ** (1.0 / power)


def _timed(busy_s: Num, math_s: Num, memory_s: Num, device: Device, fit: KernelFit) -> Estimate:
    floor_s = np.maximum(device.launch_s, fit.coefficients["floor_s"])
    seconds = floor_s + busy_s
    limits = {"math": math_s, "memory": memory_s, "launch": floor_s}
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high, limits=limits, provenance=fit.provenance
    )


def _merge(found: list[tuple[np.ndarray, Estimate]]) -> Estimate:
    """One estimate from those of disjoint regimes, each valid where its mask is set; the least trusted provenance."""
    if len(found) == 1:
        return found[0][1]
    masks = [mask for mask, _ in found]
    parts = [part for _, part in found]

    def select(values: list[Num]) -> Num:
        arrays = np.broadcast_arrays(*masks, *values)
        return np.select(arrays[: len(masks)], arrays[len(masks) :])

    limits = {name: select([part.limits[name] for part in parts]) for name in parts[0].limits}
    return Estimate(
        seconds=select([part.seconds for part in parts]), low=select([part.low for part in parts]),
        high=select([part.high for part in parts]), limits=limits,
        provenance=max((part.provenance for part in parts), key=PROVENANCES.index),
    )  # fmt: skip
