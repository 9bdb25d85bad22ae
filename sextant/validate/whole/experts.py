"""A layer's mixture of experts: router, shared experts as one gated layer, routed experts as grouped products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.layers import ADDED, Gated, Pass, whole
from sextant.workloads.transformer import Transformer


class Experts:
    """All experts on this device. The router's own choice is taken: with random weights nearly even, never exactly."""

    def __init__(self, model: Transformer, at: Pass) -> None:
        self.at, self.top_k = at, whole(model.num_experts_per_tok)
        hidden, width = whole(model.hidden_size), whole(model.moe_intermediate_size)
        self.n_experts, n_shared = whole(model.n_routed_experts), whole(model.n_shared_experts)
        self.router = at.matrix(self.n_experts, hidden)
        self.shared = Gated(hidden, n_shared * width, at) if n_shared else None
        self.up_gate = at.normal(self.n_experts, 2 * width, hidden, std=hidden**-0.5)
        self.down = at.normal(self.n_experts, hidden, width, std=2 * ADDED * width**-0.5)
        self.chosen = torch.zeros((at.n_tokens, self.top_k), dtype=torch.int32, device=at.device)

    def __call__(self, y: Tensor) -> Tensor:
        kernels = self.at.kernels
        weights, self.chosen = kernels.select(F.linear(y, self.router), self.top_k)
        shared = self.shared(y) if self.shared else None
        ends, tokens, place = kernels.place(self.chosen, self.n_experts)
        inner = kernels.swiglu(kernels.grouped(kernels.rows(y, tokens), self.up_gate, ends))
        routed = kernels.weighted_sum(kernels.grouped(inner, self.down, ends), place, weights)
        return routed if shared is None else kernels.add(routed, shared)

    def load(self) -> Tensor:
        """Pairs that each expert got in the last pass (n_experts,)."""
        return torch.bincount(self.chosen.flatten().long(), minlength=self.n_experts)
