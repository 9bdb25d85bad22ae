"""Whole models that read or make images: what their published checkpoints hold, and what an image costs.

The one place where a package's class and a published checkpoint differ in parameters is ``checkpoint_parameters``.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from references import generation, language, vision
from sextant.workloads.models import model

#: Side in pixels of a tile (and of what SigLIP sees elsewhere), and of SAM's image.
TILE, SAM_SIDE = 384, 1024

#: Most local tiles of one image (DeepSeek-VL2, s2).
MOST_TILES = 9


def family(name: str) -> str:
    """Which reference a catalogue name stands for; KeyError where there is none yet."""
    families = {
        "deepseek-vl2-tiny": "vl2", "deepseek-vl2-small": "vl2", "deepseek-vl2": "vl2", "deepseek-vl-1.3b": "vl",
        "deepseek-vl-7b": "vl_hybrid", "janus-1.3b": "janus", "janus-pro-1b": "janus", "janus-pro-7b": "janus",
        "janusflow-1.3b": "flow",
    }  # fmt: skip
    return families[name]


@cache
def whole(name: str) -> nn.Module:
    """The whole model of that catalogue name, from the dimensions of its language model."""
    found = model(name)
    kind = family(name)
    if kind == "vl2":
        return nn.ModuleList([language.language_model(found), vision.TiledEncoder(int(found.hidden_size))])
    if kind == "flow":
        width = int(found.hidden_size)
        return nn.ModuleList([language.language_model(found), vision.LinearEncoder(width), generation.Flow(width)])
    build = {
        "vl": vision.deepseek_vl, "vl_hybrid": vision.deepseek_vl_hybrid, "janus": generation.janus,
    }[kind]  # fmt: skip
    return build(language.llama_config(found))


def checkpoint_parameters(name: str) -> int:
    """Parameters of the published checkpoint.

    All published SigLIP towers own an attention pooling that they never run (timm's ``global_pool`` "map" with
    ``ignore_head``); the sizes of the published files hold it. Transformers' Janus has none, so it is added. The
    published hybrid tower owns two norms that it never calls: added too.
    """
    n = language.n_parameters(model(name), whole(name))
    return n + {"janus": _pooling(), "vl_hybrid": vision.HYBRID_NORMS}.get(family(name), 0)


def _pooling() -> int:
    towers = (vision.siglip(vision.LARGE, pooling=pooling) for pooling in (True, False))
    with_it, without = (sum(p.numel() for p in tower.parameters()) for tower in towers)
    return with_it - without


def understand(name: str, n_images: int, tiles_per_image: int = 1) -> torch.Tensor:
    """Embeddings for the language model of square images of 384 pixels (VL2: of that many tiles each; hybrid: also at
    1,024 pixels)."""
    found, kind = whole(name), family(name)
    images = vision.pixels(n_images, TILE)
    if kind == "vl2":
        return found[1](vision.pixels(n_images * tiles_per_image, TILE))
    if kind == "flow":
        return found[1](images)
    if kind == "janus":
        return found.model.get_image_features(images).pooler_output
    with vision.unpooled(found.model.vision_model):
        if kind == "vl_hybrid":
            return found.model.get_image_features(images, vision.pixels(n_images, SAM_SIDE)).pooler_output
        return found.model.get_image_features(images).pooler_output


def n_tiles(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of local tiles of DeepSeek-VL2: the grid of at most nine that keeps most of the image's pixels,
    and of those the one that pads least.

    So does the published code; the paper (arXiv:2412.10302, s2) says only that it pads least. For the images of the
    tests both choose the same grid.
    """
    grids = [(m, n) for m in range(1, MOST_TILES + 1) for n in range(1, MOST_TILES + 1) if m * n <= MOST_TILES]

    def kept(grid: tuple[int, int]) -> tuple[float, float]:
        tall, wide = grid[0] * TILE, grid[1] * TILE
        scale = min(tall / height, wide / width)
        pixels = min(scale * height * scale * width, height * width)
        return pixels, pixels - tall * wide

    return max(grids, key=kept)


def n_visual_tokens(name: str, height: int, width: int) -> int:
    """Tokens of one image in the language model: patches, and what separates them."""
    if family(name) == "flow":
        return 24 * 24 + 1
    if family(name) != "vl2":
        return 24 * 24
    # Rows of 14 patches end in a separator; one more lies between thumbnail and tiles.
    rows, columns = n_tiles(height, width)
    return 14 * 15 + 1 + 14 * rows * (14 * columns + 1)


def sampled(name: str, n_rows: int) -> torch.Tensor:
    """What a sampling step runs beside the language model's layers, for that many rows of the batch."""
    found = whole(name)
    return found[2](n_rows) if family(name) == "flow" else generation.sampled_token(found.model, n_rows)


def decoded(name: str, n_images: int) -> torch.Tensor:
    """Pixels from tokens or latents."""
    if family(name) == "flow":
        return generation.decode_latents(vae(), n_images)
    return generation.decode_tokens(whole(name).model, n_images)


@cache
def vae() -> nn.Module:
    """JanusFlow's VAE, which is a checkpoint of its own."""
    return generation.sdxl_vae()
