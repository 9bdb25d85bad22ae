"""Elementwise operators of image encoders: ``layernorm`` (with bias) and ``gelu`` (tanh approximation), bf16 rows."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, rotated, sizes

BF16 = torch.bfloat16
EPS = 1e-6


def _device_code(target: Target):
    if not target.fused:
        return None
    from sextant.validate.kernels import triton_vision

    return triton_vision


def _layernorm(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor]:
    return (F.layer_norm(x.float(), w.shape, w.float(), b.float(), EPS).to(BF16),)


def _gelu(x: Tensor) -> tuple[Tensor]:
    return (F.gelu(x.float(), approximate="tanh").to(BF16),)


def _randn(target: Target, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16, device=target.device)


def build_layernorm(case: Case, target: Target) -> Prepared:
    """Rows [n_tokens, hidden], one weight and one bias vector."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, hidden), _randn(target, hidden), _randn(target, hidden)),
        fused=partial(code.layernorm, eps=EPS) if code else _layernorm,
        eager=_layernorm,
        read_bytes=2.0 * (n_tokens + 2) * hidden,
        write_bytes=2.0 * n_tokens * hidden,
    )


def build_gelu(case: Case, target: Target) -> Prepared:
    """[n_tokens, hidden] where hidden is the width of the feed-forward layer."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)
    return rotated(
        target,
        inputs=lambda: (_randn(target, n_tokens, hidden),),
        fused=code.gelu if code else _gelu,
        eager=_gelu,
        read_bytes=2.0 * n_tokens * hidden,
        write_bytes=2.0 * n_tokens * hidden,
    )


BUILDERS = {"layernorm": build_layernorm, "gelu": build_gelu}
