"""A dense 2-D convolution as an implicit matrix product: m = n_images x height x width (of the output),
n = out_channels, k = in_channels x kernel^2. Its gradients are the products of the same three numbers in other places,
as those of a linear layer: m x k x n for the input, n x k x m for the weights.

Shape: n_images, height, width, in_channels, out_channels, kernel, stride. Variants: "" forward; ``dgrad`` and ``wgrad``
its gradients, which need as many FLOPs and move the same three tensors; ``depthwise``: a channel sees itself alone
(k = kernel^2), bound by memory.

The tile model of products with the block ``conv2d_<format>``, of forward kernels; without one, and for gradients, the
model of products stands for it, ``assumed``, with an interval that reaches to kernels twice as slow. So does the
``memory`` block for depthwise ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import BYTES, Work, memory, operator
from sextant.simulator.kernels.tiles import Product, product_fit, product_seconds
from sextant.simulator.types import Cluster, Estimate, Num, Op

#: Factors on the interval of products: library convolutions are seldom faster than the product of their size.
ASSUMED_LOW, ASSUMED_HIGH = 0.8, 2.0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """2 m n k FLOPs; input, weights and output moved once each."""
    m, n, k = _product(shape, variant)
    moved = _input_elements(shape) + n * k + m * n
    return Work(flops=2.0 * m * n * k, traffic_bytes={"hbm": BYTES[format] * moved})


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the tile model with the block ``conv2d_<format>``, else ``gemm_<format>``; Num in, Num of the
    broadcast shape out."""
    if op.variant == "depthwise":
        return _depthwise(op, cluster)
    own = op.variant == "" and f"conv2d_{op.format}" in cluster.device.kernels
    fit = product_fit(cluster.device, "conv2d" if own else "gemm", op.format, "")
    seconds = product_seconds(product(op), fit, cluster.device, converts=False)
    low, high = (1.0, 1.0) if own else (ASSUMED_LOW, ASSUMED_HIGH)
    return Estimate(
        seconds=seconds.total, low=seconds.total * fit.low * low, high=seconds.total * fit.high * high,
        limits={"math": seconds.math, "memory": seconds.memory, "launch": seconds.launch},
        provenance=fit.provenance if own else "assumed",
    )  # fmt: skip


def product(op: Op) -> Product:
    """What the tile model sees of a convolution that is not depthwise."""
    m, n, k = _product(op.shape, op.variant)
    size, read, weights, written = BYTES[op.format], _input_elements(op.shape), n * k, m * n
    # Operands that are activations, other operands, and the result.
    tensors = {"": (read, weights, written), "dgrad": (written, weights, read), "wgrad": (read + written, 0.0, weights)}
    places = {"": (m, n, k), "dgrad": (m, k, n), "wgrad": (n, k, m)}
    (rows, columns, depth), (x, other, result) = places[op.variant], tensors[op.variant]
    return Product(
        rows=rows, rows_per_group=rows, n=columns, k=depth, row_tiles=lambda height: np.ceil(rows / height),
        operand_bytes=size * (x + other), x_bytes=size * x, output_bytes=size * result, flops=2.0 * m * n * k,
        format=op.format,
    )  # fmt: skip


def _depthwise(op: Op, cluster: Cluster) -> Estimate:
    m, n, _ = _product(op.shape, op.variant)
    size = BYTES[op.format] * m * n
    moving = memory.estimate(operator("memory", op.name, op.format, {"read_bytes": size, "write_bytes": size}), cluster)
    return replace(moving, low=moving.low * ASSUMED_LOW, high=moving.high * ASSUMED_HIGH, provenance="assumed")


def _product(shape: Mapping[str, Num], variant: str) -> tuple[Num, Num, Num]:
    m = shape["n_images"] * shape["height"] * shape["width"]
    seen = 1.0 if variant == "depthwise" else shape["in_channels"]
    return m, shape["out_channels"], seen * shape["kernel"] ** 2


def _input_elements(shape: Mapping[str, Num]) -> Num:
    pixels = shape["n_images"] * shape["height"] * shape["width"] * shape["stride"] ** 2
    return pixels * shape["in_channels"]
