"""Triton kernels that move and add: residual add, copy, rows gathered and scattered back, the AdamW step."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add(a_ptr, b_ptr, y_ptr, n_elements, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n_elements
    total = tl.load(a_ptr + offset, mask=mask).to(tl.float32) + tl.load(b_ptr + offset, mask=mask).to(tl.float32)
    tl.store(y_ptr + offset, total.to(tl.bfloat16), mask=mask)


def add(a: Tensor, b: Tensor) -> tuple[Tensor]:
    """a + b in bf16."""
    y = torch.empty_like(a)
    _add[(triton.cdiv(a.numel(), 2048),)](a, b, y, a.numel(), BLOCK=2048, num_warps=4)
    return (y,)


@triton.jit
def _copy(src_ptr, dst_ptr, n_words, n_times, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    for _ in range(n_times):
        for block in range(tl.program_id(0), tl.cdiv(n_words, BLOCK), tl.num_programs(0)):
            offset = block * BLOCK + lane  # below 2^31 words, which the caller asserts
            mask = offset < n_words
            tl.store(dst_ptr + offset, tl.load(src_ptr + offset, mask=mask), mask=mask)


def copy(source: Tensor, destination: Tensor, *, n_programs: int, n_times: int = 1) -> tuple[Tensor]:
    """Copy int32 words with at most ``n_programs`` persistent programs, ``n_times`` over."""
    n_words = source.numel()
    assert n_words < 2**31 - 4096, "the kernel's offsets are 32-bit"
    grid = (min(n_programs, triton.cdiv(n_words, 4096)),)
    _copy[grid](source, destination, n_words, n_times, BLOCK=4096, num_warps=8)
    return (destination,)


@triton.jit
def _gather_rows(x_ptr, index_ptr, y_ptr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    tl.store(y_ptr + row * HIDDEN + cols, tl.load(x_ptr + source * HIDDEN + cols, mask=mask), mask=mask)


def gather_rows(x: Tensor, index: Tensor) -> tuple[Tensor]:
    """Rows x[index], one program each; x is bf16 or uint8, on the device or in pinned host memory; index is int32."""
    y = torch.empty((index.numel(), x.shape[1]), dtype=x.dtype, device=index.device)
    block = triton.next_power_of_2(x.shape[1])
    warps = max(1, min(8, block * x.element_size() // 512))
    _gather_rows[(index.numel(),)](x, index, y, HIDDEN=x.shape[1], BLOCK=block, num_warps=warps)
    return (y,)


@triton.jit
def _weighted_sum(
    x_ptr, position_ptr, weight_ptr, y_ptr, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in tl.static_range(TOP_K):
        row = tl.load(position_ptr + token * TOP_K + i).to(tl.int64)
        weight = tl.load(weight_ptr + token * TOP_K + i)
        total += weight * tl.load(x_ptr + row * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * HIDDEN + cols, total.to(tl.bfloat16), mask=mask)


def weighted_sum(x: Tensor, position: Tensor, weight: Tensor) -> tuple[Tensor]:
    """y[t] = sum over k of weight[t, k] x[position[t, k]]; x and y bf16, weights fp32, positions int32."""
    n_tokens, top_k = position.shape
    hidden = x.shape[1]
    y = torch.empty((n_tokens, hidden), dtype=torch.bfloat16, device=x.device)
    grid = (n_tokens, triton.cdiv(hidden, 1024))
    _weighted_sum[grid](x, position, weight, y, TOP_K=top_k, HIDDEN=hidden, BLOCK=1024, num_warps=4)
    return (y,)


@triton.jit
def _adamw(
    p_ptr, g_ptr, m_ptr, v_ptr, w_ptr, n_elements, lr, beta1, beta2, eps, decay, fix1, fix2, BLOCK: tl.constexpr
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n_elements
    p = tl.load(p_ptr + offset, mask=mask, other=0.0)
    g = tl.load(g_ptr + offset, mask=mask, other=0.0)
    m = tl.load(m_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    p = p * (1.0 - lr * decay) - lr * (m / fix1) / (tl.sqrt(v / fix2) + eps)
    tl.store(p_ptr + offset, p, mask=mask)
    tl.store(m_ptr + offset, m.to(tl.bfloat16), mask=mask)
    tl.store(v_ptr + offset, v.to(tl.bfloat16), mask=mask)
    tl.store(w_ptr + offset, p.to(tl.bfloat16), mask=mask)


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, w: Tensor, **constants: Any) -> tuple[Tensor, ...]:
    """One AdamW step in place: p, g fp32; m, v bf16; w the new weight in bf16. Returns (p, m, v, w)."""
    _adamw[(triton.cdiv(p.numel(), 1024),)](p, g, m, v, w, p.numel(), BLOCK=1024, num_warps=4, **constants)
    return p, m, v, w
