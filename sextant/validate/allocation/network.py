"""A decoder of one model of ``sizes``: a dense layer, layers with experts, Engram in front of some, a tied head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sextant.validate.allocation.experts import Experts
from sextant.validate.allocation.layers import (
    ROPE_THETA,
    Attention,
    Compute,
    FeedForward,
    product,
    rms_norm,
    swiglu,
    weight,
)
from sextant.validate.allocation.memory import Memory
from sextant.validate.allocation.sizes import Sizes
from sextant.workloads.ops import engram


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats, in FP32."""
    return F.cross_entropy(logits.float(), targets)


class Block(nn.Module):
    """One layer: n-gram memory (where there is one), attention, dense feed-forward or experts."""

    def __init__(self, of: Sizes, index: int, compute: Compute) -> None:
        super().__init__()
        m = of.model
        hidden, n_layers = int(m.hidden_size), int(m.num_hidden_layers)
        self.memory = None
        if index + 1.0 in m.engram_layers:
            tables, i = int(engram.n_rows(m)), m.engram_layers.index(index + 1.0)
            self.memory = Memory(
                hidden, int(m.engram_dim), of.primes[i * tables : (i + 1) * tables],
                tuple(int(order) for order in m.engram_orders), int(m.engram_conv_kernel), index + 1, compute,
            )  # fmt: skip
        self.attention = Attention(hidden, int(m.num_attention_heads), int(m.head_dim), n_layers, compute)
        self.norm = nn.Parameter(torch.ones(hidden))
        if index < m.first_k_dense_replace:
            self.inner: nn.Module = FeedForward(hidden, int(m.intermediate_size), n_layers, swiglu)
        else:
            self.inner = Experts(
                hidden, int(m.moe_intermediate_size), int(m.n_routed_experts), int(m.num_experts_per_tok), n_layers,
                compute,
            )  # fmt: skip

    def forward(self, x: Tensor, tokens: Tensor, angles: Tensor) -> Tensor:
        if self.memory is not None:
            x = self.memory(x, tokens)
        x = self.attention(x, angles)
        return x + self.inner(rms_norm(x, self.norm).flatten(0, 1)).view_as(x)


class Network(nn.Module):
    """The model of ``sizes`` with weights drawn from torch's generator; windows [batch, seq + 1] to their loss."""

    angles: Tensor

    def __init__(self, of: Sizes, seq: int, compute: Compute) -> None:
        super().__init__()
        m = of.model
        self.dtype = compute.dtype
        self.embedding = weight(int(m.vocab_size), int(m.hidden_size))
        self.blocks = nn.ModuleList(Block(of, i, compute) for i in range(int(m.num_hidden_layers)))
        self.norm = nn.Parameter(torch.ones(int(m.hidden_size)))
        self.loss = compute.fuse(_loss)
        half = int(m.head_dim) // 2
        angles = torch.arange(seq)[:, None] * ROPE_THETA ** (-torch.arange(half) / half)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        tokens, targets = windows[:, :-1], windows[:, 1:]
        x = F.embedding(tokens, self.embedding).to(self.dtype)
        for block in self.blocks:
            x = block(x, tokens, self.angles)
        logits = product(rms_norm(x, self.norm), self.embedding)
        return self.loss(logits.flatten(0, 1), targets.flatten())

    def experts(self) -> list[Experts]:
        """The layers with experts."""
        return [block.inner for block in self.blocks if isinstance(block.inner, Experts)]
