"""Kernels that stream the n residual streams of a token: one block per token, the shared time of mHC's two kernels.

    cold_s   bytes over the share of HBM bandwidth that such kernels reach
    warm_s   bytes at the rate at which SMs read the L2 cache, whole waves of one token per SM
    seconds  floor + one token on one SM (the ramp, longer by ``crowding`` when all SMs ramp at once) + warm and cold
             part, weighed by how much the L2 cache still holds

Everything is found in the L2 cache while the tensors take less than ``warm_share`` of it, nothing from ``warm_share +
spread`` on; a cache that is streamed through loses its lines before they are read again, so the change is steep. Rows
were measured back to back on the same tensors: what a layer's weights push out of the cache between two such kernels
is not in them, and a decode step may be slower by the difference of warm and cold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.rows import Rows, least_seconds, row_features, row_seconds
from sextant.simulator.types import Device, KernelFit, Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What one execution moves: ``token_bytes`` per token over all passes, of them ``tensor_bytes`` distinct, and
    ``fixed_bytes`` that do not grow with tokens (weights)."""

    n_tokens: Num
    token_bytes: Num
    tensor_bytes: Num
    fixed_bytes: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSeconds:
    """Seconds in all, and of them those that move bytes; the rest is launch and ramp."""

    total: Num
    memory: Num
    launch: Num


def stream_seconds(stream: Stream, coefficients: Mapping[str, Num], device: Device) -> StreamSeconds:
    """Seconds of one execution by floor_s, efficiency (share of HBM bandwidth), sm_bytes_per_s (what one SM moves from
    and to the L2 cache), crowding, warm_share and spread (of the L2 capacity). All Nums broadcast.

    Never below what HBM takes for the distinct bytes that the L2 cache cannot hold.
    """
    c = coefficients
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    token_s = stream.token_bytes / c["sm_bytes_per_s"]
    cold_s = (stream.n_tokens * stream.token_bytes + stream.fixed_bytes) / (bandwidth * c["efficiency"])
    # Few SMs cannot saturate HBM, and no cache is slower than the memory behind it.
    cold_s = np.maximum(cold_s, stream.n_tokens * token_s / device.n_sms)
    warm_s = np.minimum((np.ceil(stream.n_tokens / device.n_sms) - 1.0) * token_s, cold_s)
    taken = stream.n_tokens * stream.tensor_bytes
    full = (c["warm_share"] + c["spread"]) * device.l2_bytes
    warm = np.clip((full - taken) / (c["spread"] * device.l2_bytes), 0.0, 1.0)
    least_s = np.maximum(taken - device.l2_bytes, 0.0) / bandwidth
    memory_s = np.maximum(warm * warm_s + (1.0 - warm) * cold_s, least_s)
    crowd = 1.0 + c["crowding"] * np.minimum(stream.n_tokens / device.n_sms, 1.0)
    launch_s = np.maximum(c["floor_s"], device.launch_s) + token_s * crowd
    return StreamSeconds(total=launch_s + memory_s, memory=memory_s, launch=launch_s)


def corrected_stream_seconds(stream: Stream, shape: Mapping[str, Num], fit: KernelFit, device: Device) -> StreamSeconds:
    """Seconds of a kernel that makes one pass over its tensors: by ``stream_seconds``, or by ``rows.row_seconds`` where
    the block has its coefficients (``cold_s``); both times the block's correction over ``stream_features``."""
    moved = stream_rows(stream, shape)
    if "cold_s" in fit.coefficients:
        parts = row_seconds(moved, fit, device)
        found = StreamSeconds(total=parts.memory + parts.launch, memory=parts.memory, launch=parts.launch)
    else:
        found = stream_seconds(stream, fit.coefficients, device)
    total = found.total * correction(fit, stream_features(stream, shape))
    return StreamSeconds(
        total=np.maximum(total, least_seconds(moved, device)), memory=found.memory, launch=found.launch
    )


def stream_rows(stream: Stream, shape: Mapping[str, Num]) -> Rows:
    """The same as rows of tokens."""
    moved = stream.n_tokens * stream.token_bytes + stream.fixed_bytes
    return Rows(
        read_bytes=moved, write_bytes=0.0, n_rows=shape["n_tokens"], width=shape["hidden"],
        fixed_bytes=stream.fixed_bytes,
    )  # fmt: skip


def stream_features(stream: Stream, shape: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: bytes moved, tokens, streams."""
    return {**row_features(stream_rows(stream, shape)), "log2_streams": np.log2(shape["n_streams"])}
