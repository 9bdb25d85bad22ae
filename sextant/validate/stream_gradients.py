"""Gradients of residual streams by this package's fused kernels, on this GPU.

    python -m sextant.validate.stream_gradients --out FILE.csv

What the mHC paper describes (arXiv:2512.24880, s4.3.1) and nobody has published: the backward pass of ``mhc_pre`` with
one product for the gradients of residual and weights, and that of ``mhc_post``. Rows and timing are those of
``stream_training``. Every size's gradients are compared with a float64 reference first; the columns ``error_*`` are the
largest differences over the largest value, of the residual's gradient (BF16) and of the weights' (TF32).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from sextant.validate import stream_training
from sextant.validate.beside import write_rows
from sextant.validate.kernels.streams import EPS, mixed_in, mixed_out, projected
from sextant.validate.kernels.triton_stream_gradients import Kept, Weights, mhc_post_backward, mhc_pre_backward
from sextant.validate.stream_training import HIDDEN, ITERATIONS, N_STREAMS, N_TIMED, N_WARM, TOKENS, kernel_us

#: Sizes (tokens, hidden, streams, iterations) beside those of four streams and 20 iterations.
OTHER = tuple(
    (n_tokens, hidden, n, iterations)
    for n_tokens, hidden in ((2048, 4096), (4096, 1920), (4096, 2560), (8192, 1280), (8192, 7168))
    for n, iterations in ((2, 20), (8, 20), (4, 10), (4, 40))
)
COLUMNS = (*stream_training.COLUMNS, "error_residual", "error_weights")
#: Tokens that are compared with the reference.
N_CHECKED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a site's backward pass is given, for ``n_tokens`` tokens of random values: what was kept, the weights, the
    output f of the layer function with H_post and H_res, and the gradients of residual, layer input and mappings."""

    kept: Kept
    weights: Weights
    f: Tensor
    post: Tensor
    res: Tensor
    dx: Tensor
    dy: Tensor
    dpost: Tensor
    dres: Tensor


def inputs(n_tokens: int, hidden: int, n: int, iterations: int, device: str = "cuda") -> Inputs:
    """Random inputs, what the forward pass makes of them among them."""

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    x = random(n_tokens, n, hidden, dtype=torch.bfloat16)
    w = random(n * (n + 2), n * hidden) * (n * hidden) ** -0.5
    weights = Weights(product=w, scale=random(3), base=random(n * (n + 2)))
    product = torch.cat([part.flatten(1).float() @ w.t() for part in x.split(4096)])
    rstd = torch.cat([torch.rsqrt(part.flatten(1).float().square().mean(1) + EPS) for part in x.split(4096)])
    scale = weights.scale.repeat_interleave(torch.tensor([n, n, n * n], device=device))
    maps = product * rstd[:, None] * scale + weights.base
    return Inputs(
        kept=Kept(x=x, product=product, rstd=rstd, pre=maps[:, :n].sigmoid() + EPS), weights=weights,
        f=random(n_tokens, hidden, dtype=torch.bfloat16), post=2.0 * maps[:, n : 2 * n].sigmoid(),
        res=projected(maps[:, 2 * n :].unflatten(1, (n, n)), iterations),
        dx=random(n_tokens, n, hidden, dtype=torch.bfloat16), dy=random(n_tokens, hidden, dtype=torch.bfloat16),
        dpost=random(n_tokens, n), dres=random(n_tokens, n, n),
    )  # fmt: skip


def calls(given: Inputs, iterations: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """By operator its fused backward pass; that of ``mhc_pre`` returns the gradients of residual and weights."""
    kept, weights = given.kept, given.weights
    added = Weights(**{name: torch.zeros_like(getattr(weights, name)) for name in ("product", "scale", "base")})
    n_sms = torch.cuda.get_device_properties(0).multi_processor_count if kept.x.is_cuda else 1

    def pre() -> tuple[Tensor, ...]:
        dx = mhc_pre_backward(
            kept, weights, given.dx, given.dy, given.dpost, given.dres, added,
            n_iterations=iterations, eps=EPS, n_sms=n_sms,
        )  # fmt: skip
        return dx, added.product, added.scale, added.base

    # In the order of the backward pass: that of mhc_pre replaces the gradient that the other one reads.
    return {"mhc_post": lambda: mhc_post_backward(given.f, kept.x, given.post, given.res, given.dx), "mhc_pre": pre}


def reference(given: Inputs, iterations: int) -> dict[str, tuple[Tensor, ...]]:
    """What ``calls`` return, by the derivatives of the float64 references."""

    def leaves(*tensors: Tensor) -> list[Tensor]:
        return [tensor.detach().double().requires_grad_() for tensor in tensors]

    kept, weights = given.kept, given.weights
    at = leaves(kept.x, weights.product, weights.scale, weights.base)
    above = [each.double() for each in (given.dy, given.dpost, given.dres)]
    residual, *others = torch.autograd.grad(mixed_in(*at, n_iterations=iterations), at, above)
    below = leaves(given.f, kept.x, given.post, given.res)
    return {
        "mhc_pre": (given.dx.double() + residual, *others),
        "mhc_post": torch.autograd.grad(mixed_out(*below), below, given.dx.double()),
    }


def off(hidden: int, n: int, iterations: int, device: str = "cuda") -> dict[str, list[float]]:
    """By operator the largest difference of each gradient, over its largest value."""
    given = inputs(N_CHECKED - 3, hidden, n, iterations, device)
    right = reference(given, iterations)
    return {
        op: [
            float((mine.double() - its).abs().max() / its.abs().max())
            for mine, its in zip(call(), right[op], strict=True)
        ]
        for op, call in calls(given, iterations).items()
    }


def measured(n_tokens: int, hidden: int, n: int, iterations: int, flush: Tensor) -> list[tuple[object, ...]]:
    """The rows of one size."""
    rows: list[tuple[object, ...]] = []
    errors = off(hidden, n, iterations)
    for op, once in calls(inputs(n_tokens, hidden, n, iterations), iterations).items():
        for _ in range(N_WARM):
            once()
        totals, kernels = kernel_us(once, flush, N_TIMED)
        told = " + ".join(f"{name} {us:.1f}" for name, us in kernels.items())
        ends = f"{median(totals):.2f}", f"{min(totals):.2f}", f"{max(totals):.2f}"
        residual, *others = errors[op][:2] if op == "mhc_pre" else errors[op][1:3]
        wrong = (f"{residual:.1e}", f"{max(others):.1e}")
        rows.append((op, "backward", n_tokens, hidden, n, iterations, *ends, told, *wrong))
        print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Check and measure everything, and write the file."""
    parser = argparse.ArgumentParser(
        prog="sextant.validate.stream_gradients", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    flush = torch.zeros(2**27, dtype=torch.int32, device="cuda")
    sizes = [(n_tokens, hidden, N_STREAMS, ITERATIONS) for hidden in HIDDEN for n_tokens in TOKENS]
    rows: list[tuple[object, ...]] = []
    for size in (*sizes, *OTHER):
        rows += measured(*size, flush)
        write_rows(given.out, "stream_gradients", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
