"""Tiles and waves: the time of a matrix product on one device, shared by the kinds ``gemm`` and ``grouped_gemm``.

A product y[rows, n] = x[rows, k] w[n, k]^T is cut into tiles of the output; each SM computes one tile after another.

    loop    the slowest SM: waves x (k x seconds per k element of a tile + filling and draining the pipeline);
            few tiles are split along k over idle SMs, which costs a reduction; the fastest tile shape is taken
    memory  bytes over the reached bandwidth, plus the ramp until the memory system is saturated
    total   launch + larger of the two + the exposed share of the smaller (+ conversion of x to FP8 where asked for)

The coefficients are shares, ratios or seconds, so that the rates of another device can take the place of the one
they were fitted on. ``Device.n_sms`` and the peak scale together in ``with_sms``.

    launch_s         launch and drain that no work hides
    math_share       share of the tensor peak that a main loop reaches
    load_ratio       operand bytes/s one SM can load, in units of its even share of the HBM bandwidth
    step_s           latency per element of k that the pipeline leaves exposed
    fill_s           prologue and epilogue of one tile
    hbm_share        share of the HBM bandwidth that is reached
    ramp_s           time until the memory system is saturated
    exposed          share of the smaller of loop and memory time that the larger one does not hide
    l2_warm          share of the L2 cache in which the activations are found (the kernel before wrote them)
    reduce_s         fixed cost of a reduction over k splits; absent: the library never splits
    tile             rows and columns of the only tile shape; absent: the fastest of several is taken
    cluster          tiles along the rows that SMs of a cluster take together, the last ones empty or not, of a grouped
                     kernel whose tiles follow from the sizes (``grouped_tile``); absent: as ``tile`` says
    unaligned        factor on the loop where a row of x, w or y is no multiple of 16 bytes; absent: none
    whole_waves      0: idle SMs of the last wave are put to use (tile choice, stream-k); 1: they idle
    crowding         share of the load time that vanishes when one SM loads alone
    padding          cost of a padding row of a tile, in units of reading it from HBM
    convert_s        launches that converting x to FP8 adds
    convert          bytes moved per element of x to convert it to FP8 while both copies stay in L2
    convert_spill    further bytes per element once they do not

A block's correction is over ``features``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.kernels import BYTES, fit_of, peak
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Device, KernelFit, Num

#: Tile shapes (rows, columns) that a tuned library chooses from. Further ones changed held-out errors by < 0.1 points.
TUNED = ((256, 128), (128, 256), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64), (64, 32))

#: Tile widths of block-scaled kernels, whose tile height follows from the rows alone.
BLOCK_SCALED = (32, 64, 128)

#: Limits of the tiles of torch's grouped kernels.
_NARROW, _WIDE = 128.0, 2048.0

#: Share of reading the old gradient that a weight gradient does not hide behind its product: median over BF16 products
#: of 4,096 and more tokens on an H200 (validate/data/measured/h200_accumulate.csv).
EXPOSED_OLD = 0.5

#: Shortest stretch of k worth a split of its own.
SHORTEST_SPLIT = 512.0

#: Share of the L2 cache that holds x and its FP8 copy before they spill, and the bytes of both per element.
CONVERT_L2_SHARE, CONVERT_RESIDENT_BYTES = 2.0 / 3.0, 3.0

#: Tensor-core kernels load rows in pieces of so many bytes; an output element has two.
_ALIGNMENT, _OUTPUT_BYTES = 16.0, 2.0

#: Stands for no tiles at all, so that an empty product is a launch and not a division by zero.
_NONE = 1e-9

#: Whose coefficients a format without its own takes, and what that does to the 90% interval.
LENDERS: Mapping[str, tuple[str, ...]] = {"fp8": ("fp8_block", "bf16"), "fp8_block": ("fp8", "bf16")}
BORROWED = (0.8, 1.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the model sees of a product: ``row_tiles(height)`` counts the tiles of that height its rows fill.

    ``rows`` are all rows, ``rows_per_group`` those of one group (equal for a dense product), ``output_bytes`` and
    ``operand_bytes`` cross the memory bus once, ``x_bytes`` of the latter are activations; ``old_bytes`` of the former
    are a gradient that is read to be added to.
    """

    rows: Num
    rows_per_group: Num
    n: Num
    k: Num
    row_tiles: Callable[[Num], Num]
    operand_bytes: Num
    x_bytes: Num
    output_bytes: Num
    flops: Num
    format: str
    old_bytes: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Time of a product and the parts that bound it, each a ``Num``."""

    total: Num
    math: Num
    memory: Num
    launch: Num


def product_seconds(p: Product, fit: KernelFit, device: Device, *, converts: bool) -> Seconds:
    """Seconds of ``p`` on ``device`` by ``fit``; never below FLOPs over peak or bytes over bandwidth.

    ``converts`` says that x arrives in BF16 and is converted first. Shapes broadcast; the result has their shape.
    """
    c = fit.coefficients
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    traffic = p.operand_bytes + p.output_bytes
    loop = _loop_seconds(p, c, device, bandwidth)
    warm = np.minimum(p.x_bytes, c.get("l2_warm", 0.0) * device.l2_bytes)
    memory = (traffic - warm) / (bandwidth * c["hbm_share"])
    slow, fast = np.maximum(loop, memory + c["ramp_s"]), np.minimum(loop, memory + c["ramp_s"])
    total = slow + c["exposed"] * fast + c["launch_s"] + EXPOSED_OLD * p.old_bytes / bandwidth
    launch = c["launch_s"] + c["fill_s"] + c["ramp_s"]
    if converts and "convert" in c:
        conversion = _conversion_seconds(p.rows * p.k, c, device.l2_bytes, bandwidth)
        total, memory, launch = total + conversion + c["convert_s"], memory + conversion, launch + c["convert_s"]
    if fit.correction is not None:
        total = total * correction(fit, features(p, device))
    floor_math, floor_memory = p.flops / peak(device, p.format), traffic / bandwidth
    total = np.maximum(total, np.maximum(floor_math, floor_memory))
    math = np.maximum(loop - c["fill_s"], floor_math)
    return Seconds(total=total, math=math, memory=np.maximum(memory, floor_memory), launch=launch)


def product_fit(device: Device, kind: str, format: str, variant: str = "") -> KernelFit:
    """Coefficients of ``kind`` in ``format``: the block ``<kind>_<format>``, else ``gemm_<format>``, else the nearest
    format's, which then counts as assumed and widens the interval. KeyError if the device has none.

    A weight gradient (variants ``wgrad``) takes the block ``<kind>_<format>_wgrad`` or ``gemm_<format>_wgrad`` where
    there is one: block-scaled FP8 then scales both operands along k, which costs the main loop.
    """
    if variant.startswith("wgrad"):
        for block in (f"{kind}_{format}_wgrad", f"gemm_{format}_wgrad"):
            if block in device.kernels:
                return device.kernels[block]
    for lender in (format, *LENDERS.get(format, ("bf16",))):
        for block in (f"{kind}_{lender}", f"gemm_{lender}"):
            if block in device.kernels:
                fit = device.kernels[block]
                if lender == format or (lender, format) == ("bf16", "fp16"):
                    return fit
                return replace(
                    fit, low=fit.low * BORROWED[0], high=fit.high * BORROWED[1], provenance="assumed",
                    source=f"{fit.source}; borrowed from {lender}",
                )  # fmt: skip
    return fit_of(device, f"{kind}_{format}", f"gemm_{format}", "gemm_bf16")


def candidates(p: Product, c: Mapping[str, Num]) -> tuple[tuple[Num, Num, Num], ...]:
    """Tile shapes (rows, columns) of the library that serves ``p.format``, and how many along the columns are computed
    together; where ``c`` has ``tile``, only that.

    Block-scaled kernels take the height from the rows: under 32 the operands swap roles (the 128 side lies along
    n), up to 64 one tile of 64, above that 128 (TensorRT-LLM and DeepGEMM on Hopper).
    """
    if "tile" in c:
        return ((c["tile"], c["tile"], 1.0),)
    if "cluster" in c:
        return (grouped_tile(p),)
    if p.format != "fp8_block":
        return tuple((height, width, 1.0) for height, width in TUNED)
    swapped = p.rows_per_group < 32.0
    height = np.where(swapped, 32.0, np.where(p.rows_per_group <= 64.0, 64.0, 128.0))
    return tuple((height, np.where(swapped, 128.0, float(width)), 1.0) for width in BLOCK_SCALED)


def grouped_tile(p: Product) -> tuple[Num, Num, Num]:
    """The tile (rows, columns) of the grouped kernels of CUTLASS that torch builds for Hopper, and the tiles along the
    columns that are computed together, empty or not.

    All depend on the sizes: narrow tiles for few rows or columns, else wide ones; in FP8 wide only for many columns and
    a long k. Found from the steps in times measured on an H200: of some hundred combinations these err least.
    """
    small = (p.rows_per_group <= _NARROW) | (p.n <= _NARROW)
    if not p.format.startswith("fp8"):
        return np.where(small, 64.0, 128.0), np.where(small, 128.0, 256.0), 1.0
    tall = (p.n >= _WIDE) & (p.k >= _WIDE)
    return np.where(small, 64.0, np.where(tall, 256.0, 128.0)), 128.0, np.where(small | tall, 1.0, 4.0)


def features(p: Product, device: Device) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: tiles of 128 x 128 per SM, and the sizes."""
    per_sm = p.row_tiles(128.0) * np.ceil(p.n / 128.0) / device.n_sms
    rows = np.maximum(p.rows_per_group, _NONE)
    return {
        "log2_tiles_per_sm": np.log2(np.maximum(per_sm, _NONE)), "log2_rows": np.log2(rows),
        "log2_n": np.log2(np.maximum(p.n, _NONE)), "log2_k": np.log2(np.maximum(p.k, _NONE)),
    }  # fmt: skip


def _loop_seconds(p: Product, c: Mapping[str, Num], device: Device, bandwidth: Num) -> Num:
    """Seconds of the slowest SM with the fastest tile shape."""
    n_sms, element = device.n_sms, BYTES[p.format]
    math = 2.0 * n_sms / (peak(device, p.format) * c["math_share"])
    load = element * n_sms / (bandwidth * c["load_ratio"])
    step, fill, waves, crowding = (c.get(name, 0.0) for name in ("step_s", "fill_s", "whole_waves", "crowding"))
    padding = c.get("padding", 0.0) * element / bandwidth
    together = c.get("cluster", 1.0)
    most_splits = np.maximum(p.k / SHORTEST_SPLIT, 1.0)
    reduction = 4.0 * p.rows * p.n / bandwidth if "reduce_s" in c else 0.0
    best: Num = np.inf
    for height, width, beside in candidates(p, c):
        row_tiles, column_tiles = together * p.row_tiles(together * height), beside * np.ceil(p.n / (beside * width))
        per_sm = row_tiles * column_tiles / n_sms
        per_k = load * (p.rows / np.maximum(row_tiles, _NONE) + np.minimum(width, p.n))
        if isinstance(crowding, np.ndarray) or crowding:
            per_k = per_k * (1.0 - crowding + crowding * np.minimum(per_sm, 1.0))
        tile = p.k * (np.maximum(per_k, math * (height * width)) + step)
        turns = np.maximum(per_sm, 1.0)
        if isinstance(waves, np.ndarray) or waves:
            turns = turns + waves * (np.ceil(per_sm) - turns)
        loop = turns * (tile + fill)
        if "padding" in c:
            loop = loop + padding * (row_tiles * height - p.rows) * column_tiles * p.k
        if "reduce_s" in c:
            splits = np.minimum(np.floor(1.0 / np.clip(per_sm, _NONE, 1.0)), most_splits)
            split = tile / splits + fill + reduction * splits + c["reduce_s"]
            loop = np.minimum(loop, np.where(splits > 1.0, split, np.inf))
        best = np.minimum(best, loop)
    if "unaligned" in c:
        odd = (np.mod(p.n * _OUTPUT_BYTES, _ALIGNMENT) > 0.0) | (np.mod(p.k * element, _ALIGNMENT) > 0.0)
        best = best * np.where(odd, c["unaligned"], 1.0)
    return best


def _conversion_seconds(elements: Num, c: Mapping[str, Num], l2_bytes: Num, bandwidth: Num) -> Num:
    """Seconds to scale and convert x to FP8: a pass over both copies that is cheaper while they stay in L2."""
    spill = np.square(np.square(elements * (CONVERT_RESIDENT_BYTES / CONVERT_L2_SHARE) / l2_bytes))
    return elements / bandwidth * (c["convert"] + c.get("convert_spill", 0.0) * (spill / (1.0 + spill)))
