"""A dense matrix product y[m, n] = x[m, k] w[n, k]^T. Shape: m, n, k.

Variants: "" takes operands in the format and writes BF16; ``from_bf16`` converts x to FP8 first, as library calls
that take BF16 activations do; ``wgrad`` adds to an FP32 gradient, which it reads and writes; ``wgrad_fresh`` only
writes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES, Work, memory, operator
from sextant.simulator.kernels.tiles import Product, product_fit, product_seconds
from sextant.simulator.types import PROVENANCES, Cluster, Estimate, Num, Op

#: Bytes that cross the bus per element of the output: BF16 written, or an FP32 result (``wgrad``: read and written).
OUTPUT_BYTES: Mapping[str, float] = {"wgrad": 8.0, "wgrad_fresh": 4.0}


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """2 m n k FLOPs; each operand read once, the output written once (``wgrad``: read and written in FP32)."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    operands = BYTES[format] * k * (m + n)
    return Work(flops=2.0 * m * n * k, traffic_bytes={"hbm": operands + OUTPUT_BYTES.get(variant, 2.0) * m * n})


def product(op: Op) -> Product:
    """What the tile model sees of ``op``."""
    m, n, k = op.shape["m"], op.shape["n"], op.shape["k"]
    return Product(
        rows=m, rows_per_group=m, n=n, k=k, row_tiles=lambda height: np.ceil(m / height),
        operand_bytes=BYTES[op.format] * k * (m + n), x_bytes=BYTES[op.format] * k * m,
        output_bytes=OUTPUT_BYTES.get(op.variant, 2.0) * m * n, flops=2.0 * m * n * k, format=op.format,
        old_bytes=4.0 * m * n if op.variant == "wgrad" else 0.0,
    )  # fmt: skip


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the tile model with the block ``gemm_<format>``; Num in, Num of the broadcast shape out."""
    fit = product_fit(cluster.device, "gemm", op.format, op.variant)
    converts = op.variant == "from_bf16"
    seconds = product_seconds(product(op), fit, cluster.device, converts=converts)
    found = Estimate(
        seconds=seconds.total, low=seconds.total * fit.low, high=seconds.total * fit.high,
        limits={"math": seconds.math, "memory": seconds.memory, "launch": seconds.launch}, provenance=fit.provenance,
    )  # fmt: skip
    if converts and op.format.startswith("fp8") and "convert" not in fit.coefficients:
        return _after_cast(op, found, cluster)
    return found


def _after_cast(op: Op, product: Estimate, cluster: Cluster) -> Estimate:
    """The product after a kernel of its own that converts x, where the fitted kernel takes FP8."""
    elements = op.shape["m"] * op.shape["k"]
    moved = {"read_bytes": 2.0 * elements, "write_bytes": BYTES["fp8_block"] * elements}
    cast = memory.estimate(operator("memory", "cast", "bf16", moved, variant="cast"), cluster)
    limits = {name: product.limits[name] + cast.limits.get(name, 0.0) for name in product.limits}
    return Estimate(
        seconds=product.seconds + cast.seconds, low=product.low + cast.low, high=product.high + cast.high,
        limits=limits, provenance=max(product.provenance, cast.provenance, key=PROVENANCES.index),
    )  # fmt: skip
