"""Matrix products y[m, n] = a[m, k] b[n, k]^T.

``bf16``       cuBLAS through ``F.linear``; variant wgrad is dy^T x (m = outputs, n = inputs, k = tokens), dgrad is
               dy w, each with the memory layout the backward pass finds.
``fp8``        cuBLASLt through ``torch._scaled_mm``, e4m3 operands with one fp32 scale per row; variant accumulate asks
               for the slower, more exact accumulation, per_tensor has one scale per operand (another kernel of the
               library). A weight gradient's operands count as transposed beforehand.
``fp8_block``  cuBLASLt with 1x128 scales of a and 128x128 scales of b; variant wgrad has 1x128 scales of both, as a
               weight gradient needs (its reduction runs over tokens), and an fp32 result; wgrad_bf16 a bf16 one.

Random operands, bf16 output. Every case is checked on a sample of rows and columns against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import FP8, Case, Prepared, Target, require_close, sizes

N_CHECKED_ROWS, N_CHECKED_COLS = 48, 96
#: A product: the operands of a set to the result.
Product = Callable[..., Tensor]


def _picked(size: int, count: int, device: torch.device) -> Tensor:
    """Random indices that include the first and the last."""
    middle = torch.randint(0, size, (max(0, min(size, count) - 2),), device=device)
    return torch.cat((torch.tensor([0, size - 1], device=device), middle))


def _scaled(operand: Tensor, scale: Tensor | None, picked: Tensor, dtype: torch.dtype) -> Tensor:
    """The picked rows of an operand times their scales; a scale spans 1 row or 128, and all of k, 128 of it, or 1."""
    # FP8 cannot be indexed on every device; its bytes can
    values = operand.view(torch.uint8)[picked].view(FP8) if operand.dtype == FP8 else operand[picked]
    values = values.to(dtype)
    if scale is None:
        return values
    per_row = scale[picked if scale.shape[0] == operand.shape[0] else picked // 128].to(dtype)
    k = operand.shape[1]
    return values * per_row if scale.shape[1] == 1 else values * per_row.repeat_interleave(128, dim=1)[:, :k]


def sampled_check(
    out: Tensor, a: Tensor, b: Tensor, *, tolerance: float, a_scale: Tensor | None = None, b_scale: Tensor | None = None
) -> float:
    """Relative error of sampled entries of out[m, n] against a[m, k] b[n, k]^T in float64; ``ValueError`` if large."""
    rows, cols = _picked(a.shape[0], N_CHECKED_ROWS, a.device), _picked(b.shape[0], N_CHECKED_COLS, a.device)
    reference = _scaled(a, a_scale, rows, torch.float64) @ _scaled(b, b_scale, cols, torch.float64).t()
    return require_close(out[rows][:, cols], reference, what="the product", tolerance=tolerance)


def fp8_operand(shape: tuple[int, ...], target: Target) -> tuple[Tensor, Tensor]:
    """Random e4m3 values and one positive fp32 scale per row of the last dimension."""
    values = torch.randn(shape, dtype=torch.bfloat16, device=target.device).to(FP8)
    return values, torch.rand(shape[:-1], device=target.device) + 0.5


def _bf16(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Product, Callable[..., float]]:
    m, n, k = sizes(case, "m", "n", "k")
    variant = case.get("variant", "")

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=target.device)

    if variant == "wgrad":
        return (
            lambda: (draw(k, m), draw(k, n)),
            lambda dy, x: dy.t() @ x,
            lambda out, dy, x: sampled_check(out, dy.t(), x.t(), tolerance=1e-2),
        )
    if variant == "dgrad":
        return (
            lambda: (draw(m, k), draw(k, n)),
            torch.mm,
            lambda out, dy, w: sampled_check(out, dy, w.t(), tolerance=1e-2),
        )
    return (lambda: (draw(m, k), draw(n, k)), F.linear, partial(sampled_check, tolerance=1e-2))


def _fp8(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Product, Callable[..., float]]:
    m, n, k = sizes(case, "m", "n", "k")
    fast, per_tensor = case.get("variant") != "accumulate", case.get("variant") == "per_tensor"

    def draw() -> tuple[Tensor, ...]:
        (a, a_scale), (b, b_scale) = fp8_operand((m, k), target), fp8_operand((n, k), target)
        return (a, a_scale.mean(), b, b_scale.mean()) if per_tensor else (a, a_scale, b, b_scale)

    def columns(scale: Tensor, rows: int) -> Tensor:
        return scale.expand(rows).unsqueeze(1)

    def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
        if not target.cuda:
            exact = (a.float() * columns(a_scale, m)) @ (b.float() * columns(b_scale, n)).t()
            return exact.to(torch.bfloat16)
        return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            a,
            b.t(),
            scale_a=a_scale if per_tensor else a_scale.unsqueeze(1),
            scale_b=b_scale if per_tensor else b_scale.unsqueeze(0),
            out_dtype=torch.bfloat16,
            use_fast_accum=fast,
        )

    def check(out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> float:
        return sampled_check(out, a, b, tolerance=2e-2, a_scale=columns(a_scale, m), b_scale=columns(b_scale, n))

    return draw, product, check


def _fp8_block(case: Case, target: Target) -> tuple[Callable[[], tuple[Tensor, ...]], Product, Callable[..., float]]:
    m, n, k = sizes(case, "m", "n", "k")
    if k % 128:
        raise ValueError(f"k: blocks of 128 need a multiple of 128, got {k}")
    if str(case.get("variant", "")).startswith("wgrad"):
        return _fp8_wgrad(m, n, k, target, torch.float32 if case["variant"] == "wgrad" else torch.bfloat16)
    n_k = k // 128
    padded = -(-n_k // 4) * 4  # the library reads the 128x128 scales in rows of a multiple of 4

    def draw() -> tuple[Tensor, ...]:
        a, b = fp8_operand((m, k), target)[0], fp8_operand((n, k), target)[0]
        a_scale = torch.rand((n_k, m), device=target.device).add_(0.5).t()  # stored with the rows innermost
        return a, a_scale, b, torch.rand((-(-n // 128), padded), device=target.device) + 0.5

    def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
        if not target.cuda:
            left = _scaled(a, a_scale, torch.arange(m), torch.float32)
            return (left @ _scaled(b, b_scale[:, :n_k], torch.arange(n), torch.float32).t()).to(torch.bfloat16)
        recipes = F.ScalingType  # type: ignore[attr-defined]
        return F.scaled_mm(  # type: ignore[attr-defined]
            a,
            b.t(),
            a_scale,
            recipes.BlockWise1x128,
            b_scale.t(),
            recipes.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    def check(out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> float:
        return sampled_check(out, a, b, tolerance=2e-2, a_scale=a_scale, b_scale=b_scale[:, :n_k])

    return draw, product, check


def _fp8_wgrad(
    m: int, n: int, k: int, target: Target, dtype: torch.dtype
) -> tuple[Callable[[], tuple[Tensor, ...]], Product, Callable[..., float]]:
    n_k = k // 128

    def draw() -> tuple[Tensor, ...]:
        a, b = fp8_operand((m, k), target)[0], fp8_operand((n, k), target)[0]
        a_scale, b_scale = (torch.rand((n_k, rows), device=target.device).add_(0.5).t() for rows in (m, n))
        return a, a_scale, b, b_scale

    def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
        if not target.cuda:
            left = _scaled(a, a_scale, torch.arange(m), torch.float32)
            return (left @ _scaled(b, b_scale, torch.arange(n), torch.float32).t()).to(dtype)
        recipe = F.ScalingType.BlockWise1x128  # type: ignore[attr-defined]
        return F.scaled_mm(a, b.t(), a_scale, recipe, b_scale, recipe, output_dtype=dtype)  # type: ignore[attr-defined]

    def check(out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> float:
        return sampled_check(out, a, b, tolerance=2e-2, a_scale=a_scale, b_scale=b_scale)

    return draw, product, check


_FORMATS = {"bf16": (_bf16, 2, "cublas"), "fp8": (_fp8, 1, "cublaslt"), "fp8_block": (_fp8_block, 1, "cublaslt")}


def build_gemm(case: Case, target: Target) -> Prepared:
    """Prepare one product; traffic counts both operands and their scales read once, the bf16 result written once."""
    fmt = str(case.get("format"))
    if fmt not in _FORMATS:
        raise ValueError(f"format: gemm is measured in {', '.join(_FORMATS)}, got {fmt!r}")
    m, n, k = sizes(case, "m", "n", "k")
    parts, element_bytes, library = _FORMATS[fmt]
    draw, product, check = parts(case, target)
    scale_rows = 2 if case.get("variant") == "per_tensor" else m + n
    scale_bytes = {"bf16": 0.0, "fp8": 4.0 * scale_rows, "fp8_block": 4.0 * (k / 128) * (m + n / 128)}[fmt]
    read_bytes = float(element_bytes * k * (m + n)) + scale_bytes
    write_bytes = (4.0 if fmt == "fp8_block" and case.get("variant") == "wgrad" else 2.0) * m * n
    sets = [draw() for _ in range(target.n_sets(read_bytes + write_bytes))]
    return Prepared(
        calls=tuple(partial(product, *one) for one in sets),
        library=target.library(library),
        check=lambda: check(product(*sets[0]), *sets[0]),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
    )


BUILDERS = {"gemm": build_gemm}
