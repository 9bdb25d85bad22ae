"""Sizes of models: against published counts, and against the operators that the model runs."""

import numpy as np
import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters
from sextant.workloads.models import catalogue, model


def test_deepseek_v3_has_the_published_number_of_parameters():
    """671.03 B without MTP; README_WEIGHTS.md says 671 B, a recount of the config 671.025 B without norms."""
    v3 = model("deepseek-v3")
    assert parameters.n_parameters(v3) == pytest.approx(671.03e9, rel=1e-5)
    assert 36.6e9 <= parameters.activated_parameters(v3) <= 37.6e9
    assert 36.6e9 <= parameters.activated_parameters(v3, embedding=True) <= 37.6e9
    # Published as 11.5 B; layer 11.51 B, and the (2 hidden, hidden) projection of 0.10 B.
    assert parameters.mtp_parameters(v3) == pytest.approx(11.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "kv_bytes"), [("deepseek-v3", 70_272), ("qwen-2.5-72b", 327_680), ("llama-3.1-405b", 516_096)]
)
def test_the_cache_of_one_token_is_exact(name, kv_bytes):
    """ISCA25 Insights Table 1, in BF16."""
    assert parameters.kv_bytes_per_token(model(name)) == kv_bytes


@pytest.mark.parametrize(("name", "flops"), [("deepseek-v3", 250e9), ("deepseek-v2", 155e9)])
def test_training_flops_per_token_are_within_one_percent(name, flops):
    """ISCA25 Insights Table 2, causal at 4,096 tokens."""
    assert parameters.training_flops_per_token(model(name), 4096.0) == pytest.approx(flops, rel=0.01)


def test_the_published_qwen_flops_are_below_six_per_weight():
    """Table 2 prints 394 GFLOP for Qwen-72B, less than 6 FLOPs for each of its weights: no attention law reaches it."""
    qwen = model("qwen-2.5-72b")
    assert 6 * parameters.activated_parameters(qwen) > 394e9 * 1.05


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_parameters_are_the_weights_of_the_forward_products(name):
    """Each weight matrix is one operand of one product: counting operators and counting parameters must agree."""
    found = model(name)
    step = found.step(Load(phase="training", batch=1.0, context_tokens=64.0), Plan())
    weights: dict[str, float] = {}
    for op in step.ops:
        if op.phase != "forward" or op.kind not in ("gemm", "grouped_gemm"):
            continue
        size = op.shape["n"] * op.shape["k"] * op.shape.get("groups", 1.0)
        weights[op.part] = weights.get(op.part, 0.0) + float(size)
    sizes = parameters.layer_parameters(found)
    for part in ("dense_layer", "moe_layer", "head"):
        if part not in step.layers or (part == "head" and found.tie_word_embeddings):
            continue
        # The mappings of residual streams are multiplied inside their own kernel.
        products = sum(float(n) for piece, n in sizes[part].items() if piece not in ("norm", "hyper_connection"))
        # What is not a product: norms of latents, biases, the router's correction bias.
        assert weights[part] == pytest.approx(products, rel=2e-4)


def test_tied_embeddings_count_once():
    """A tied head multiplies the embedding's weights: fewer parameters, the same FLOPs."""
    from dataclasses import replace

    v3 = model("deepseek-v3")
    tied = replace(v3, tie_word_embeddings=True)
    vocabulary = v3.vocab_size * v3.hidden_size
    assert parameters.n_parameters(v3) - parameters.n_parameters(tied) == vocabulary
    assert parameters.training_flops_per_token(tied, 4096.0) == parameters.training_flops_per_token(v3, 4096.0)


def test_a_swept_dimension_gives_an_array_of_sizes():
    """Array result = scalar results."""
    from dataclasses import replace

    v3 = model("deepseek-v3")
    experts = np.array([64.0, 128.0, 256.0])
    swept = parameters.n_parameters(replace(v3, n_routed_experts=experts))
    single = [parameters.n_parameters(replace(v3, n_routed_experts=e)) for e in experts]
    np.testing.assert_array_equal(swept, single)


def test_by_piece_adds_up():
    """The pieces of a card are the whole."""
    for found in catalogue().values():
        assert sum(parameters.by_piece(found).values()) == pytest.approx(parameters.n_parameters(found), rel=1e-12)
