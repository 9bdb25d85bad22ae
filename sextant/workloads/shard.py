"""Lay a step over a plan: divide shapes by the parallel degrees and add the messages that this costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import operator, reshape
from sextant.simulator.types import Num, Op, Plan, Step

#: Which blocks end in a partial sum that tensor parallelism must add up, and whose input it must gather.
_PARTIAL_SUMS = ("attention", "mlp")


#: Groups whose messages go over as many nodes as their devices fill, from the first device of a node on.
_SPREAD = ("expert", "engram")


def shard(step: Step, model, plan: Plan, node_size: Num) -> Step:
    """The operators that one device runs of ``step`` under ``plan``; bytes and FLOPs over all devices are conserved.

    Tensor parallelism splits heads and widths and keeps norms and residuals split over tokens (sequence parallel), at
    the price of an all-gather and a reduce-scatter per block and pass. Expert parallelism pools the tokens of its
    group over fewer experts per device. ``node_size`` is the number of devices of the innermost tier.
    """
    degrees = {"tensor": plan.tensor, "expert": plan.expert}
    ops = [_divide(op, degrees) for op in step.ops]
    ops = [reshape(op, n_gpus_per_node=node_size) if op.group in _SPREAD else op for op in ops]
    return replace(step, ops=(*ops, *_tensor_messages(step, model, plan, node_size)))


def _divide(op: Op, degrees: dict[str, Num]) -> Op:
    dims: dict[str, Num] = {}
    for degree, names in op.shards.items():
        for name in names:
            key = name.lstrip("*")
            size = dims.get(key, op.shape[key])
            dims[key] = size * degrees[degree] if name.startswith("*") else size / degrees[degree]
    return reshape(op, **dims) if dims else op


def _tensor_messages(step: Step, model, plan: Plan, node_size: Num) -> list[Op]:
    """All-gather and reduce-scatter of (n_tokens, hidden_size) BF16 around every split block, per phase."""
    if not np.any(np.asarray(plan.tensor) > 1):
        return []
    size = 2.0 * step.n_tokens * model.hidden_size
    phases = ("forward", "backward_input") if step.phase == "training" else ("forward",)
    blocks = sorted({(op.part, op.block) for op in step.ops if op.block in _PARTIAL_SUMS})
    active = np.where(np.asarray(plan.tensor) > 1, 1.0, 0.0)
    return [
        operator(
            "collective", f"{block}_{variant}", "bf16",
            {"n_gpus": plan.tensor, "n_gpus_per_node": node_size, "message_bytes": size}, variant=variant,
            part=part, block=block, phase=phase, group="tensor", count=active,
        )
        for part, block in blocks
        for phase in phases
        for variant in ("all_gather", "reduce_scatter")
    ]  # fmt: skip
