"""Image encoders piece by piece: sizes against sums by hand and torch's layers, tiles against their definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.simulator.types import Load, Num, Op, Plan
from sextant.workloads.models import model
from sextant.workloads.ops import encoder
from sextant.workloads.ops.memory import Place
from sextant.workloads.shard import shard
from sextant.workloads.vision import Encoder, Vision

FORWARD = Place(part="vision", block="vision")
TRAINING = replace(FORWARD, training=True)
SMALL = Encoder(
    hidden_size=64.0, num_hidden_layers=3.0, num_attention_heads=4.0, intermediate_size=160.0, image_size=96.0,
    patch_size=16.0,
)  # fmt: skip
SIGLIP_L = model("janus-pro-7b").vision.encoders["siglip"]
SAM_B = model("deepseek-vl-7b").vision.encoders["sam"]
TILED = model("deepseek-vl2").vision
PIXELS = st.integers(1, 4000).map(float)


def total_flops(ops: list[Op], *phases: str) -> Num:
    return sum(op.flops * op.count for op in ops if not phases or op.phase in phases)


def linear(n_in: int, n_out: int) -> int:
    return n_in * n_out + n_out


def test_parameters_of_a_layer_are_those_of_torchs_modules():
    """Two LayerNorms, attention with biases, a feed-forward with biases."""
    nn = pytest.importorskip("torch").nn
    modules = [
        nn.LayerNorm(64), nn.LayerNorm(64), nn.MultiheadAttention(64, 4), nn.Linear(64, 160), nn.Linear(160, 64)
    ]  # fmt: skip
    assert encoder.layer_parameters(64.0, 160.0) == sum(p.numel() for each in modules for p in each.parameters())


def test_parameters_of_siglip_large():
    """Patches of 16 x 16 x 3, 576 positions, 24 layers, a norm; a pooling head of one learnt query, which the
    checkpoint stores and nobody runs."""
    layer = 2 * 2 * 1024 + 4 * linear(1024, 1024) + linear(1024, 4096) + linear(4096, 1024)
    tower = linear(768, 1024) + 576 * 1024 + 24 * layer + 2 * 1024
    pooling = 1024 + 4 * linear(1024, 1024) + 2 * 1024 + linear(1024, 4096) + linear(4096, 1024)
    assert replace(SIGLIP_L, pooling_head=False).parameters == tower == 303_688_704
    assert SIGLIP_L.parameters == tower + pooling == 316_283_904


def test_parameters_of_sam_base():
    """Relative positions of 27 distances in windows of 14 and of 127 on the whole grid of 64, along both axes; two
    necks, one pair of convolutions, the weight that joins them, and two norms that nobody runs."""
    layer = 2 * 2 * 768 + 4 * linear(768, 768) + linear(768, 3072) + linear(3072, 768)
    positions = 2 * 64 * (8 * 27 + 4 * 127)
    neck = 768 * 256 + 256 * 256 * 9 + 2 * 2 * 256
    tower = linear(768, 768) + 64 * 64 * 768 + 12 * layer + positions + neck
    assert SAM_B.parameters == tower + neck + 9 * (256 * 512 + 512 * 1024) + 1 + 2 * 2 * 1024
    assert tower == 89_670_912


def test_flops_of_an_encoder():
    """Per patch 2 FLOPs per weight of its products, and 4 per width and visible patch: all 36."""
    m, seq, width, inner = 5 * 36, 36, 64, 160
    layer = 2 * m * (4 * width * width + 2 * width * inner) + 4 * m * seq * width
    expected = 2 * m * 768 * width + 3 * layer
    assert total_flops(SMALL.operators("small", FORWARD, 5.0)) == expected


def test_windows_limit_attention_and_are_padded_to_whole_ones():
    """64 patches a side need 5 x 5 windows of 14: 8 of 12 layers run 70 x 70 patches through attention's products."""
    ops = {op.name: op for op in SAM_B.operators("sam", FORWARD, 1.0)}
    assert (ops["sam_qkv"].shape["m"], ops["sam_qkv"].count) == (64**2, 4)
    assert (ops["sam_window_qkv"].shape["m"], ops["sam_window_qkv"].count) == (70**2, 8)
    assert ops["sam_window_mlp_up"].shape["m"] == 64**2
    cores = [op for op in SAM_B.operators("sam", FORWARD, 1.0) if op.kind == "attention"]
    assert [op.count * op.flops for op in cores] == [4 * 4 * 768 * 4096**2, 8 * 4 * 768 * 25 * 196**2]


def test_training_costs_each_product_twice_more_except_the_gradient_of_pixels():
    """Attention makes its scores again: 5 products backward for 2 forward."""
    forward = SMALL.operators("small", TRAINING, 2.0)
    patches = sum(op.flops for op in forward if op.name == "small_patches")
    scores = sum(op.flops * op.count for op in forward if op.name == "attention")
    expected = 2 * (total_flops(forward, "forward") - scores) - patches + 2.5 * scores
    assert total_flops(forward, "backward_input", "backward_weight") == pytest.approx(expected, rel=1e-12)
    assert total_flops(forward, "forward") == total_flops(SMALL.operators("small", FORWARD, 2.0))


def test_every_forward_operator_of_memory_has_a_backward_one_except_positions():
    """Their gradient is the patches' own."""
    vision = model("deepseek-vl-7b").vision
    for each in (vision, TILED):
        ops = each.operators(TRAINING, 1.0, 384.0, 384.0, 4096.0)
        backward = {op.name.removesuffix("_backward") for op in ops if op.name.endswith("_backward")}
        forward = {op.name for op in ops if op.kind == "memory" and op.phase == "forward"}
        assert {name for name in forward - backward if not name.endswith("_positions")} == set()


@pytest.mark.parametrize("name", ["deepseek-vl-7b", "deepseek-vl2", "janusflow-1.3b"])
def test_tensor_parallel_devices_run_the_whole_encoder(name):
    """They hold it whole, and no message joins shares of it."""
    found, load = model(name), Load(phase="image_understanding", batch=2.0, context_tokens=64.0)
    one, four = Plan(), Plan(tensor=4.0)
    alone, many = (
        [op for op in shard(found.step(load, plan), found, plan, 8.0).ops if op.part == "vision"]
        for plan in (one, four)
    )
    assert [(op.name, op.shape) for op in alone] == [(op.name, op.shape) for op in many]


@given(height=PIXELS, width=PIXELS)
def test_tiles_keep_most_pixels_and_then_pad_least(height, width):
    """No other grid of at most nine tiles keeps more pixels of the scaled image, nor as many on fewer tiles."""
    rows, columns = TILED.n_tiles(height, width)

    def kept(m: int, n: int) -> float:
        scale = min(384 * m / height, 384 * n / width)
        return min(int(height * scale) * int(width * scale), height * width)

    assert rows * columns <= 9
    for m in range(1, 10):
        for n in range(1, 9 // m + 1):
            found = kept(int(rows), int(columns))
            assert (kept(m, n), -m * n) <= (found, -rows * columns)


@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [(384, 384, 210 + 1 + 14 * 15), (768, 1152, 210 + 1 + 2 * 14 * (3 * 14 + 1)), (3000, 400, 210 + 1 + 8 * 14 * 15)],
)
def test_visual_tokens_of_a_tiled_image(height, width, tokens):
    """Thumbnail of 14 x 15, separator, m x 14 rows of n x 14 tokens and a line end (arXiv:2412.10302 s2)."""
    assert TILED.n_tokens(float(height), float(width)) == tokens


def test_many_images_in_a_sequence_are_one_tile_each():
    """Tiling is off for more than two (arXiv:2412.10302 s2)."""
    height, width = TILED.seen_pixels(np.array([1.0, 2.0, 3.0]), 768.0, 1152.0)
    assert TILED.n_encoded(height, width).tolist() == [7.0, 7.0, 2.0]


def test_a_sweep_of_sizes_gives_the_tokens_and_flops_of_its_points():
    """Arrays of shape (n_points,)."""
    heights, widths = np.array([384.0, 768.0, 3000.0]), np.array([384.0, 1152.0, 400.0])
    swept = total_flops(TILED.operators(FORWARD, 1.0, heights, widths, 2560.0))
    for i, (height, width) in enumerate(zip(heights, widths, strict=True)):
        assert np.asarray(TILED.n_tokens(heights, widths))[i] == TILED.n_tokens(height, width)
        alone = total_flops(TILED.operators(FORWARD, 1.0, height, width, 2560.0))
        assert np.asarray(swept)[i] == pytest.approx(alone, rel=1e-12)


def test_a_sweep_of_the_tower_with_a_neck_broadcasts():
    """Its convolutions take the swept width in."""
    widths = np.array([768.0, 1152.0])
    swept = replace(SAM_B, hidden_size=widths)
    for i, width in enumerate(widths):
        alone = replace(SAM_B, hidden_size=width)
        assert np.asarray(swept.parameters)[i] == alone.parameters
        found = np.asarray(total_flops(swept.operators("sam", FORWARD, 1.0)))[i]
        assert found == pytest.approx(total_flops(alone.operators("sam", FORWARD, 1.0)), rel=1e-12)


PROJECTORS = {
    "linear": linear(64, 128), "mlp": linear(64, 128) + linear(128, 128),
    "downsample_mlp": linear(256, 128) + linear(128, 128),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "parameters"), PROJECTORS.items())
def test_a_projector_multiplies_each_token_with_its_weights_once(kind, parameters):
    """36 patches of one encoder; 2 x 2 of them become one in ``downsample_mlp``. Biases do not multiply."""
    vision = Vision(encoders={"small": SMALL}, projector=kind)
    assert vision.parameters(128.0)["projector"] == parameters
    tokens = 9 if kind == "downsample_mlp" else 36
    ops = [op for op in vision.operators(FORWARD, 3.0, 96.0, 96.0, 128.0) if op.name.startswith("projector")]
    biases = 128 if kind == "linear" else 2 * 128
    assert total_flops(ops) == 2 * 3 * tokens * (parameters - biases)
    assert vision.n_tokens(96.0, 96.0) == tokens


def test_a_split_projector_gives_each_encoder_its_share_of_the_width():
    """Two of 1,024 to 2,048 each, then 4,096 to 4,096 on both."""
    vision = model("deepseek-vl-7b").vision
    assert vision.parameters(4096.0)["projector"] == 2 * linear(1024, 2048) + linear(4096, 4096)
    ops = [op for op in vision.operators(FORWARD, 1.0, 384.0, 384.0, 4096.0) if op.name.startswith("projector")]
    assert total_flops(ops) == 2 * 576 * (2 * 1024 * 2048 + 4096 * 4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector": "mpl"}, "'mlp'"),
        ({"projector": "mlp", "encoders": {"a": SMALL, "b": SMALL}}, "reads one encoder, got a, b"),
        (
            {"projector": "split_mlp", "encoders": {"a": SMALL, "b": replace(SMALL, image_size=64.0)}},
            "encoders.b: makes 16.0 tokens of 64.0, the first encoder 36.0 of 64.0",
        ),
    ],
)
def test_encoders_and_projectors_that_do_not_fit_together_are_told(changes, message):
    """InputError, which names the field."""
    vision = replace(Vision(encoders={"a": SMALL}), **changes)
    with pytest.raises(InputError, match=message):
        vision.operators(FORWARD, 1.0, 96.0, 96.0, 128.0)
    with pytest.raises(InputError, match=message):
        vision.parameters(128.0)


def test_training_keeps_the_tensors_that_products_and_norms_read():
    """Per layer and token of a plain encoder, in BF16: 8 widths around attention and residuals, 2 inner widths; windows
    of 14 pad the 5 tensors of attention to 4,900 tokens."""
    vision = Vision(encoders={"large": SIGLIP_L})
    assert vision.activation_bytes(2.0, 384.0, 384.0) == 2 * 2 * 576 * 24 * (8 * 1024 + 2 * 4096)
    whole = 4 * 4096 * (8 * 768 + 2 * 3072)
    windowed = 8 * (4900 * 5 * 768 + 4096 * (3 * 768 + 2 * 3072))
    assert SAM_B.kept_bytes(1.0) == 2 * (whole + windowed)


def test_the_working_set_is_that_of_the_larger_encoder():
    """Twice residual and feed-forward of 4,096 patches of SAM, whose image is the larger one."""
    vision = model("deepseek-vl-7b").vision
    assert vision.working_bytes(3.0, 384.0, 384.0) == 3 * 2 * 4096 * (2 * 768 + 2 * 3072)


@pytest.mark.parametrize(
    ("name", "system", "pieces"),
    [
        ("deepseek-vl-1.3b", "DeepSeek-VL", {"siglip", "projector"}),
        ("deepseek-vl-7b", "DeepSeek-VL", {"siglip", "sam", "projector"}),
        ("deepseek-vl2-tiny", "DeepSeek-VL2", {"siglip", "projector"}),
        ("deepseek-vl2-small", "DeepSeek-VL2", {"siglip", "projector"}),
        ("deepseek-vl2", "DeepSeek-VL2", {"siglip", "projector"}),
        ("janus-1.3b", "Janus", {"siglip", "projector"}),
        ("janus-pro-1b", "Janus-Pro", {"siglip", "projector"}),
        ("janus-pro-7b", "Janus-Pro", {"siglip", "projector"}),
        ("janusflow-1.3b", "JanusFlow", {"siglip", "projector"}),
    ],
)
def test_the_five_systems_stand_in_the_catalogue(name, system, pieces):
    """With the pieces of their checkpoints, and a source for every group of fields."""
    found = model(name)
    assert found.system == system
    assert set(found.vision.parameters(found.hidden_size)) == pieces
    assert found.source[""]
    assert found.vision.source
    assert {f"official.{key}" for key in found.official} <= set(found.source)
