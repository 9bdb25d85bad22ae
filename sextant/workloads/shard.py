"""Lay a step over a plan: divide shapes by the parallel degrees and add the messages that this costs."""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.kernels import reshape
from sextant.simulator.types import Num, Op, Plan, Step
from sextant.workloads.tensor_messages import tensor_messages

#: Groups whose messages go over as many nodes as their devices fill, from the first device of a node on.
_SPREAD = ("expert", "engram")


def shard(step: Step, model, plan: Plan, node_size: Num) -> Step:
    """The operators that one device runs of ``step`` under ``plan``; bytes and FLOPs over all devices are conserved.

    Tensor parallelism splits heads and widths, and costs ``tensor_messages``. Expert parallelism pools the tokens
    of its group over fewer experts per device. ``node_size`` is the number of devices of the innermost tier.
    """
    degrees = {
        "tensor": plan.tensor, "expert": plan.expert, "sequence": plan.tensor if plan.sequence_parallel else 1.0,
    }  # fmt: skip
    ops = [_divide(op, degrees, node_size) for op in step.ops]
    return replace(step, ops=(*ops, *tensor_messages(step, model, plan, node_size)))


def _divide(op: Op, degrees: dict[str, Num], node_size: Num) -> Op:
    dims: dict[str, Num] = {"n_gpus_per_node": node_size} if op.group in _SPREAD else {}
    for degree, names in op.shards.items():
        for name in names:
            key = name.lstrip("*")
            size = dims.get(key, op.shape[key])
            dims[key] = size * degrees[degree] if name.startswith("*") else size / degrees[degree]
    return reshape(op, **dims) if dims else op
