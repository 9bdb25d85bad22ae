"""One matrix product per expert, y_g[t, n] = x_g[t, k] w_g[n, k]^T, in one launch.

Shape: groups (experts of the device), tokens_per_group, n, k. ``tokens_per_group`` is an average over experts, may be
fractional, and stands for random routing: an expert is hit with probability 1 - exp(-t), and the tokens of one end
anywhere in their last tile. Variants: "" as above; ``exact`` every expert has exactly that many tokens; ``wgrad``
adds to FP32 gradients, and then tokens_per_group is a weight dimension and k the average number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sextant.simulator.kernels import BYTES, Work
from sextant.simulator.kernels.gemm import OUTPUT_BYTES
from sextant.simulator.kernels.tiles import Product, product_fit, product_seconds
from sextant.simulator.types import Cluster, Estimate, Num, Op


def share_hit(tokens_per_group: Num, variant: str) -> Num:
    """The expected share of experts that have any token; 1 for ``wgrad``, which touches all weights."""
    if variant.startswith("wgrad"):
        return np.ones_like(tokens_per_group, dtype=float)[()]
    if variant == "exact":
        return np.minimum(tokens_per_group, 1.0)
    return -np.expm1(-np.asarray(tokens_per_group, dtype=float))[()]


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """2 groups t n k FLOPs; the weights of the experts hit and all activations read once, the output written once."""
    operands, output = _bytes(shape, format, variant)
    flops = 2.0 * shape["groups"] * shape["tokens_per_group"] * shape["n"] * shape["k"]
    return Work(flops=flops, traffic_bytes={"hbm": operands + output})


def product(op: Op) -> Product:
    """What the tile model sees of ``op``."""
    groups, tokens, n, k = (op.shape[name] for name in ("groups", "tokens_per_group", "n", "k"))
    operands, output = _bytes(op.shape, op.format, op.variant)
    return Product(
        rows=groups * tokens, rows_per_group=tokens, n=n, k=k, row_tiles=_row_tiles(groups, tokens, op.variant),
        operand_bytes=operands, x_bytes=BYTES[op.format] * groups * tokens * k, output_bytes=output,
        flops=2.0 * groups * tokens * n * k, format=op.format,
        old_bytes=4.0 * groups * tokens * n if op.variant == "wgrad" else 0.0,
    )  # fmt: skip


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the tile model with the block ``grouped_gemm_<format>`` (else ``gemm_<format>``)."""
    fit = product_fit(cluster.device, "grouped_gemm", op.format, op.variant)
    seconds = product_seconds(product(op), fit, cluster.device, converts=False)
    return Estimate(
        seconds=seconds.total, low=seconds.total * fit.low, high=seconds.total * fit.high,
        limits={"math": seconds.math, "memory": seconds.memory, "launch": seconds.launch}, provenance=fit.provenance,
    )  # fmt: skip


def _bytes(shape: Mapping[str, Num], format: str, variant: str) -> tuple[Num, Num]:
    """Bytes of the operands and of the output."""
    groups, tokens, n, k = (shape[name] for name in ("groups", "tokens_per_group", "n", "k"))
    weights = groups * share_hit(tokens, variant) * n * k
    return BYTES[format] * (weights + groups * tokens * k), OUTPUT_BYTES.get(variant, 2.0) * groups * tokens * n


def _row_tiles(groups: Num, tokens: Num, variant: str) -> Callable[[Num], Num]:
    """Expected tiles of a given height that the rows of all experts fill.

    A hit expert has one tile, more by its tokens over the height, less the part of the last tile that they fill: all
    of them while they fit in one tile, half a tile on average once they fill several.
    """
    if variant == "exact" or variant.startswith("wgrad"):
        return lambda height: groups * np.minimum(tokens, 1.0) * np.ceil(tokens / height)
    hit = share_hit(tokens, variant)

    def expected(height: Num) -> Num:
        full = tokens / height
        return groups * (hit + full - full / np.sqrt(np.sqrt(1.0 + np.square(np.square(2.0 * full)))))

    return expected
