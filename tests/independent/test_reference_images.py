"""Models of the catalogue that read or make images, against the modules of transformers, diffusers and ``references``.

As for language models: on the meta device, counts to the last parameter, FLOPs to rounding.
"""

from dataclasses import replace
from functools import cache

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import torch
from references import flops, images, language
from transformers import DynamicCache

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters
from sextant.workloads.models import catalogue, model
from sextant.workloads.ops.memory import Place

NAMES = sorted(catalogue())
SEEING = [name for name in NAMES if model(name).vision is not None]
PAINTING = [name for name in NAMES if model(name).generation is not None]
PLACE = Place(part="vision", block="vision")
N_IMAGES = 2

#: Sums of products in FP64.
ROUNDING = 1e-12


@cache
def understanding_flops(name: str, n_images: int, tiles: int) -> int:
    """FLOPs of the towers and the projector, counted once for all images that become as many tiles."""
    return flops.counted(lambda: images.understand(name, n_images, tiles))


def tiles_of(name: str, height: int, width: int) -> int:
    """What an image is encoded as; only DeepSeek-VL2 cuts larger ones into tiles, the others resize them."""
    rows, columns = images.n_tiles(height, width)
    return 1 + rows * columns if images.family(name) == "vl2" else 1


@pytest.mark.parametrize("name", sorted({*SEEING, *PAINTING}))
def test_the_number_of_parameters_is_that_of_the_published_checkpoint(name):
    """Language model, image encoders with what they own but do not run, projectors, image generator."""
    assert int(parameters.n_parameters(model(name))) == images.checkpoint_parameters(name)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("janus-1.3b", 4.18), ("janus-pro-7b", 14.84), ("janusflow-1.3b", 4.09), ("deepseek-vl-1.3b", 3.95)],
)
def test_parameters_in_16_bits_are_the_published_files(name, gigabytes):
    """Sizes of the published weights, to the digit they are printed with."""
    if name not in NAMES:
        pytest.skip(f"{name} is not in the catalogue")
    assert 2e-9 * images.checkpoint_parameters(name) == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize(("height", "width"), [(384, 384), (768, 1152), (1024, 700)])
def test_flops_of_an_image_are_those_of_the_encoders(name, height, width):
    """Towers and projector."""
    expected = understanding_flops(name, N_IMAGES, tiles_of(name, height, width))
    found = model(name)
    ops = found.vision.operators(PLACE, float(N_IMAGES), float(height), float(width), found.hidden_size)
    assert flops.operator_flops(ops) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", {images.family(name): name for name in SEEING}.values())
def test_flops_of_training_the_encoders_are_those_of_autograd(name):
    """Forward and backward. A fused attention kernel makes the scores again in its backward pass; autograd spares the
    gradient of the pixels, which the operators count with the first product."""
    expected = flops.counted(lambda: images.understand(name, N_IMAGES).sum().backward(), gradients=True)
    found = model(name)
    place, tile = Place(part="vision", block="vision", training=True), float(images.TILE)
    ops = found.vision.operators(place, float(N_IMAGES), tile, tile, found.hidden_size)
    tiles = float(found.vision.n_encoded(tile, tile))
    again = sum(flops.scores_flops(op) * op.count for op in ops if op.variant == "backward")
    pixels = flops.operator_flops(op for op in ops if op.name.endswith("patches_dgrad"))
    assert flops.operator_flops(ops) - again - pixels == pytest.approx(tiles * expected, rel=ROUNDING)


@pytest.mark.parametrize("name", [name for name in PAINTING if images.family(name) == "flow"])
def test_the_autoencoder_of_another_checkpoint_is_that_of_diffusers(name):
    """JanusFlow decodes with SDXL's VAE, whose parameters are not its own."""
    found = sum(model(name).generation.external_parameters().values())
    assert int(found) == sum(p.numel() for p in images.vae().parameters())


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize(("height", "width"), [(384, 384), (768, 1152), (1024, 700), (1536, 384)])
def test_visual_tokens(name, height, width):
    """576 of 24 x 24 patches; DeepSeek-VL2: 14 x 14 per tile, with separators."""
    found = model(name).vision.n_tokens(float(height), float(width))
    assert found == images.n_visual_tokens(name, height, width)


@pytest.mark.parametrize("name", PAINTING)
def test_flops_of_a_sampling_step_are_those_of_what_surrounds_the_language_model(name):
    """Janus: the last token's embedding and the image head. JanusFlow: its shallow encoder and decoder."""
    found = model(name)
    expected = flops.counted(lambda: images.sampled(name, N_IMAGES))
    ops = found.generation.step_operators(PLACE, float(N_IMAGES), found.hidden_size)
    assert flops.operator_flops(ops) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", PAINTING)
def test_flops_of_the_pixels_are_those_of_the_decoder(name):
    """The VQ model's decoder of 24 x 24 tokens, or the VAE's of a 48 x 48 latent."""
    expected = flops.counted(lambda: images.decoded(name, N_IMAGES))
    ops = model(name).generation.decode_operators(PLACE, float(N_IMAGES))
    assert flops.operator_flops(ops) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", SEEING)
def test_flops_of_a_question_are_the_encoders_and_a_prompt_with_the_visual_tokens(name):
    """Two questions of 50 tokens on one image each; the language model cut to two layers."""
    found = replace(
        model(name), num_hidden_layers=2.0, first_k_dense_replace=min(model(name).first_k_dense_replace, 1.0)
    )
    height, width = 768, 1152
    tokens = 50 + images.n_visual_tokens(name, height, width)
    module = language.language_model(found)
    expected = understanding_flops(name, N_IMAGES, tiles_of(name, height, width))
    expected += flops.counted(lambda: language.prefill(module, N_IMAGES, tokens))
    load = Load(
        phase="image_understanding", batch=float(N_IMAGES), context_tokens=50.0, n_images=1.0,
        image_height=float(height), image_width=float(width),
    )  # fmt: skip
    assert flops.step_flops(found.step(load, Plan())) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", PAINTING)
def test_flops_of_a_sampling_step_of_the_whole_model(name):
    """Three images with guidance, so six rows, behind prompts of 50 tokens; the language model cut to two layers.

    Janus: one token, half-way through the image. JanusFlow: prompt, token of time and 576 tokens, all in every step.
    """
    found = replace(model(name), num_hidden_layers=2.0)
    body = language.language_model(found).model
    flow = images.family(name) == "flow"
    new, seen = (50 + 577, 50 + 577) if flow else (1, 50 + 288)
    kept = DynamicCache(config=body.config)
    if seen > new:
        body(input_ids=_ids(6, seen - new), attention_mask=language.visible(6, seen - new), past_key_values=kept)
    expected = flops.counted(lambda: images.sampled(name, 6))
    expected += flops.counted(
        lambda: body(
            input_ids=_ids(6, new), attention_mask=torch.zeros(6, 1, new, seen, device="meta"),
            position_ids=_ids(1, new), past_key_values=kept, use_cache=True,
        )
    )  # fmt: skip
    step = found.step(Load(phase="image_generation", batch=3.0, context_tokens=50.0, guidance=True), Plan())
    assert flops.step_flops(step) == pytest.approx(expected, rel=ROUNDING)


def _ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros(batch, tokens, dtype=torch.long, device="meta")
