"""Imported configs: exact counts against the public classes, nothing unknown taken for a dense model."""

import json
from pathlib import Path

import pytest

from sextant.simulator.errors import InputError
from sextant.workloads import models, parameters
from sextant.workloads.huggingface import FAMILIES, import_config

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "hf_configs"
FILES = sorted(CONFIGS.glob("*.json")) if CONFIGS.is_dir() else []

DENSE = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 640, "vocab_size": 1000,
}  # fmt: skip
LATENT = {
    **DENSE, "num_key_value_heads": 8, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "moe_intermediate_size": 128, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
SMALL = {
    "llama": DENSE, "qwen2": DENSE, "qwen3": {**DENSE, "head_dim": 64},
    "qwen3_moe": {**DENSE, "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    "mixtral": {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"}, "deepseek_v3": LATENT, "kimi_k2": LATENT,
}  # fmt: skip
CHANGES = [
    ("llama", {"tie_word_embeddings": True}), ("llama", {"attention_bias": True}), ("llama", {"head_dim": 48}),
    ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {"attention_bias": True}),
    ("qwen3_moe", {"attention_bias": True}),
    ("deepseek_v2", {"q_lora_rank": None}), ("deepseek_v3", {"q_lora_rank": None}),
    ("deepseek_v3", {"first_k_dense_replace": 0}), ("mixtral", {"num_key_value_heads": 8}),
]  # fmt: skip


def reference(config: dict) -> int:
    """Parameters of the public class on torch's meta device, without MTP modules, which it does not build.

    The router's correction bias of DeepSeek-V3 is a buffer there and a weight of the checkpoint: it is added.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = "deepseek_v3" if config["model_type"] == "kimi_k2" else config["model_type"]
    given = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "auto_map")}
    with torch.device("meta"):
        found = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **given))
    # A tied head is one tensor under two names; parameters() yields it once.
    biases = sum(b.numel() for name, b in found.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(p.numel() for p in found.parameters()) + biases


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "changes"), [*((kind, {}) for kind in SMALL), *CHANGES])
def test_small_configs_count_as_their_classes(kind, changes):
    """Every family, and every optional key that changes the count."""
    config = {"model_type": kind, **SMALL[kind], **changes}
    assert int(parameters.n_parameters(import_config(config, "small").model)) == reference(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not FILES, reason="no folder shared/hf_configs beside the repository")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_genuine_configs_count_as_their_classes(path):
    """Whole models, to the last parameter."""
    config = json.loads(path.read_text())
    assert int(parameters.n_parameters(import_config(config, path.stem).model)) == reference(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "kimi_k2"])
def test_configs_that_the_public_library_saves_are_read(kind):
    """It writes keys under names of its own, and many that change nothing."""
    transformers = pytest.importorskip("transformers")
    saved = json.loads(transformers.AutoConfig.for_model(kind, **SMALL[kind]).to_json_string(use_diff=False))
    config = {"model_type": kind, **SMALL[kind]}
    found = import_config(saved, "small")
    assert found.model == import_config(config, "small").model
    assert "rms_norm_eps" in found.unused and not {"num_experts", "num_local_experts"} & set(found.unused)


@pytest.mark.skipif(not FILES, reason="no folder shared/hf_configs beside the repository")
def test_the_config_of_deepseek_v3_is_the_model_of_the_catalogue():
    """Field by field, but for what people wrote about it."""
    (path,) = (file for file in FILES if "DeepSeek-V3" in file.name)
    found, known = import_config(json.loads(path.read_text()), "deepseek-v3").model, models.model("deepseek-v3")
    for field in type(known).__dataclass_fields__:
        if field not in ("source", "official"):
            assert getattr(found, field) == getattr(known, field), field


def test_keys_that_change_nothing_are_listed():
    """In the config's order; those that were looked at are not."""
    config = {"rope_theta": 1e6, "model_type": "llama", **DENSE, "mlp_bias": False, "pad_token_id": 3}
    assert import_config(config, "x").unused == ("rope_theta", "pad_token_id")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt_oss", **DENSE}, "model_type: architecture 'gpt_oss' is not known, and is not taken"),
        ({"model_type": "lama", **DENSE}, "did you mean 'llama'"),
        (DENSE, "model_type: is missing"),
        ([], "expected the object of a config.json, got list"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], **DENSE}, "architectures: llama"),
        ({"model_type": "llama", "architectures": "LlamaForCausalLM", **DENSE}, "architectures: llama is known as"),
        ({"model_type": "llama", **DENSE, "num_local_experts": 8}, "num_local_experts: a llama model has none, got 8"),
        ({"model_type": "qwen2", **DENSE, "vision_config": {}}, "vision_config: a qwen2 model has none"),
        ({"model_type": "llama", **DENSE, "mlp_bias": True}, "mlp_bias: expected False or None, got True"),
        ({"model_type": "qwen3_moe", **SMALL["qwen3_moe"], "decoder_sparse_step": 2}, "sparse_step: expected 1"),
        ({"model_type": "qwen3_moe", **SMALL["qwen3_moe"], "mlp_only_layers": [0]}, r"layers: expected \[\]"),
        ({"model_type": "mixtral", **SMALL["mixtral"], "sliding_window": 4096}, "window: expected None, got 4096"),
        ({"model_type": "deepseek_v3", **LATENT, "attention_bias": True}, "attention_bias: expected False"),
        ({"model_type": "deepseek_v3", **LATENT, "moe_layer_freq": 2}, "moe_layer_freq: expected 1"),
        ({"model_type": "deepseek_v3", **LATENT, "topk_method": "best"}, "topk_method: expected 'noaux_tc'"),
        ({"model_type": "deepseek_v3", **LATENT, "topk_method": "greedy"}, "topk_method: expected 'noaux_tc'"),
        ({"model_type": "deepseek_v2", **LATENT, "topk_method": "best"}, "topk_method: unknown value 'best'"),
        ({"model_type": "deepseek_v2", **LATENT, "mlp_bias": True}, "mlp_bias: expected False or None, got True"),
        ({"model_type": "llama", **DENSE, "layer_types": ["sliding_attention"]}, "layer_types: expected full_att"),
        ({"model_type": "qwen2", **DENSE, "use_sliding_window": True}, "use_sliding_window: expected False"),
        ({"model_type": "qwen3_moe", **SMALL["qwen3_moe"], "n_shared_experts": 1}, "n_shared_experts: a qwen3_moe"),
        ({"model_type": "mixtral", **SMALL["mixtral"], "num_nextn_predict_layers": 1}, "num_nextn_predict_layers: a m"),
        ({"model_type": "qwen3_moe", **SMALL["qwen3_moe"], "num_local_experts": 9}, "num_experts says 8, got 9"),
        ({"model_type": "deepseek_v3", **LATENT, "num_experts_per_tok": 5}, "num_experts_per_tok: a token has 4"),
        ({"model_type": "deepseek_v3", **LATENT, "n_group": 3}, "n_group: must divide the 8 routed experts, got 3"),
        ({"model_type": "deepseek_v3", **LATENT, "topk_group": 5}, "topk_group: must be at most n_group, 4, got 5"),
        ({"model_type": "deepseek_v3", **LATENT, "first_k_dense_replace": 4}, "first_k_dense_replace: must be at most"),
        ({"model_type": "llama", **DENSE, "num_key_value_heads": 3}, "num_key_value_heads: must divide"),
        ({"model_type": "llama", **DENSE, "num_key_value_heads": 0}, "num_key_value_heads: expected 1 to"),
        ({"model_type": "llama", **DENSE, "head_dim": 0}, "head_dim: expected 1 to"),
        ({"model_type": "llama", **DENSE, "hidden_size": 250}, "hidden_size: without head_dim it must be a multiple"),
        ({"model_type": "llama", **DENSE, "hidden_size": "4096"}, "hidden_size: expected a whole number, got '4096'"),
        ({"model_type": "llama", **DENSE, "hidden_size": True}, "hidden_size: expected a whole number, got True"),
        ({"model_type": "llama", **DENSE, "hidden_size": 0}, r"hidden_size: expected 1 to 1e\+09, got 0"),
        ({"model_type": "llama", **DENSE, "vocab_size": 1e300}, "vocab_size: expected 1 to"),
        ({"model_type": "llama", **DENSE, "vocab_size": float("nan")}, "vocab_size: expected a whole number, got nan"),
        ({"model_type": "llama", **DENSE, "tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=message):
        import_config(config, "x")


def test_everything_that_is_missing_is_named_at_once():
    """Not one after the other."""
    with pytest.raises(InputError) as raised:
        import_config({"model_type": "deepseek_v3"}, "x")
    family = FAMILIES["deepseek_v3"]
    assert {problem.key for problem in raised.value.problems} == {*family.required, *family.stated}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, found in FAMILIES.items() for key in found.stated])
def test_a_key_for_which_the_class_has_a_number_of_its_own_must_be_stated(kind, key):
    """Left out, DeepseekV3Config takes q_lora_rank 1536 and Qwen2Config 32 key-value heads, of whatever model."""
    config = {"model_type": kind, **SMALL[kind]}
    config.pop(key, None)
    with pytest.raises(InputError, match=f"{key}: is missing"):
        import_config(config, "x")
    nothing = import_config({**config, key: None, **({"topk_group": 1} if key == "n_group" else {})}, "x").model
    expected = {**FAMILIES[kind].stated, "num_key_value_heads": config["num_attention_heads"]}[key]
    assert getattr(nothing, key) == expected


def test_a_greedy_router_reads_no_groups():
    """As in the public class; and the import says so."""
    found = import_config({"model_type": "deepseek_v2", **LATENT, "topk_method": "greedy"}, "x")
    assert (found.model.n_group, found.model.topk_group) == (1.0, 1.0)
    assert any("n_group and topk_group change nothing" in note for note in found.notes)
    limited = import_config({"model_type": "deepseek_v2", **LATENT, "topk_method": "group_limited_greedy"}, "x")
    assert (limited.model.n_group, limited.model.topk_group, limited.notes) == (4.0, 2.0, ())


def test_defaults_that_follow_from_other_keys():
    """Key-value heads and head size, where the class derives them too."""
    config = {"model_type": "llama", **DENSE}
    del config["num_key_value_heads"]
    found = import_config(config, "x").model
    assert found.num_key_value_heads == 8.0 and found.head_dim == 32.0
