"""An image encoder and its projector: patches, transformer layers without mask, two products to the model's width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.layers import ADDED, Pass, whole
from sextant.workloads.transformer import Transformer
from sextant.workloads.vision import Encoder


class Linear:
    """A product with a bias."""

    def __init__(self, n: int, k: int, at: Pass, *, gain: float = 1.0) -> None:
        self.w, self.b = at.matrix(n, k, gain=gain), at.normal(n, std=0.1)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b)


class EncoderLayer:
    """Norm, attention, norm, GELU feed-forward; sums are taken by the next norm."""

    def __init__(self, encoder: Encoder, at: Pass) -> None:
        width, inner = whole(encoder.hidden_size), whole(encoder.intermediate_size)
        self.norms = [(at.scales(width), at.normal(width, std=0.1)) for _ in range(2)]
        self.qkv, self.output = Linear(3 * width, width, at), Linear(width, width, at, gain=2 * ADDED)
        self.up, self.down = Linear(inner, width, at), Linear(width, inner, at, gain=2 * ADDED)
        self.heads, self.at = whole(encoder.num_attention_heads), at

    def attention(self, y: Tensor) -> Tensor:
        """Every patch of an image sees every other."""
        parts = self.qkv(y).view(self.at.batch, self.at.seq, 3, self.heads, -1).unbind(2)
        out = self.at.kernels.attention(*(part.transpose(1, 2) for part in parts), causal=False)
        return self.output(out.transpose(1, 2).reshape(len(y), -1))

    def mlp(self, y: Tensor) -> Tensor:
        return self.down(self.at.kernels.gelu(self.up(y)))


class Tower:
    """The first encoder of a model and the projector; calling it encodes its own random patches."""

    def __init__(self, model: Transformer, at: Pass) -> None:
        assert model.vision is not None, "the model has no image encoder"
        if len(model.vision.encoders) != 1 or model.vision.projector != "mlp":
            raise ValueError("model.vision: one encoder and an MLP are built here")
        encoder = next(iter(model.vision.encoders.values()))
        if encoder.window_size or encoder.output_channels:
            raise ValueError("model.vision: windows and necks are not built here")
        width, hidden, seq = whole(encoder.hidden_size), whole(model.hidden_size), whole(encoder.side**2)
        if seq != at.seq:
            raise ValueError(f"model.vision: {seq} patches per image, the pass has {at.seq}")
        pixels = 3 * whole(encoder.patch_size) ** 2
        self.at, self.images = at, at.normal(at.n_tokens, pixels)
        self.patches, self.positions = Linear(width, pixels, at), at.normal(seq, width, std=0.5)
        self.layers = [EncoderLayer(encoder, at) for _ in range(whole(encoder.num_hidden_layers))]
        self.norm = (at.scales(width), at.normal(width, std=0.1))
        self.up, self.down = Linear(hidden, width, at), Linear(hidden, hidden, at)

    def refresh(self) -> None:
        """Nothing depends on what the pixels are."""

    def expert_load(self) -> str:
        """No experts."""
        return ""

    def __call__(self) -> Tensor:
        kernels = self.at.kernels
        x = self.patches(self.images)
        x = (x.view(self.at.batch, self.at.seq, -1) + self.positions).flatten(0, 1)
        waiting: Tensor | None = None
        for layer in self.layers:
            for norm, sublayer in zip(layer.norms, (layer.attention, layer.mlp), strict=True):
                if waiting is None:
                    y = kernels.layernorm(x, *norm)
                else:
                    x, y = kernels.add_layernorm(x, waiting, *norm)
                waiting = sublayer(y)
        assert waiting is not None, "an encoder has layers"
        _, y = kernels.add_layernorm(x, waiting, *self.norm)
        return self.down(kernels.gelu(self.up(y)))
