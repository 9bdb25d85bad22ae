"""Triton kernels of the gradients of residual streams: what mHC runs backward, fused as its paper describes (s4.3.1).

Backward of ``mhc_pre`` three kernels: the gradients of H_pre, which read the residual and the gradient of the layer's
input; those of the mappings and of what makes them (sigmoid, Sinkhorn, norm), a few numbers per token; and one that
makes the gradient of the residual through H_pre, the mappings and the norm, adds what ``mhc_post`` left of it, and sums
that of the weights in the same reading of the residual. Backward of ``mhc_post`` one kernel. Tensors are bf16
[tokens, streams, hidden] of 2, 4 or 8 streams; mappings, weights and their gradients fp32. Gradients of weights are
added to what is there, as over micro-batches.
"""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How the kernels cut their work: the fastest of those tried on an H100, four streams of 2,560 and 7,168 values.

    Tokens, values, warps and loads under way of a block of the product, of which all SMs hold ``product_waves``; values
    and warps of what goes over a token's values, ``post_elements`` over its streams; tokens and warps of a block of the
    mappings.
    """

    product_tokens: int = 16
    product_values: int = 128
    product_warps: int = 2
    product_stages: int = 3
    product_waves: int = 4
    pre_values: int = 1024
    pre_warps: int = 4
    post_elements: int = 2048
    map_tokens: int = 8
    map_warps: int = 1


#: Those of more than four streams, tried with eight of 2,560.
MANY_STREAMS = Tiles(product_tokens=64, product_warps=8, product_stages=2, map_warps=2)


def tiles_of(n_streams: int) -> Tiles:
    """The tiles for a number of streams."""
    return Tiles() if n_streams <= 4 else MANY_STREAMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the mappings [n^2 + 2 n, n hidden], their three scales and biases, or the gradients of these."""

    product: Tensor
    scale: Tensor
    base: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the forward pass of ``mhc_pre`` keeps: the residual [tokens, n, hidden], the product of its mappings
    [tokens, n^2 + 2 n] before norm, scale and bias, 1 over its root mean square [tokens], and H_pre [tokens, n]."""

    x: Tensor
    product: Tensor
    rstd: Tensor
    pre: Tensor


@triton.jit
def _pre_gradient(x_ptr, dy_ptr, dpre_ptr, hidden, N: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, N)
    acc = tl.zeros([N, BLOCK], dtype=tl.float32)
    for start in range(0, hidden, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < hidden
        at = (token * N + stream)[:, None] * hidden + col[None, :]
        x = tl.load(x_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + token * hidden + col, mask=inside, other=0.0).to(tl.float32)
        acc += x * dy[None, :]
    tl.store(dpre_ptr + token * N + stream, tl.sum(acc, 1))


@triton.jit
def _unprojected(logits, gradient, eps, AXIS: tl.constexpr, N_ITERATIONS: tl.constexpr):
    """Gradient of Sinkhorn's logits: the iterations made again, then walked back by the sums they divided by."""
    m = tl.exp(logits - tl.max(logits, AXIS + 1, keep_dims=True))
    m = m / tl.sum(m, AXIS + 1, keep_dims=True) + eps
    sums = (tl.sum(m, AXIS, keep_dims=True) + eps,)  # added to by +: tuples of Triton cannot be unpacked
    m = m / sums[0]
    for i in tl.static_range(1, N_ITERATIONS):
        sums = sums + (tl.sum(m, AXIS + 1, keep_dims=True) + eps,)  # noqa: RUF005
        m = m / sums[2 * i - 1]
        sums = sums + (tl.sum(m, AXIS, keep_dims=True) + eps,)  # noqa: RUF005
        m = m / sums[2 * i]
    d = gradient
    for i in tl.static_range(N_ITERATIONS - 1, 0, -1):
        d = (d - tl.sum(d * m, AXIS, keep_dims=True)) / sums[2 * i]
        m = m * sums[2 * i]
        d = (d - tl.sum(d * m, AXIS + 1, keep_dims=True)) / sums[2 * i - 1]
        m = m * sums[2 * i - 1]
    d = (d - tl.sum(d * m, AXIS, keep_dims=True)) / sums[0]
    m = m * sums[0] - eps
    return m * (d - tl.sum(d * m, AXIS + 1, keep_dims=True))


@triton.jit(do_not_specialize=["n_tokens"])
def _mapping_gradients(
    z_ptr, rstd_ptr, scale_ptr, base_ptr, dpre_ptr, dpost_ptr, dres_ptr, dz_ptr, along_ptr, dscale_ptr, dbase_ptr,
    n_tokens, hidden, eps, N: tl.constexpr, N_ITERATIONS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Gradients of the product, and ``along``: what of the residual itself the norm adds to its gradient."""
    N_MAPS: tl.constexpr = N * (N + 2)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    known, stream = token < n_tokens, tl.arange(0, N)
    row, flat = token[:, None] * N_MAPS + stream[None, :], token[:, None] * N + stream[None, :]
    square = stream[:, None] * N + stream[None, :]
    here, there = known[:, None], known[:, None, None]
    rstd = tl.load(rstd_ptr + token, mask=known, other=0.0)
    scale_pre, scale_post, scale_res = tl.load(scale_ptr), tl.load(scale_ptr + 1), tl.load(scale_ptr + 2)

    z_pre = tl.load(z_ptr + row, mask=here, other=0.0) * rstd[:, None]
    s = tl.sigmoid(z_pre * scale_pre + tl.load(base_ptr + stream)[None, :])
    d_pre = tl.load(dpre_ptr + flat, mask=here, other=0.0) * s * (1.0 - s)
    z_post = tl.load(z_ptr + row + N, mask=here, other=0.0) * rstd[:, None]
    s = tl.sigmoid(z_post * scale_post + tl.load(base_ptr + N + stream)[None, :])
    d_post = tl.load(dpost_ptr + flat, mask=here, other=0.0) * 2.0 * s * (1.0 - s)
    at = token[:, None, None] * N_MAPS + 2 * N + square[None, :, :]
    z_res = tl.load(z_ptr + at, mask=there, other=0.0) * rstd[:, None, None]
    logits = z_res * scale_res + tl.load(base_ptr + 2 * N + square)[None, :, :]
    given = tl.load(dres_ptr + token[:, None, None] * N * N + square[None, :, :], mask=there, other=0.0)
    d_res = _unprojected(logits, given, eps, 1, N_ITERATIONS)
    d_res = tl.where(there, d_res, 0.0)

    tl.atomic_add(dbase_ptr + stream, tl.sum(d_pre, 0))
    tl.atomic_add(dbase_ptr + N + stream, tl.sum(d_post, 0))
    tl.atomic_add(dbase_ptr + 2 * N + square, tl.sum(d_res, 0))
    of_pre, of_post = tl.sum(d_pre * z_pre, 1), tl.sum(d_post * z_post, 1)
    of_res = tl.sum(tl.sum(d_res * z_res, 2), 1)
    tl.atomic_add(dscale_ptr, tl.sum(of_pre, 0))
    tl.atomic_add(dscale_ptr + 1, tl.sum(of_post, 0))
    tl.atomic_add(dscale_ptr + 2, tl.sum(of_res, 0))
    tl.store(dz_ptr + row, d_pre * scale_pre * rstd[:, None], mask=here)
    tl.store(dz_ptr + row + N, d_post * scale_post * rstd[:, None], mask=here)
    tl.store(dz_ptr + at, d_res * scale_res * rstd[:, None, None], mask=there)
    total = of_pre * scale_pre + of_post * scale_post + of_res * scale_res
    tl.store(along_ptr + token, -total * rstd * rstd / (N * hidden), mask=known)


@triton.jit(do_not_specialize=["n_tokens", "part_tokens"])
def _product_gradients(
    x_ptr, dx_ptr, dy_ptr, pre_ptr, dz_ptr, along_ptr, w_ptr, dw_ptr, n_tokens, hidden, part_tokens,
    N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A block of one stream's values over a part of the tokens; blocks of the same values follow each other, so that
    the gradient of the layer's input is read once."""
    N_MAPS: tl.constexpr = N * (N + 2)
    stream = tl.program_id(0) % N
    value = (tl.program_id(0) // N) * BLOCK + tl.arange(0, BLOCK)
    inside, maps = value < hidden, tl.arange(0, BLOCK_P)
    at_w = maps[:, None] * (N * hidden) + stream * hidden + value[None, :]
    held = (maps < N_MAPS)[:, None] & inside[None, :]
    w = tl.load(w_ptr + at_w, mask=held, other=0.0)
    acc = tl.zeros([BLOCK_P, BLOCK], dtype=tl.float32)
    first = tl.program_id(1) * part_tokens
    for start in tl.range(first, tl.minimum(first + part_tokens, n_tokens), BLOCK_M, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK_M)
        known = token < n_tokens
        at = (token.to(tl.int64) * N + stream)[:, None] * hidden + value[None, :]
        here = known[:, None] & inside[None, :]
        x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + token.to(tl.int64)[:, None] * hidden + value[None, :], mask=here, other=0.0)
        dx = tl.load(dx_ptr + at, mask=here, other=0.0).to(tl.float32)
        dz = tl.load(
            dz_ptr + token[:, None] * N_MAPS + maps[None, :], mask=known[:, None] & (maps < N_MAPS)[None, :], other=0.0
        )
        pre = tl.load(pre_ptr + token * N + stream, mask=known, other=0.0)
        along = tl.load(along_ptr + token, mask=known, other=0.0)
        acc = tl.dot(tl.trans(dz), x, acc, input_precision="tf32")
        dx += pre[:, None] * dy.to(tl.float32) + along[:, None] * x
        dx = tl.dot(dz, w, dx, input_precision="tf32")
        tl.store(dx_ptr + at, dx.to(tl.bfloat16), mask=here)
    tl.atomic_add(dw_ptr + at_w, acc, mask=held)


def mhc_pre_backward(
    kept: Kept, weights: Weights, dx: Tensor, dy: Tensor, dpost: Tensor, dres: Tensor, added: Weights, *,
    n_iterations: int, eps: float, n_sms: int,
) -> Tensor:  # fmt: skip
    """Gradient of the residual, in place of ``dx`` [tokens, n, hidden], which holds what ``mhc_post`` left of it.

    ``dy`` [tokens, hidden], ``dpost`` [tokens, n] and ``dres`` [tokens, n, n] are the gradients of the layer's input
    and of the mappings; those of the weights are added to ``added``.
    """
    n_tokens, n, hidden = kept.x.shape
    tiles = tiles_of(n)
    dpre, dz, along = torch.empty_like(kept.pre), torch.empty_like(kept.product), torch.empty_like(kept.rstd)
    _pre_gradient[(n_tokens,)](
        kept.x, dy, dpre, hidden, N=n, BLOCK=tiles.pre_values, num_warps=tiles.pre_warps
    )  # fmt: skip
    _mapping_gradients[(triton.cdiv(n_tokens, tiles.map_tokens),)](
        kept.product, kept.rstd, weights.scale, weights.base, dpre, dpost, dres, dz, along, added.scale, added.base,
        n_tokens, hidden, eps, N=n, N_ITERATIONS=n_iterations, TOKENS=tiles.map_tokens, num_warps=tiles.map_warps,
    )  # fmt: skip
    blocks = n * triton.cdiv(hidden, tiles.product_values)
    steps = triton.cdiv(n_tokens, tiles.product_tokens)
    parts = max(1, min(steps, tiles.product_waves * n_sms // blocks))
    part_tokens = triton.cdiv(steps, parts) * tiles.product_tokens
    _product_gradients[(blocks, triton.cdiv(n_tokens, part_tokens))](
        kept.x, dx, dy, kept.pre, dz, along, weights.product, added.product, n_tokens, hidden, part_tokens,
        N=n, BLOCK_P=max(16, triton.next_power_of_2(n * (n + 2))), BLOCK_M=tiles.product_tokens,
        BLOCK=tiles.product_values, STAGES=tiles.product_stages, num_warps=tiles.product_warps,
    )  # fmt: skip
    return dx


@triton.jit
def _post_gradients(
    f_ptr, x_ptr, post_ptr, res_ptr, dy_ptr, df_ptr, dx_ptr, dpost_ptr, dres_ptr, hidden,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, N)
    square = stream[:, None] * N + stream[None, :]
    of_post = tl.zeros([N], dtype=tl.float32)
    of_res = tl.zeros([N, N], dtype=tl.float32)
    for start in range(0, hidden, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < hidden
        at = (token * N + stream)[:, None] * hidden + col[None, :]
        x = tl.load(x_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
        f = tl.load(f_ptr + token * hidden + col, mask=inside, other=0.0).to(tl.float32)
        df = tl.zeros([BLOCK], dtype=tl.float32)
        dx = tl.zeros([N, BLOCK], dtype=tl.float32)
        for i in tl.static_range(N):
            dy = tl.load(dy_ptr + (token * N + i) * hidden + col, mask=inside, other=0.0).to(tl.float32)
            df += tl.load(post_ptr + token * N + i) * dy
            dx += tl.load(res_ptr + (token * N + stream) * N + i)[:, None] * dy[None, :]
            of_post += tl.where(stream == i, tl.sum(dy * f, 0), 0.0)
            of_res += tl.where((stream == i)[None, :], tl.sum(x * dy[None, :], 1)[:, None], 0.0)
        tl.store(df_ptr + token * hidden + col, df.to(tl.bfloat16), mask=inside)
        tl.store(dx_ptr + at, dx.to(tl.bfloat16), mask=inside[None, :])
    tl.store(dpost_ptr + token * N + stream, of_post)
    tl.store(dres_ptr + token * N * N + square, of_res)


def mhc_post_backward(
    f: Tensor, x: Tensor, post: Tensor, res: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the layer's output, the residual, H_post and H_res of ``mhc_post``."""
    n_tokens, n, hidden = x.shape
    tiles = tiles_of(n)
    df, dx, dpost, dres = torch.empty_like(f), torch.empty_like(x), torch.empty_like(post), torch.empty_like(res)
    _post_gradients[(n_tokens,)](
        f, x, post, res, dy, df, dx, dpost, dres, hidden, N=n, BLOCK=tiles.post_elements // n, num_warps=1
    )  # fmt: skip
    return df, dx, dpost, dres
