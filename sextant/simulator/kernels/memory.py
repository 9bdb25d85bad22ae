"""A memory-bound operator: copy, cast, RMSNorm, SwiGLU, addition and other kernels that only move their tensors.

Shape: read_bytes and write_bytes; where its blocks of threads each take one row, also ``rows`` (of the tensors, or the
pieces that they are cut into) and ``width`` (elements of a row). Without them, rows of ``_ROW_BYTES`` are assumed.
``whole_waves`` is 1 where a kernel is launched as one wave of blocks over all SMs of the device: when communication
holds some of them, the blocks left over take a second wave.

    seconds   floor_s + cold + the larger of memory and rows (both to a power, so that the smaller adds what it does
              not hide) + summing, times the correction
    memory    bytes over ``efficiency``, a share of the HBM bandwidth; a written byte counts ``write_cost`` read ones;
              those in ``l2_share`` of the L2 capacity, still there from the kernel before, move ``l2_speedup`` faster
    cold      ``cold_s``, the latency of HBM over that of L2, from ``cold_share`` of the L2 capacity on: smaller tensors
              are found in L2 by a kernel that runs again and again
    sort      likewise ``sort_s`` from ``sort_share`` on: a library's next algorithm, of more kernels
    rows      ``row_s`` + ``row_byte_s`` for every byte of a row, times the rows that follow one another in one of the
              ``blocks`` that an SM holds; compilers of tiles pad a row to a power of two: ``padded``, the cost of what
              they add
              ``cold_byte_s``: what a byte of the first row takes longer from HBM than from L2
    held      share of the L2 capacity that holds a tensor whose rows are read again and again; more of it comes anew
    summing   ``sum_s`` for partial results, of which every block has one (gradients of a norm's weights)
    odd       a driver's copy: factor on the bytes where a length is no multiple of a page, or half a GiB and more

Absent coefficients are no effect. A correction is over ``features``.

Variants name a kind of access with coefficients of its own (block ``memory_<variant>``, else ``memory``): an operator
(``rmsnorm``, ``swiglu``, ``cast`` ...), or a pattern: ``permute`` gathers rows by index, ``transpose`` re-quantises
along the other dimension, ``norm_backward`` also sums over tokens, ``memcpy`` is the driver's copy; ``topk`` and
``index`` are the many small library kernels with which training code selects experts and sorts pairs by expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Cluster, Device, Estimate, Num, Op

#: Bytes read and written per row where the shape does not say: 4,096 BF16 values in and out.
_ROW_BYTES = 16384.0
#: A driver's copy is fast where its length is a multiple of this, up to a quarter of a GiB; from half a GiB it is not.
_PAGE_BYTES, _LONG_BYTES = 4096.0, 2.0**28
#: How sharply the cold start sets in, and how much of the smaller of two times the larger one hides.
_SHARPNESS, _OVERLAP_POWER = 8.0, 3.0
#: A sum over more partial results is spread over more threads: how its time grows with their number.
_SUMMING_POWER = 2.0 / 3.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """No FLOPs worth counting; every byte read once and written once."""
    return Work(traffic_bytes={"hbm": shape["read_bytes"] + shape["write_bytes"]})


def features(shape: Mapping[str, Num]) -> dict[str, Num]:
    """What a correction may depend on, as logarithms to base 2: bytes moved, rows, and the padded width of a row."""
    moved = np.maximum(shape["read_bytes"] + shape["write_bytes"], 1.0)
    found: dict[str, Num] = {"log2_bytes": np.log2(moved), "log2_rows": np.log2(np.maximum(_rows(shape), 1.0))}
    if "width" in shape:
        found["log2_padded"] = np.ceil(np.log2(np.maximum(shape["width"], 1.0)))
    else:
        # Rows without a width: that of BF16 rows read and written.
        found["log2_padded"] = found["log2_bytes"] - found["log2_rows"] - 2.0
    return found


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``memory_<variant>`` or ``memory``; Num in, Num of the broadcast shape out.

    Never less than what cannot lie in L2 takes at the HBM bandwidth. KeyError if the device has no such block.
    """
    device, shape = cluster.device, op.shape
    fit = fit_of(device, f"memory_{op.variant}", "memory")
    c = fit.coefficients
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    total = shape["read_bytes"] + shape["write_bytes"]
    memory_s = _memory_seconds(shape, c, device, bandwidth)
    moving_s, launch_s, cold = memory_s, np.maximum(device.launch_s, c["floor_s"]), 0.0
    if "cold_s" in c:
        cold = _step(total / (c["cold_share"] * device.l2_bytes))
        launch_s = launch_s + c["cold_s"] * cold
    if "sort_s" in c:
        launch_s = launch_s + c["sort_s"] * _step(total / (c["sort_share"] * device.l2_bytes))
    if "blocks" in c:
        rows_s, first_s, summing_s = _row_seconds(shape, c, device.n_sms, cold)
        larger, smaller = np.maximum(memory_s, rows_s), np.minimum(memory_s, rows_s)
        moving_s = larger * (1.0 + (smaller / np.maximum(larger, 1e-30)) ** _OVERLAP_POWER) ** (1.0 / _OVERLAP_POWER)
        launch_s = launch_s + first_s + summing_s
    moving_s = moving_s * _waves(shape, device)
    seconds = (launch_s + moving_s) * correction(fit, features(shape))
    seconds = np.maximum(seconds, (total - device.l2_bytes) / bandwidth)
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high,
        limits={"memory": moving_s, "launch": launch_s}, provenance=fit.provenance,
    )  # fmt: skip


def _waves(shape: Mapping[str, Num], device: Device) -> Num:
    """How much longer one wave over all SMs takes on those that communication leaves: ``n`` waves of fewer blocks."""
    share = device.n_sms / (device.n_sms + device.n_held_sms)
    longer = np.ceil(1.0 / share - 1e-9) * share
    return np.where(np.asarray(shape.get("whole_waves", 0.0)) > 0.0, longer, 1.0)


def _step(size: Num) -> Num:
    """From 0 to 1 around a size of 1."""
    beyond = np.minimum(size, 1e3) ** _SHARPNESS
    return beyond / (1.0 + beyond)


def _memory_seconds(shape: Mapping[str, Num], c: Mapping[str, Num], device: Device, bandwidth: Num) -> Num:
    """Seconds that the bytes take in HBM and L2."""
    moved = shape["read_bytes"] + c["write_cost"] * shape["write_bytes"]
    if "odd" in c:
        size = shape["write_bytes"]
        odd = np.where(np.mod(size, _PAGE_BYTES) > 0.0, 1.0, np.clip(np.log2(size / _LONG_BYTES + 1e-30), 0.0, 1.0))
        moved = moved * (1.0 + (c["odd"] - 1.0) * odd)
    if "held" in c:
        again = np.maximum(shape["write_bytes"] - shape["read_bytes"], 0.0)
        outside = 1.0 - c["held"] * device.l2_bytes / np.maximum(shape["read_bytes"], 1.0)
        moved = moved + again * np.maximum(outside, 0.0)
    resident = np.minimum(moved, c.get("l2_share", 0.0) * device.l2_bytes)
    return (moved - resident + resident / c.get("l2_speedup", 1.0)) / (bandwidth * c["efficiency"])


def _row_seconds(shape: Mapping[str, Num], c: Mapping[str, Num], n_sms: Num, cold: Num) -> tuple[Num, Num, Num]:
    """Seconds of the rows after a block's first, of the first, and of adding up the blocks' partial results.

    ``cold`` is 1 where rows come from HBM, 0 where they are found in L2.
    """
    rows = _rows(shape)
    row_bytes = (shape["read_bytes"] + shape["write_bytes"]) / np.maximum(rows, 1.0)
    worked = row_bytes * (1.0 + c.get("padded", 0.0) * (_padding(shape) - 1.0))
    row_s = c["row_s"] + c["row_byte_s"] * worked
    first_s = row_s + c.get("cold_byte_s", 0.0) * worked * cold
    blocks = c["blocks"] * n_sms
    later = np.maximum(rows / blocks, 1.0) - 1.0
    return later * row_s, first_s, c.get("sum_s", 0.0) * np.minimum(rows, blocks) ** _SUMMING_POWER


def _rows(shape: Mapping[str, Num]) -> Num:
    if "rows" in shape:
        return shape["rows"]
    return (shape["read_bytes"] + shape["write_bytes"]) / _ROW_BYTES


def _padding(shape: Mapping[str, Num]) -> Num:
    """Elements of a padded row over those of the row."""
    if "width" not in shape:
        return 1.0
    width = np.maximum(shape["width"], 1.0)
    return 2.0 ** np.ceil(np.log2(width)) / width
