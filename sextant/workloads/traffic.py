"""The routing law: how many devices a token is sent to under expert parallelism."""

from __future__ import annotations

import numpy as np

from sextant.simulator.kernels.expert_exchange import distinct
from sextant.simulator.types import Num


def received_copies(model, expert: Num) -> Num:
    """Expected number of distinct devices that hold one token's top-k experts, under balanced routing.

    Node-limited routing first picks ``topk_group`` of ``n_group`` groups of experts, then top-k experts within them,
    without replacement. ``expert`` is the expert-parallel degree; with 1 the answer is 1.
    """
    share = model.topk_group / model.n_group
    # A group of experts that fills less than one device is one device all the same.
    return distinct(model.num_experts_per_tok, model.n_routed_experts * share, np.maximum(expert * share, 1.0))


def node_limit(model) -> Num:
    """Most nodes that a token's experts lie on: the groups it may choose where routing is limited, else any number.

    DeepSeek lays one group of experts on each node.
    """
    return np.where(np.asarray(model.n_group) > 1, model.topk_group, model.n_routed_experts)[()]
