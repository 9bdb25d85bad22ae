"""Triton kernels of image encoders' blocks: layer normalisation and GELU, with widths known at run time only."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _layernorm(x_ptr, w_ptr, b_ptr, y_ptr, hidden, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < hidden
    x = tl.load(x_ptr + row * hidden + cols, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / hidden
    centred = tl.where(mask, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / hidden + eps)
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * hidden + cols, (centred * rstd * w + b).to(tl.bfloat16), mask=mask)


def layernorm(x: Tensor, w: Tensor, b: Tensor, *, eps: float) -> tuple[Tensor]:
    """Rows of x [n_tokens, hidden] centred, scaled to unit variance, times w plus b; all bf16."""
    y = torch.empty_like(x)
    hidden = x.shape[1]
    block = triton.next_power_of_2(hidden)
    _layernorm[(x.shape[0],)](x, w, b, y, hidden, eps, BLOCK=block, num_warps=8 if block > 2048 else 4)
    return (y,)


@triton.jit
def _gelu(x_ptr, y_ptr, n_elements, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n_elements
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    tl.store(y_ptr + offset, (x * tl.sigmoid(inner)).to(tl.bfloat16), mask=mask)


def gelu(x: Tensor) -> tuple[Tensor]:
    """GELU of x by its tanh approximation, bf16."""
    y = torch.empty_like(x)
    _gelu[(triton.cdiv(x.numel(), 2048),)](x, y, x.numel(), BLOCK=2048, num_warps=4)
    return (y,)
