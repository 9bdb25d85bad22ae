"""Image generators around a language model: an autoregressive one over a codebook, and a rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sextant.simulator.types import Num, Op
from sextant.workloads.ops import convolution, encoder
from sextant.workloads.ops.convolution import Conv, Layer
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved, norm

#: Edge of the depthwise kernels of ConvNeXt.
_KERNEL = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Tokens of a VQ model, predicted one after the other (Janus, Janus-Pro).

    Each step embeds and aligns the last token, and its head gives the scores of the next one. The VQ model is a
    convolutional autoencoder of ``channels`` by level, ``blocks`` residual blocks each, attention on the lowest.
    """

    codebook_size: float = 16384.0
    codebook_dim: float = 8.0
    channels: tuple[float, ...] = (128.0, 128.0, 256.0, 256.0, 512.0)
    blocks: float = 2.0
    latent_channels: float = 256.0
    image_size: float = 384.0
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """One token at a time."""
        return "autoregressive"

    @property
    def side(self) -> float:
        """Tokens along one edge: every level but the first halves the image."""
        return self.image_size / 2.0 ** (len(self.channels) - 1)

    @property
    def n_tokens(self) -> float:
        """Tokens of an image."""
        return self.side**2

    @property
    def n_steps(self) -> float:
        """Sampling steps of an image."""
        return self.n_tokens

    def parameters(self, hidden_size: Num) -> dict[str, Num]:
        """Parameters by piece: the whole VQ model, whose encoder only training runs, and what joins it to the model."""
        h, latent, size, dim = hidden_size, self.latent_channels, self.codebook_size, self.codebook_dim
        network = convolution.parameters(self._encoder()) + convolution.parameters(self._decoder())
        return {
            "vq_model": network + size * dim + (latent * dim + dim) + (dim * latent + latent),
            "generation_embedding": size * dim,
            "generation_aligner": dim * h + h + h * h + h,
            "generation_head": h * h + h + h * size + size,
        }

    def external_parameters(self) -> dict[str, Num]:
        """Parameters of networks whose checkpoint is another one: none."""
        return {}

    def step_operators(self, place: Place, n_rows: Num, hidden_size: Num) -> list[Op]:
        """Beside the language model's layers: the last token's embedding, the head, guidance and sampling."""
        h, size = hidden_size, self.codebook_size
        row = 2.0 * n_rows * self.codebook_dim
        ops = [moved("generation_embedding", place, row, row, sharded=())]
        ops += encoder.mlp("generation_aligner", place, n_rows, self.codebook_dim, h, h)
        ops += encoder.mlp("generation_head", place, n_rows, h, h, size)
        # Guided scores in FP32, softmax, a draw.
        return [*ops, moved("generation_sampling", place, 4.0 * 3.0 * n_rows * size, 4.0 * n_rows * size, sharded=())]

    def decode_operators(self, place: Place, n_images: Num) -> list[Op]:
        """Pixels from tokens: codebook rows, a 1 x 1 convolution to the latent, the decoder."""
        rows = 2.0 * n_images * self.n_tokens * self.codebook_dim
        ops = [moved("codebook", place, rows, rows, sharded=())]
        enter = Conv(in_channels=self.codebook_dim, out_channels=self.latent_channels, kernel=1.0, side=self.side)
        return ops + convolution.operators("vq_decoder", place, [enter, *self._decoder()], n_images)

    def working_bytes(self, n_images: Num) -> Num:
        """Largest tensors of the decoder."""
        return convolution.widest_bytes(self._decoder(), n_images)

    def _encoder(self) -> list[Layer]:
        return convolution.encoder(
            image=self.image_size, channels=self.channels, blocks=int(self.blocks), latent=self.latent_channels,
            attends=True, last=3.0,
        )  # fmt: skip

    def _decoder(self) -> list[Layer]:
        return convolution.decoder(
            side=self.side, channels=self.channels, blocks=int(self.blocks), latent=self.latent_channels, attends=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A rectified flow on the latent of an autoencoder (JanusFlow): the language model predicts its velocity.

    A step embeds the latent in patches of 2 x 2 through ConvNeXt blocks, runs image tokens and one token of time
    through the language model, and goes back through as many wider blocks. The autoencoder (SDXL's) is a checkpoint
    of its own.
    """

    channels: float = 768.0
    blocks: float = 2.0
    latent_channels: float = 4.0
    latent_side: float = 48.0
    patch: float = 2.0
    n_steps: float = 30.0
    decoder_channels: tuple[float, ...] = (128.0, 256.0, 512.0, 512.0)
    decoder_blocks: float = 2.0
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """All tokens in every step."""
        return "flow"

    @property
    def side(self) -> float:
        """Tokens along one edge."""
        return self.latent_side / self.patch

    @property
    def n_tokens(self) -> float:
        """Tokens of a pass: the image's, and one of time."""
        return self.side**2 + 1.0

    def parameters(self, hidden_size: Num) -> dict[str, Num]:
        """Parameters by piece: the shallow encoder and decoder around the language model, with their aligners."""
        h, width = hidden_size, self.channels
        time = width * h + h + h * h + h
        enter = width * self.latent_channels * self.patch**2 + width
        wide = 2.0 * width
        leave = wide * self.latent_channels * self.patch**2 + self.latent_channels * self.patch**2
        return {
            "flow_encoder": time + enter + self.blocks * self._block_parameters(width, h) + width * h + h,
            "flow_decoder": h + h * width + width + width
            + self.blocks * self._block_parameters(wide, h) + wide + leave,
        }  # fmt: skip

    def external_parameters(self) -> dict[str, Num]:
        """The autoencoder, of which generation runs the decoder, with its 1 x 1 convolutions of the latent."""
        latent = self.latent_channels
        network = convolution.parameters(self._encoder()) + convolution.parameters(self._decoder())
        return {"vae": network + (2.0 * latent) ** 2 + 2.0 * latent + latent**2 + latent}

    def step_operators(self, place: Place, n_rows: Num, hidden_size: Num) -> list[Op]:
        """Beside the language model's layers: shallow encoder, aligners, shallow decoder, guidance and Euler's step."""
        h, width, m = hidden_size, self.channels, n_rows * self.side**2
        patches = self.latent_channels * self.patch**2
        ops = encoder.mlp("flow_time", place, n_rows, width, h, h)
        ops += linear("flow_patches", place, m, width, patches, encoder.BF16)
        ops += self._blocks("flow_encoder", place, n_rows, width, h)
        ops += linear("flow_encoder_aligner", place, m, h, width, encoder.BF16)
        ops += norm("flow_aligner_norm", place, m, h)
        ops += linear("flow_decoder_aligner", place, m, width, h, encoder.BF16)
        ops += norm("flow_input_norm", place, m, width)
        joined = 2.0 * m * 2.0 * width
        ops.append(moved("flow_skip", place, joined, joined, sharded=()))
        ops += self._blocks("flow_decoder", place, n_rows, 2.0 * width, h)
        ops += norm("flow_output_norm", place, m, 2.0 * width)
        ops += linear("flow_velocity", place, m, patches, 2.0 * width, encoder.BF16)
        latent = 2.0 * m * patches
        return [*ops, moved("flow_euler_step", place, 2.0 * latent, latent, sharded=())]

    def decode_operators(self, place: Place, n_images: Num) -> list[Op]:
        """Pixels from latents: a 1 x 1 convolution and the autoencoder's decoder."""
        latent = self.latent_channels
        enter = Conv(in_channels=latent, out_channels=latent, kernel=1.0, side=self.latent_side)
        return convolution.operators("vae_decoder", place, [enter, *self._decoder()], n_images)

    def working_bytes(self, n_images: Num) -> Num:
        """Largest tensors of the autoencoder's decoder."""
        return convolution.widest_bytes(self._decoder(), n_images)

    def _blocks(self, name: str, place: Place, n_rows: Num, width: Num, hidden_size: Num) -> list[Op]:
        """ConvNeXt-v2 blocks: depthwise 7 x 7, norm, two products around GELU and response norm, modulated by time."""
        m, each = n_rows * self.side**2, replace(place, count=place.count * self.blocks)
        size, inner = 2.0 * m * width, 2.0 * m * 4.0 * width
        ops = [convolution.depthwise(f"{name}_depthwise", each, n_rows, self.side, width, _KERNEL)]
        ops += norm(f"{name}_norm", each, m, width)
        ops += linear(f"{name}_up", each, m, 4.0 * width, width, encoder.BF16)
        # GELU and the response's norm over pixels, then its scale: the wide tensor twice in, twice out.
        ops.append(moved(f"{name}_response", each, 2.0 * inner, 2.0 * inner, sharded=()))
        ops += linear(f"{name}_down", each, m, width, 4.0 * width, encoder.BF16)
        ops += linear(f"{name}_modulation", each, n_rows, 2.0 * width, hidden_size, encoder.BF16)
        return [*ops, moved(f"{name}_modulate", each, 2.0 * size, size, sharded=())]

    def _block_parameters(self, width: Num, hidden_size: Num) -> Num:
        depthwise, inner = width * _KERNEL**2 + width, 4.0 * width
        products = width * inner + inner + inner * width + width
        return depthwise + width + products + 2.0 * inner + hidden_size * 2.0 * width + 2.0 * width

    def _encoder(self) -> list[Layer]:
        image = self.latent_side * 2.0 ** (len(self.decoder_channels) - 1)
        return convolution.encoder(
            image=image, channels=self.decoder_channels, blocks=int(self.decoder_blocks),
            latent=2.0 * self.latent_channels, attends=False, last=3.0,
        )  # fmt: skip

    def _decoder(self) -> list[Layer]:
        return convolution.decoder(
            side=self.latent_side, channels=self.decoder_channels, blocks=int(self.decoder_blocks),
            latent=self.latent_channels, attends=False,
        )  # fmt: skip


Generation = Codebook | Flow
