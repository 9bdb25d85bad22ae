"""DeepSeek's own training kernels of residual streams (package tile-kernels), forward and backward, on this GPU.

    python -m sextant.validate.stream_training --out FILE.csv

Per row one call: ``mhc_pre`` (product of the mappings, its norm, split, Sinkhorn, H_pre applied) or ``mhc_post``, its
forward or its backward pass; ``us`` is the time of its kernels by the profiler, the median over repetitions, so that
launches by Python do not count. As in training, the gradient of the residual is there already when the backward of
``mhc_pre`` begins (that of ``mhc_post`` wrote it), and both its kernels add to it. Between calls L2 is overwritten.
Kernels are compiled first, hidden sizes side by side.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sextant.validate.beside import write_rows

HIDDEN, TOKENS = (1280, 1920, 2560, 4096, 7168), (1024, 2048, 4096, 8192, 16384)
N_STREAMS, N_MAPS, ITERATIONS, EPS = 4, 24, 20, 1e-6
N_WARM, N_TIMED = 2, 9
COLUMNS = (
    "op", "direction", "n_tokens", "hidden", "n_streams", "sinkhorn_iters", "us", "low_us", "high_us", "kernels",
)  # fmt: skip

Call = tuple[Callable[[], object], Callable[[object], object]]


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def calls(n_tokens: int, hidden: int) -> dict[str, Call]:
    """By operator its forward pass, and its backward pass of what the forward one gave."""
    from tile_kernels.modeling.mhc.functional import mhc_post, mhc_pre  # type: ignore[import-not-found]

    residual = _randn(1, n_tokens, N_STREAMS, hidden).requires_grad_()
    weights = (_randn(N_MAPS, N_STREAMS * hidden, dtype=torch.float32) * (N_STREAMS * hidden) ** -0.5).requires_grad_()
    scale, base = (_randn(size, dtype=torch.float32).requires_grad_() for size in (3, N_MAPS))
    output, gradient = _randn(1, n_tokens, hidden).requires_grad_(), _randn(1, n_tokens, N_STREAMS, hidden)
    post = torch.rand((1, n_tokens, N_STREAMS, 1), device="cuda").requires_grad_()
    comb = torch.rand((1, n_tokens, N_STREAMS, N_STREAMS), device="cuda").requires_grad_()
    above = _randn(1, n_tokens, hidden), torch.rand_like(post), torch.rand_like(comb)

    def pre() -> object:
        mixed, mappings = mhc_pre(residual, weights, scale, base, sinkhorn_repeat=ITERATIONS, post_mult_value=2.0)
        return mixed, *mappings

    def pre_backward(made: object) -> None:
        residual.untyped_storage().grad_from_mhc_post = gradient
        torch.autograd.grad(made, (weights, scale, base), above)  # type: ignore[arg-type]

    def post_backward(made: object) -> None:
        torch.autograd.grad(made, (output, residual, post, comb), gradient)  # type: ignore[arg-type]

    return {
        "mhc_pre": (pre, pre_backward),
        "mhc_post": (lambda: mhc_post(output, residual, post, comb), post_backward),
    }


def kernel_us(once: Callable[[], object], flush: Tensor, n: int) -> tuple[list[float], dict[str, float]]:
    """Microseconds of the kernels of each of ``n`` calls of ``once``, and by kernel the median of a call."""
    totals, each = [], defaultdict[str, list[float]](list)
    for _ in range(n):
        flush.zero_()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            once()
            torch.cuda.synchronize()
        names: dict[str, float] = defaultdict(float)
        for event in found.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                names[event.name] += event.time_range.elapsed_us()
        totals.append(sum(names.values()))
        for name, us in names.items():
            each[name].append(us)
    return totals, {name: median(values) for name, values in each.items()}


def measured(n_tokens: int, hidden: int, flush: Tensor) -> list[tuple[object, ...]]:
    """The rows of one size."""
    rows: list[tuple[object, ...]] = []
    for op, (forward, backward) in calls(n_tokens, hidden).items():
        for _ in range(N_WARM):
            backward(forward())
        kept = [forward() for _ in range(N_TIMED)]
        passes = {"forward": forward, "backward": lambda backward=backward, kept=kept: backward(kept.pop())}
        for direction, once in passes.items():
            totals, kernels = kernel_us(once, flush, N_TIMED)
            told = " + ".join(f"{name[:60]} {us:.1f}" for name, us in kernels.items())
            ends = f"{median(totals):.2f}", f"{min(totals):.2f}", f"{max(totals):.2f}"
            rows.append((op, direction, n_tokens, hidden, N_STREAMS, ITERATIONS, *ends, told))
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def compile_side_by_side(hidden: Sequence[int]) -> None:
    """Every size run once by a process of its own, whose compiled kernels stay on disk."""
    command = [sys.executable, "-m", "sextant.validate.stream_training", "--compile"]
    running = [subprocess.Popen([*command, str(size)]) for size in hidden]
    for process in running:
        process.wait()


def main() -> int:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(
        prog="sextant.validate.stream_training", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compile:
        for forward, backward in calls(TOKENS[0], given.compile).values():
            backward(forward())
        torch.cuda.synchronize()
        return 0
    if given.out is None:
        parser.error("--out FILE.csv is needed")
    compile_side_by_side(HIDDEN)
    flush = torch.zeros(2**27, dtype=torch.int32, device="cuda")
    rows: list[tuple[object, ...]] = []
    for hidden in HIDDEN:
        for n_tokens in TOKENS:
            rows += measured(n_tokens, hidden, flush)
            write_rows(given.out, "stream_training", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
