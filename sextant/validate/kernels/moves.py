"""Operators that move rows or add them: residual add, copy, permutation to experts and back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, rotated, sizes

BF16 = torch.bfloat16


def _device_code(target: Target):
    if not target.fused:
        return None
    from sextant.validate.kernels import triton_moves

    return triton_moves


def _rows(case: Case, target: Target, n_rows: int, width: int) -> Tensor:
    """Random rows: bf16, or bytes standing for FP8 (moved, never computed with)."""
    if case.get("format") == "fp8":
        return torch.randint(0, 256, (n_rows, width), dtype=torch.uint8, device=target.device)
    return torch.randn((n_rows, width), dtype=BF16, device=target.device)


def _taken(x: Tensor, index: Tensor) -> tuple[Tensor]:
    return (x[index.to(x.device).long()].to(index.device),)


def _added(a: Tensor, b: Tensor) -> tuple[Tensor]:
    return ((a.float() + b.float()).to(BF16),)


def _weighted_sum(x: Tensor, position: Tensor, weight: Tensor) -> tuple[Tensor]:
    return ((x[position.long()].float() * weight.unsqueeze(2)).sum(1).to(BF16),)


def _copied(source: Tensor, destination: Tensor) -> tuple[Tensor]:
    return (destination.copy_(source),)


def build_add(case: Case, target: Target) -> Prepared:
    """Residual add of two bf16 tensors [n_tokens, hidden]."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    code = _device_code(target)

    def inputs() -> tuple[Tensor, ...]:
        return tuple(torch.randn((n_tokens, hidden), dtype=BF16, device=target.device) for _ in range(2))

    return rotated(
        target,
        inputs=inputs,
        fused=code.add if code else _added,
        eager=_added,
        read_bytes=4.0 * n_tokens * hidden,
        write_bytes=2.0 * n_tokens * hidden,
    )


def build_copy(case: Case, target: Target) -> Prepared:
    """Copy within device memory: ``variant`` kernel (persistent Triton programs) or memcpy (the driver's)."""
    (n_bytes,) = sizes(case, "bytes")
    if n_bytes % 4:
        raise ValueError(f"bytes: the copy moves words of 4 bytes, got {n_bytes}")
    code = _device_code(target) if case.get("variant") == "kernel" else None

    def inputs() -> tuple[Tensor, ...]:
        source = torch.randint(-(2**31), 2**31 - 1, (n_bytes // 4,), dtype=torch.int32, device=target.device)
        return source, torch.full_like(source, -1)

    fused = partial(code.copy, n_programs=8 * target.n_sms) if code else _copied

    def reference(source: Tensor, destination: Tensor) -> tuple[Tensor]:
        return (source,)

    prepared = rotated(
        target,
        inputs=inputs,
        fused=fused,
        eager=_copied if not target.fused else reference,
        read_bytes=float(n_bytes),
        write_bytes=float(n_bytes),
        library="triton" if code else target.library("cuda_memcpy"),
    )
    return prepared


def build_permute(case: Case, target: Target) -> Prepared:
    """Rows of n_tokens copied to the top_k places their experts read, in random order; scales are not moved."""
    n_tokens, hidden, top_k = sizes(case, "n_tokens", "hidden", "top_k")
    code = _device_code(target)
    width_bytes = hidden * (1 if case.get("format") == "fp8" else 2)

    def inputs() -> tuple[Tensor, ...]:
        order = torch.randperm(n_tokens * top_k, device=target.device) // top_k
        return _rows(case, target, n_tokens, hidden), order.to(torch.int32)

    return rotated(
        target,
        inputs=inputs,
        fused=code.gather_rows if code else _taken,
        eager=_taken,
        read_bytes=float(n_tokens * (width_bytes + 4 * top_k)),
        write_bytes=float(n_tokens * top_k * width_bytes),
    )


def build_unpermute(case: Case, target: Target) -> Prepared:
    """Weighted sum of the top_k expert rows of each token, gathered from random places; bf16 rows, fp32 weights."""
    n_tokens, hidden, top_k = sizes(case, "n_tokens", "hidden", "top_k")
    code = _device_code(target)

    def inputs() -> tuple[Tensor, ...]:
        position = torch.randperm(n_tokens * top_k, device=target.device).to(torch.int32).view(n_tokens, top_k)
        weight = torch.rand((n_tokens, top_k), device=target.device)
        return torch.randn((n_tokens * top_k, hidden), dtype=BF16, device=target.device), position, weight

    return rotated(
        target,
        inputs=inputs,
        fused=code.weighted_sum if code else _weighted_sum,
        eager=_weighted_sum,
        read_bytes=float(n_tokens * top_k * (2 * hidden + 8)),
        write_bytes=2.0 * n_tokens * hidden,
    )


BUILDERS = {
    "add": build_add,
    "copy": build_copy,
    "permute": build_permute,
    "unpermute": build_unpermute,
}
