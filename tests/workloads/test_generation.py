"""Image generators piece by piece: sizes and FLOPs against sums by hand and torch's layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.types import Num, Op
from sextant.workloads.generation import Codebook, Flow
from sextant.workloads.models import model
from sextant.workloads.ops.memory import Place

PLACE = Place(part="generation", block="generation")
BOTH = pytest.mark.parametrize("generation", [Codebook(), Flow()], ids=["codebook", "flow"])


def total_flops(ops: list[Op]) -> Num:
    return sum(op.flops * op.count for op in ops)


def total_bytes(ops: list[Op]) -> Num:
    return sum(op.traffic_bytes["hbm"] * op.count for op in ops)


def linear(n_in: int, n_out: int) -> int:
    return n_in * n_out + n_out


def conv(n_in: int, n_out: int, kernel: int = 3) -> int:
    return n_in * n_out * kernel**2 + n_out


def residual(n_in: int, n_out: int) -> int:
    shortcut = conv(n_in, n_out, 1) if n_in != n_out else 0
    return 2 * n_in + conv(n_in, n_out) + 2 * n_out + conv(n_out, n_out) + shortcut


def attention(width: int) -> int:
    return 2 * width + 4 * conv(width, width, 1)


MIDDLE = 2 * residual(512, 512) + attention(512)


def test_parameters_of_the_vq_model():
    """Encoder and decoder of five levels, 2 and 3 residual blocks each, with attention on the lowest; 16,384 codes of 8
    and a 1 x 1 convolution on either side of them."""
    down = 2 * conv(128, 128) + 2 * conv(256, 256)
    encoder = conv(3, 128) + 4 * residual(128, 128)
    encoder += (
        residual(128, 256) + 3 * residual(256, 256) + residual(256, 512) + residual(512, 512) + 2 * attention(512)
    )
    encoder += down + MIDDLE + 2 * 512 + conv(512, 256)
    decoder = conv(256, 512) + MIDDLE + 3 * residual(512, 512) + 3 * attention(512) + conv(512, 512)
    decoder += residual(512, 256) + 5 * residual(256, 256) + 2 * conv(256, 256)
    decoder += residual(256, 128) + 5 * residual(128, 128) + conv(128, 128) + 2 * 128 + conv(128, 3)
    codes = 16384 * 8 + conv(256, 8, 1) + conv(8, 256, 1)
    assert (encoder, decoder) == (29_298_176, 42_449_795)
    assert Codebook().parameters(4096.0)["vq_model"] == encoder + decoder + codes


def test_parameters_between_codes_and_language_model():
    """Embedding of 8, an aligner of two layers, a head of two layers (config of Janus-Pro-7B)."""
    pieces = Codebook().parameters(4096.0)
    assert pieces["generation_embedding"] == 16384 * 8
    assert pieces["generation_aligner"] == linear(8, 4096) + linear(4096, 4096)
    assert pieces["generation_head"] == linear(4096, 4096) + linear(4096, 16384)
    assert Codebook().external_parameters() == {}


def test_parameters_of_the_shallow_networks_are_those_of_torchs_modules():
    """ConvNeXt-v2 blocks with a modulation by the embedding of time (deepseek-ai/Janus, uvit.py)."""
    nn = pytest.importorskip("torch").nn

    def block(width: int) -> list:
        response = 2 * 4 * width
        modules = [
            nn.Conv2d(width, width, 7, groups=width), nn.RMSNorm(width), nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width), nn.Linear(2048, 2 * width),
        ]  # fmt: skip
        return [*modules, response]

    def count(parts: list) -> int:
        return sum(p if isinstance(p, int) else sum(w.numel() for w in p.parameters()) for p in parts)

    entry = [nn.Linear(768, 2048), nn.Linear(2048, 2048), nn.Conv2d(4, 768, 2, stride=2), nn.Linear(768, 2048)]
    leave = [nn.RMSNorm(2048), nn.Linear(2048, 768), nn.RMSNorm(768), nn.RMSNorm(1536), nn.Conv2d(1536, 16, 1)]
    pieces = Flow().parameters(2048.0)
    assert pieces["flow_encoder"] == count(entry + 2 * block(768))
    assert pieces["flow_decoder"] == count(leave + 2 * block(1536))


def test_the_autoencoder_is_no_part_of_the_checkpoint():
    """SDXL's VAE of 83,653,863 parameters stands beside it, not in it."""
    assert Flow().external_parameters() == {"vae": 83_653_863}
    assert "vae" not in Flow().parameters(2048.0)


def test_an_autoregressive_image_is_a_token_a_step():
    """24 x 24 of 384 pixels behind four halvings."""
    found = Codebook()
    assert (found.kind, found.n_tokens, found.n_steps) == ("autoregressive", 576.0, 576.0)
    assert replace(found, image_size=768.0).n_tokens == 48**2


def test_a_flow_runs_all_tokens_in_every_step():
    """24 x 24 patches of 2 x 2, and one token of time; the number of steps is free."""
    found = Flow()
    assert (found.kind, found.n_tokens, found.n_steps) == ("flow", 577.0, 30.0)
    assert replace(found, n_steps=50.0).n_tokens == 577.0


def test_a_sampled_token_passes_aligner_and_head_once():
    """2 FLOPs per weight and row."""
    weights = 8 * 4096 + 4096 * 4096 + 4096 * 4096 + 4096 * 16384
    assert total_flops(Codebook().step_operators(PLACE, 32.0, 4096.0)) == 2 * 32 * weights


def test_a_sampled_token_reads_the_weights_of_aligner_and_head():
    """One row: at least their bytes, and at most a thousandth more for what a row reads and writes."""
    weights = 2 * (8 * 4096 + 4096 * 4096 + 4096 * 4096 + 4096 * 16384)
    assert weights < total_bytes(Codebook().step_operators(PLACE, 1.0, 4096.0)) < 1.002 * weights


def test_flops_of_a_flow_step():
    """Per pixel of 24 x 24 the weights of patches, blocks and aligners, with 49 per channel in depthwise kernels; per
    row those of time and modulation."""
    blocks = [(768, 2 * (49 + 8 * 768)), (1536, 2 * (49 + 8 * 1536))]
    pixel = 768 * 16 + sum(width * each for width, each in blocks) + 2 * 768 * 2048 + 1536 * 16
    row = 768 * 2048 + 2048 * 2048 + 2 * 2048 * 2 * (768 + 1536)
    found = total_flops(Flow().step_operators(PLACE, 10.0, 2048.0))
    assert found == pytest.approx(10 * 2 * (576 * pixel + row), rel=1e-12)


def test_pixels_come_out_at_the_images_size():
    """The decoder's last convolution makes three channels of the full image."""
    for generation in (Codebook(), Flow()):
        last = [op for op in generation.decode_operators(PLACE, 2.0) if op.kind == "conv2d"][-1].shape
        assert (last["n_images"], last["height"], last["width"], last["out_channels"]) == (2.0, 384.0, 384.0, 3.0)


def test_flops_of_the_first_and_the_largest_convolutions_of_a_decoder():
    """24 x 24 pixels of 256 to 512 channels; 384 x 384 of 256 to 256 behind the VAE's last doubling."""
    vq = {(op.shape["height"], op.shape["in_channels"]): op.flops for op in Codebook().decode_operators(PLACE, 1.0)
          if op.kind == "conv2d" and op.shape["kernel"] == 3.0}  # fmt: skip
    assert vq[24.0, 256.0] == 2 * 24**2 * 9 * 256 * 512
    vae = [op.flops for op in Flow().decode_operators(PLACE, 1.0) if op.kind == "conv2d"]
    assert max(vae) == 2 * 384**2 * 9 * 256 * 256


@BOTH
def test_costs_of_a_step_grow_with_its_rows_and_broadcast(generation):
    """FLOPs in proportion; arrays of shape (n_points,) give the numbers of their points."""
    rows = np.array([1.0, 2.0, 32.0])
    swept = total_flops(generation.step_operators(PLACE, rows, 2048.0))
    one = total_flops(generation.step_operators(PLACE, 1.0, 2048.0))
    assert np.asarray(swept) == pytest.approx(rows * one, rel=1e-12)


@BOTH
def test_a_sweep_of_the_width_gives_the_parameters_of_its_points(generation):
    """The language model's width may be an axis."""
    widths = np.array([1024.0, 2048.0])
    for piece, sizes in generation.parameters(widths).items():
        alone = [generation.parameters(width)[piece] for width in widths]
        assert np.broadcast_to(sizes, 2).tolist() == alone


@BOTH
def test_the_working_set_holds_input_and_output_of_every_operator_of_the_decoder(generation):
    """And is at most twice the largest pair: a shortcut stays beside them."""
    pairs = [
        2.0 * op.shape["n_images"] * op.shape["height"] * op.shape["width"]
        * (op.shape["in_channels"] * op.shape["stride"] ** 2 + op.shape["out_channels"])
        for op in generation.decode_operators(PLACE, 3.0) if op.kind == "conv2d"
    ]  # fmt: skip
    assert max(pairs) < generation.working_bytes(3.0) < 2.0 * max(pairs)


def test_the_published_models_hold_the_published_generators():
    """Janus and Janus-Pro the same codebook, JanusFlow the flow."""
    books = [model(name).generation for name in ("janus-1.3b", "janus-pro-1b", "janus-pro-7b")]
    assert all(replace(book, source={}) == Codebook() for book in books)
    flow = model("janusflow-1.3b").generation
    assert replace(flow, source={}) == Flow()
    assert flow.source["blocks"].startswith("unconfirmed")
