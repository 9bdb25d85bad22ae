"""A mixture of experts: sigmoid scores, the best k with a balancing bias, one shared expert; no token is dropped.

The bias is moved after every step against the load of its expert (as in DeepSeek-V3, arXiv:2412.19437 s2.1.2); it
chooses only, the weights of the sum are the normalised scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sextant.validate.allocation.layers import STD, Compute, FeedForward, product, swiglu, weight

#: What a step moves an expert's bias by.
BIAS_STEP = 1e-3


class _Permuted(torch.autograd.Function):
    """Rows in another order; the gradient is the inverse order, without atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        inverse, _ = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def grouped(x: Tensor, w: Tensor, ends: Tensor, *, one_kernel: bool) -> Tensor:
    """Rows of x [m, k], the first ends[0] times w[0] [k, n], the next up to ends[1] times w[1] ...: [m, n]."""
    if one_kernel:
        return torch._grouped_mm(x, w.to(x.dtype), offs=ends)
    edges = [0, *ends.tolist()]
    return torch.cat([x[a:b] @ w[i].to(x.dtype) for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False))])


def _mixed(y: Tensor, weights: Tensor, shared: Tensor) -> Tensor:
    """Expert rows [tokens, k, hidden], weighted and summed, and the shared expert's."""
    return (y.float() * weights.unsqueeze(-1)).sum(1).to(y.dtype) + shared


class Experts(nn.Module):
    """``n`` experts of which each token takes ``k``, and a shared one; x [tokens, hidden] to the same shape."""

    load: Tensor

    def __init__(self, hidden: int, width: int, n: int, k: int, n_layers: int, compute: Compute) -> None:
        super().__init__()
        self.n, self.k, self.compute = n, k, compute
        self.router = weight(n, hidden)
        self.bias = nn.Parameter(torch.zeros(n), requires_grad=False)
        self.up = weight(n, hidden, 2 * width)
        self.down = weight(n, width, hidden, std=STD / (2 * n_layers) ** 0.5)
        self.swiglu, self.mixed = compute.fuse(swiglu), compute.fuse(_mixed)
        self.shared = FeedForward(hidden, width, n_layers, self.swiglu)
        self.register_buffer("load", torch.zeros(n), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(product(x, self.router).float())
        chosen = torch.topk(scores.detach() + self.bias, self.k, sorted=False).indices
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        flat = chosen.flatten().to(torch.int16)
        in_order, order = torch.sort(flat, stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        names = torch.arange(self.n, dtype=torch.int16, device=x.device)
        ends = torch.searchsorted(in_order, names, right=True, out_int32=True)
        if self.training:
            self.load.copy_(ends.diff(prepend=ends.new_zeros(1)))
        rows = x.unsqueeze(1).expand(-1, self.k, -1).reshape(-1, x.shape[-1])
        one = self.compute.grouped
        y = grouped(_Permuted.apply(rows, order, inverse), self.up, ends, one_kernel=one)
        y = grouped(self.swiglu(y), self.down, ends, one_kernel=one)
        y = _Permuted.apply(y, inverse, order).unflatten(0, (-1, self.k))
        return self.mixed(y, weights, self.shared(x))

    @torch.no_grad()
    def balance(self) -> None:
        """After a step: the bias of a busy expert falls, that of an idle one rises."""
        self.bias += BIAS_STEP * torch.sign(self.load.mean() - self.load)

    def busiest(self) -> Tensor:
        """Tokens of the busiest expert over the mean, of the last training step."""
        return self.load.max() / self.load.mean()
