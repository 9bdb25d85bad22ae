"""What a model's router and a plan say about where tokens go (``simulator.kernels.routing`` has the law)."""

from __future__ import annotations

from sextant.simulator.kernels.routing import destinations
from sextant.simulator.types import Num

#: Devices of a node where no cluster says otherwise: eight in every one of the catalogue.
NODE_SIZE = 8.0


def groups(model) -> dict[str, Num]:
    """Groups of experts, and of how many the router takes experts: ``n_group`` and ``topk_group``; 1 and 1, no limit,
    where ``topk_method`` is greedy."""
    if model.topk_method == "greedy":
        return {"n_group": 1.0, "topk_group": 1.0}
    return {"n_group": model.n_group, "topk_group": model.topk_group}


def received_copies(model, expert: Num, redundant: Num = 0.0, node_size: Num = NODE_SIZE) -> Num:
    """Expected number of distinct devices that hold one token's top-k experts, under balanced routing.

    ``expert`` is the expert-parallel degree, with 1 the answer is 1; ``redundant`` the copies of experts beyond one
    each; ``node_size`` the devices of a node, which decides whether copies stay with their group.
    """
    shape = {
        "n_experts": model.n_routed_experts, "n_slots": model.n_routed_experts + redundant, **groups(model),
        "top_k": model.num_experts_per_tok, "n_gpus": expert, "n_gpus_per_node": node_size,
    }  # fmt: skip
    return destinations(shape)[1]
