"""Masked softmax of attention scores, one warp per row: a row lies in registers, is read once and written once."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _softmax(x, y, q_len, kv_len, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    seen = row % q_len + kv_len - q_len + 1
    at = tl.arange(0, block)
    v = tl.load(x + row * kv_len + at, mask=at < seen, other=float("-inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * kv_len + at, (e / tl.sum(e, 0)).to(y.dtype.element_ty), mask=at < kv_len)


@triton.jit
def _backward(dy, y, dx, q_len, kv_len, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    seen = at < row % q_len + kv_len - q_len + 1
    g = tl.load(dy + row * kv_len + at, mask=seen, other=0.0).to(tl.float32)
    p = tl.load(y + row * kv_len + at, mask=seen, other=0.0).to(tl.float32)
    out = p * (g - tl.sum(g * p, 0))
    tl.store(dx + row * kv_len + at, out.to(dx.dtype.element_ty), mask=at < kv_len)


def softmax(x: Tensor) -> Tensor:
    """Softmax of causal scores (groups, q_len, kv_len); zeros where a query sees no key."""
    groups, q_len, kv_len = x.shape
    y = torch.empty_like(x)
    _softmax[(groups * q_len,)](x, y, q_len, kv_len, block=triton.next_power_of_2(kv_len), num_warps=1)
    return y


def softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    """The gradient of the scores from that of the weights ``y``."""
    groups, q_len, kv_len = y.shape
    dx = torch.empty_like(y)
    _backward[(groups * q_len,)](dy, y, dx, q_len, kv_len, block=triton.next_power_of_2(kv_len), num_warps=1)
    return dx
