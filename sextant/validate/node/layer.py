"""A training layer in the manner of DeepSeek-V3, in plain torch with autograd: latent attention, and few experts.

RMSNorm, queries and keys through their latents, causal attention of 128 heads (192 and 128 wide), output projection;
RMSNorm, one shared expert and routed ones that each take an equal part of the (token, expert) pairs, in fixed random
order. No rotary embedding, no router. Weights bf16, gradients added in bf16.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sextant.validate.node.layer_cases import Width


class _Spread(torch.autograd.Function):
    """Every token's row to each of its pairs, in the order of the experts; backward adds them up again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, pairs: int) -> Tensor:
        ctx.save_for_backward(order, place)
        ctx.pairs = pairs
        return x[order // pairs]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        _, place = ctx.saved_tensors
        return grads[0][place].view(-1, ctx.pairs, grads[0].shape[1]).sum(1), None, None, None


class _Added(torch.autograd.Function):
    """The rows of a token's pairs, added; backward spreads the gradient as ``_Spread`` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, pairs: int) -> Tensor:
        ctx.save_for_backward(order, place)
        ctx.pairs = pairs
        return x[place].view(-1, pairs, x.shape[1]).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        order, _ = ctx.saved_tensors
        return grads[0][order // ctx.pairs], None, None, None


class Layer(nn.Module):
    """One layer on ``n_tokens`` tokens of one sequence."""

    def __init__(self, width: Width, n_tokens: int, device: torch.device) -> None:
        super().__init__()
        self.width = w = width
        self.cuda_device = device.type == "cuda"

        def matrix(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(shape, device=device) * shape[-1] ** -0.5).to(torch.bfloat16))

        def scale(n: int) -> nn.Parameter:
            return nn.Parameter(torch.ones(n, dtype=torch.bfloat16, device=device))

        self.norms = nn.ParameterList(scale(n) for n in (w.hidden, w.query_rank, w.rank, w.hidden))
        self.query_down, self.query = matrix(w.query_rank, w.hidden), matrix(w.heads * (w.nope + w.rope), w.query_rank)
        self.down, self.up = matrix(w.rank + w.rope, w.hidden), matrix(w.heads * (w.nope + w.value), w.rank)
        self.output = matrix(w.hidden, w.heads * w.value)
        self.shared_up, self.shared_down = matrix(2 * w.expert, w.hidden), matrix(w.hidden, w.expert)
        self.experts_up = matrix(w.n_experts, 2 * w.expert, w.hidden)
        self.experts_down = matrix(w.n_experts, w.hidden, w.expert)
        n_pairs = n_tokens * w.pairs
        self.order = torch.randperm(n_pairs, device=device)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(n_pairs, device=device)
        ends = [n_pairs * (i + 1) // w.n_experts for i in range(w.n_experts)]
        self.ends = torch.tensor(ends, dtype=torch.int32, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(n_tokens, hidden) to the same."""
        x = x + self._attention(F.rms_norm(x, (self.width.hidden,), self.norms[0]))
        y = F.rms_norm(x, (self.width.hidden,), self.norms[3])
        return x + _activated(F.linear(y, self.shared_up)) @ self.shared_down.t() + self._experts(y)

    def _attention(self, y: Tensor) -> Tensor:
        w, n = self.width, len(y)
        latent = F.rms_norm(F.linear(y, self.query_down), (w.query_rank,), self.norms[1])
        q = F.linear(latent, self.query).view(1, n, w.heads, w.nope + w.rope)
        down = F.linear(y, self.down)
        kv = F.linear(F.rms_norm(down[:, : w.rank], (w.rank,), self.norms[2]), self.up)
        kv = kv.view(1, n, w.heads, w.nope + w.value)
        shared = down[:, w.rank :].view(1, n, 1, w.rope).expand(1, n, w.heads, w.rope)
        k = torch.cat([kv[..., : w.nope], shared], dim=-1)
        v = kv[..., w.nope :].contiguous()
        with attention_kernels(self.cuda_device):
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
        return F.linear(out.transpose(1, 2).reshape(n, w.heads * w.value), self.output)

    def _experts(self, y: Tensor) -> Tensor:
        routing = (self.order, self.place, self.width.pairs)
        rows: Any = _Spread.apply(y, *routing)
        inner = _activated(self._product(rows, self.experts_up))
        added: Any = _Added.apply(self._product(inner, self.experts_down), *routing)
        return added

    def _product(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch._grouped_mm(x, weights.transpose(-2, -1), offs=self.ends)  # pyright: ignore[reportPrivateImportUsage]


def _activated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def attention_kernels(cuda: bool) -> Any:
    """cuDNN, the only back end whose values may be narrower than its keys; on the CPU torch's choice."""
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION]) if cuda else nullcontext()
