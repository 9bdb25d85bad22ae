"""Equal products in one launch, y_g[m, n] = x_g[m, k] w_g[n, k]^T, e.g. one per head. Shape: groups, m, n, k.

A library runs them with the tiles of its single products, so the coefficients are those of ``gemm_<format>``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES, Work
from sextant.simulator.kernels.tiles import Product, product_fit, product_seconds
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Bytes of an element of the output.
_OUTPUT_BYTES = 2.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """2 groups m n k FLOPs; each operand read once, the output written once in 16 bits."""
    groups, m, n, k = (shape[name] for name in ("groups", "m", "n", "k"))
    traffic = groups * (BYTES[format] * k * (m + n) + _OUTPUT_BYTES * m * n)
    return Work(flops=2.0 * groups * m * n * k, traffic_bytes={"hbm": traffic})


def product(op: Op) -> Product:
    """What the tile model sees of ``op``."""
    groups, m, n, k = (op.shape[name] for name in ("groups", "m", "n", "k"))
    return Product(
        rows=groups * m, rows_per_group=m, n=n, k=k, row_tiles=lambda height: groups * np.ceil(m / height),
        operand_bytes=BYTES[op.format] * groups * k * (m + n), x_bytes=BYTES[op.format] * groups * k * m,
        output_bytes=_OUTPUT_BYTES * groups * m * n, flops=2.0 * groups * m * n * k, format=op.format,
    )  # fmt: skip


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the tile model with the block ``batched_gemm_<format>`` (else ``gemm_<format>``)."""
    fit = product_fit(cluster.device, "batched_gemm", op.format, op.variant)
    seconds = product_seconds(product(op), fit, cluster.device, converts=False)
    return Estimate(
        seconds=seconds.total, low=seconds.total * fit.low, high=seconds.total * fit.high,
        limits={"math": seconds.math, "memory": seconds.memory, "launch": seconds.launch}, provenance=fit.provenance,
    )  # fmt: skip
