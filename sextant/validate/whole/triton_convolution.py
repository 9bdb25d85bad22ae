"""Triton kernels of Engram's convolution: y + SiLU(sum over taps of tap times the norm of an earlier token's y - x).

Of a prompt first 1 over the root mean square of every row, then the convolution without a reduction: a program goes
along ``RUN`` tokens ``dilation`` apart, in one stream's block of values, so that taps and norm weights, FP32 and many
times a token's bytes, are read once a run, and rows once but for the TAPS - 1 in front of it. A decode step is one
kernel, a program per token and stream. On an H200 with four streams of 2,560 a prompt takes 1.9 times what its bytes
need in one kernel (the norms are a third of that), a step of 256 tokens 3 times.
"""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens that a program of a prompt goes along, and its values; warps of that of a step. The fastest of those tried.
RUN, BLOCK, STEP_WARPS = 16, 256, 16


@triton.jit
def _weighed(tap_ptr, w_ptr, at, inside, width, TAPS: tl.constexpr):
    """Taps times norm weights, the newest token's first."""
    w = tl.load(w_ptr + at, mask=inside, other=0.0)
    taps = (w * tl.load(tap_ptr + at, mask=inside, other=0.0),)
    for j in tl.static_range(1, TAPS):
        taps = taps + (w * tl.load(tap_ptr + j * width + at, mask=inside, other=0.0),)  # noqa: RUF005
    return taps


@triton.jit
def norms(x_ptr, y_ptr, rstd_ptr, hidden, eps, BLOCK: tl.constexpr):
    """1 over the root mean square of y - x, per row."""
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = col < hidden
    y = tl.load(y_ptr + row * hidden + col, mask=inside, other=0.0).to(tl.float32)
    gated = y - tl.load(x_ptr + row * hidden + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(rstd_ptr + row, 1.0 / tl.sqrt(tl.sum(gated * gated, 0) / hidden + eps))


@triton.jit
def convolve(
    x_ptr, y_ptr, rstd_ptr, w_ptr, tap_ptr, out_ptr, hidden, seq, dilation, n_runs, n_blocks,
    N: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """A prompt: program 0 is a run of a remainder by ``dilation`` in a sequence, program 1 a block of a stream."""
    stream = tl.program_id(1) // n_blocks
    col = tl.program_id(1) % n_blocks * BLOCK + tl.arange(0, BLOCK)
    which, run = tl.program_id(0) % dilation, tl.program_id(0) // dilation
    first = which + run % n_runs * RUN * dilation
    sequence = (run // n_runs).to(tl.int64) * seq
    taps = _weighed(tap_ptr, w_ptr, stream * hidden + col, col < hidden, N * hidden, TAPS)
    window = (tl.zeros([BLOCK], dtype=tl.float32),)
    for _ in tl.static_range(TAPS - 2):  # tuples of Triton cannot be unpacked
        window = window + (tl.zeros([BLOCK], dtype=tl.float32),)  # noqa: RUF005
    for i in tl.static_range(1 - TAPS, RUN):
        position = first + i * dilation
        there = (position >= 0) & (position < seq)
        here = col < tl.where(there, hidden, 0)
        token = (sequence + position) * N + stream
        y = tl.load(y_ptr + token * hidden + col, mask=here, other=0.0).to(tl.float32)
        row = y - tl.load(x_ptr + token * hidden + col, mask=here, other=0.0).to(tl.float32)
        row = row * tl.load(rstd_ptr + token, mask=there, other=0.0)
        if i >= 0:
            total = taps[0] * row
            for j in tl.static_range(1, TAPS):
                total += taps[j] * window[j - 1]
            tl.store(out_ptr + token * hidden + col, (y + total * tl.sigmoid(total)).to(tl.bfloat16), mask=here)
        window = (row,) + window[: TAPS - 2]  # noqa: RUF005


@triton.jit
def convolve_step(
    x_ptr, y_ptr, w_ptr, tap_ptr, earlier_ptr, out_ptr, hidden, dilation, eps,
    N: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A decode step: a token of every sequence; those before it are in the state, not normalised, the oldest first."""
    token, stream = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tap, col = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = col < hidden
    known = (tap < TAPS)[:, None] & inside[None, :]
    at = (token * N + stream) * hidden + col
    back = ((token * (TAPS - 1) + TAPS - 1 - tap) * dilation * N + stream) * hidden
    earlier = tl.load(earlier_ptr + back[:, None] + col[None, :], mask=known & (tap > 0)[:, None], other=0.0)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    taps = tl.load(tap_ptr + (tap * N + stream)[:, None] * hidden + col[None, :], mask=known, other=0.0)
    w = tl.load(w_ptr + stream * hidden + col, mask=inside, other=0.0)
    rows = tl.where((tap == 0)[:, None], (y - x)[None, :], earlier.to(tl.float32))
    rstd = 1.0 / tl.sqrt(tl.sum(rows * rows, 1) / hidden + eps)
    total = w * tl.sum(taps * rows * rstd[:, None], 0)
    tl.store(out_ptr + at, (y + total * tl.sigmoid(total)).to(tl.bfloat16), mask=inside)


def convolved(
    x: Tensor, y: Tensor, w: Tensor, taps: Tensor, earlier: Tensor | None, *, seq: int, dilation: int, eps: float
) -> Tensor:
    """What ``kernels.Kernels.convolve`` says, of at least two taps."""
    m, n, hidden = x.shape
    out = torch.empty_like(x)
    n_taps, block = taps.shape[0], triton.next_power_of_2(hidden)
    if earlier is not None:
        convolve_step[(m, n)](
            x, y, w, taps, earlier, out, hidden, dilation, eps,
            N=n, TAPS=n_taps, ROWS=triton.next_power_of_2(n_taps), BLOCK=block, num_warps=STEP_WARPS,
        )  # fmt: skip
        return out
    n_runs = triton.cdiv(triton.cdiv(seq, dilation), RUN)
    rstd = torch.empty((m, n), dtype=torch.float32, device=x.device)
    norms[(m * n,)](x, y, rstd, hidden, eps, BLOCK=block, num_warps=4)
    n_blocks = triton.cdiv(hidden, BLOCK)
    convolve[(m // seq * dilation * n_runs, n * n_blocks)](
        x, y, rstd, w, taps, out, hidden, seq, dilation, n_runs, n_blocks,
        N=n, TAPS=n_taps, BLOCK=BLOCK, RUN=RUN, num_warps=1,
    )  # fmt: skip
    return out
