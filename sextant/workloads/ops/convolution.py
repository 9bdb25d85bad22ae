"""Convolutional networks as lists of layers, which both their parameters and their operators follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sextant.simulator.kernels import operator
from sextant.simulator.types import Num, Op
from sextant.workloads.ops.memory import Place, moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """A convolution to ``side`` x ``side`` pixels."""

    in_channels: Num
    out_channels: float
    kernel: float
    side: float
    stride: float = 1.0
    bias: bool = True

    @property
    def parameters(self) -> Num:
        """Weights and bias."""
        return self.out_channels * (self.in_channels * self.kernel**2 + (1.0 if self.bias else 0.0))

    def operators(self, name: str, place: Place, n_images: Num) -> list[Op]:
        """Forward, and in training both gradients."""
        shape = {
            "n_images": n_images, "height": self.side, "width": self.side, "in_channels": self.in_channels,
            "out_channels": self.out_channels, "kernel": self.kernel, "stride": self.stride,
        }  # fmt: skip
        phases = {"": "forward"}
        if place.training:
            phases |= {"dgrad": "backward_input", "wgrad": "backward_weight"}
        return [
            operator(
                "conv2d", f"{name}_{variant}" if variant else name, "bf16", shape, variant=variant, part=place.part,
                block=place.block, phase=phase, count=place.count,
            )
            for variant, phase in phases.items()
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation over ``channels`` with scale and shift, fused with the activation behind it."""

    channels: float
    side: float

    @property
    def parameters(self) -> float:
        """Scale and shift."""
        return 2.0 * self.channels

    def operators(self, name: str, place: Place, n_images: Num) -> list[Op]:
        """Statistics over all pixels need a pass of their own: two reads, one write. Backward: the sums of its
        gradients are a pass too, over input and gradient."""
        size = 2.0 * n_images * self.side**2 * self.channels
        ops = [moved(name, place, 2.0 * size, size, sharded=())]
        if place.training:
            ops.append(moved(f"{name}_backward", place, 4.0 * size, size, "backward_input", (), "norm_backward"))
        return ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Self-attention of one head over all pixels: norm, four 1 x 1 convolutions, two products and a softmax.

    Part of decoders that make pixels, which only run forward: it has no operators of a backward pass.
    """

    channels: float
    side: float

    @property
    def parameters(self) -> float:
        """Norm, queries, keys, values, output."""
        return 2.0 * self.channels + 4.0 * (self.channels**2 + self.channels)

    def operators(self, name: str, place: Place, n_images: Num) -> list[Op]:
        """Scores are written out, as the published modules do."""
        tokens, width = self.side**2, self.channels
        conv = Conv(in_channels=width, out_channels=width, kernel=1.0, side=self.side)
        ops = Norm(channels=width, side=self.side).operators(f"{name}_norm", place, n_images)
        ops += [op for piece in ("query", "key", "value") for op in conv.operators(f"{name}_{piece}", place, n_images)]
        scores = {"groups": n_images, "tokens_per_group": tokens, "n": tokens, "k": width}
        values = {"groups": n_images, "tokens_per_group": tokens, "n": width, "k": tokens}
        size = 2.0 * n_images * tokens**2
        ops.append(_batched(f"{name}_scores", place, scores))
        ops.append(moved(f"{name}_softmax", place, size, size, sharded=()))
        ops.append(_batched(f"{name}_values", place, values))
        return ops + conv.operators(f"{name}_output", place, n_images)


Layer = Conv | Norm | Pixels


def parameters(layers: Sequence[Layer]) -> Num:
    """Parameters of all layers."""
    return sum((layer.parameters for layer in layers), 0.0)


def operators(name: str, place: Place, layers: Sequence[Layer], n_images: Num) -> list[Op]:
    """Operators of all layers in order, one after the other; additions of shortcuts are part of their convolutions."""
    suffix = {Conv: "conv", Norm: "norm", Pixels: "attention"}
    return [op for layer in layers for op in layer.operators(f"{name}_{suffix[type(layer)]}", place, n_images)]


def residual(in_channels: float, out_channels: float, side: float) -> list[Layer]:
    """Two norms and two 3 x 3 convolutions, with a 1 x 1 shortcut where the width changes."""
    layers: list[Layer] = [
        Norm(channels=in_channels, side=side),
        Conv(in_channels=in_channels, out_channels=out_channels, kernel=3.0, side=side),
        Norm(channels=out_channels, side=side),
        Conv(in_channels=out_channels, out_channels=out_channels, kernel=3.0, side=side),
    ]
    if in_channels != out_channels:
        layers.append(Conv(in_channels=in_channels, out_channels=out_channels, kernel=1.0, side=side))
    return layers


def encoder(
    *, image: float, channels: Sequence[float], blocks: int, latent: float, attends: bool, last: float
) -> list[Layer]:
    """An autoencoder's encoder: pixels of side ``image``, a level per entry of ``channels``, halved in between.

    ``blocks`` residual blocks per level, followed by attention on the lowest where it ``attends``; ``latent`` channels
    come out of ``last`` x ``last`` kernels.
    """
    side, width = image, channels[0]
    layers: list[Layer] = [Conv(in_channels=3.0, out_channels=width, kernel=3.0, side=side)]
    for level, wide in enumerate(channels):
        lowest = level == len(channels) - 1
        for _ in range(blocks):
            layers += residual(width, wide, side)
            width = wide
            layers += [Pixels(channels=width, side=side)] if lowest and attends else []
        if not lowest:
            side /= 2.0
            layers.append(Conv(in_channels=width, out_channels=width, kernel=3.0, side=side, stride=2.0))
    layers += _middle(width, side)
    return [
        *layers, Norm(channels=width, side=side),
        Conv(in_channels=width, out_channels=latent, kernel=last, side=side),
    ]  # fmt: skip


def decoder(*, side: float, channels: Sequence[float], blocks: int, latent: float, attends: bool) -> list[Layer]:
    """An autoencoder's decoder: a latent of ``side`` x ``side``, a level per entry of ``channels`` from the last to the
    first, doubled in between; ``blocks`` + 1 residual blocks per level."""
    width = channels[-1]
    layers: list[Layer] = [Conv(in_channels=latent, out_channels=width, kernel=3.0, side=side)]
    layers += _middle(width, side)
    for level, wide in enumerate(reversed(channels)):
        for _ in range(blocks + 1):
            layers += residual(width, wide, side)
            width = wide
            layers += [Pixels(channels=width, side=side)] if level == 0 and attends else []
        if level < len(channels) - 1:
            side *= 2.0
            layers.append(Conv(in_channels=width, out_channels=width, kernel=3.0, side=side))
    return [
        *layers, Norm(channels=width, side=side), Conv(in_channels=width, out_channels=3.0, kernel=3.0, side=side)
    ]  # fmt: skip


def depthwise(name: str, place: Place, n_images: Num, side: Num, channels: Num, kernel: float) -> Op:
    """A depthwise convolution of (side, side, channels), forward."""
    shape = {
        "n_images": n_images, "height": side, "width": side, "in_channels": channels, "out_channels": channels,
        "kernel": kernel, "stride": 1.0,
    }  # fmt: skip
    return operator(
        "conv2d", name, "bf16", shape, variant="depthwise", part=place.part, block=place.block, count=place.count
    )


def widest_bytes(layers: Sequence[Layer], n_images: Num) -> Num:
    """What the network works in, in BF16: the largest tensor three times over, as a residual block holds its shortcut,
    the input of a convolution and its output."""
    sizes = np.broadcast_arrays(*(layer.side**2 * _width(layer) for layer in layers))
    return 3.0 * 2.0 * n_images * np.max(sizes, axis=0)


def _width(layer: Layer) -> Num:
    return np.maximum(layer.in_channels, layer.out_channels) if isinstance(layer, Conv) else layer.channels


def _middle(width: float, side: float) -> list[Layer]:
    return [*residual(width, width, side), Pixels(channels=width, side=side), *residual(width, width, side)]


def _batched(name: str, place: Place, shape: dict[str, Num]) -> Op:
    return operator(
        "grouped_gemm", name, "bf16", shape, variant="exact", part=place.part, block=place.block, count=place.count
    )
