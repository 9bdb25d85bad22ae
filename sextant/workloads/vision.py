"""Image encoders and the projector behind them: what an image costs, and becomes, before a language model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Num, Op
from sextant.workloads.ops import convolution, encoder
from sextant.workloads.ops.convolution import Conv, Layer, Norm
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved, norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A vision transformer on square images of ``image_size`` pixels (fields as in Hugging Face vision configs).

    ``pooling_head``: attention pooling that the checkpoint stores and nobody runs. With ``window_size`` attention stays
    inside windows of so many patches a side, except in ``global_attn_indexes`` (counted from 0), and positions are
    relative; a neck of ``output_channels`` follows, then stride-2 convolutions to ``downsample_channels`` (SAM).
    """

    hidden_size: Num
    num_hidden_layers: Num
    num_attention_heads: Num
    intermediate_size: Num
    image_size: float
    patch_size: float
    pooling_head: bool = False
    window_size: float = 0.0
    global_attn_indexes: tuple[float, ...] = ()
    output_channels: float = 0.0
    downsample_channels: tuple[float, ...] = ()

    @property
    def side(self) -> float:
        """Patches along one edge; what does not fill a patch is cut off."""
        return self.image_size // self.patch_size

    @property
    def output_side(self) -> float:
        """Tokens along one edge of what comes out: a neck scales by 3/2, each convolution behind it halves."""
        return 1.5 * self.side / 2.0 ** len(self.downsample_channels) if self.output_channels else self.side

    @property
    def output_size(self) -> Num:
        """Width of the tokens that come out."""
        if not self.output_channels:
            return self.hidden_size
        return self.downsample_channels[-1] if self.downsample_channels else self.output_channels

    @property
    def parameters(self) -> Num:
        """Everything that the checkpoint holds of this tower."""
        width, inner = self.hidden_size, self.intermediate_size
        total = 3.0 * self.patch_size**2 * width + width + self.side**2 * width
        total = total + self.num_hidden_layers * encoder.layer_parameters(width, inner)
        if not self.window_size:
            total = total + 2.0 * width
        if self.pooling_head:
            total = total + width + 4.0 * (width * width + width) + 2.0 * width + 2.0 * width * inner + inner + width
        if self.output_channels:
            total = total + self._position_parameters() + 2.0 * convolution.parameters(self._neck())
            # A second neck, behind the first global layer, joins the first with one learnt weight; two more norms of
            # the tokens' width are stored and never run.
            norms = 2.0 * 2.0 * self.output_size
            total = total + convolution.parameters(self._downsampling()) + 1.0 + norms
        return total

    def operators(self, name: str, place: Place, n_images: Num) -> list[Op]:
        """Patches, layers, and what follows them. Pixels need no gradient."""
        width, seq = self.hidden_size, self.side**2
        m = n_images * seq
        ops = linear(f"{name}_patches", place, m, width, 3.0 * self.patch_size**2, encoder.BF16)
        ops = [op for op in ops if op.phase != "backward_input"]
        ops.append(moved(f"{name}_positions", place, 2.0 * m * width, 2.0 * m * width, sharded=()))
        n_global = float(len(self.global_attn_indexes)) if self.window_size else self.num_hidden_layers
        shape = (n_images, seq, width, self.num_attention_heads, self.intermediate_size)
        whole = replace(place, count=n_global)
        ops += encoder.layer(f"{name}", whole, *shape)
        if self.window_size:
            ops += self._windowed(name, place, whole, n_images, shape)
        else:
            ops += norm(f"{name}_last_norm", place, m, width)
        if self.output_channels:
            ops += self._after(name, place, n_images)
        return ops

    def _windowed(
        self, name: str, place: Place, whole: Place, n_images: Num, shape: tuple[Num, Num, Num, Num, Num]
    ) -> list[Op]:
        """The layers with windows, and the relative positions of all."""
        width, heads, window = self.hidden_size, self.num_attention_heads, self.window_size
        within = replace(place, count=self.num_hidden_layers - whole.count)
        squares = n_images * (-(-self.side // window)) ** 2
        ops = encoder.layer(f"{name}_window", within, *shape, window=window)
        ops += encoder.relative_positions(f"{name}_position", whole, n_images, self.side, width, heads)
        return ops + encoder.relative_positions(f"{name}_window_position", within, squares, window, width, heads)

    def _after(self, name: str, place: Place, n_images: Num) -> list[Op]:
        """Necks behind the last and behind the first global layer, each scaled up by half and brought to the tokens'
        grid and width, then added."""
        both = 2.0 * n_images
        channels, half = self.output_channels, 1.5 * self.side
        ops = convolution.operators(f"{name}_neck", place, self._neck(), both)
        read, write = 2.0 * both * self.side**2 * channels, 2.0 * both * half**2 * channels
        ops.append(moved(f"{name}_resize", place, read, write, sharded=()))
        if place.training:
            ops.append(moved(f"{name}_resize_backward", place, write, read, "backward_input", ()))
        ops += convolution.operators(f"{name}_downsample", place, self._downsampling(), both)
        size = 2.0 * n_images * self.output_side**2 * self.output_size
        ops.append(moved(f"{name}_join", place, 2.0 * size, size, sharded=()))
        if place.training:
            ops.append(moved(f"{name}_join_backward", place, size, size, "backward_input", ()))
        return ops

    def _neck(self) -> list[Layer]:
        wide, channels, side = self.hidden_size, self.output_channels, self.side
        return [
            Conv(in_channels=wide, out_channels=channels, kernel=1.0, side=side, bias=False),
            Norm(channels=channels, side=side),
            Conv(in_channels=channels, out_channels=channels, kernel=3.0, side=side, bias=False),
            Norm(channels=channels, side=side),
        ]

    def _downsampling(self) -> list[Layer]:
        layers: list[Layer] = []
        channels, side = self.output_channels, 1.5 * self.side
        for wide in self.downsample_channels:
            side /= 2.0
            layers.append(Conv(in_channels=channels, out_channels=wide, kernel=3.0, side=side, stride=2.0, bias=False))
            channels = wide
        return layers

    def _position_parameters(self) -> Num:
        """Embeddings of all distances along rows and along columns, per layer."""
        n_global = float(len(self.global_attn_indexes))
        head_dim = self.hidden_size / self.num_attention_heads
        windowed = (self.num_hidden_layers - n_global) * (2.0 * self.window_size - 1.0)
        return 2.0 * head_dim * (windowed + n_global * (2.0 * self.side - 1.0))

    def kept_bytes(self, n_images: Num) -> Num:
        """Activations of all layers that training keeps; windows pad them. A neck adds a hundredth, not counted."""
        width, inner, tokens = self.hidden_size, self.intermediate_size, n_images * self.side**2
        n_global = float(len(self.global_attn_indexes)) if self.window_size else self.num_hidden_layers
        padded = n_images * encoder.n_windows(self.side, self.window_size) * self.window_size**2
        windowed = (self.num_hidden_layers - n_global) * encoder.kept_bytes(tokens, padded, width, inner)
        return n_global * encoder.kept_bytes(tokens, tokens, width, inner) + windowed

    def working_bytes(self, n_images: Num) -> Num:
        """Largest working set of a layer."""
        return encoder.working_bytes(n_images * self.side**2, self.hidden_size, self.intermediate_size)


#: Kinds of projector: one linear layer; an MLP; one half of the MLP's inner width per encoder; 2 x 2 patches joined.
PROJECTORS = ("linear", "mlp", "split_mlp", "downsample_mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """Encoders side by side on the same image, and the projector to the language model's width.

    ``begin_tokens`` learnt embeddings stand before an image. With ``max_tiles`` an image becomes a grid of at most so
    many tiles of the encoder's size and a thumbnail; every row of tokens ends in a separator, and one stands between
    the two. More than ``max_tiled_images`` in a sequence are one tile each.
    """

    encoders: Mapping[str, Encoder]
    projector: str = "mlp"
    begin_tokens: float = 0.0
    max_tiles: float = 0.0
    max_tiled_images: float = 0.0
    source: Mapping[str, str] = field(default_factory=dict)

    def parameters(self, hidden_size: Num) -> dict[str, Num]:
        """Parameters by piece: each encoder with what its checkpoint stores, and the projector with its embeddings."""
        pieces: dict[str, Num] = {name: each.parameters for name, each in self.encoders.items()}
        h, width = hidden_size, self._width()
        last = h * h + h
        projector: dict[str, Num] = {
            "linear": width * h + h, "mlp": width * h + h + last, "downsample_mlp": 4.0 * width * h + h + last,
            "split_mlp": width * h + h + last,
        }  # fmt: skip
        separators = 2.0 * h if self.max_tiles else 0.0
        pieces["projector"] = projector[self.projector] + self.begin_tokens * h + separators
        return pieces

    def n_tiles(self, height: Num, width: Num) -> tuple[Num, Num]:
        """Rows and columns of tiles of an image, beside its thumbnail: the grid that keeps most of its pixels, and
        among those the one that pads least, as the published processor chooses (deepseek_vl2/models/
        processing_deepseek_vl_v2.py). (0, 0) without tiling."""
        if not self.max_tiles:
            return 0.0, 0.0
        tile, most = self._first().image_size, int(self.max_tiles)
        grids = [(m, n) for m in range(1, most + 1) for n in range(1, most + 1) if m * n <= most]
        scores: list[Num] = []
        for m, n in grids:
            scale = np.minimum(m * tile / height, n * tile / width)
            kept = np.minimum(np.floor(scale * height) * np.floor(scale * width), height * width)
            # Kept pixels, whole numbers, decide; between equals the smaller canvas.
            scores.append(kept - m * n * 1e-3)
        best = np.argmax(np.stack(np.broadcast_arrays(*scores)), axis=0)
        rows, columns = np.asarray(grids, dtype=float).T
        return rows[best], columns[best]

    def seen_pixels(self, n_images: Num, height: Num, width: Num) -> tuple[Num, Num]:
        """Height and width at which images are looked at, where a sequence holds ``n_images``."""
        if not self.max_tiled_images:
            return height, width
        few, tile = np.asarray(n_images) <= self.max_tiled_images, self._first().image_size
        return np.where(few, height, tile)[()], np.where(few, width, tile)[()]

    def n_tokens(self, height: Num, width: Num) -> Num:
        """Visual tokens of one image of that many pixels in the language model."""
        edge = self._edge()
        if not self.max_tiles:
            return edge**2 + self.begin_tokens + 0.0 * (height + width)
        rows, columns = self.n_tiles(height, width)
        return edge * (edge + 1.0) + 1.0 + rows * edge * (columns * edge + 1.0)

    def n_encoded(self, height: Num, width: Num) -> Num:
        """Squares of the encoder's size that one image is encoded as: its tiles and its thumbnail."""
        rows, columns = self.n_tiles(height, width)
        return 1.0 + rows * columns

    def operators(self, place: Place, n_images: Num, height: Num, width: Num, hidden_size: Num) -> list[Op]:
        """BF16 operators that encode ``n_images`` and project them to (tokens, hidden_size), on one device."""
        n = n_images * self.n_encoded(height, width)
        ops = [op for name, each in self.encoders.items() for op in each.operators(name, place, n)]
        m, wide, h = n * self._edge() ** 2, self._width(), hidden_size
        if self.projector == "linear":
            return ops + linear("projector", place, m, h, wide, encoder.BF16)
        if self.projector == "downsample_mlp":
            wide = 4.0 * wide
            size = 2.0 * m * wide
            ops.append(moved("projector_gather", place, size, size, sharded=()))
            if place.training:
                ops.append(moved("projector_gather_backward", place, size, size, "backward_input", ()))
        if self.projector != "split_mlp":
            return ops + encoder.mlp("projector", place, m, wide, h, h)
        share = h / len(self.encoders)
        for name in self.encoders:
            ops += linear(f"projector_{name}", place, m, share, wide, encoder.BF16)
        ops += encoder.gelu("projector_gelu", place, m, h)
        return ops + linear("projector_down", place, m, h, h, encoder.BF16)

    def activation_bytes(self, n_images: Num, height: Num, width: Num) -> Num:
        """What training keeps of ``n_images`` until the backward pass, in the encoders; the projector's share is under
        a hundredth and not counted."""
        n = n_images * self.n_encoded(height, width)
        return sum((each.kept_bytes(n) for each in self.encoders.values()), 0.0)

    def working_bytes(self, n_images: Num, height: Num, width: Num) -> Num:
        """Largest working set while encoding ``n_images`` at once."""
        n = n_images * self.n_encoded(height, width)
        return np.max(np.stack(np.broadcast_arrays(*(e.working_bytes(n) for e in self.encoders.values()))), axis=0)

    def _first(self) -> Encoder:
        return next(iter(self.encoders.values()))

    def _width(self) -> Num:
        """Width of the tokens that the projector reads of each encoder; InputError where they do not fit together."""
        if self.projector not in PROJECTORS:
            known = nearest(self.projector, PROJECTORS)
            raise InputError(f"model.vision.projector: unknown kind {self.projector!r}; {known}")
        first = self._first()
        if len(self.encoders) > 1 and self.projector != "split_mlp":
            raise InputError(
                f"model.vision.projector: {self.projector!r} reads one encoder, got {', '.join(self.encoders)}; "
                "'split_mlp' reads several"
            )
        for name, each in self.encoders.items():
            if np.any(np.asarray(each.output_side != first.output_side) | (each.output_size != first.output_size)):
                raise InputError(
                    f"model.vision.encoders.{name}: makes {each.output_side**2} tokens of {each.output_size}, the "
                    f"first encoder {first.output_side**2} of {first.output_size}; choose sizes at which they agree"
                )
        return first.output_size

    def _edge(self) -> float:
        """Tokens along one edge of what one encoder pass becomes; 2 x 2 patches may become one."""
        side = self._first().output_side
        return -(-side // 2.0) if self.projector == "downsample_mlp" else side
