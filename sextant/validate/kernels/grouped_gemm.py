"""Grouped matrix products of experts: rows sorted by expert, equally many per group.

``bf16``  CUTLASS through ``torch._grouped_mm``; variant wgrad is the weight gradient dy^T x of every group (n
          outputs, k inputs, contraction over the group's tokens).
``fp8``   ``torch._scaled_grouped_mm`` with one fp32 scale per row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, sizes
from sextant.validate.kernels.gemm import fp8_operand, sampled_check


def _ends(groups: int, tokens: int, target: Target) -> Tensor:
    return torch.arange(1, groups + 1, dtype=torch.int32, device=target.device) * tokens


def _slices(groups: int, tokens: int) -> list[tuple[int, slice]]:
    """The first and the last group with their rows."""
    return [(g, slice(g * tokens, (g + 1) * tokens)) for g in sorted({0, groups - 1})]


def _forward(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Callable[..., Tensor], Callable]:
    groups, tokens, n, k = sizes(case, "groups", "tokens_per_group", "n", "k")
    ends = _ends(groups, tokens, target)

    def draw() -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(shape, dtype=torch.bfloat16, device=target.device)
            for shape in ((groups * tokens, k), (groups, n, k))
        )

    def product(x: Tensor, w: Tensor) -> Tensor:
        if not target.cuda:
            return torch.cat([x[rows] @ w[g].t() for g, rows in enumerate(_all_rows(groups, tokens))])
        return torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)  # pyright: ignore[reportPrivateImportUsage]

    def check(out: Tensor, x: Tensor, w: Tensor) -> float:
        return max(sampled_check(out[rows], x[rows], w[g], tolerance=1e-2) for g, rows in _slices(groups, tokens))

    return draw, product, check


def _all_rows(groups: int, tokens: int) -> list[slice]:
    return [slice(g * tokens, (g + 1) * tokens) for g in range(groups)]


def _wgrad(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Callable[..., Tensor], Callable]:
    groups, tokens, n, k = sizes(case, "groups", "tokens_per_group", "n", "k")
    ends = _ends(groups, tokens, target)

    def draw() -> tuple[Tensor, ...]:
        return tuple(
            torch.randn((groups * tokens, width), dtype=torch.bfloat16, device=target.device) for width in (n, k)
        )

    def product(dy: Tensor, x: Tensor) -> Tensor:
        if not target.cuda:
            return torch.stack([dy[rows].t() @ x[rows] for rows in _all_rows(groups, tokens)])
        return torch._grouped_mm(dy.t(), x, offs=ends)  # pyright: ignore[reportPrivateImportUsage]

    def check(out: Tensor, dy: Tensor, x: Tensor) -> float:
        return max(
            sampled_check(out[g], dy[rows].t(), x[rows].t(), tolerance=1e-2) for g, rows in _slices(groups, tokens)
        )

    return draw, product, check


def _fp8(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Callable[..., Tensor], Callable]:
    groups, tokens, n, k = sizes(case, "groups", "tokens_per_group", "n", "k")
    ends = _ends(groups, tokens, target)

    def draw() -> tuple[Tensor, ...]:
        return *fp8_operand((groups * tokens, k), target), *fp8_operand((groups, n, k), target)

    def product(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
        if not target.cuda:
            left, right = x.float() * x_scale.unsqueeze(-1), w.float() * w_scale.unsqueeze(-1)
            parts = [left[rows] @ right[g].t() for g, rows in enumerate(_all_rows(groups, tokens))]
            return torch.cat(parts).to(torch.bfloat16)
        return torch._scaled_grouped_mm(  # pyright: ignore[reportPrivateImportUsage]
            x,
            w.transpose(-2, -1),
            x_scale,
            w_scale,
            offs=ends,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def check(out: Tensor, x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor) -> float:
        return max(
            sampled_check(
                out[rows],
                x[rows],
                w[g],
                tolerance=2e-2,
                a_scale=x_scale[rows].unsqueeze(1),
                b_scale=w_scale[g].unsqueeze(1),
            )
            for g, rows in _slices(groups, tokens)
        )

    return draw, product, check


def build_grouped_gemm(case: Case, target: Target) -> Prepared:
    """Prepare the products of all groups; traffic counts rows, weights and results once."""
    groups, tokens, n, k = sizes(case, "groups", "tokens_per_group", "n", "k")
    fmt, variant = case.get("format"), case.get("variant", "")
    if fmt not in ("bf16", "fp8") or (fmt == "fp8" and variant):
        raise ValueError(f"format: grouped_gemm is measured in bf16 (forward, wgrad) and fp8, got {fmt!r} {variant!r}")
    parts = _fp8 if fmt == "fp8" else _wgrad if variant == "wgrad" else _forward
    draw, product, check = parts(case, target)
    rows, weights = groups * tokens, groups * n * k
    if variant == "wgrad":
        read_bytes, write_bytes = 2.0 * rows * (n + k), 2.0 * weights
    elif fmt == "fp8":
        read_bytes, write_bytes = float(rows * (k + 4) + weights + 4 * groups * n), 2.0 * rows * n
    else:
        read_bytes, write_bytes = 2.0 * (rows * k + weights), 2.0 * rows * n
    sets = [draw() for _ in range(target.n_sets(read_bytes + write_bytes))]
    return Prepared(
        calls=tuple(partial(product, *one) for one in sets),
        library=target.library("cutlass"),
        check=lambda: check(product(*sets[0]), *sets[0]),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
    )


BUILDERS = {"grouped_gemm": build_grouped_gemm}
