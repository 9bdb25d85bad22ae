"""What the layers of a tiny model share: how a step computes, initial weights, rotary attention, a gated feed-forward.

Weights are FP32 parameters and are cast to the format of the activations where they are used; activations, the residual
among them, are BF16 on a GPU. ``Compute.fuse`` compiles what is elementwise, in functions whose shapes do not depend on
rho, so that all models of a budget compile once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_THETA = 1e4
EPS = 1e-6
#: Standard deviation of initial weights; that of matrices that add to the residual is divided by sqrt(2 layers).
STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Format of activations, ``fuse`` for functions of tensors (compiles, or gives them back), and whether products of
    grouped rows are one kernel."""

    dtype: torch.dtype
    fuse: Callable
    grouped: bool


def weight(*shape: int, std: float = STD) -> nn.Parameter:
    """A matrix of normal weights."""
    return nn.Parameter(torch.randn(*shape) * std)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` over the root mean square of its last dimension, scaled."""
    return F.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), EPS)


def product(x: Tensor, w: Tensor) -> Tensor:
    """x [..., k] times w [n, k]^T in the format of ``x``."""
    return F.linear(x, w.to(x.dtype))


def swiglu(x: Tensor) -> Tensor:
    """[..., 2 f] to [..., f]: the SiLU of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [batch, seq, heads, dim] turned by ``angles`` [seq, dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def _turned(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[batch, seq, 3, heads, dim] to queries, keys and values [batch, heads, seq, dim], the first two turned."""
    q, k, v = qkv.unbind(2)
    q, k = rotated(rms_norm(q, q_norm), angles), rotated(rms_norm(k, k_norm), angles)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class Attention(nn.Module):
    """Causal attention with a norm of each head's queries and keys, in front of it a norm of the residual."""

    def __init__(self, hidden: int, heads: int, dim: int, n_layers: int, compute: Compute) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm = nn.Parameter(torch.ones(hidden))
        self.qkv = weight(3 * heads * dim, hidden)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.out = weight(hidden, heads * dim, std=STD / (2 * n_layers) ** 0.5)
        self.turned = compute.fuse(_turned)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        qkv = product(rms_norm(x, self.norm), self.qkv).unflatten(-1, (3, self.heads, self.dim))
        q, k, v = self.turned(qkv, self.q_norm, self.k_norm, angles)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + product(found.transpose(1, 2).flatten(2), self.out)


class FeedForward(nn.Module):
    """A gated feed-forward of ``width``, without norm or residual; ``activation`` is ``swiglu``, compiled or not."""

    def __init__(self, hidden: int, width: int, n_layers: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = weight(2 * width, hidden)
        self.down = weight(hidden, width, std=STD / (2 * n_layers) ** 0.5)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return product(self.activation(product(x, self.up)), self.down)
