"""Language models of the catalogue against the modules of transformers and, for mHC and Engram, of ``references``.

Modules stand on the meta device: their sizes and products are real, their values are not. Counts must agree to the last
parameter, FLOPs of matrix products to rounding.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from references import absorbed, flops, language, streams
from transformers import DynamicCache
from transformers.modeling_layers import MtpModel

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters
from sextant.workloads.models import catalogue, model
from sextant.workloads.transformer import Transformer

NAMES = sorted(catalogue())
BATCH, TOKENS = 2, 128

#: Sums of products in FP64.
ROUNDING = 1e-12

#: Operators that count elementwise arithmetic, and a convolution whose bytes alone the operators count: neither side
#: of these pairs is seen by the other.
UNSEEN_OPS, UNSEEN_MODULES = ("engram_gate",), ("short_conv",)


@cache
def language_only(name: str) -> Transformer:
    """The catalogue's record without image encoders and generators."""
    return replace(model(name), vision=None, generation=None)


def shallow(found: Transformer, depth: float) -> Transformer:
    """The first layers of a model: each kind of layer it has occurs, counts of layers are linear in the rest."""
    memory = tuple(layer for layer in (1.0, depth) if found.engram_layers)
    dense = min(found.first_k_dense_replace, depth - 1.0)
    return replace(found, num_hidden_layers=depth, first_k_dense_replace=dense, engram_layers=memory)


def module_of(found: Transformer) -> torch.nn.Module:
    return streams.StreamedModel(found) if streams.needs_streams(found) else language.language_model(found)


@cache
def reference(name: str) -> torch.nn.Module:
    """The module of that model at full depth, made once."""
    return module_of(language_only(name))


def ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros(batch, tokens, dtype=torch.long, device="meta")


def forward(module: torch.nn.Module) -> None:
    if isinstance(module, streams.StreamedModel):
        module(ids(BATCH, TOKENS))
    else:
        language.prefill(module, BATCH, TOKENS)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_that_of_the_module(name):
    """Every weight, norm and bias, at full depth."""
    assert int(parameters.language_parameters(language_only(name))) == language.n_parameters(
        language_only(name), reference(name)
    )


def test_the_record_of_deepseek_v3_is_its_published_configuration():
    """The module built from the published config.json itself, not from the record."""
    path = Path(__file__).parents[3] / "shared" / "hf_configs" / "deepseek-ai--DeepSeek-V3_config.json"
    if not path.is_file():
        pytest.skip(f"no published configuration at {path}")
    published = json.loads(path.read_text())
    sizes = {key: value for key, value in published.items() if hasattr(language.DeepseekV3Config, key)}
    sizes = {key: value for key, value in sizes.items() if isinstance(value, int | float | bool | None)}
    with torch.device("meta"):
        module = language.DeepseekV3ForCausalLM(language.DeepseekV3Config(**sizes))
    found = model("deepseek-v3")
    assert int(parameters.n_parameters(found)) == language.n_parameters(found, module)


@pytest.mark.parametrize("name", NAMES)
def test_activated_parameters_are_all_but_idle_experts_and_unread_rows(name):
    """All weights but the input embedding, the experts a token is not routed to and the table rows it does not read."""
    found, module = language_only(name), reference(name)
    expected = language.n_activated(found, module)
    if found.engram_layers:
        expected += len(found.engram_layers) * int(found.engram_dim) - streams.table_parameters(module)
    assert parameters.language_activated_parameters(found) == expected


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_a_prompt_are_those_of_the_forward_pass(name):
    """Two prompts of 128 tokens through four layers, logits of the last token of each; attention computes the full
    square."""
    found = shallow(language_only(name), 4.0)
    step = found.step(Load(phase="prefill", batch=BATCH, context_tokens=TOKENS), Plan())
    module = module_of(found)
    expected = flops.counted(lambda: forward(module), without=UNSEEN_MODULES)
    assert flops.step_flops(step, without=UNSEEN_OPS) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", ["deepseek-v3", "engram-27b"])
def test_flops_at_full_depth_with_all_that_only_one_side_counts(name):
    """Nothing left out: the convolution and the gates of Engram are far below one percent."""
    step = language_only(name).step(Load(phase="prefill", batch=BATCH, context_tokens=TOKENS), Plan())
    assert flops.step_flops(step) == pytest.approx(flops.counted(lambda: forward(reference(name))), rel=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if catalogue()[n].attention == "gqa"])
def test_flops_of_a_new_token_are_those_of_a_forward_pass_on_a_cache(name):
    """Grouped-query attention on a cache whose last token is the new one; two layers, which differ in nothing."""
    found = replace(language_only(name), num_hidden_layers=2.0)
    module = language.language_model(found)
    kept = DynamicCache(config=module.config)
    module(
        input_ids=ids(BATCH, TOKENS - 1), attention_mask=language.visible(BATCH, TOKENS - 1), past_key_values=kept,
        use_cache=True,
    )  # fmt: skip
    expected = flops.counted(
        lambda: module(
            input_ids=ids(BATCH, 1), attention_mask=torch.zeros(BATCH, 1, 1, TOKENS, device="meta"),
            position_ids=ids(1, 1), past_key_values=kept, use_cache=True,
        )
    )  # fmt: skip
    step = found.step(Load(phase="decode", batch=BATCH, context_tokens=TOKENS), Plan())
    assert flops.step_flops(step) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", [n for n in NAMES if catalogue()[n].attention == "mla"])
def test_absorbed_attention_costs_what_its_einsums_cost(name):
    """One layer's attention for one new token per request on a latent cache."""
    found = replace(
        language_only(name), num_hidden_layers=2.0, first_k_dense_replace=1.0, n_streams=1.0, engram_layers=()
    )
    attention = language.language_model(found).model.layers[0].self_attn
    rope = int(found.qk_rope_head_dim)

    def run() -> None:
        hidden = torch.zeros(BATCH, 1, int(found.hidden_size), device="meta")
        angles = torch.zeros(1, 1, rope // 2, dtype=torch.complex64, device="meta")
        absorbed.latent(attention, hidden, angles)
        kept = (
            torch.zeros(BATCH, TOKENS, int(found.kv_lora_rank), device="meta"),
            torch.zeros(BATCH, TOKENS, rope, device="meta"),
        )
        absorbed.decode(attention, hidden[:, 0], kept, angles)

    step = found.step(Load(phase="decode", batch=BATCH, context_tokens=TOKENS), Plan())
    ops = [op for op in step.ops if op.part == "dense_layer" and op.block == "attention"]
    assert flops.operator_flops(ops) == pytest.approx(flops.counted(run), rel=ROUNDING)


@pytest.mark.parametrize("q_lora_rank", [0.0, 24.0])
def test_absorbed_and_expanded_attention_are_the_same_function(q_lora_rank):
    """The einsums that are counted above compute what the package's module computes: real values on a small layer."""
    small = replace(
        model("deepseek-coder-v2-lite"), hidden_size=64.0, num_hidden_layers=1.0, num_attention_heads=4.0,
        num_key_value_heads=4.0, q_lora_rank=q_lora_rank, kv_lora_rank=32.0, qk_nope_head_dim=16.0,
        qk_rope_head_dim=8.0, v_head_dim=12.0, intermediate_size=64.0, vocab_size=64.0,
    )  # fmt: skip
    kind, config = type(language.language_model(small)), language.language_model(small).config
    torch.manual_seed(0)
    whole = kind(config).double().eval()
    attention = whole.model.layers[0].self_attn
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    hidden = torch.randn(2, 9, 64, dtype=torch.float64)
    angles = whole.model.rotary_emb(hidden, torch.arange(9)[None])
    future = torch.full((9, 9), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        expected = attention(hidden, attention_mask=future, position_embeddings=angles)[0][:, -1]
        found = absorbed.decode(attention, hidden[:, -1], absorbed.latent(attention, hidden, angles), angles[:, -1:])
    # The package's softmax and rotations are FP32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if catalogue()[n].num_nextn_predict_layers > 0])
def test_mtp_modules_have_the_parameters_of_the_package(name):
    """Two norms, the projection, a layer and the norm before the shared head; embedding and head are the model's."""
    found = language_only(name)
    n = int(found.num_nextn_predict_layers)
    main = language.language_model(replace(found, num_hidden_layers=found.first_k_dense_replace + 1.0), n_mtp=n)
    with torch.device("meta"):
        modules = MtpModel(main, n).layers
    assert int(parameters.mtp_parameters(found)) == language.n_parameters(found, modules)


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_training_are_those_of_autograd(name):
    """Forward and backward through two layers with logits of every token, without MTP.

    A fused attention kernel makes the scores a second time in its backward pass, eager code keeps them: that product is
    left out on our side. The counter mistakes the weight gradient of Engram's depthwise convolution for a dense one.
    """
    found = replace(shallow(language_only(name), 2.0), num_nextn_predict_layers=0.0)
    module = module_of(found)

    def run() -> None:
        if isinstance(module, streams.StreamedModel):
            logits = module(ids(BATCH, TOKENS), every=True)
        else:
            mask = language.visible(BATCH, TOKENS)
            logits = module(input_ids=ids(BATCH, TOKENS), attention_mask=mask, use_cache=False).logits
        logits.sum().backward()

    expected = flops.counted(run, without=UNSEEN_MODULES, gradients=True)
    step = found.step(Load(phase="training", batch=BATCH, context_tokens=TOKENS), Plan(micro_batch=float(BATCH)))
    again = sum(step.layers[op.part] * flops.scores_flops(op) for op in step.ops if op.variant == "backward")
    assert flops.step_flops(step, without=UNSEEN_OPS) - again == pytest.approx(expected, rel=ROUNDING)
