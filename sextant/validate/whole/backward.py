"""The operators of a backward pass and of the optimizer in plain torch; ``fused_backward`` has them for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sextant.validate.kernels.adam import eager_adamw
from sextant.validate.whole.kernels import EPS, rotated


class Backward:
    """Plain torch. Gradients of weights are FP32 and are added to; those of activations have the activations' type."""

    def weight(self, gradient: Tensor, dy: Tensor, x: Tensor) -> None:
        """gradient [n, k] plus dy[m, n]^T x[m, k]."""
        gradient.add_(dy.float().t() @ x.float())

    def norm(self, x: Tensor, w: Tensor, dy: Tensor, residual: Tensor | None, gradient: Tensor) -> Tensor:
        """Gradient of the norm's input, plus the residual's where there is one; that of w goes to ``gradient``."""
        exact, grad = x.float(), dy.float()
        rstd = torch.rsqrt(exact.square().mean(1, keepdim=True) + EPS)
        normed = exact * rstd
        gradient.copy_((grad * normed).sum(0))
        grad = grad * w.float()
        dx = rstd * (grad - normed * (grad * normed).mean(1, keepdim=True))
        return (dx if residual is None else dx + residual.float()).to(x.dtype)

    def swiglu(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of gate | up, and the output."""
        gate, up = x.float().chunk(2, dim=1)
        sigmoid, grad = torch.sigmoid(gate), dy.float()
        silu = gate * sigmoid
        dx = torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), dim=1)
        return dx.to(x.dtype), (silu * up).to(x.dtype)

    def rope(self, dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Gradients [batch, heads, seq, dim] turned back and put together: [batch, seq, heads + 2 kv_heads, dim]."""
        parts = [part.transpose(1, 2) for part in (dq, dk, dv)]
        return torch.cat((rotated(parts[0], cos, -sin), rotated(parts[1], cos, -sin), parts[2]), dim=2)

    def rows(self, gradient: Tensor, index: Tensor, dy: Tensor) -> None:
        """gradient[index] plus dy."""
        gradient.index_add_(0, index.long(), dy.float())

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of every row, and the gradient of its mean with respect to the logits."""
        p = logits.float().log_softmax(dim=-1)
        found = -p.gather(1, targets.long().unsqueeze(1)).squeeze(1)
        gradient = p.exp()
        gradient[torch.arange(len(p)), targets.long()] -= 1.0
        return found, (gradient / len(p)).to(logits.dtype)

    def gradient_norm(self, gradients: Tensor) -> Tensor:
        """Norm of all gradients."""
        return torch.linalg.vector_norm(gradients)

    def adamw(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, w: Tensor) -> None:
        """One step in place: FP32 weights and gradients, BF16 moments and weights."""
        eager_adamw(p, g, m, v, w)
