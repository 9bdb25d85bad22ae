"""The messages of tensor parallelism: partial sums added up, split inputs gathered, around every split block.

Without sequence parallelism a block's partial sums are all-reduced, forward over its outputs and backward over the
gradients of its input. With it the residual lies split over the group: the input is gathered, the sums are scattered;
and since the saved input is split too, its weight gradient gathers it once more (arXiv:2205.05198 s4.2.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sextant.simulator.kernels import operator
from sextant.simulator.types import Num, Op, Plan, Step

#: Blocks that end in a partial sum, and blocks of the split vocabulary, which in training are one half each: the
#: embedding ends in a sum, the head begins with a split input.
_BLOCKS, _VOCABULARY = ("attention", "mlp"), ("embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """A collective of a phase; ``beside`` says which gradient (``dgrad`` or ``wgrad``) is computed meanwhile."""

    name: str
    variant: str
    phase: str
    beside: str = ""


def tensor_messages(step: Step, model, plan: Plan, node_size: Num) -> list[Op]:
    """Collectives over (n_tokens, hidden_size) in 16 bits, per split block and pass, of a device of the tensor group.

    They stand in line with compute. Under ``plan.overlap: tensor`` those of the backward pass that need not be waited
    for run beside the input or weight gradient of the same linear layer. Recompute ``full`` sends forward messages
    again.
    """
    if not np.any(np.asarray(plan.tensor) > 1):
        return []
    active = np.where(np.asarray(plan.tensor) > 1, 1.0, 0.0)
    size = 2.0 * step.n_tokens * model.hidden_size
    shape = {"n_gpus": plan.tensor, "n_gpus_per_node": node_size, "message_bytes": size}
    training = step.phase == "training"
    known = (*_BLOCKS, *_VOCABULARY) if training else _BLOCKS
    places = sorted({(op.part, op.block) for op in step.ops if op.block in known and op.part != "mtp"})
    places += sorted({(op.part, op.block) for op in step.ops if op.block in _BLOCKS and op.part == "mtp"})
    return [
        operator(
            "collective", f"{block}_{message.name}", "bf16", shape, variant=message.variant, part=part, block=block,
            phase=message.phase, group="tensor", count=active,
            beside=_hider(step, part, block, message.beside) if plan.overlap == "tensor" else "",
        )
        for part, block in places
        for message in _messages(block, plan, training)
    ]  # fmt: skip


def _messages(block: str, plan: Plan, training: bool) -> Iterator[_Message]:
    """What one block sends in the order of its passes."""
    opens, closes = block != "embedding", block != "head"
    forward = list(_forward(plan.sequence_parallel, opens, closes))
    yield from forward
    if not training:
        return
    back = "backward_input"
    if "full" in plan.recompute and block in _BLOCKS:
        yield from (_Message(name=f"{m.name}_recompute", variant=m.variant, phase=back) for m in forward)
    if not plan.sequence_parallel:
        if opens:
            yield _Message(name="all_reduce_gradient", variant="all_reduce", phase=back, beside="wgrad")
        return
    if closes:
        yield _Message(name="all_gather_gradient", variant="all_gather", phase=back)
    if opens:
        yield _Message(name="all_gather_input", variant="all_gather", phase=back, beside="dgrad")
        yield _Message(name="reduce_scatter_gradient", variant="reduce_scatter", phase=back, beside="wgrad")


def _forward(sequence_parallel: bool, opens: bool, closes: bool) -> Iterator[_Message]:
    if not sequence_parallel:
        if closes:
            yield _Message(name="all_reduce", variant="all_reduce", phase="forward")
        return
    if opens:
        yield _Message(name="all_gather", variant="all_gather", phase="forward")
    if closes:
        yield _Message(name="reduce_scatter", variant="reduce_scatter", phase="forward")


def _hider(step: Step, part: str, block: str, gradient: str) -> str:
    """The gradient product of the linear layer whose input the block's messages are about, if it has one."""
    for op in step.ops:
        columns = op.kind == "gemm" and op.phase == "backward_weight" and op.shards.get("tensor") == ("m",)
        if gradient and columns and (op.part, op.block) == (part, block):
            return op.name.removesuffix("wgrad") + gradient
    return ""
