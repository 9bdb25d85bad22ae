"""Triton kernels of whole layers that no measured kernel has: sums fused with norms, rotary embedding where queries,
keys and values lie, the latent's copies, routing in one kernel each, Engram's row numbers, gate and convolution.

Token counts, head counts and strides are runtime values; widths are constants.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(
    x_ptr, d_ptr, w_ptr, b_ptr, r_ptr, y_ptr, x_row, d_row, eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """One row: x (+ d, stored to r), then RMSNorm, or layer normalisation with a bias, to y."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    x = tl.load(x_ptr + row * x_row + cols, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(d_ptr + row * d_row + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(r_ptr + row * HIDDEN + cols, x.to(tl.bfloat16), mask=mask)
    w = tl.load(w_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    if CENTRE:
        x = tl.where(mask, x - tl.sum(x, 0) / HIDDEN, 0.0)
        w_b = tl.load(b_ptr + cols, mask=mask, other=0.0).to(tl.float32)
        y = x / tl.sqrt(tl.sum(x * x, 0) / HIDDEN + eps) * w + w_b
    else:
        y = x / tl.sqrt(tl.sum(x * x, 0) / HIDDEN + eps) * w
    tl.store(y_ptr + row * HIDDEN + cols, y.to(tl.bfloat16), mask=mask)


@triton.jit
def swiglu(x_ptr, y_ptr, width, BLOCK: tl.constexpr):
    """silu(gate) * up of any width: program 0 the row, program 1 the block of columns."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    gate = tl.load(x_ptr + row * 2 * width + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + cols, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=mask)


@triton.jit
def rope(x_ptr, cos_ptr, sin_ptr, token_stride, seq, n_rotated, HEADS: tl.constexpr, HALF: tl.constexpr):
    """In place on the first heads of a token; program 1 is a block of heads."""
    token = tl.program_id(0)
    lane = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + (token % seq) * HALF + lane)[None, :]
    sin = tl.load(sin_ptr + (token % seq) * HALF + lane)[None, :]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    mask = (head < n_rotated)[:, None]
    at = x_ptr + token.to(tl.int64) * token_stride + head[:, None] * (2 * HALF) + lane[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(tl.bfloat16), mask=mask)
    tl.store(at + HALF, (second * cos + first * sin).to(tl.bfloat16), mask=mask)


@triton.jit
def rope_append(
    x_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, heads, kv_heads, k_sequence, v_sequence,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One sequence's new token: queries rotated to q, keys rotated to k, values copied to v."""
    sequence = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, HALF)[None, :]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    known = head < heads + 2 * kv_heads
    turned = head < heads + kv_heads
    cos = tl.where(turned, tl.load(cos_ptr + lane), 1.0)
    sin = tl.where(turned, tl.load(sin_ptr + lane), 0.0)
    at = x_ptr + (sequence * (heads + 2 * kv_heads) + head) * (2 * HALF) + lane
    a = tl.load(at, mask=known, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=known, other=0.0).to(tl.float32)
    first, second = (a * cos - b * sin).to(tl.bfloat16), (b * cos + a * sin).to(tl.bfloat16)
    query = head < heads
    to = q_ptr + (sequence * heads + head) * (2 * HALF) + lane
    tl.store(to, first, mask=query)
    tl.store(to + HALF, second, mask=query)
    key = turned & (head >= heads)
    to = k_ptr + sequence * k_sequence + (head - heads) * (2 * HALF) + lane
    tl.store(to, first, mask=key)
    tl.store(to + HALF, second, mask=key)
    value = known & (head >= heads + kv_heads)
    to = v_ptr + sequence * v_sequence + (head - heads - kv_heads) * (2 * HALF) + lane
    tl.store(to, first, mask=value)
    tl.store(to + HALF, second, mask=value)


@triton.jit
def rope_tail(
    x_ptr, cos_ptr, sin_ptr, y_ptr, heads, seq, x_token, x_head, x_tail, y_token, y_head, y_tail,
    HEADS: tl.constexpr, HALF: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    """The last 2 HALF of every head rotated, the first ``COPY`` copied; x_head 0 gives all heads the same row."""
    token = tl.program_id(0)
    lane = tl.arange(0, HALF)[None, :]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    known = head < heads
    cos = tl.load(cos_ptr + (token % seq) * HALF + lane)
    sin = tl.load(sin_ptr + (token % seq) * HALF + lane)
    source = x_ptr + token.to(tl.int64) * x_token + head * x_head
    target = y_ptr + token.to(tl.int64) * y_token + head * y_head
    if COPY > 0:
        cols = tl.arange(0, COPY)[None, :]
        tl.store(target + cols, tl.load(source + cols, mask=known, other=0.0), mask=known)
    a = tl.load(source + x_tail + lane, mask=known, other=0.0).to(tl.float32)
    b = tl.load(source + x_tail + HALF + lane, mask=known, other=0.0).to(tl.float32)
    tl.store(target + y_tail + lane, (a * cos - b * sin).to(tl.bfloat16), mask=known)
    tl.store(target + y_tail + HALF + lane, (b * cos + a * sin).to(tl.bfloat16), mask=known)


@triton.jit
def key_concat(
    kv_ptr, shared_ptr, cos_ptr, sin_ptr, k_ptr, heads, seq, kv_head, shared_token,
    HEADS: tl.constexpr, NOPE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Keys of a token's heads: their own NOPE values, then the shared 2 HALF rotated."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, HALF)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    known = head < heads
    cols = tl.arange(0, NOPE)[None, :]
    to = k_ptr + (token * heads + head) * (NOPE + 2 * HALF)
    own = tl.load(kv_ptr + (token * heads + head) * kv_head + cols, mask=known, other=0.0)
    tl.store(to + cols, own, mask=known)
    cos = tl.load(cos_ptr + (token % seq) * HALF + lane)
    sin = tl.load(sin_ptr + (token % seq) * HALF + lane)
    a = tl.load(shared_ptr + token * shared_token + lane).to(tl.float32)
    b = tl.load(shared_ptr + token * shared_token + HALF + lane).to(tl.float32)
    first, second = (a * cos - b * sin).to(tl.bfloat16), (b * cos + a * sin).to(tl.bfloat16)
    blank = tl.zeros([HEADS, HALF], dtype=tl.bfloat16)
    tl.store(to + NOPE + lane[None, :], first[None, :] + blank, mask=known)
    tl.store(to + NOPE + HALF + lane[None, :], second[None, :] + blank, mask=known)


@triton.jit
def copy_heads(x_ptr, y_ptr, n_rows, x_row, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of WIDTH that lie ``x_row`` apart, to rows without a gap."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    cols = tl.arange(0, WIDTH)[None, :]
    known = row < n_rows
    tl.store(y_ptr + row * WIDTH + cols, tl.load(x_ptr + row * x_row + cols, mask=known), mask=known)


@triton.jit
def latent_append(
    latent_ptr, shared_ptr, cos_ptr, sin_ptr, cache_ptr, shared_row, cache_sequence,
    RANK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A sequence's new row of the cache: RANK values, then 2 HALF rotated."""
    sequence = tl.program_id(0).to(tl.int64)
    cols, lane = tl.arange(0, RANK), tl.arange(0, HALF)
    to = cache_ptr + sequence * cache_sequence
    tl.store(to + cols, tl.load(latent_ptr + sequence * RANK + cols))
    cos, sin = tl.load(cos_ptr + lane), tl.load(sin_ptr + lane)
    a = tl.load(shared_ptr + sequence * shared_row + lane).to(tl.float32)
    b = tl.load(shared_ptr + sequence * shared_row + HALF + lane).to(tl.float32)
    tl.store(to + RANK + lane, (a * cos - b * sin).to(tl.bfloat16))
    tl.store(to + RANK + HALF + lane, (b * cos + a * sin).to(tl.bfloat16))


@triton.jit
def select(
    logits_ptr, weight_ptr, expert_ptr, n_experts, TOP_K: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One token's largest softmax scores, which then add up to 1, and their experts."""
    token = tl.program_id(0).to(tl.int64)
    cols, slot = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    x = tl.load(logits_ptr + token * n_experts + cols, mask=cols < n_experts, other=float("-inf")).to(tl.float32)
    weights, experts = tl.zeros([SLOTS], dtype=tl.float32), tl.zeros([SLOTS], dtype=tl.int32)
    largest = tl.max(x, 0)
    for i in tl.static_range(TOP_K):
        best = tl.argmax(x, 0)
        score = tl.exp(tl.max(x, 0) - largest)
        weights = tl.where(slot == i, score, weights)
        experts = tl.where(slot == i, best.to(tl.int32), experts)
        x = tl.where(cols == best, float("-inf"), x)
    weights = weights / tl.sum(weights, 0)
    tl.store(weight_ptr + token * TOP_K + slot, weights, mask=slot < TOP_K)
    tl.store(expert_ptr + token * TOP_K + slot, experts, mask=slot < TOP_K)


@triton.jit(do_not_specialize=["n_pairs"])
def place(expert_ptr, end_ptr, token_ptr, place_ptr, n_pairs, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """Program e finds the pairs of expert e and gives them places behind those of all smaller experts, in order."""
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    below, mine = tl.zeros([BLOCK], dtype=tl.int32), tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, n_pairs, BLOCK):
        known = start + lane < n_pairs
        found = tl.load(expert_ptr + start + lane, mask=known, other=2**30)
        below += (found < expert).to(tl.int32)
        mine += (found == expert).to(tl.int32)
    at = tl.sum(below, 0)
    tl.store(end_ptr + expert, at + tl.sum(mine, 0))
    for start in range(0, n_pairs, BLOCK):
        pair = start + lane
        found = tl.load(expert_ptr + pair, mask=pair < n_pairs, other=2**30)
        hit = (found == expert).to(tl.int32)
        to = at + tl.cumsum(hit, 0) - 1
        tl.store(place_ptr + pair, to, mask=hit > 0)
        tl.store(token_ptr + to, pair // TOP_K, mask=hit > 0)
        at += tl.sum(hit, 0)


@triton.jit
def hashed(
    ids_ptr, prime_ptr, start_ptr, order_ptr, row_ptr, n_tokens, seq, earlier,
    FACTOR_0: tl.constexpr, FACTOR_1: tl.constexpr, FACTOR_2: tl.constexpr,
    TABLES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Row numbers of a block of tokens in every table; n-grams of up to three tokens."""
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None]
    known = token < n_tokens
    table = tl.arange(0, TABLES)[None, :]
    at = ids_ptr + (token // seq) * (seq + earlier) + earlier + token % seq
    order = tl.load(order_ptr + table)
    mixed = tl.load(at, mask=known, other=0).to(tl.int64) * FACTOR_0
    second = tl.load(at - 1, mask=known & (order > 1), other=0).to(tl.int64) * FACTOR_1
    third = tl.load(at - 2, mask=known & (order > 2), other=0).to(tl.int64) * FACTOR_2
    mixed = mixed ^ second ^ third
    row = tl.load(start_ptr + table) + mixed % tl.load(prime_ptr + table)
    tl.store(row_ptr + token.to(tl.int64) * TABLES + table, row, mask=known)


@triton.jit
def gate(x_ptr, k_ptr, v_ptr, w_ptr, y_ptr, hidden, k_token, v_token, eps, clamp, N: tl.constexpr, BLOCK: tl.constexpr):
    """``triton_streams``' gate for keys and values that lie in one tensor: x + sigmoid(signed root of x . k) v."""
    token, stream = tl.program_id(0).to(tl.int64), tl.program_id(1)
    col = tl.arange(0, BLOCK)
    inside = col < hidden
    at = (token * N + stream) * hidden + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + token * k_token + stream * hidden + col, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + stream * hidden + col, mask=inside, other=0.0)
    v = tl.load(v_ptr + token * v_token + col, mask=inside, other=0.0).to(tl.float32)
    scale = tl.sqrt((tl.sum(x * x, 0) / hidden + eps) * (tl.sum(k * k, 0) / hidden + eps) * hidden)
    dot = tl.sum(x * k * w, 0) / scale
    root = tl.sqrt(tl.maximum(tl.abs(dot), clamp))
    weight = tl.sigmoid(tl.where(dot > 0.0, root, tl.where(dot < 0.0, -root, 0.0)))
    tl.store(y_ptr + at, (x + weight * v).to(tl.bfloat16), mask=inside)
