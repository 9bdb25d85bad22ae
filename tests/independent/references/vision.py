"""Image encoders: SigLIP and SAM inside the classes of transformers, DeepSeek-VL2's projector as published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    LlamaConfig,
    SamVisionConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

#: SigLIP-L/16 at 384 pixels (DeepSeek-VL, Janus) and SigLIP-SO400M/14 at 384 pixels (DeepSeek-VL2).
LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "patch_size": 16, "image_size": 384,
}  # fmt: skip
SO400M = {
    "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
    "patch_size": 14, "image_size": 384,
}  # fmt: skip

#: Transformers' class for a DeepSeek-VL hybrid tower has no norms behind its two encoders; the published
#: HybridVisionTower owns one LayerNorm of 1,024 for each (and never calls them): weights and biases of both.
HYBRID_NORMS = 2 * 2 * 1024


def siglip(sizes: dict[str, int], *, pooling: bool) -> SiglipVisionModel:
    """SigLIP's image encoder; the published towers own its attention pooling, but skip it (``ignore_head``)."""
    config = SiglipVisionConfig(**sizes, vision_use_head=pooling, attn_implementation="eager")
    with torch.device("meta"):
        return SiglipVisionModel(config).eval()


def pixels(n_images: int, size: int) -> Tensor:
    """Square images."""
    return torch.zeros(n_images, 3, size, size, device="meta")


class TiledProjector(nn.Module):
    """DeepSeek-VL2's projector: 2 x 2 patches side by side, two linear layers; and the separators of tiles.

    The published model owns one embedding that ends a row of patches and one between thumbnail and tiles.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.image_newline = nn.Parameter(torch.empty(hidden))
        self.view_separator = nn.Parameter(torch.empty(hidden))

    def forward(self, patches: Tensor) -> Tensor:
        """(tiles, side^2, width) to (tiles, ceil(side / 2)^2, hidden)."""
        side = round(patches.shape[1] ** 0.5)
        square = patches.unflatten(1, (side, side)).movedim(-1, 1)
        square = nn.functional.pad(square, (0, side % 2, 0, side % 2))
        return self.layers(nn.functional.unfold(square, 2, stride=2).transpose(1, 2))


class TiledEncoder(nn.Module):
    """DeepSeek-VL2's image side: SigLIP-SO400M on every tile of 384 x 384, then the projector."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.tower = siglip(SO400M, pooling=True)
        with torch.device("meta"):
            self.projector = TiledProjector(SO400M["hidden_size"], hidden)

    def forward(self, tiles: Tensor) -> Tensor:
        """(tiles, 3, 384, 384) to (tiles, 196, hidden)."""
        return self.projector(patches_of(self.tower, tiles))


class LinearEncoder(nn.Module):
    """JanusFlow's understanding side: SigLIP-L, one linear layer, one learnt embedding in front of the patches."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.tower = siglip(LARGE, pooling=True)
        with torch.device("meta"):
            self.aligner = nn.Linear(LARGE["hidden_size"], hidden)
            self.beginning = nn.Parameter(torch.empty(1, hidden))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 384, 384) to (n, 577, hidden)."""
        aligned = self.aligner(patches_of(self.tower, images))
        return torch.cat([self.beginning.expand(len(aligned), 1, -1), aligned], dim=1)


def patches_of(tower: SiglipVisionModel, images: Tensor) -> Tensor:
    """The tower's patches behind its last norm, without the pooling that the published models skip."""
    with unpooled(tower):
        return tower(images).last_hidden_state


@contextmanager
def unpooled(tower: SiglipVisionModel) -> Iterator[None]:
    """Runs ``tower`` as the published models do, which own its pooling head and skip it."""
    pooling, tower.use_head = tower.use_head, False
    try:
        yield
    finally:
        tower.use_head = pooling


def deepseek_vl(text: LlamaConfig) -> DeepseekVLForConditionalGeneration:
    """DeepSeek-VL with SigLIP alone (1.3B)."""
    text._attn_implementation = "eager"
    config = DeepseekVLConfig(
        text_config=text, vision_config=SiglipVisionConfig(**LARGE, vision_use_head=True), tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        return DeepseekVLForConditionalGeneration(config).eval()


def deepseek_vl_hybrid(text: LlamaConfig) -> DeepseekVLHybridForConditionalGeneration:
    """DeepSeek-VL with SigLIP and SAM-B at 1,024 pixels (7B)."""
    text._attn_implementation = "eager"
    config = DeepseekVLHybridConfig(
        text_config=text, vision_config=SiglipVisionConfig(**LARGE, vision_use_head=True),
        high_res_vision_config=SamVisionConfig(), tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        return DeepseekVLHybridForConditionalGeneration(config).eval()
