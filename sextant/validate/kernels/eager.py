"""Kernels of training code that is not compiled: dropout with its mask, column sums, steps of a loss-scaled optimizer.

They are torch's own (library ``torch``), each one kernel; the optimizer's are its multi-tensor kernels over one tensor.
The masked softmax is this package's Triton kernel with one warp per row, which it keeps in registers, as the fused
softmax of Megatron-LM does. Dropout probability is 0.1, tensors FP16, those of the optimizer FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import CPU_LIBRARY, Case, Prepared, Target, require_close, sizes

P, SCALE = 0.1, 1.0 / 0.9
aten = torch.ops.aten


def _draw(target: Target, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, device=target.device).to(dtype)


def _prepared(
    target: Target, inputs: Callable[[], tuple[Tensor, ...]], run: Callable[..., object],
    check: Callable[..., float], read_bytes: float, write_bytes: float, library: str = "torch",
) -> Prepared:  # fmt: skip
    sets = [inputs() for _ in range(target.n_sets(read_bytes + write_bytes))]
    return Prepared(
        calls=tuple(partial(run, *one) for one in sets), check=lambda: check(*sets[0]), read_bytes=read_bytes,
        write_bytes=write_bytes, library=library if target.fused else CPU_LIBRARY,
    )  # fmt: skip


def build_dropout(case: Case, target: Target) -> Prepared:
    """y = x * mask / 0.9 of (n_tokens, hidden), and the mask of one byte per element."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    n = n_tokens * hidden

    def check(x: Tensor) -> float:
        y, mask = aten.native_dropout(x, P, True)
        if n > 10000 and abs(float(mask.float().mean()) - 0.9) > 0.02:
            raise ValueError("check: the mask keeps another share than 0.9")
        return require_close(y, x.float() * mask * SCALE, what="dropout")

    return _prepared(
        target, lambda: (_draw(target, n_tokens, hidden),), lambda x: aten.native_dropout(x, P, True), check, 2.0 * n,
        3.0 * n,
    )  # fmt: skip


def build_dropout_backward(case: Case, target: Target) -> Prepared:
    """dx = dy * mask / 0.9."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")
    n = n_tokens * hidden

    def inputs() -> tuple[Tensor, ...]:
        return _draw(target, n_tokens, hidden), torch.rand(n_tokens, hidden, device=target.device) > P

    def run(dy: Tensor, mask: Tensor) -> Tensor:
        return aten.native_dropout_backward(dy, mask, SCALE)

    def check(dy: Tensor, mask: Tensor) -> float:
        return require_close(run(dy, mask), dy.float() * mask * SCALE, what="its gradient")

    return _prepared(target, inputs, run, check, 3.0 * n, 2.0 * n)


def build_column_sum(case: Case, target: Target) -> Prepared:
    """The gradient of a bias: (n_tokens, hidden) summed over tokens."""
    n_tokens, hidden = sizes(case, "n_tokens", "hidden")

    def check(x: Tensor) -> float:
        return require_close(x.sum(0), x.double().sum(0), what="sum")

    return _prepared(
        target, lambda: (_draw(target, n_tokens, hidden),), lambda x: x.sum(0), check, 2.0 * n_tokens * hidden,
        2.0 * hidden,
    )  # fmt: skip


def _masked(x: Tensor) -> Tensor:
    """Softmax of causal scores (groups, q_len, kv_len), whose last query sees all keys."""
    seen = torch.ones(x.shape[1:], device=x.device, dtype=torch.bool).tril(x.shape[2] - x.shape[1])
    return torch.softmax(x.float().masked_fill(~seen, float("-inf")), -1).to(x.dtype)


def _masked_backward(dy: Tensor, y: Tensor) -> Tensor:
    grad = dy.float() * y.float()
    return (grad - y.float() * grad.sum(-1, keepdim=True)).to(y.dtype)


def build_softmax(case: Case, target: Target) -> Prepared:
    """Masked softmax of (batch x heads, q_len, q_len) scores: reads what is visible, writes all."""
    batch, heads, q_len = sizes(case, "batch", "heads", "q_len")
    n = float(batch * heads * q_len * q_len)
    run = _masked
    if target.fused:
        from sextant.validate.kernels.triton_softmax import softmax as run

    def check(x: Tensor) -> float:
        return require_close(run(x)[:2], _masked(x[:2].double()), what="softmax")

    return _prepared(
        target, lambda: (_draw(target, batch * heads, q_len, q_len),), run, check, n * (1.0 + 1.0 / q_len), 2.0 * n,
        "triton",
    )  # fmt: skip


def build_softmax_backward(case: Case, target: Target) -> Prepared:
    """dx = y * (dy - sum(dy * y)), from what is visible of both, all written."""
    batch, heads, q_len = sizes(case, "batch", "heads", "q_len")
    n = float(batch * heads * q_len * q_len)
    run = _masked_backward
    if target.fused:
        from sextant.validate.kernels.triton_softmax import softmax_backward as run

    def inputs() -> tuple[Tensor, ...]:
        shape = (batch * heads, q_len, q_len)
        return _draw(target, *shape), _masked(_draw(target, *shape))

    def check(dy: Tensor, y: Tensor) -> float:
        return require_close(run(dy, y)[:2], _masked_backward(dy[:2].double(), y[:2].double()), what="its gradient")

    return _prepared(target, inputs, run, check, 2.0 * n * (1.0 + 1.0 / q_len), 2.0 * n, "triton")


def build_scale(case: Case, target: Target) -> Prepared:
    """FP32 gradients divided by the loss scale in place, infinities looked for."""
    (n,) = sizes(case, "n_elements")
    one, found = torch.ones(1, device=target.device), torch.zeros(1, device=target.device)

    def run(g: Tensor) -> None:
        torch._amp_foreach_non_finite_check_and_unscale_([g], found, one)

    def check(g: Tensor) -> float:
        before = g.clone()
        run(g)
        return require_close(g, before, what="unscaled gradient")

    return _prepared(target, lambda: (_draw(target, n, dtype=torch.float32),), run, check, 4.0 * n, 4.0 * n)


def build_square_sum(case: Case, target: Target) -> Prepared:
    """The norm of FP32 gradients."""
    (n,) = sizes(case, "n_elements")

    def check(g: Tensor) -> float:
        return require_close(torch._foreach_norm([g])[0], g.double().norm(), what="norm")

    def inputs() -> tuple[Tensor, ...]:
        return (_draw(target, n, dtype=torch.float32),)

    return _prepared(target, inputs, lambda g: torch._foreach_norm([g]), check, 4.0 * n, 4.0)


def build_adam_fp32(case: Case, target: Target) -> Prepared:
    """AdamW over FP32 weights, gradients and moments: 16 bytes read and 12 written per element."""
    (n,) = sizes(case, "n_elements")

    def inputs() -> tuple[Tensor, ...]:
        p, g, m, v = (_draw(target, n, dtype=torch.float32) for _ in range(4))
        return p, g, m, v.abs_(), torch.ones((), device=target.device)

    def run(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor) -> None:
        torch._fused_adamw_(
            [p], [g], [m], [v], [], [step], lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False,
            maximize=False,
        )  # fmt: skip

    def check(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor) -> float:
        expected = 0.9 * m + 0.1 * g
        run(p, g, m, v, step)
        return require_close(m, expected, what="first moment", tolerance=1e-4)

    return _prepared(target, inputs, run, check, 16.0 * n, 12.0 * n)


BUILDERS = {
    "dropout": build_dropout, "dropout_backward": build_dropout_backward, "column_sum": build_column_sum,
    "softmax": build_softmax, "softmax_backward": build_softmax_backward, "scale": build_scale,
    "square_sum": build_square_sum, "adam_fp32": build_adam_fp32,
}  # fmt: skip
