"""Image generators: Janus with its VQ model of transformers, the VAE of diffusers, JanusFlow as published.

JanusFlow has no class in a package: its shallow encoder and decoder around the language model are written after
deepseek-ai/Janus, janus/janusflow/models (uvit.py, modeling_vlm.py) and demo/app_janusflow.py.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusModel,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

#: Tokens of an image: 24 x 24, on a latent of 48 x 48 in JanusFlow.
SIDE, LATENT_SIDE = 24, 48

#: Channels of JanusFlow's shallow encoder, and of the latent of SDXL's VAE.
CHANNELS, LATENT_CHANNELS = 768, 4


def janus(text: LlamaConfig) -> JanusForConditionalGeneration:
    """Janus and Janus-Pro: SigLIP-L, language model, VQ model, aligners and image head as wide as it."""
    text._attn_implementation = "eager"
    width = text.hidden_size
    config = JanusConfig(
        text_config=text, vision_config=JanusVisionConfig(projection_dim=width),
        vq_config=JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width), tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        return JanusForConditionalGeneration(config).eval()


def decode_tokens(model: JanusModel, n_images: int) -> Tensor:
    """Pixels from the image tokens of ``n_images`` images."""
    return model.vqmodel.decode(torch.zeros(n_images, SIDE * SIDE, dtype=torch.long, device="meta"))


def sampled_token(model: JanusModel, n_rows: int) -> Tensor:
    """What a step of sampling runs beside the language model: its last image token embedded, the image head."""
    previous = model.generation_embeddings(torch.zeros(n_rows, 1, dtype=torch.long, device="meta"))
    return model.generation_head(model.generation_aligner(previous))


def sdxl_vae() -> AutoencoderKL:
    """SDXL's VAE (stabilityai/sdxl-vae)."""
    blocks = 4
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=LATENT_CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        ).eval()  # fmt: skip


def decode_latents(vae: AutoencoderKL, n_images: int) -> Tensor:
    """Pixels from the latents of ``n_images`` images."""
    return vae.decode(torch.zeros(n_images, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, device="meta")).sample


class Block(nn.Module):
    """A ConvNeXt-v2 block whose output is scaled and shifted by the embedding of the time step."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.RMSNorm(channels)
        self.up = nn.Linear(channels, 4 * channels)
        self.response_scale = nn.Parameter(torch.empty(4 * channels))
        self.response_shift = nn.Parameter(torch.empty(4 * channels))
        self.down = nn.Linear(4 * channels, channels)
        self.modulation = nn.Linear(hidden, 2 * channels)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        """(b, channels, h, w) and (b, hidden) to (b, channels, h, w)."""
        wide = nn.functional.gelu(self.up(self.norm(self.depthwise(image).movedim(1, -1))))
        response = wide.norm(dim=(1, 2), keepdim=True)
        response = response / (response.mean(-1, keepdim=True) + 1e-6)
        wide = wide * (1 + self.response_scale * response) + self.response_shift
        image = image + self.down(wide).movedim(-1, 1)
        scale, shift = self.modulation(nn.functional.silu(time))[:, :, None, None].chunk(2, dim=1)
        return image * (1 + scale) + shift


class FlowEncoder(nn.Module):
    """From a noisy latent and its time step to 24 x 24 embeddings, the skip connection and the time's embedding."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(CHANNELS, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.patches = nn.Conv2d(LATENT_CHANNELS, CHANNELS, 2, stride=2)
        self.blocks = nn.ModuleList(Block(CHANNELS, hidden) for _ in range(2))
        self.aligner = nn.Linear(CHANNELS, hidden)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, 4, 48, 48) to tokens (b, 576, hidden), skip (b, 768, 24, 24), time (b, hidden)."""
        time = self.time(torch.zeros(len(latent), CHANNELS, device="meta"))
        image = self.patches(latent)
        for block in self.blocks:
            image = block(image, time)
        return self.aligner(image.flatten(2).transpose(1, 2)), image, time


class FlowDecoder(nn.Module):
    """From the language model's image tokens and the skip connection to the velocity of the latent."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.aligner_norm = nn.RMSNorm(hidden)
        self.aligner = nn.Linear(hidden, CHANNELS)
        self.input_norm = nn.RMSNorm(CHANNELS)
        self.blocks = nn.ModuleList(Block(2 * CHANNELS, hidden) for _ in range(2))
        self.output_norm = nn.RMSNorm(2 * CHANNELS)
        self.output = nn.Conv2d(2 * CHANNELS, 4 * LATENT_CHANNELS, 1)

    def forward(self, tokens: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        """(b, 576, hidden), (b, 768, 24, 24), (b, hidden) to (b, 4, 48, 48)."""
        aligned = self.input_norm(self.aligner(self.aligner_norm(tokens))).transpose(1, 2)
        image = torch.cat([aligned.unflatten(2, (SIDE, SIDE)), skip], dim=1)
        for block in self.blocks:
            image = block(image, time)
        image = self.output_norm(image.movedim(1, -1)).movedim(-1, 1)
        return nn.functional.pixel_shuffle(self.output(image), 2)


class Flow(nn.Module):
    """What a sampling step of JanusFlow runs beside the language model's layers; its VAE is a checkpoint of its own."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.encoder = FlowEncoder(hidden)
            self.decoder = FlowDecoder(hidden)

    def forward(self, n_rows: int) -> Tensor:
        """The velocity of ``n_rows`` latents; the language model in between keeps the tokens' shape."""
        tokens, skip, time = self.encoder(torch.zeros(n_rows, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, device="meta"))
        return self.decoder(tokens, skip, time)
