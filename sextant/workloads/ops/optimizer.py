"""The end of a training step: gradients summed over replicas, AdamW on this device's share, weights gathered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.kernels.gather import sectors_bytes
from sextant.simulator.types import Flag, Load, Num, Op, Plan, Step
from sextant.workloads.formats import Recipe, recipe
from sextant.workloads.ops import engram, table_rows
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.residency import device_parameters, linear_parameters, replicas


def optimizer_step(model, plan: Plan, layers: Mapping[str, Num], node_size: Num, touched_fraction: Num = 1.0) -> Step:
    """Operators of the optimizer on a device that holds ``layers`` occurrences of each part; ``touched_fraction`` of
    the rows of Engram tables are updated (``touched_fraction_of``).

    Gradients travel in the recipe's gradient format, weights in its weight format, once over every group of replicas:
    under ZeRO 1 gradients are reduced and scattered, each device updates its share, and weights are gathered. Without
    ZeRO (0) gradients are summed for all, and every device updates everything; under 2 gradients came with every
    micro-batch, and under 3 weights do so too (``chunk_messages``).
    """
    kind = recipe(plan.formats)
    ops: list[Op] = []
    for group, n, n_replicas, near in groups(model, plan, layers, node_size):
        ops += _group(group, kind, plan, n, n_replicas, near)
    if model.tie_word_embeddings:
        # The two stages that hold the shared table add up their gradients; they lie on different nodes.
        holds = [np.asarray(layers.get(part, 0.0)) > 0 for part in ("embedding", "head")]
        size = kind.gradient_bytes * model.vocab_size * model.hidden_size / plan.tensor
        tied = collective("tied_gradients", "all_reduce", size, 2.0, 1.0)
        ops.append(replace(tied, count=np.where(holds[0] != holds[1], 1.0, 0.0)[()]))
    if "engram" in layers:
        ops.append(tables(model, plan, layers["engram"], touched_fraction))
    return Step(phase="optimizer", ops=tuple(ops), n_tokens=0.0, layers={"optimizer": 1.0})


def touched_fraction_of(model, plan: Plan, load: Load) -> Num:
    """The share of Engram rows that a step over ``load.batch`` sequences updates: all, unless the optimizer is sparse.

    A dense AdamW moves every row, looked up or not: its moments decay.
    """
    if not plan.sparse_optimizer or not model.engram_layers:
        return 1.0
    return table_rows.touched_share(model, load.zipf_exponent, load.batch * load.context_tokens)


def tables(model, plan: Plan, n_layers: Num, touched_fraction: Num) -> Op:
    """AdamW on ``touched_fraction`` of this device's rows of ``n_layers`` Engram layers' tables, whose gradients came
    by all-to-all. Single rows move in whole sectors."""
    kind, n = recipe(plan.formats), n_layers * engram.table_parameters(model)
    share = touched_fraction * n / (plan.tensor * plan.context * plan.pipeline * plan.data)
    width = model.engram_dim / engram.n_rows(model)

    def moved_bytes(*element_bytes: float) -> Num:
        if not plan.sparse_optimizer:
            return share * sum(element_bytes)
        return share * sum(sectors_bytes(width * size, "hbm") / width for size in element_bytes)

    state = (kind.master_bytes, kind.moment_bytes)
    place = Place(part="optimizer", block="engram")
    read, write = moved_bytes(*state, kind.gradient_bytes), moved_bytes(*state, kind.weight_bytes)
    update = moved("engram_adamw", place, read, write, "optimizer", (), "adam")
    return replace(update, count=np.where(np.asarray(n) > 0, update.count, 0.0)[()])


def _group(name: str, kind: Recipe, plan: Plan, n: Num, n_replicas: Num, n_gpus_per_node: Num) -> list[Op]:
    """Operators for ``n`` parameters of this device that ``n_replicas`` devices share."""
    place, stage = Place(part="optimizer", block=name), np.asarray(plan.zero_stage)
    share = np.where(stage >= 1, n / n_replicas, n)[()]
    size = n * kind.gradient_bytes
    ops = [
        *_where(stage < 1, collective(f"{name}_gradients", "all_reduce", size, n_replicas, n_gpus_per_node)),
        *_where(stage == 1, collective(f"{name}_gradients", "reduce_scatter", size, n_replicas, n_gpus_per_node)),
    ]
    ops.append(
        moved(f"{name}_gradient_norm", place, share * kind.gradient_bytes, 0.0 * share, "optimizer", (), "square_sum")
    )
    ops += _update(name, kind, plan, place, share)
    if plan.placement.get("ema", "host") == "hbm":
        # On the host the average follows while the next step runs (DeepSeek-V3 report s3.2.3).
        size = share * kind.master_bytes
        ops.append(moved(f"{name}_ema", place, 2.0 * size, size, "optimizer", ()))
    gathered = collective(f"{name}_weights", "all_gather", n * kind.weight_bytes, n_replicas, n_gpus_per_node)
    ops += _where((stage >= 1) & (stage < 3), gathered)
    summed, cast = np.where(stage < 2, n, share)[()], np.where(stage < 3, n, share)[()]
    ops.append(moved(f"{name}_gradient_reset", place, 0.0 * n, summed * kind.gradient_bytes, "optimizer", ()))
    if kind.quantised:
        # FP8 copies of the weights in every layout, made once per step: rows for the forward, columns for the backward.
        size = kind.weight_layouts * cast * BYTES[kind.linear]
        ops.append(moved(f"{name}_weight_cast", place, cast * kind.weight_bytes, size, "optimizer", ()))
    return ops


def _where(here: Flag, op: Op) -> list[Op]:
    """``op`` at the points where it is ``here``, counted 0 elsewhere; nothing where it is nowhere."""
    return [replace(op, count=op.count * np.where(here, 1.0, 0.0)[()])] if np.any(here) else []


def _update(name: str, kind: Recipe, plan: Plan, place: Place, share: Num) -> list[Op]:
    """AdamW on ``share`` parameters: by this device, or with ``placement: {optimizer: host}`` by its host, to which
    gradients are copied and from which weights come back, all in turn.

    One kernel updates and writes the 16-bit weights. Of a loss-scaled recipe gradients are divided by the scale while
    infinities are looked for, clipped in a pass of their own, and the weights copied after the update.
    """
    state = share * (kind.master_bytes + kind.moment_bytes)
    gradients, weights = share * kind.gradient_bytes, share * kind.weight_bytes
    if plan.placement.get("optimizer", "hbm") != "host" and not kind.loss_scaled:
        return [moved(f"{name}_adamw", place, state + gradients, state + weights, "optimizer", (), "adam")]
    if plan.placement.get("optimizer", "hbm") != "host":
        return [
            moved(f"{name}_unscale", place, gradients, gradients, "optimizer", (), "scale"),
            moved(f"{name}_clip", place, gradients, gradients, "optimizer", (), "scale"),
            moved(f"{name}_adamw", place, state + gradients, state, "optimizer", (), "adam_fp32"),
            moved(f"{name}_weight_copy", place, share * kind.master_bytes, weights, "optimizer", ()),
        ]
    shape = {"read_bytes": state + gradients, "write_bytes": state + weights}
    return [
        _copied(f"{name}_gradients_out", "d2h", gradients, name),
        operator("host_update", f"{name}_host_adamw", "fp32", shape, part="optimizer", block=name, phase="optimizer"),
        _copied(f"{name}_weights_back", "h2d", weights, name),
    ]


def _copied(name: str, direction: str, size: Num, block: str) -> Op:
    return operator(
        "host_copy", name, "bf16", {"bytes": size}, variant=direction, part="optimizer", block=block, phase="optimizer"
    )


def collective(name: str, variant: str, size: Num, n_gpus: Num, n_gpus_per_node: Num, phase: str = "optimizer") -> Op:
    """A message among the replicas of parameters; ``size`` is the larger buffer of one rank."""
    shape = {"n_gpus": n_gpus, "n_gpus_per_node": n_gpus_per_node, "message_bytes": size}
    return operator(
        "collective", name, "bf16", shape, variant=variant, part="optimizer", block=name, phase=phase, group="data"
    )


def groups(model, plan: Plan, layers: Mapping[str, Num], node_size: Num) -> Iterator[tuple[str, Num, Num, Num]]:
    """``(name, n, n_replicas, n_gpus_per_node)`` of dense and of expert parameters in ``layers`` on one device.

    Replicas of dense parameters lie one tensor-parallel group apart, those of an expert one expert-parallel group, and
    fill nodes as far as that allows.
    """
    copies, sizes = replicas(plan), device_parameters(model, plan)
    apart = {"dense": plan.tensor, "expert": plan.expert}
    for group in ("dense", "expert"):
        n = sum((count * sizes[part][group] for part, count in layers.items()), 0.0)
        yield group, n, copies[group], np.maximum(node_size / apart[group], 1.0)


def chunk_messages(model, plan: Plan, layers: Mapping[str, Num], node_size: Num) -> dict[str, list[Op]]:
    """What a chunk of ``layers`` sends for every micro-batch, by phase: nothing below ZeRO 2, which sums its gradients
    over the replicas because no device keeps them whole, and under ZeRO 3 gathers its weights before either pass.

    FP8 weights travel as FP8, in the one layout that the pass reads.
    """
    kind = recipe(plan.formats)
    found: dict[str, list[Op]] = {"forward": [], "backward_input": [], "backward_weight": []}
    stage = np.asarray(plan.zero_stage)
    if np.all(stage < 2):
        return found
    linear = linear_parameters(model, plan)
    for name, n, n_replicas, near in groups(model, plan, layers, node_size):
        size = n * kind.gradient_bytes
        reduced = collective(f"{name}_gradients", "reduce_scatter", size, n_replicas, near, "backward_weight")
        found["backward_weight"] += _where(stage >= 2, reduced)
        quantised = sum((count * linear[part][name] for part, count in layers.items()), 0.0)
        size = n * kind.weight_bytes
        if kind.quantised:
            size = (n - quantised) * kind.weight_bytes + quantised * BYTES[kind.linear]
        for phase in ("forward", "backward_input"):
            gathered = collective(f"{name}_weights", "all_gather", size, n_replicas, near, phase)
            found[phase] += _where(stage >= 3, gathered)
    return found
