"""The end of a training step: gradients summed over replicas, AdamW on this device's share, weights gathered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.types import Num, Op, Plan, Step
from sextant.workloads.formats import Recipe, recipe
from sextant.workloads.ops import engram
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.residency import device_parameters, replicas


def optimizer_step(model, plan: Plan, layers: Mapping[str, Num], node_size: Num) -> Step:
    """Operators of the optimizer on a device that holds ``layers`` occurrences of each part.

    Gradients travel in the recipe's gradient format, weights in its weight format, both once over every group of
    replicas (ZeRO 1: reduce-scatter, update the share, all-gather). Replicas of dense parameters lie one
    tensor-parallel group apart, those of an expert one expert-parallel group, and fill nodes as far as that allows.
    """
    kind, copies, sizes = recipe(plan.formats), replicas(plan), device_parameters(model, plan)
    ops: list[Op] = []
    apart = {"dense": plan.tensor, "expert": plan.expert}
    for group in ("dense", "expert"):
        n = sum((count * sizes[part][group] for part, count in layers.items()), 0.0)
        near = np.maximum(node_size / apart[group], 1.0)
        ops += _group(group, kind, n, copies[group], near)
    if model.tie_word_embeddings and ("embedding" in layers) != ("head" in layers):
        # The two stages that hold the shared table add up their gradients; they lie on different nodes.
        size = kind.gradient_bytes * model.vocab_size * model.hidden_size / plan.tensor
        ops.append(_collective("tied_gradients", "all_reduce", size, 2.0, 1.0))
    if "engram" in layers:
        ops.append(_tables(kind, layers["engram"] * engram.table_parameters(model), plan))
    return Step(phase="optimizer", ops=tuple(ops), n_tokens=0.0, layers={"optimizer": 1.0})


def _tables(kind: Recipe, n: Num, plan: Plan) -> Op:
    """AdamW on this device's rows of ``n`` table elements, whose gradients came by all-to-all.

    Every row counts: a step over millions of tokens touches almost all; fewer where n-grams repeat much."""
    share = n / (plan.tensor * plan.context * plan.pipeline * plan.data)
    state = kind.master_bytes + kind.moment_bytes
    place = Place(part="optimizer", block="engram")
    read, write = share * (state + kind.gradient_bytes), share * (state + kind.weight_bytes)
    return moved("engram_adamw", place, read, write, "optimizer", (), "adam")


def _group(name: str, kind: Recipe, n: Num, n_replicas: Num, n_gpus_per_node: Num) -> list[Op]:
    """Operators for ``n`` parameters of this device that ``n_replicas`` devices share."""
    place = Place(part="optimizer", block=name)
    share = n / n_replicas
    gradients = share * kind.gradient_bytes
    ops = [
        _collective(f"{name}_gradients", "reduce_scatter", n * kind.gradient_bytes, n_replicas, n_gpus_per_node),
        _collective(f"{name}_weights", "all_gather", n * kind.weight_bytes, n_replicas, n_gpus_per_node),
        moved(f"{name}_gradient_norm", place, gradients, 0.0 * share, "optimizer", (), "square_sum"),
        *_update(name, place, kind, share),
        moved(f"{name}_gradient_reset", place, 0.0 * n, n * kind.gradient_bytes, "optimizer", ()),
    ]
    if kind.quantised:
        # FP8 copies of the weights in both layouts, made once per step: rows for the forward, columns for the backward.
        size = 2.0 * n * BYTES[kind.linear]
        ops.append(moved(f"{name}_weight_cast", place, n * kind.weight_bytes, size, "optimizer", ()))
    return ops


def _update(name: str, place: Place, kind: Recipe, share: Num) -> list[Op]:
    """AdamW on ``share`` parameters: one kernel that also writes the 16-bit weights.

    Of a loss-scaled recipe: gradients are divided by the scale while infinities are looked for, clipped in a pass of
    their own, and the weights copied after the update.
    """
    state, weights = share * (kind.master_bytes + kind.moment_bytes), share * kind.weight_bytes
    gradients = share * kind.gradient_bytes
    if not kind.loss_scaled:
        return [moved(f"{name}_adamw", place, state + gradients, state + weights, "optimizer", (), "adam")]
    return [
        moved(f"{name}_unscale", place, gradients, gradients, "optimizer", (), "scale"),
        moved(f"{name}_clip", place, gradients, gradients, "optimizer", (), "scale"),
        moved(f"{name}_adamw", place, state + gradients, state, "optimizer", (), "adam_fp32"),
        moved(f"{name}_weight_copy", place, share * kind.master_bytes, weights, "optimizer", ()),
    ]


def _collective(name: str, variant: str, size: Num, n_gpus: Num, n_gpus_per_node: Num) -> Op:
    shape = {"n_gpus": n_gpus, "n_gpus_per_node": n_gpus_per_node, "message_bytes": size}
    return operator(
        "collective", name, "bf16", shape, variant=variant, part="optimizer", block=name, phase="optimizer",
        group="data",
    )  # fmt: skip
