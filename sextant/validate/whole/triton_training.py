"""Triton kernels of a backward pass: norm with the residual's gradient, SwiGLU with its output, rotary embedding into
the joint gradient, rows scattered, softmax cross entropy over FP32 logits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_tokens"])
def norm_backward(
    x_ptr, w_ptr, dy_ptr, dr_ptr, dx_ptr, dw_ptr, n_tokens, eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """dx of RMSNorm, with ADD plus the residual's gradient; one FP32 part of dw per program."""
    first = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for token in range(first, n_tokens, tl.num_programs(0)):
        at = token.to(tl.int64) * HIDDEN + cols  # pyright: ignore[reportAttributeAccessIssue]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / HIDDEN + eps)
        normed, grad = x * rstd, dy * w
        dx = rstd * (grad - normed * (tl.sum(grad * normed, 0) / HIDDEN))
        if ADD:
            dx += tl.load(dr_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dw += dy * normed
        tl.store(dx_ptr + at, dx.to(tl.bfloat16), mask=mask)
    tl.store(dw_ptr + first * HIDDEN + cols, dw, mask=mask)


@triton.jit
def swiglu_backward(x_ptr, dy_ptr, dx_ptr, y_ptr, width, BLOCK: tl.constexpr):
    """Gradient of gate | up, and the output made again for the next weight gradient."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    at = row * 2 * width + cols
    gate = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + at + width, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + cols, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(dx_ptr + at, (dy * up * (sigmoid + silu * (1.0 - sigmoid))).to(tl.bfloat16), mask=mask)
    tl.store(dx_ptr + at + width, (dy * silu).to(tl.bfloat16), mask=mask)
    tl.store(y_ptr + row * width + cols, (silu * up).to(tl.bfloat16), mask=mask)


@triton.jit
def rope_backward(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, out_ptr, heads, kv_heads, seq,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A token's gradients of queries and keys turned back, of values copied, to one row of heads + 2 kv_heads."""
    token = tl.program_id(0)
    batch, position = (token // seq).to(tl.int64), (token % seq).to(tl.int64)
    lane = tl.arange(0, HALF)[None, :]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    all_heads = heads + 2 * kv_heads
    query, value = head < heads, (head >= heads + kv_heads) & (head < all_heads)
    key = (head >= heads) & (head < heads + kv_heads)
    of_q = q_ptr + batch * q_batch + position * q_token + head * q_head + lane
    of_k = k_ptr + batch * k_batch + position * k_token + (head - heads) * k_head + lane
    of_v = v_ptr + batch * v_batch + position * v_token + (head - heads - kv_heads) * v_head + lane
    a = tl.load(of_q, mask=query, other=0.0).to(tl.float32) + tl.load(of_k, mask=key, other=0.0).to(tl.float32)
    a += tl.load(of_v, mask=value, other=0.0).to(tl.float32)
    b = tl.load(of_q + HALF, mask=query, other=0.0).to(tl.float32)
    b += tl.load(of_k + HALF, mask=key, other=0.0).to(tl.float32)
    b += tl.load(of_v + HALF, mask=value, other=0.0).to(tl.float32)
    cos = tl.where(value, 1.0, tl.load(cos_ptr + position * HALF + lane))
    sin = tl.where(value, 0.0, tl.load(sin_ptr + position * HALF + lane))
    to = out_ptr + (token.to(tl.int64) * all_heads + head) * (2 * HALF) + lane
    tl.store(to, (a * cos + b * sin).to(tl.bfloat16), mask=head < all_heads)
    tl.store(to + HALF, (b * cos - a * sin).to(tl.bfloat16), mask=head < all_heads)


@triton.jit
def scatter(dy_ptr, index_ptr, grad_ptr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """A BF16 row added to the FP32 row of its index."""
    row = tl.program_id(0).to(tl.int64)
    to = tl.load(index_ptr + row).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    value = tl.load(dy_ptr + row * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    tl.atomic_add(grad_ptr + to * HIDDEN + cols, value, mask=mask, sem="relaxed")


@triton.jit
def row_max(x_ptr, max_ptr, width, BLOCK: tl.constexpr):
    """Largest value of an FP32 row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        col = start + lane
        best = tl.maximum(best, tl.load(x_ptr + row * width + col, mask=col < width, other=float("-inf")))
    tl.store(max_ptr + row, tl.max(best, 0))


@triton.jit
def row_loss(x_ptr, max_ptr, target_ptr, lse_ptr, loss_ptr, width, BLOCK: tl.constexpr):
    """Logarithm of the sum of exponentials of an FP32 row, and the cross entropy of its target."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    largest = tl.load(max_ptr + row)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        col = start + lane
        x = tl.load(x_ptr + row * width + col, mask=col < width, other=float("-inf"))
        total += tl.exp(x - largest)
    lse = largest + tl.log(tl.sum(total, 0))
    tl.store(lse_ptr + row, lse)
    tl.store(loss_ptr + row, lse - tl.load(x_ptr + row * width + tl.load(target_ptr + row)))


@triton.jit
def softmax_gradient(x_ptr, lse_ptr, target_ptr, scale, width, BLOCK: tl.constexpr):
    """In place: the gradient of the mean cross entropy with respect to FP32 logits."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < width
    x = tl.load(x_ptr + row * width + col, mask=mask, other=0.0)
    p = tl.exp(x - tl.load(lse_ptr + row)) - tl.where(col == tl.load(target_ptr + row), 1.0, 0.0)
    tl.store(x_ptr + row * width + col, p * scale, mask=mask)
