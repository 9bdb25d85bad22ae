"""Triton kernels of one decode step of attention: the cache is split among programs, a second kernel joins the parts.

Split-KV as serving systems do it (FlashDecoding): every program takes one run of tokens of one sequence for the query
heads that share its keys, keeps a running softmax, and leaves its output and the logarithm of its sum. Lengths, batch,
heads and strides are runtime values, so that one binary serves all of them for a head size.
"""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = math.log2(math.e)
#: Tokens per step of the inner loop, and the fewest steps that make a part of its own.
TOKENS_PER_STEP, MLA_TOKENS_PER_STEP, STEPS_PER_PART = 64, 32, 2
MAX_PARTS = 128


@triton.jit
def _grouped_part(
    q_ptr, k_ptr, v_ptr, part_ptr, lse_ptr, scale, kv_len, group, part_len,
    k_batch, k_head, k_token, v_batch, v_head, v_token,
    HEAD: tl.constexpr, V_HEAD: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n_parts, kv_heads = tl.num_programs(0), tl.num_programs(1)
    rows, cols, v_cols = tl.arange(0, BLOCK_G), tl.arange(0, HEAD), tl.arange(0, V_HEAD)
    in_group = rows < group
    head = (sequence * kv_heads + kv_head) * group + rows
    q = tl.load(q_ptr + head[:, None] * HEAD + cols[None, :], mask=in_group[:, None], other=0.0)
    k_base, v_base = k_ptr + sequence * k_batch + kv_head * k_head, v_ptr + sequence * v_batch + kv_head * v_head
    largest = tl.full([BLOCK_G], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_G], dtype=tl.float32)
    acc = tl.zeros([BLOCK_G, V_HEAD], dtype=tl.float32)
    first = part * part_len
    last = tl.minimum(first + part_len, kv_len)
    for start in range(first, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        valid = token < last
        at = token.to(tl.int64)
        k = tl.load(k_base + at[None, :] * k_token + cols[:, None], mask=valid[None, :], other=0.0)
        scores = tl.where(valid[None, :], tl.dot(q, k) * scale, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(largest - above)
        v = tl.load(v_base + at[:, None] * v_token + v_cols[None, :], mask=valid[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        total = total * shrink + tl.sum(p, 1)
        largest = above
    row = head * n_parts + part
    tl.store(part_ptr + row[:, None] * V_HEAD + v_cols[None, :], acc / total[:, None], mask=in_group[:, None])
    tl.store(lse_ptr + row, largest + tl.log2(total), mask=in_group)


@triton.jit
def _latent_part(
    q_ptr, c_ptr, part_ptr, lse_ptr, scale, kv_len, heads, part_len,
    RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n_parts = tl.num_programs(0)
    width: tl.constexpr = RANK + ROPE
    rows = block * BLOCK_H + tl.arange(0, BLOCK_H)
    known = rows < heads
    head = sequence * heads + rows
    cols, rope_cols = tl.arange(0, RANK), RANK + tl.arange(0, ROPE)
    q = tl.load(q_ptr + head[:, None] * width + cols[None, :], mask=known[:, None], other=0.0)
    q_rope = tl.load(q_ptr + head[:, None] * width + rope_cols[None, :], mask=known[:, None], other=0.0)
    base = c_ptr + sequence * kv_len * width
    largest = tl.full([BLOCK_H], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    acc = tl.zeros([BLOCK_H, RANK], dtype=tl.float32)
    first = part * part_len
    last = tl.minimum(first + part_len, kv_len)
    for start in range(first, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        valid = token < last
        at = token.to(tl.int64)
        c = tl.load(base + at[:, None] * width + cols[None, :], mask=valid[:, None], other=0.0)
        k_rope = tl.load(base + at[None, :] * width + rope_cols[:, None], mask=valid[None, :], other=0.0)
        scores = tl.dot(q_rope, k_rope)
        scores = tl.dot(q, tl.trans(c), scores) * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(largest - above)
        acc = tl.dot(p.to(c.dtype), c, acc * shrink[:, None])
        total = total * shrink + tl.sum(p, 1)
        largest = above
    row = head * n_parts + part
    tl.store(part_ptr + row[:, None] * RANK + cols[None, :], acc / total[:, None], mask=known[:, None])
    tl.store(lse_ptr + row, largest + tl.log2(total), mask=known)


@triton.jit
def _join(part_ptr, lse_ptr, out_ptr, n_parts, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], dtype=tl.float32)
    largest, total = float("-inf"), 0.0
    for i in range(n_parts):
        lse = tl.load(lse_ptr + row * n_parts + i)
        above = tl.maximum(largest, lse)
        shrink, weight = tl.exp2(largest - above), tl.exp2(lse - above)
        acc = acc * shrink + weight * tl.load(part_ptr + (row * n_parts + i) * WIDTH + cols)
        total = total * shrink + weight
        largest = above
    tl.store(out_ptr + row * WIDTH + cols, (acc / total).to(out_ptr.dtype.element_ty))


def parts(n_programs: int, kv_len: int, n_sms: int, step: int) -> tuple[int, int]:
    """Number of parts of a sequence and tokens in each, so that about two programs run on every SM; none is empty."""
    wanted = max(1, min(MAX_PARTS, -(-2 * n_sms // n_programs), kv_len // (step * STEPS_PER_PART)))
    length = -(-kv_len // (wanted * step)) * step
    return -(-kv_len // length), length


def _joined(part: Tensor, lse: Tensor, out: Tensor, n_parts: int) -> tuple[Tensor]:
    _join[(lse.numel() // n_parts,)](part, lse, out, n_parts, WIDTH=out.shape[-1], num_warps=4)
    return (out,)


def grouped(q: Tensor, k: Tensor, v: Tensor, *, n_sms: int) -> tuple[Tensor]:
    """One query token: q [batch, heads, 1, head_dim]; k and v [batch, kv_heads, tokens, dim], dim innermost."""
    batch, heads, _, head_dim = q.shape
    kv_heads, kv_len, v_dim = k.shape[1], k.shape[2], v.shape[3]
    group = heads // kv_heads
    n_parts, length = parts(batch * kv_heads, kv_len, n_sms, TOKENS_PER_STEP)
    part = torch.empty((batch, heads, n_parts, v_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((batch, heads, n_parts), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, heads, 1, v_dim), dtype=q.dtype, device=q.device)
    _grouped_part[(n_parts, kv_heads, batch)](
        q.contiguous(), k, v, part, lse, head_dim**-0.5 * LOG2E, kv_len, group, length,
        *k.stride()[:3], *v.stride()[:3],
        HEAD=head_dim, V_HEAD=v_dim, BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_N=TOKENS_PER_STEP,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return _joined(part, lse, out, n_parts)


def latent(q: Tensor, cache: Tensor, *, rank: int, scale: float, n_sms: int) -> tuple[Tensor]:
    """Absorbed MLA: q [batch, heads, rank + rope], cache [batch, tokens, rank + rope]; out [batch, heads, rank]."""
    batch, heads, width = q.shape
    kv_len = cache.shape[1]
    block = 64 if heads >= 64 else 16
    blocks = triton.cdiv(heads, block)
    n_parts, length = parts(batch * blocks, kv_len, n_sms, MLA_TOKENS_PER_STEP)
    part = torch.empty((batch, heads, n_parts, rank), dtype=torch.float32, device=q.device)
    lse = torch.empty((batch, heads, n_parts), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, heads, rank), dtype=q.dtype, device=q.device)
    _latent_part[(n_parts, blocks, batch)](
        q, cache, part, lse, scale * LOG2E, kv_len, heads, length,
        RANK=rank, ROPE=width - rank, BLOCK_H=block, BLOCK_N=MLA_TOKENS_PER_STEP,
        num_warps=8 if block == 64 else 4, num_stages=2,
    )  # fmt: skip
    return _joined(part, lse, out, n_parts)
