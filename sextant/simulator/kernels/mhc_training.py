"""Training kernels of residual streams, from streams to layer input: arithmetic of ``mhc_pre``.

Those that DeepSeek released (tile-kernels 1.0.0): forward a product of the mappings, its norm, split, Sinkhorn, H_pre
applied; backward H_pre's gradients, Sinkhorn, split, reductions, norm, and the product that adds to the residual's
gradient and sums that of the weights. Every part by itself, as it was measured, with four streams and 20 iterations;
other numbers follow from values, mappings and rounds.

    product_floor_s, product_value_s   forward: latency of the product, and of the n C values that a
                          block of tokens sums one after the other
    product_token_s       backward: latency of a token; the weights' gradient is not split, a block walks all tokens
    product_efficiency    forward: share of the HBM bandwidth, where that latency is not longer
    product_exposed       backward: share of the bytes' time that is not hidden behind the latency
    apply_floor_s, apply_efficiency    of the kernel that applies H_pre, or that makes the gradients behind it
    apply_l2_share, apply_l2_speedup   forward: of the L2, what the product left there, and how much faster that moves
    sinkhorn_s, token_iteration_s      forward: Sinkhorn's launch, and an SM's time for a token and iteration
    wave_iteration_s      backward: an iteration of Sinkhorn, of as many tokens as all SMs hold at once
    small_s, token_s      latency of the other kernels in between, and an SM's time for a token

And this package's fused gradients, three kernels as the mHC paper describes them (arXiv:2512.24880, s4.3.1;
validate.kernels.triton_stream_gradients): the first reads residual and layer gradient for those of H_pre, the second
makes those of the mappings, the product adds to the residual's gradient all that is missing.

    product_stream_s, product_efficiency  latency of the product, per stream, and its share of the HBM bandwidth: up to
                          four streams a kernel that only adds the three tensors takes 82 to 94% as long
    lane_s                more streams: an SM's time for a value and mapping, padded to a power of two, if it is longer
    apply_floor_s, apply_efficiency       the same of the first kernel
    apply_dirty, apply_written            of its bytes up to a share of the L2 capacity, what is written back besides:
                          the lines that they replace
    map_floor_s           launch of the second kernel
    map_iteration_s, spilled_iteration_s  its latency per iteration of Sinkhorn; more for each beyond 20, whose sums the
                          registers no longer hold
    token_s, token_iteration_s            an SM's time for a token, and per iteration

The fused gradient of ``mhc_post``: ``floor_s``; ``efficiency``, of its bytes; ``value_s``, an SM's time for one of the
n^2 products of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.types import Device, Estimate, Num

#: Tokens that an SM holds at once in Sinkhorn's backward kernel: 8,192 on 132 SMs take as long as 1,024, 16,384 twice
#: as long.
WAVE_TOKENS = 64.0

#: Mappings of a token, and values of its matrix, that the measured times are of.
_MAPPINGS, _VALUES = 24.0, 16.0

#: How sharply latency and bytes of the forward product change places, and latency and work of the fused mappings.
_POWER, _MAP_POWER = 8.0, 4.0

#: Iterations whose sums the fused kernel of the mappings keeps in registers: 20 were measured to be few, 40 many.
_HELD_ITERATIONS = 20.0

#: Numbers of streams that the fused gradients were measured with, and how much wider the interval is of others: kernels
#: of powers of two do not run them.
FUSED_STREAMS, BETWEEN_LOW, BETWEEN_HIGH = (2.0, 4.0, 8.0), 0.75, 1.33

#: Mappings that a product pads a token's to at least, and those of four streams.
_FEWEST_LANES, _FEW_LANES = 16.0, 32.0


def n_mappings(n_streams: Num) -> Num:
    """Coefficients per token: n of H_pre, n of H_post, n^2 of H_res."""
    return n_streams * (n_streams + 2.0)


def padded_mappings(n_streams: Num) -> Num:
    """The same as a tile of a product has them: a power of two, at least 16."""
    return np.maximum(_FEWEST_LANES, 2.0 ** np.ceil(np.log2(n_mappings(n_streams))))


def is_backward(variant: str) -> bool:
    """Whether a variant of a kernel of streams is a backward pass."""
    return variant.endswith("backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds of the product of the mappings, of applying H_pre, of Sinkhorn and of the small kernels beside it;
    ``total`` is their sum."""

    product: Num
    apply: Num
    sinkhorn: Num
    small: Num

    @property
    def total(self) -> Num:
        """Seconds of all kernels."""
        return self.product + self.apply + self.sinkhorn + self.small


def forward(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device) -> Parts:
    """Seconds of the forward kernels by the block ``mhc_pre_training``."""
    m, width, wide, bandwidth = _sizes(shape, device)
    latency_s = c["product_floor_s"] + c["product_value_s"] * wide
    read_s = 2.0 * m * wide / (bandwidth * c["product_efficiency"])
    moved = 2.0 * m * (wide + width)
    resident = np.minimum(moved, c["apply_l2_share"] * device.l2_bytes)
    moved_s = (moved - resident + resident / c["apply_l2_speedup"]) / (bandwidth * c["apply_efficiency"])
    return Parts(
        product=(latency_s**_POWER + read_s**_POWER) ** (1.0 / _POWER), apply=c["apply_floor_s"] + moved_s,
        sinkhorn=c["sinkhorn_s"] + c["token_iteration_s"] * _values(shape) * m / device.n_sms,
        small=_small_s(shape, c, device),
    )  # fmt: skip


def backward(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device) -> Parts:
    """Seconds of the backward kernels by the block ``mhc_pre_training_backward``."""
    m, width, wide, bandwidth = _sizes(shape, device)
    moved_s = 6.0 * m * wide / bandwidth
    product_s = c["product_token_s"] * m + c["product_exposed"] * moved_s
    # Of H_pre: the layer's gradient (C), the residual and its gradient (n C) read, n C written.
    applied_s = 2.0 * m * (3.0 * wide + width) / (bandwidth * c["apply_efficiency"])
    waves = np.ceil(m / (WAVE_TOKENS * device.n_sms))
    return Parts(
        product=np.maximum(product_s, moved_s), apply=c["apply_floor_s"] + applied_s,
        sinkhorn=c["wave_iteration_s"] * _values(shape) * waves, small=_small_s(shape, c, device),
    )  # fmt: skip


def fused_backward(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device) -> Parts:
    """Seconds of the fused gradients by the block ``mhc_pre_backward``; ``sinkhorn`` is all of the mappings' kernel."""
    m, width, wide, bandwidth = _sizes(shape, device)
    read = 2.0 * m * (wide + width)
    written_back = c["apply_written"] * np.minimum(read, c["apply_dirty"] * device.l2_bytes)
    lanes = padded_mappings(shape["n_streams"])
    lane_s = np.where(lanes > _FEW_LANES, c["lane_s"], 0.0)
    read_s = 2.0 * m * (3.0 * wide + width) / (bandwidth * c["product_efficiency"])
    multiplied_s = lane_s * lanes * m * wide / device.n_sms
    iterations = _values(shape)
    spilled = np.maximum(1.0 - _HELD_ITERATIONS / np.maximum(shape["sinkhorn_iters"], 1.0), 0.0) * iterations
    latency_s = c["map_iteration_s"] * iterations + c["spilled_iteration_s"] * spilled
    worked_s = (c["token_s"] + c["token_iteration_s"] * iterations) * m / device.n_sms
    mapped_s = (latency_s**_MAP_POWER + worked_s**_MAP_POWER) ** (1.0 / _MAP_POWER)
    return Parts(
        product=c["product_stream_s"] * shape["n_streams"] + np.maximum(read_s, multiplied_s),
        apply=np.maximum(c["apply_floor_s"], device.launch_s)
        + (read + written_back) / (bandwidth * c["apply_efficiency"]),
        sinkhorn=np.maximum(c["map_floor_s"], device.launch_s) + mapped_s, small=0.0,
    )  # fmt: skip


def widened(found: Estimate, n_streams: Num) -> Estimate:
    """``found``, of a fused gradient, with a wider interval where it was not measured with so many streams."""
    between = ~np.isin(np.asarray(n_streams), FUSED_STREAMS)
    if not between.any():
        return found
    low, high = np.where(between, BETWEEN_LOW, 1.0), np.where(between, BETWEEN_HIGH, 1.0)
    return replace(found, low=found.low * low, high=found.high * high, provenance="assumed")


def fused_post_backward(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device) -> tuple[Num, Num]:
    """Seconds of latency, and of bytes and products, of the fused gradient of ``mhc_post`` (``mhc_post_backward``)."""
    m, width, wide, bandwidth = _sizes(shape, device)
    read_s = 2.0 * m * (3.0 * wide + 2.0 * width) / (bandwidth * c["efficiency"])
    multiplied_s = c["value_s"] * shape["n_streams"] * m * wide / device.n_sms
    return np.maximum(c["floor_s"], device.launch_s), np.sqrt(read_s**2 + multiplied_s**2)


def _values(shape: Mapping[str, Num]) -> Num:
    """Iterations of Sinkhorn, weighed by the values of a matrix."""
    return shape["sinkhorn_iters"] * shape["n_streams"] ** 2 / _VALUES


def _small_s(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device) -> Num:
    mappings = n_mappings(shape["n_streams"]) / _MAPPINGS
    return c["small_s"] + c["token_s"] * mappings * shape["n_tokens"] / device.n_sms


def _sizes(shape: Mapping[str, Num], device: Device) -> tuple[Num, Num, Num, Num]:
    """Tokens, C, n C, and bytes per second of the HBM."""
    width = shape["hidden"]
    return shape["n_tokens"], width, shape["n_streams"] * width, device.memories["hbm"].bandwidth_bytes_per_s
