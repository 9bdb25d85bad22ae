"""Engram (arXiv:2601.07372): hashed n-grams find rows of tables, which a gate of the residual adds to it.

The last 2 and the last 3 tokens are each hashed (multiplied, then xor) into several tables of different prime sizes.
The rows found are concatenated; one product makes a value and a key of them; the gate is the sigmoid of the signed root
of the normed key times the normed residual; a causal depthwise convolution whose dilation is the largest order, of the
normed value, follows. Unlike the paper token ids are not first mapped to canonical ones, and there is one residual.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sextant.validate.allocation.layers import Compute, rms_norm, weight


def row_numbers(tokens: Tensor, factors: Tensor, primes: Tensor, starts: Tensor, orders: tuple[int, ...]) -> Tensor:
    """Rows of tokens [batch, seq] in one table of all tables, [batch, seq, tables]: the hash of each order's tokens
    modulo each table's size, from where the table starts. In front of a sequence all tokens are 0."""
    mixed = tokens * factors[0]
    found, per_order = [], len(primes) // len(orders)
    for back in range(1, max(orders)):
        mixed = mixed ^ (F.pad(tokens, (back, 0))[:, : tokens.shape[1]] * factors[back])
        if back + 1 in orders:
            tables = slice(len(found) * per_order, (len(found) + 1) * per_order)
            found.append(mixed.unsqueeze(-1) % primes[tables] + starts[tables])
    return torch.cat(found, dim=-1)


def factors(layer: int, n: int) -> list[int]:
    """Odd numbers that tokens are multiplied with, other ones in every layer; products stay within 63 bits."""
    return [int(x) | 1 for x in np.random.default_rng(10007 * layer).integers(1, 2**44, n)]


def _gated(x: Tensor, key: Tensor, value: Tensor, norms: Tensor) -> Tensor:
    """The value times sigmoid(sign(s) sqrt|s|), s = normed residual . normed key / sqrt(hidden)."""
    s = (rms_norm(x, norms[0]).float() * rms_norm(key, norms[1]).float()).sum(-1, keepdim=True) * x.shape[-1] ** -0.5
    gate = torch.sigmoid(torch.sign(s) * torch.sqrt(s.abs() + 1e-6))
    return (gate * value.float()).to(value.dtype)


def _convolved(x: Tensor, value: Tensor, norm: Tensor, taps: Tensor, dilation: int) -> Tensor:
    """x + value + SiLU(sum over j of taps[j] times the normed value of j dilations ago), all [batch, seq, hidden]."""
    normed, seq = rms_norm(value, norm), x.shape[1]
    total = taps[0] * normed.float()
    for j in range(1, len(taps)):
        total = total + taps[j] * F.pad(normed, (0, 0, j * dilation, 0))[:, :seq].float()
    return x + value + F.silu(total).to(x.dtype)


class Memory(nn.Module):
    """One Engram layer with tables of ``primes`` rows, order by order; x [batch, seq, hidden] to the same shape."""

    primes: Tensor
    starts: Tensor
    factors: Tensor

    def __init__(
        self, hidden: int, dim: int, primes: tuple[int, ...], orders: tuple[int, ...], taps: int, layer: int,
        compute: Compute,
    ) -> None:  # fmt: skip
        super().__init__()
        self.orders, self.dtype = orders, compute.dtype
        self.table = weight(sum(primes), dim // len(primes))
        self.projections, self.biases = weight(2 * hidden, dim), nn.Parameter(torch.zeros(2 * hidden))
        self.norms = nn.Parameter(torch.ones(2, hidden))
        self.conv_norm = nn.Parameter(torch.ones(hidden))
        self.taps = nn.Parameter(torch.zeros(taps, hidden))
        sizes = torch.tensor(primes)
        self.register_buffer("primes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("factors", torch.tensor(factors(layer, max(orders))), persistent=False)
        self.number, self.gated = compute.fuse(row_numbers), compute.fuse(_gated)
        self.convolved = compute.fuse(_convolved)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        index = self.number(tokens, self.factors, self.primes, self.starts, self.orders)
        rows = F.embedding(index, self.table).flatten(2).to(self.dtype)
        both = F.linear(rows, self.projections.to(rows.dtype), self.biases.to(rows.dtype))
        key, value = both.chunk(2, dim=-1)
        return self.convolved(x, self.gated(x, key, value, self.norms), self.conv_norm, self.taps, max(self.orders))
