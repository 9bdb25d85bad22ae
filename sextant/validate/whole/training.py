"""A training step written out: forward, backward, AdamW; one GPU, one micro-batch, the operators of the step's list.

Weights (BF16), FP32 masters and gradients and BF16 moments each lie in one tensor. Attention's backward pass is
autograd's, of the same kernel; everything else is a call of ``backward``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.backward import Backward
from sextant.validate.whole.language import GroupedAttention, Language, Layer
from sextant.validate.whole.layers import Gated, Pass
from sextant.workloads.transformer import Transformer

#: Elements that a parameter starts at a multiple of.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a layer's forward pass leaves: residuals and norms before both sublayers, attention's graph, gate | up."""

    x: Tensor
    y: Tensor
    leaves: tuple[Tensor, Tensor, Tensor]
    attention: Tensor
    x2: Tensor
    y2: Tensor
    up_gate: Tensor


class Training:
    """A dense model with grouped-query attention; calling it runs one step and gives the mean loss of its tokens."""

    def __init__(self, model: Transformer, at: Pass, backward: Backward) -> None:
        self.language, self.at, self.backward = Language(model, at), at, backward
        self.targets = torch.zeros(at.n_tokens, dtype=torch.int32, device=at.device)
        owners = [(self.language, "embedding"), (self.language, "head"), (self.language, "norm")]
        for layer in self.language.layers:
            if not isinstance(layer.attention, GroupedAttention) or not isinstance(layer.mlp, Gated):
                raise ValueError("training: dense layers with grouped-query attention are built here")
            owners += [(layer.sites[0], "norm"), (layer.attention, "qkv"), (layer.attention, "output")]  # type: ignore[list-item]
            owners += [(layer.sites[1], "norm"), (layer.mlp, "up_gate"), (layer.mlp, "down")]  # type: ignore[list-item]
        self._gather(owners)
        self.refresh()

    def _gather(self, owners: list) -> None:
        """Moves every weight into one tensor, where the optimizer finds it, and makes the others beside."""
        sizes = [-(-getattr(owner, name).numel() // ALIGNMENT) * ALIGNMENT for owner, name in owners]
        self.weights = torch.zeros(sum(sizes), dtype=self.at.dtype, device=self.at.device)
        self.gradients = torch.zeros(sum(sizes), dtype=torch.float32, device=self.at.device)
        self.gradient_of: dict[int, Tensor] = {}
        for (owner, name), weight, gradient in zip(
            owners, self.weights.split(sizes), self.gradients.split(sizes), strict=True
        ):
            old: Tensor = getattr(owner, name)
            view = weight[: old.numel()].view(old.shape)
            setattr(owner, name, view.copy_(old))
            self.gradient_of[view.data_ptr()] = gradient[: old.numel()].view(old.shape)
        self.masters = self.weights.float()
        self.moments = [torch.zeros_like(self.weights, dtype=torch.bfloat16) for _ in range(2)]
        self.norm = torch.zeros((), device=self.at.device)

    def gradient(self, weight: Tensor) -> Tensor:
        """The FP32 gradient of a weight."""
        return self.gradient_of[weight.data_ptr()]

    def refresh(self) -> None:
        """New random tokens and targets."""
        self.language.refresh()
        self.targets.random_(0, len(self.language.head))

    def expert_load(self) -> str:
        """No experts."""
        return ""

    @torch.no_grad()
    def __call__(self) -> Tensor:
        loss = self.differentiate()
        self.norm = self.backward.gradient_norm(self.gradients)
        first, second = self.moments
        self.backward.adamw(self.masters, self.gradients, first, second, self.weights)
        self.gradients.zero_()
        return loss

    def differentiate(self) -> Tensor:
        """Forward and backward: gradients are added to, the mean loss comes back."""
        lang, kernels, back = self.language, self.at.kernels, self.backward
        x = kernels.rows(lang.embedding, lang.ids)
        waiting: Tensor | None = None
        kept: list[Saved] = []
        for layer in lang.layers:
            saved, waiting = self._forward(layer, x, waiting)
            kept.append(saved)
            x = saved.x2
        assert waiting is not None, "a model has layers"
        x, y = kernels.add_norm(x, waiting, lang.norm)
        loss, dlogits = back.loss(F.linear(y, lang.head), self.targets)
        back.weight(self.gradient(lang.head), dlogits, y)
        d = back.norm(x, lang.norm, dlogits @ lang.head, None, self.gradient(lang.norm))
        for layer in reversed(lang.layers):
            d = self._backward(layer, kept.pop(), d)
        back.rows(self.gradient(lang.embedding), lang.ids, d)
        return loss.mean()

    def _forward(self, layer: Layer, x: Tensor, waiting: Tensor | None) -> tuple[Saved, Tensor]:
        kernels, at, attention = self.at.kernels, self.at, layer.attention
        assert isinstance(attention, GroupedAttention) and isinstance(layer.mlp, Gated)
        first, second = (site.norm for site in layer.sites)
        if waiting is None:
            y = kernels.norm(x, first)
        else:
            x, y = kernels.add_norm(x, waiting, first)
        heads, kv_heads = attention.heads, attention.kv_heads
        qkv = F.linear(y, attention.qkv).view(at.batch, at.seq, heads + 2 * kv_heads, attention.dim)
        kernels.rope(qkv, attention.cos, attention.sin, n_rotated=heads + kv_heads)
        q, k, v = (p.transpose(1, 2).requires_grad_() for p in qkv.split((heads, kv_heads, kv_heads), dim=2))
        with torch.enable_grad():
            out = kernels.attention(q, k, v, causal=True)
        mixed = F.linear(out.detach().transpose(1, 2).reshape(len(x), -1), attention.output)
        x2, y2 = kernels.add_norm(x, mixed, second)
        up_gate = F.linear(y2, layer.mlp.up_gate)
        done = F.linear(kernels.swiglu(up_gate), layer.mlp.down)
        return Saved(x=x, y=y, leaves=(q, k, v), attention=out, x2=x2, y2=y2, up_gate=up_gate), done

    def _backward(self, layer: Layer, saved: Saved, d: Tensor) -> Tensor:
        """From the gradient behind a layer to that in front of it."""
        back, attention, mlp = self.backward, layer.attention, layer.mlp
        assert isinstance(attention, GroupedAttention) and isinstance(mlp, Gated)
        d_up_gate, activated = back.swiglu(saved.up_gate, d @ mlp.down)
        back.weight(self.gradient(mlp.down), d, activated)
        dy = d_up_gate @ mlp.up_gate
        back.weight(self.gradient(mlp.up_gate), d_up_gate, saved.y2)
        second = layer.sites[1].norm
        d = back.norm(saved.x2, second, dy, d, self.gradient(second))
        out = saved.attention
        d_out = (d @ attention.output).view(self.at.batch, self.at.seq, attention.heads, -1).transpose(1, 2)
        back.weight(self.gradient(attention.output), d, out.detach().transpose(1, 2).reshape(len(d), -1))
        dq, dk, dv = torch.autograd.grad(out, saved.leaves, d_out)
        d_qkv = back.rope(dq, dk, dv, attention.cos, attention.sin).view(len(d), -1)
        dy = d_qkv @ attention.qkv
        back.weight(self.gradient(attention.qkv), d_qkv, saved.y)
        first = layer.sites[0].norm
        return back.norm(saved.x, first, dy, d, self.gradient(first))
