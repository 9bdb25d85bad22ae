"""Working sets of a training chunk, read off the operators that it runs: what lies in memory only while it runs.

An operator's inputs and results are there while it executes: the largest operator of a chunk stands for its working
set. What it shares with kept tensors is counted twice, what lies between operators is not counted. Weights and their
gradients are state and counted there.
"""

from __future__ import annotations

import numpy as np

from sextant.simulator.kernels import BYTES
from sextant.simulator.types import Num, Op, Step

#: Several passes of one tensor that the head keeps or the product beside it reads; their bytes are no operands.
_SEVERAL_PASSES = ("cross_entropy", "cross_entropy_backward")


def operand_bytes(op: Op) -> Num:
    """Bytes of activations that one execution of ``op`` reads and writes; messages count what they carry.

    Products in the operand's format, results in BF16; of a weight gradient only its operands. Attention counts queries,
    keys, values and output, its backward pass also their gradients, that of the queries in FP32.
    """
    shape = op.shape
    if op.kind in ("gemm", "grouped_gemm"):
        return _product_bytes(op)
    if op.kind == "attention":
        rows = shape["batch"] * shape["heads"] * shape["q_len"]
        keys = shape["batch"] * shape["kv_heads"] * shape["kv_len"]
        query, output = rows * shape["head_dim"], rows * shape["v_head_dim"]
        inputs = query + keys * (shape["head_dim"] + shape["v_head_dim"])
        if op.variant == "backward":
            return 2.0 * (2.0 * inputs + 2.0 * output) + 4.0 * query
        return 2.0 * (inputs + output)
    if op.kind in ("collective", "expert_exchange"):
        return 0.0
    return 0.0 if op.name in _SEVERAL_PASSES else op.traffic_bytes.get("hbm", 0.0)


def largest_operands(step: Step) -> dict[str, dict[str, Num]]:
    """``{part: {phase: bytes}}``: the operands of each part's largest operator in a phase."""
    found: dict[str, dict[str, Num]] = {part: {} for part in step.layers}
    for op in step.ops:
        phases = found[op.part]
        phases[op.phase] = np.maximum(phases.get(op.phase, 0.0), operand_bytes(op))
    return found


def weight_gradient_operands(step: Step) -> dict[str, tuple[Num, Num]]:
    """``(inputs, output gradients)`` in bytes per part, of its weight-gradient products: what waits from a chunk's
    input gradients to its weight gradients. An input that several products share counts for each."""
    waiting: dict[str, tuple[Num, Num]] = {part: (0.0, 0.0) for part in step.layers}
    for op in step.ops:
        if op.phase == "backward_weight" and op.kind in ("gemm", "grouped_gemm"):
            gradients, inputs = (op.count * each for each in _weight_operands(op))
            waiting[op.part] = (waiting[op.part][0] + inputs, waiting[op.part][1] + gradients)
    return waiting


def _product_bytes(op: Op) -> Num:
    if op.variant == "wgrad":
        return sum(_weight_operands(op), 0.0)
    groups, rows = _groups(op)
    m, n, k = op.shape[rows], op.shape["n"], op.shape["k"]
    return groups * (BYTES[op.format] * m * k + 2.0 * m * n)


def _weight_operands(op: Op) -> tuple[Num, Num]:
    """Output gradient and input of a weight-gradient product, whose ``k`` are the tokens."""
    groups, rows = _groups(op)
    size = groups * BYTES[op.format] * op.shape["k"]
    return size * op.shape[rows], size * op.shape["n"]


def _groups(op: Op) -> tuple[Num, str]:
    return (op.shape["groups"], "tokens_per_group") if op.kind == "grouped_gemm" else (1.0, "m")
