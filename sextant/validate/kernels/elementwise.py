"""Fused elementwise operators between GEMMs: norms, gated activations, residual add, rotary embedding, FP8 casts.

On a GPU they are this package's Triton kernels (``library`` triton), as serving and training stacks fuse them; plain
torch, in fp32, is the reference and the fall-back on the CPU. FP8 is e4m3 with fp32 scales: 1x128 means 128 neighbours
of one row share a scale, 128x1 means 128 tokens of one column do.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import FP8, FP8_MAX, Case, Prepared, Target, rotated, sizes

BF16 = torch.bfloat16
EPS = 1e-6


def _randn(target: Target, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16, device=target.device)


def _device_code(target: Target):
    if not target.fused:
        return None
    from sextant.validate.kernels import triton_rows

    return triton_rows


def _rmsnorm(x: Tensor, w: Tensor) -> tuple[Tensor]:
    exact = x.float()
    return ((exact * torch.rsqrt(exact.square().mean(1, keepdim=True) + EPS) * w.float()).to(BF16),)


def _rmsnorm_backward(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    exact, grad = x.float(), dy.float()
    rstd = torch.rsqrt(exact.square().mean(1, keepdim=True) + EPS)
    normed = exact * rstd
    dw = (grad * normed).sum(0).to(BF16)
    grad = grad * w.float()
    return (rstd * (grad - normed * (grad * normed).mean(1, keepdim=True))).to(BF16), dw


def _swiglu_exact(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def _swiglu(x: Tensor) -> tuple[Tensor]:
    return (_swiglu_exact(x).to(BF16),)


def _swiglu_backward(x: Tensor, dy: Tensor) -> tuple[Tensor]:
    gate, up = x.float().chunk(2, dim=1)
    grad = dy.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return (torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), dim=1).to(BF16),)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 and fp32 scales of 1x128 groups of x[n_rows, n_cols]; n_cols a multiple of 128."""
    groups = x.float().unflatten(1, (-1, 128))
    scale = groups.abs().amax(2).clamp(min=1e-4) / FP8_MAX
    return (groups / scale.unsqueeze(2)).flatten(1).to(FP8), scale


def _quantise_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantise_rows(x.t().contiguous())


def _requant_transpose(q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _quantise_columns(q.float() * scale.repeat_interleave(128, dim=1))


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor]:
    first, second = x.float().chunk(2, dim=2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (torch.cat((first * cos - second * sin, second * cos + first * sin), dim=2).to(BF16),)


def build_rmsnorm(case: Case, target: Target) -> Prepared:
    """bf16 rows [n_tokens, hidden] and one weight vector."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, hidden), _randn(target, hidden)),
        fused=code.rmsnorm if code else _rmsnorm,
        eager=_rmsnorm,
        read_bytes=2.0 * (n_tokens + 1) * hidden,
        write_bytes=2.0 * n_tokens * hidden,
    )


def build_rmsnorm_backward(case: Case, target: Target) -> Prepared:
    """dx and dw from x, w and dy; the root mean square is computed again rather than stored. Two kernels."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)
    fused = partial(code.rmsnorm_backward, n_programs=2 * target.n_sms) if code else _rmsnorm_backward
    return rotated(
        target,
        fused=fused,
        eager=_rmsnorm_backward,
        inputs=lambda: (_randn(target, n_tokens, hidden), _randn(target, hidden), _randn(target, n_tokens, hidden)),
        read_bytes=2.0 * (2 * n_tokens + 1) * hidden,
        write_bytes=2.0 * (n_tokens + 1) * hidden,
    )


def build_swiglu(case: Case, target: Target) -> Prepared:
    """silu(gate) * up from bf16 gate | up; ``format`` fp8 casts the result with 1x128 scales in the same kernel."""
    n_tokens, width = sizes(case, "n_tokens", "expert_ffn")
    if width % 128:
        raise ValueError(f"expert_ffn: the kernel needs a multiple of 128, got {width}")
    code = _device_code(target)
    cast = case.get("format") == "fp8"
    written = n_tokens * width * (1.0 + 4 / 128) if cast else 2.0 * n_tokens * width
    if cast:
        fused, eager = (code.swiglu_cast if code else _swiglu_cast), _swiglu_cast
    else:
        fused, eager = (code.swiglu if code else _swiglu), _swiglu
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, 2 * width),),
        fused=fused,
        eager=eager,
        read_bytes=4.0 * n_tokens * width,
        write_bytes=written,
    )


def _swiglu_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantise_rows(_swiglu_exact(x))


def build_swiglu_backward(case: Case, target: Target) -> Prepared:
    """Gradient of gate | up in bf16 from gate | up and the output's gradient."""
    n_tokens, width = sizes(case, "n_tokens", "expert_ffn")
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, 2 * width), _randn(target, n_tokens, width)),
        fused=code.swiglu_backward if code else _swiglu_backward,
        eager=_swiglu_backward,
        read_bytes=6.0 * n_tokens * width,
        write_bytes=4.0 * n_tokens * width,
    )


def build_cast(case: Case, target: Target) -> Prepared:
    """bf16 to FP8 with 1x128 scales."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, hidden),),
        fused=code.cast if code else quantise_rows,
        eager=quantise_rows,
        read_bytes=2.0 * n_tokens * hidden,
        write_bytes=n_tokens * hidden * (1.0 + 4 / 128),
    )


def _tokens_and_hidden(case: Case) -> tuple[int, int]:
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    if n_tokens % 128 or hidden % 128:
        raise ValueError(f"n_tokens, hidden: 128x1 scales need multiples of 128, got {n_tokens}, {hidden}")
    return n_tokens, hidden


def build_cast_transpose(case: Case, target: Target) -> Prepared:
    """bf16 to the FP8 transpose with 128x1 scales (the operand of a weight gradient)."""
    n_tokens, hidden = _tokens_and_hidden(case)
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, hidden),),
        fused=code.cast_transpose if code else _quantise_columns,
        eager=_quantise_columns,
        read_bytes=2.0 * n_tokens * hidden,
        write_bytes=n_tokens * hidden * (1.0 + 4 / 128),
    )


def build_requant_transpose(case: Case, target: Target) -> Prepared:
    """FP8 with 1x128 scales to its FP8 transpose with 128x1 scales (a stored activation read by the backward pass)."""
    n_tokens, hidden = _tokens_and_hidden(case)
    code = _device_code(target)
    moved = n_tokens * hidden * (1.0 + 4 / 128)
    return rotated(
        target,
        inputs=lambda: quantise_rows(_randn(target, n_tokens, hidden)),
        fused=code.requant_transpose if code else _requant_transpose,
        eager=_requant_transpose,
        read_bytes=moved,
        write_bytes=moved,
    )


def build_rope(case: Case, target: Target) -> Prepared:
    """Rotary embedding of [n_tokens, heads, head_dim] in bf16, out of place; cos and sin tables in fp32."""
    n_tokens, heads, head_dim = sizes(case, "n_tokens", "heads", "head_dim")
    code = _device_code(target)

    def inputs() -> tuple[Tensor, ...]:
        angle = torch.rand((n_tokens, head_dim // 2), device=target.device) * 6.28
        return torch.randn((n_tokens, heads, head_dim), dtype=BF16, device=target.device), angle.cos(), angle.sin()

    moved = 2.0 * n_tokens * heads * head_dim
    return rotated(
        target,
        inputs=inputs,
        fused=code.rope if code else _rope,
        eager=_rope,
        read_bytes=moved + 4.0 * n_tokens * head_dim,
        write_bytes=moved,
    )


BUILDERS = {
    "rmsnorm": build_rmsnorm,
    "rmsnorm_backward": build_rmsnorm_backward,
    "swiglu": build_swiglu,
    "swiglu_backward": build_swiglu_backward,
    "cast": build_cast,
    "cast_transpose": build_cast_transpose,
    "requant_transpose": build_requant_transpose,
    "rope": build_rope,
}
