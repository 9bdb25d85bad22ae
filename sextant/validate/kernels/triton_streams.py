"""Triton kernels of residual streams: mHC's mappings and mixes, Sinkhorn's projection, Engram's gate.

Tensors are bf16 [tokens, streams, hidden]; mappings and weights fp32. Token counts and widths are runtime values, the
number of streams is a constant: one binary serves all widths that are multiples of 16.
"""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_K = 128


@triton.jit(do_not_specialize=["n_tokens"])
def _mappings_product(
    x_ptr, w_ptr, part_ptr, square_ptr, n_tokens, width, part_width,
    N_MAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part, maps, lane = tl.program_id(1), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK)
    known = token < n_tokens
    acc = tl.zeros([BLOCK_M, BLOCK_P], dtype=tl.float32)
    square = tl.zeros([BLOCK_M], dtype=tl.float32)
    first = part * part_width
    for start in range(first, tl.minimum(first + part_width, width), BLOCK):
        col = start + lane
        inside = col < width
        at = token.to(tl.int64)[:, None] * width + col[None, :]
        x = tl.load(x_ptr + at, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
        w = tl.load(
            w_ptr + maps[None, :] * width + col[:, None], mask=(maps < N_MAPS)[None, :] & inside[:, None], other=0.0
        )
        acc = tl.dot(x, w, acc, input_precision="tf32")
        square += tl.sum(x * x, 1)
    row = part.to(tl.int64) * n_tokens + token
    tl.store(part_ptr + row[:, None] * BLOCK_P + maps[None, :], acc, mask=known[:, None])
    tl.store(square_ptr + row, square, mask=known)


@triton.jit
def _projected(m, eps, n_iterations, AXIS: tl.constexpr):
    """Rows to softmax, then columns and rows in turn; AXIS is that of the rows' index, the last is AXIS + 1."""
    m = tl.exp(m - tl.max(m, AXIS + 1, keep_dims=True))
    m = m / tl.sum(m, AXIS + 1, keep_dims=True) + eps
    m = m / (tl.sum(m, AXIS, keep_dims=True) + eps)
    for _ in range(1, n_iterations):
        m = m / (tl.sum(m, AXIS + 1, keep_dims=True) + eps)
        m = m / (tl.sum(m, AXIS, keep_dims=True) + eps)
    return m


@triton.jit(do_not_specialize=["n_tokens", "n_parts", "n_iterations"])
def _mix_in(
    x_ptr, part_ptr, square_ptr, scale_ptr, base_ptr, y_ptr, post_ptr, res_ptr, n_tokens, hidden, n_parts, n_iterations,
    eps, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, N)
    square_of = stream[:, None] * N + stream[None, :]
    pre, post = tl.zeros([N], dtype=tl.float32), tl.zeros([N], dtype=tl.float32)
    res = tl.zeros([N, N], dtype=tl.float32)
    square = 0.0
    for i in range(n_parts):
        row = i * n_tokens + token
        base = part_ptr + row * BLOCK_P
        pre += tl.load(base + stream)
        post += tl.load(base + N + stream)
        res += tl.load(base + 2 * N + square_of)
        square += tl.load(square_ptr + row)
    rstd = 1.0 / tl.sqrt(square / (N * hidden) + eps)
    pre = tl.sigmoid(pre * rstd * tl.load(scale_ptr) + tl.load(base_ptr + stream)) + eps
    post = 2.0 * tl.sigmoid(post * rstd * tl.load(scale_ptr + 1) + tl.load(base_ptr + N + stream))
    res = _projected(res * rstd * tl.load(scale_ptr + 2) + tl.load(base_ptr + 2 * N + square_of), eps, n_iterations, 0)
    tl.store(post_ptr + token * N + stream, post)
    tl.store(res_ptr + token * N * N + square_of, res)
    for start in range(0, hidden, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < hidden
        at = (token * N + stream)[:, None] * hidden + col[None, :]
        x = tl.load(x_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
        tl.store(y_ptr + token * hidden + col, tl.sum(x * pre[:, None], 0).to(tl.bfloat16), mask=inside)


def mhc_pre(x: Tensor, w: Tensor, scale: Tensor, base: Tensor, *, n_iterations: int, eps: float, n_sms: int):
    """Layer input [tokens, hidden], H_post [tokens, n] and H_res [tokens, n, n] of a residual x [tokens, n, hidden]."""
    n_tokens, n, hidden = x.shape
    n_maps, width = w.shape
    block_p, block_m = max(16, triton.next_power_of_2(n_maps)), 64 if n_tokens >= 64 * n_sms else 16
    blocks = triton.cdiv(n_tokens, block_m)
    steps = triton.cdiv(width, BLOCK_K)
    n_parts = max(1, min(steps // 4, triton.cdiv(2 * n_sms, blocks), 32))
    part_width = triton.cdiv(steps, n_parts) * BLOCK_K
    n_parts = triton.cdiv(width, part_width)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    part, square = new(n_parts, n_tokens, block_p), new(n_parts, n_tokens)
    _mappings_product[(blocks, n_parts)](
        x, w, part, square, n_tokens, width, part_width,
        N_MAPS=n_maps, BLOCK_P=block_p, BLOCK_M=block_m, BLOCK=BLOCK_K, num_warps=4, num_stages=2,
    )  # fmt: skip
    y, post, res = new(n_tokens, hidden, dtype=x.dtype), new(n_tokens, n), new(n_tokens, n, n)
    _mix_in[(n_tokens,)](
        x, part, square, scale, base, y, post, res, n_tokens, hidden, n_parts, n_iterations, eps,
        N=n, BLOCK_P=block_p, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return y, post, res


@triton.jit
def _mix_out(f_ptr, x_ptr, post_ptr, res_ptr, y_ptr, hidden, N: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, N)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < hidden
    x = tl.load(x_ptr + (token * N + stream)[:, None] * hidden + col[None, :], mask=inside[None, :], other=0.0)
    x = x.to(tl.float32)
    f = tl.load(f_ptr + token * hidden + col, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(N):
        weight = tl.load(res_ptr + (token * N + stream) * N + i)
        y = tl.load(post_ptr + token * N + i) * f + tl.sum(weight[:, None] * x, 0)
        tl.store(y_ptr + (token * N + i) * hidden + col, y.to(tl.bfloat16), mask=inside)


def mhc_post(f: Tensor, x: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor]:
    """y[t, i] = post[t, i] f[t] + sum over j of res[t, j, i] x[t, j]."""
    n_tokens, n, hidden = x.shape
    y = torch.empty_like(x)
    _mix_out[(n_tokens, triton.cdiv(hidden, 1024))](f, x, post, res, y, hidden, N=n, BLOCK=1024, num_warps=4)
    return (y,)


@triton.jit(do_not_specialize=["n_tokens", "n_iterations"])
def _sinkhorn(m_ptr, y_ptr, n_tokens, n_iterations, eps, N: tl.constexpr, TOKENS: tl.constexpr):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    stream = tl.arange(0, N)
    at = token.to(tl.int64)[:, None, None] * N * N + stream[None, :, None] * N + stream[None, None, :]
    known = (token < n_tokens)[:, None, None] & (stream < N)[None, :, None] & (stream < N)[None, None, :]
    m = tl.load(m_ptr + at, mask=known, other=0.0)
    tl.store(y_ptr + at, _projected(m, eps, n_iterations, 1), mask=known)


def sinkhorn(m: Tensor, *, n_iterations: int, eps: float) -> tuple[Tensor]:
    """Doubly stochastic matrices of m [tokens, n, n] (fp32)."""
    y = torch.empty_like(m)
    tokens = 32
    _sinkhorn[(triton.cdiv(m.shape[0], tokens),)](
        m, y, m.shape[0], n_iterations, eps, N=m.shape[1], TOKENS=tokens, num_warps=4
    )
    return (y,)


@triton.jit
def _gate(
    x_ptr, k_ptr, v_ptr, w_ptr, y_ptr, hidden, eps, clamp, N: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token, stream = tl.program_id(0).to(tl.int64), tl.program_id(1)
    col = tl.arange(0, BLOCK)
    inside = col < hidden
    at = (token * N + stream) * hidden + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + stream * hidden + col, mask=inside, other=0.0)
    v = tl.load(v_ptr + token * hidden + col, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.sqrt((tl.sum(x * x, 0) / hidden + eps) * (tl.sum(k * k, 0) / hidden + eps) * hidden)
    dot = tl.sum(x * k * w, 0) / rstd
    root = tl.sqrt(tl.maximum(tl.abs(dot), clamp))
    gate = tl.sigmoid(tl.where(dot > 0.0, root, tl.where(dot < 0.0, -root, 0.0)))
    tl.store(y_ptr + at, (x + gate * v).to(tl.bfloat16), mask=inside)


def engram_gate(x: Tensor, k: Tensor, v: Tensor, w: Tensor, *, eps: float, clamp: float) -> tuple[Tensor]:
    """x + gate v; the gate is the sigmoid of the signed root of the normalised product of x and k, per stream."""
    n_tokens, n, hidden = x.shape
    y = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _gate[(n_tokens, n)](x, k, v, w, y, hidden, eps, clamp, N=n, BLOCK=block, num_warps=8 if block > 2048 else 4)
    return (y,)
