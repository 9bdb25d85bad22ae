"""What a model's router and a plan say about where tokens go (``simulator.kernels.routing`` has the law)."""

from __future__ import annotations

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import imbalance
from sextant.simulator.kernels.imbalance import Skew
from sextant.simulator.kernels.routing import crowded, destinations
from sextant.simulator.schedule import n_stages
from sextant.simulator.types import Load, Num, Plan

#: Devices of a node where no cluster says otherwise: eight in every one of the catalogue.
NODE_SIZE = 8.0

BALANCED = Skew()


def groups(model) -> dict[str, Num]:
    """Groups of experts, and of how many the router takes experts: ``n_group`` and ``topk_group``; 1 and 1, no limit,
    where ``topk_method`` is greedy."""
    if model.topk_method == "greedy":
        return {"n_group": 1.0, "topk_group": 1.0}
    return {"n_group": model.n_group, "topk_group": model.topk_group}


def pipeline_stages(plan: Plan) -> Num:
    """Stages into which the layers are cut; arrays of degrees too."""
    return plan.pipeline * plan.virtual_stages * n_stages(plan.schedule, 1)


def received_copies(model, expert: Num, redundant: Num = 0.0, node_size: Num = NODE_SIZE, skew: Skew = BALANCED) -> Num:
    """Expected number of distinct devices that hold one token's top-k experts, each counted as the most loaded one.

    ``expert`` is the expert-parallel degree, with 1 the answer is 1; ``redundant`` the copies of experts beyond one
    each; ``node_size`` the devices of a node, which decides whether copies stay with their group.
    """
    shape = {
        "n_experts": model.n_routed_experts, "n_slots": model.n_routed_experts + redundant, **groups(model),
        "top_k": model.num_experts_per_tok, "n_gpus": expert, "n_gpus_per_node": node_size,
    }  # fmt: skip
    return crowded(destinations(shape)[1], expert, skew.gpu)


def problems(model, load: Load) -> list[tuple[str, str]]:
    """What is wrong with how a load routes tokens: the field, and what to write instead."""
    if load.routing == "counts":
        given = load.expert_tokens
        if np.any(np.asarray(model.n_routed_experts) != len(given)) or not sum(given) > 0:
            wanted = np.max(np.asarray(model.n_routed_experts))
            text = f"{len(given)} numbers for {wanted:.0f} routed experts; give one for each, not all 0"
            return [("load.expert_tokens", text)]
        return []
    try:
        imbalance.exponent(load.routing)
    except ValueError:
        text = f"unknown {load.routing!r}; choose balanced, power_law_A (e.g. power_law_0.8) or counts"
        return [("load.routing", text)]
    return []


def skew(model, plan: Plan, load: Load, n_tokens: Num, node_size: Num = NODE_SIZE) -> Skew:
    """How unevenly ``load.routing`` loads the devices and nodes of an expert-parallel group, to which each device
    brings ``n_tokens``; floats, or arrays where a dimension is one. InputError for an unknown routing, or for counts
    that are not one per routed expert."""
    for path, message in problems(model, load):
        raise InputError(f"{path}: {message}")
    power = None if load.routing == "counts" else imbalance.exponent(load.routing)
    if power is None and load.routing != "counts":
        return BALANCED
    experts, n_gpus = model.n_routed_experts, plan.expert
    n_nodes = np.ceil(n_gpus / np.minimum(n_gpus, node_size))
    tokens = n_tokens * n_gpus
    pairs = tokens * model.num_experts_per_tok
    slots, n_group = experts + plan.redundant_experts, groups(model)["n_group"]
    if power is not None and not np.any(np.asarray(plan.redundant_experts) > 0):
        most, hit = imbalance.power_law(power, experts, n_gpus, tokens, pairs)
        of_node, _ = imbalance.power_law(power, experts, n_nodes, tokens, pairs)
        return Skew(gpu=(most * n_gpus / pairs)[()], node=(of_node * n_nodes / pairs)[()], hit=hit * n_gpus / experts)
    counts = load.expert_tokens if power is None else ()
    columns = np.broadcast_arrays(experts, tokens, pairs, slots, n_nodes, n_gpus, n_group)
    found = [_packed(counts, power, *(float(v) for v in row)) for row in np.stack(columns, axis=-1).reshape(-1, 7)]
    gpu, node = np.reshape(np.transpose(found), (2, *columns[0].shape))
    return Skew(gpu=gpu[()], node=node[()])


def _packed(counts: tuple[float, ...], power: float | None, experts: float, *rest: float) -> tuple[float, float]:
    tokens, pairs, *sizes = rest
    slots, n_nodes, n_gpus, n_group = (round(size) for size in sizes)
    if power is None:
        return imbalance.packed(counts, slots, n_nodes, n_gpus, n_group)
    return imbalance.packed_power_law(power, round(experts), tokens, pairs, slots, n_nodes, n_gpus, n_group)
