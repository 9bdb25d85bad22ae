"""FLOPs of the matrix products of a pass, by torch's counter and by the project's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.utils.flop_counter import FlopCounterMode

from sextant.simulator.kernels import reshape
from sextant.simulator.types import Op, Step


def counted(run: Callable[[], object], *, without: tuple[str, ...] = (), gradients: bool = False) -> int:
    """FLOPs of ``run()`` on the meta device; submodules whose path ends in one of ``without`` are left out;
    ``gradients`` where ``run`` also goes backward.

    The counter sees products and convolutions, not elementwise arithmetic (norms, activations, softmax).
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(gradients):
        run()
    by_module = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    left_out = sum(n for path, n in by_module.items() if path.split(".")[-1] in without)
    return by_module.get("Global", 0) - left_out


def operator_flops(ops: Iterable[Op], *, without: tuple[str, ...] = ()) -> float:
    """FLOPs of each operator once (times its ``count``); operators of the kinds ``without`` are left out."""
    return sum(float(_full_square(op).flops * op.count) for op in ops if op.kind not in without)


def step_flops(step: Step, *, without: tuple[str, ...] = ()) -> float:
    """FLOPs of a step: every part as often as the model has it."""
    return sum(
        float(n) * operator_flops((op for op in step.ops if op.part == part), without=without)
        for part, n in step.layers.items()
    )


def scores_flops(op: Op) -> float:
    """FLOPs of the product of all queries and keys, for an attention operator; 0 for others."""
    if op.kind != "attention":
        return 0.0
    shape = op.shape
    return float(2.0 * shape["batch"] * shape["heads"] * shape["q_len"] * shape["kv_len"] * shape["head_dim"])


def _full_square(op: Op) -> Op:
    """Attention with every query against every key: eager reference code computes the masked half as well."""
    return reshape(op, causal=0.0) if op.kind == "attention" else op
