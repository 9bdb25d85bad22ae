"""Triton kernels over rows: normalisation, gated activation, FP8 casts with 1x128 and 128x1 scales, rotary embedding.

Widths are compile-time constants; token counts are not, so that one binary serves all batch sizes of a model. A count
that enters an address or the mask of a flat load stays specialised: known as a multiple of 16, it lets accesses be 16
bytes wide.
"""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8_LARGEST = tl.constexpr(448.0)
SMALLEST_AMAX = tl.constexpr(1e-4)
EPS = 1e-6


@triton.jit
def _rmsnorm(x_ptr, w_ptr, y_ptr, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    x = tl.load(x_ptr + row * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / HIDDEN + eps)
    tl.store(y_ptr + row * HIDDEN + cols, (x * rstd * w).to(tl.bfloat16), mask=mask)


def rmsnorm(x: Tensor, w: Tensor) -> tuple[Tensor]:
    """y[n_tokens, hidden] = x / rms(x) * w, all bf16."""
    y = torch.empty_like(x)
    hidden = x.shape[1]
    block = triton.next_power_of_2(hidden)
    _rmsnorm[(x.shape[0],)](x, w, y, EPS, HIDDEN=hidden, BLOCK=block, num_warps=8 if block > 2048 else 4)
    return (y,)


@triton.jit(do_not_specialize=["n_tokens"])
def _rmsnorm_backward(x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, n_tokens, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for token in range(first, n_tokens, tl.num_programs(0)):
        offset = token * HIDDEN + cols  # below 2^31 elements, which the caller asserts
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / HIDDEN + eps)
        normed = x * rstd
        grad = dy * w
        dx = rstd * (grad - normed * (tl.sum(grad * normed, 0) / HIDDEN))
        dw += dy * normed
        tl.store(dx_ptr + offset, dx.to(tl.bfloat16), mask=mask)
    tl.store(dw_ptr + first * HIDDEN + cols, dw, mask=mask)


def rmsnorm_backward(x: Tensor, w: Tensor, dy: Tensor, *, n_programs: int) -> tuple[Tensor, Tensor]:
    """dx and dw (both bf16): a loop over rows with one fp32 partial dw per program, then torch's sum over programs."""
    dx = torch.empty_like(x)
    n_tokens, hidden = x.shape
    assert x.numel() < 2**31, "the kernel's offsets are 32-bit"
    n_programs = min(n_programs, n_tokens)
    partial_dw = torch.empty((n_programs, hidden), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(hidden)
    _rmsnorm_backward[(n_programs,)](
        x, w, dy, dx, partial_dw, n_tokens, EPS, HIDDEN=hidden, BLOCK=block, num_warps=16 if block > 2048 else 4
    )
    return dx, partial_dw.sum(0).to(torch.bfloat16)


@triton.jit
def _scale_of(x, axis: tl.constexpr):
    return tl.maximum(tl.max(tl.abs(x), axis), SMALLEST_AMAX) / FP8_LARGEST


@triton.jit(do_not_specialize=["n_groups"])
def _swiglu(x_ptr, y_ptr, s_ptr, n_groups, WIDTH: tl.constexpr, GROUPS: tl.constexpr, CAST: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    mask = group < n_groups
    per_row: tl.constexpr = WIDTH // 128
    lane = tl.arange(0, 128)
    source = ((group // per_row) * (2 * WIDTH) + (group % per_row) * 128)[:, None] + lane[None, :]
    gate = tl.load(x_ptr + source, mask=mask[:, None], other=0.0).to(tl.float32)
    up = tl.load(x_ptr + source + WIDTH, mask=mask[:, None], other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    target = group[:, None] * 128 + lane[None, :]
    if CAST:
        scale = _scale_of(y, 1)
        tl.store(y_ptr + target, (y / scale[:, None]).to(y_ptr.dtype.element_ty), mask=mask[:, None])
        tl.store(s_ptr + group, scale, mask=mask)
    else:
        tl.store(y_ptr + target, y.to(y_ptr.dtype.element_ty), mask=mask[:, None])


def swiglu(x: Tensor) -> tuple[Tensor]:
    """silu(gate) * up in bf16, from x[n_tokens, 2 width] = gate | up."""
    n_tokens, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((n_tokens, width), dtype=torch.bfloat16, device=x.device)
    n_groups = y.numel() // 128
    _swiglu[(triton.cdiv(n_groups, 16),)](x, y, y, n_groups, WIDTH=width, GROUPS=16, CAST=False, num_warps=4)
    return (y,)


def swiglu_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up as FP8 e4m3 with one fp32 scale per 1x128 elements."""
    n_tokens, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((n_tokens, width), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((n_tokens, width // 128), dtype=torch.float32, device=x.device)
    n_groups = scale.numel()
    _swiglu[(triton.cdiv(n_groups, 16),)](x, y, scale, n_groups, WIDTH=width, GROUPS=16, CAST=True, num_warps=4)
    return y, scale


@triton.jit(do_not_specialize=["n_groups"])
def _swiglu_backward(x_ptr, dy_ptr, dx_ptr, n_groups, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    mask = (group < n_groups)[:, None]
    per_row: tl.constexpr = WIDTH // 128
    lane = tl.arange(0, 128)
    source = ((group // per_row) * (2 * WIDTH) + (group % per_row) * 128)[:, None] + lane[None, :]
    gate = tl.load(x_ptr + source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + source + WIDTH, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + group[:, None] * 128 + lane[None, :], mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(dx_ptr + source, (dy * up * (sigmoid + silu * (1.0 - sigmoid))).to(tl.bfloat16), mask=mask)
    tl.store(dx_ptr + source + WIDTH, (dy * silu).to(tl.bfloat16), mask=mask)


def swiglu_backward(x: Tensor, dy: Tensor) -> tuple[Tensor]:
    """Gradient of silu(gate) * up with respect to gate | up, all bf16."""
    dx = torch.empty_like(x)
    width = dy.shape[1]
    n_groups = dy.numel() // 128
    _swiglu_backward[(triton.cdiv(n_groups, 16),)](x, dy, dx, n_groups, WIDTH=width, GROUPS=16, num_warps=4)
    return (dx,)


@triton.jit(do_not_specialize=["n_groups"])
def _cast(x_ptr, q_ptr, s_ptr, n_groups, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    mask = group < n_groups
    offset = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(x_ptr + offset, mask=mask[:, None], other=0.0).to(tl.float32)
    scale = _scale_of(x, 1)
    tl.store(q_ptr + offset, (x / scale[:, None]).to(q_ptr.dtype.element_ty), mask=mask[:, None])
    tl.store(s_ptr + group, scale, mask=mask)


def cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 [n_tokens, hidden] to FP8 e4m3 and fp32 scales [n_tokens, hidden / 128]."""
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((x.shape[0], x.shape[1] // 128), dtype=torch.float32, device=x.device)
    _cast[(triton.cdiv(scale.numel(), 32),)](x, q, scale, scale.numel(), GROUPS=32, num_warps=4)
    return q, scale


@triton.jit
def _transpose(x_ptr, sx_ptr, q_ptr, s_ptr, n_tokens, HIDDEN: tl.constexpr, COLS: tl.constexpr, SCALED: tl.constexpr):
    block = tl.program_id(1)
    rows = block * 128 + tl.arange(0, 128)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * HIDDEN + cols[None, :]).to(tl.float32)
    if SCALED:
        of_row = tl.load(sx_ptr + rows.to(tl.int64) * (HIDDEN // 128) + (tl.program_id(0) * COLS) // 128)
        x = x * of_row[:, None]
    scale = _scale_of(x, 0)
    q = (x / scale[None, :]).to(q_ptr.dtype.element_ty)
    tl.store(q_ptr + cols.to(tl.int64)[:, None] * n_tokens + rows[None, :], tl.trans(q))
    tl.store(s_ptr + block * HIDDEN + cols, scale)


def _transposed(x: Tensor, of_rows: Tensor | None) -> tuple[Tensor, Tensor]:
    n_tokens, hidden = x.shape
    q = torch.empty((hidden, n_tokens), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((n_tokens // 128, hidden), dtype=torch.float32, device=x.device)
    grid = (hidden // 64, n_tokens // 128)
    _transpose[grid](
        x,
        scale if of_rows is None else of_rows,
        q,
        scale,
        n_tokens,
        HIDDEN=hidden,
        COLS=64,
        SCALED=of_rows is not None,
        num_warps=4,
    )
    return q, scale.t()


def cast_transpose(x: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 [n_tokens, hidden] to FP8 [hidden, n_tokens] and scales [hidden, n_tokens / 128], hidden innermost."""
    return _transposed(x, None)


def requant_transpose(q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with 1x128 scales to its FP8 transpose with one scale per 128 tokens of a column."""
    return _transposed(q, scale)


@triton.jit
def _rope(x_ptr, cos_ptr, sin_ptr, y_ptr, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + token * HALF + lane)[None, :]
    sin = tl.load(sin_ptr + token * HALF + lane)[None, :]
    offset = token * (HEADS * 2 * HALF) + tl.arange(0, HEADS)[:, None] * (2 * HALF) + lane[None, :]
    first = tl.load(x_ptr + offset).to(tl.float32)
    second = tl.load(x_ptr + offset + HALF).to(tl.float32)
    tl.store(y_ptr + offset, (first * cos - second * sin).to(tl.bfloat16))
    tl.store(y_ptr + offset + HALF, (second * cos + first * sin).to(tl.bfloat16))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor]:
    """Rotate the halves of x[n_tokens, heads, head_dim] by cos, sin [n_tokens, head_dim / 2] (fp32)."""
    y = torch.empty_like(x)
    _rope[(x.shape[0],)](x, cos, sin, y, HEADS=x.shape[1], HALF=x.shape[2] // 2, num_warps=4)
    return (y,)
