"""The operators of a backward pass and of the optimizer on a GPU: cuBLAS, Triton kernels, torch's reductions."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import triton
from torch import Tensor

from sextant.validate.kernels import triton_moves
from sextant.validate.kernels.adam import CONSTANTS
from sextant.validate.whole import triton_training
from sextant.validate.whole.backward import Backward
from sextant.validate.whole.kernels import EPS

#: A step so small that replaying it many times leaves the weights about where they are.
LEARNING_RATE = 1e-7
COLUMNS, HEADS, LOGITS = 1024, 16, 4096


class FusedBackward(Backward):
    """Triton and library kernels."""

    def __init__(self, *, n_sms: int) -> None:
        self.n_sms = n_sms

    def weight(self, gradient: Tensor, dy: Tensor, x: Tensor) -> None:
        torch.addmm(gradient, dy.t(), x, out_dtype=torch.float32, out=gradient)  # type: ignore[call-overload]

    def norm(self, x: Tensor, w: Tensor, dy: Tensor, residual: Tensor | None, gradient: Tensor) -> Tensor:
        m, hidden = x.shape
        n_programs = min(2 * self.n_sms, m)
        dx = torch.empty_like(x)
        parts = torch.empty((n_programs, hidden), dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(hidden)
        triton_training.norm_backward[(n_programs,)](
            x, w, dy, dy if residual is None else residual, dx, parts, m, EPS,
            HIDDEN=hidden, BLOCK=block, ADD=residual is not None, num_warps=16 if block > 2048 else 4,
        )  # fmt: skip
        torch.sum(parts, 0, out=gradient)
        return dx

    def swiglu(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        m, width = dy.shape
        dx, y = torch.empty_like(x), torch.empty_like(dy)
        triton_training.swiglu_backward[(m, triton.cdiv(width, COLUMNS))](
            x, dy, dx, y, width, BLOCK=COLUMNS, num_warps=4
        )
        return dx, y

    def rope(self, dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, heads, seq, dim = dq.shape
        kv_heads = dk.shape[1]
        every = heads + 2 * kv_heads
        out = torch.empty((batch, seq, every, dim), dtype=dq.dtype, device=dq.device)
        triton_training.rope_backward[(batch * seq, triton.cdiv(every, HEADS))](
            dq, dk, dv, cos, sin, out, heads, kv_heads, seq, *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
            HEADS=HEADS, HALF=dim // 2, num_warps=4,
        )  # fmt: skip
        return out

    def rows(self, gradient: Tensor, index: Tensor, dy: Tensor) -> None:
        hidden = dy.shape[1]
        block = triton.next_power_of_2(hidden)
        triton_training.scatter[(len(dy),)](dy, index, gradient, HIDDEN=hidden, BLOCK=block, num_warps=8)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        m, width = logits.shape
        exact = logits.float()
        largest, lse, loss = (torch.empty(m, dtype=torch.float32, device=logits.device) for _ in range(3))
        triton_training.row_max[(m,)](exact, largest, width, BLOCK=LOGITS, num_warps=8)
        triton_training.row_loss[(m,)](exact, largest, targets, lse, loss, width, BLOCK=LOGITS, num_warps=8)
        triton_training.softmax_gradient[(m, triton.cdiv(width, LOGITS))](
            exact, lse, targets, 1.0 / m, width, BLOCK=LOGITS, num_warps=8
        )
        return loss, exact.to(logits.dtype)

    def adamw(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, w: Tensor) -> None:
        triton_moves.adamw(p, g, m, v, w, **{**CONSTANTS, "lr": LEARNING_RATE})
