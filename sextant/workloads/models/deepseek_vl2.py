"""DeepSeek-VL2, Tiny, Small and base: mixture-of-experts language models that see an image in tiles of 384 pixels."""

from dataclasses import replace

from sextant.workloads.transformer import Transformer
from sextant.workloads.vision import Encoder, Vision

_PAPER = "DeepSeek-VL2 arXiv:2412.10302"
_CONFIG = f"{_PAPER} Table 1; the three Hugging Face configs for the feed-forward widths"
_SOURCE = {
    "": _CONFIG,
    "official.n_language_parameters": f"{_PAPER} Table 2, language model alone",
    "official.n_activated_language_parameters": f"{_PAPER} Table 2, language model alone, without the input embedding",
    "official.n_activated_parameters": f"{_PAPER} Table 3 and README, with the vision encoder",
}

SO400M = Encoder(
    hidden_size=1152.0, num_hidden_layers=27.0, num_attention_heads=16.0, intermediate_size=4304.0, image_size=384.0,
    patch_size=14.0, pooling_head=True,
)  # fmt: skip

_VISION = Vision(
    encoders={"siglip": SO400M},
    projector="downsample_mlp",
    max_tiles=9.0,
    max_tiled_images=2.0,
    source={
        "encoders.siglip": f"SigLIP-SO400M-384: {_PAPER} s2; deepseek-ai/Janus siglip_vit.py",
        "projector": "deepseek-ai/DeepSeek-VL2 modeling_deepseek_vl_v2.py",
        "max_tiles": f"{_PAPER} s2; tiling is off for more than two images",
        "max_tiled_images": f"{_PAPER} s2",
    },
)

_TINY = Transformer(
    name="deepseek-vl2-tiny",
    system="DeepSeek-VL2",
    attention="gqa",
    hidden_size=1280.0,
    num_hidden_layers=12.0,
    num_attention_heads=10.0,
    num_key_value_heads=10.0,
    head_dim=128.0,
    vocab_size=129280.0,
    intermediate_size=6848.0,
    first_k_dense_replace=1.0,
    moe_intermediate_size=896.0,
    n_routed_experts=64.0,
    n_shared_experts=2.0,
    num_experts_per_tok=6.0,
    vision=_VISION,
    official={
        "n_language_parameters": 3e9, "n_activated_language_parameters": 0.57e9, "n_activated_parameters": 1.0e9,
    },
    source=_SOURCE,
)  # fmt: skip

_SMALL = replace(
    _TINY,
    name="deepseek-vl2-small",
    attention="mla",
    hidden_size=2048.0,
    num_hidden_layers=27.0,
    num_attention_heads=16.0,
    num_key_value_heads=16.0,
    vocab_size=102400.0,
    intermediate_size=10944.0,
    kv_lora_rank=512.0,
    qk_nope_head_dim=128.0,
    qk_rope_head_dim=64.0,
    v_head_dim=128.0,
    moe_intermediate_size=1408.0,
    official={
        "n_language_parameters": 16e9, "n_activated_language_parameters": 2.4e9, "n_activated_parameters": 2.8e9,
    },
    source={**_SOURCE, "vocab_size": f"{_PAPER} Table 1; a public copy of the config lists 129280"},
)  # fmt: skip

_BASE = replace(
    _SMALL,
    name="deepseek-vl2",
    hidden_size=2560.0,
    num_hidden_layers=30.0,
    num_attention_heads=32.0,
    num_key_value_heads=32.0,
    vocab_size=129280.0,
    intermediate_size=12288.0,
    moe_intermediate_size=1536.0,
    n_routed_experts=72.0,
    topk_method="noaux_tc",
    official={
        "n_language_parameters": 27e9, "n_activated_language_parameters": 4.1e9, "n_activated_parameters": 4.5e9,
    },
    source=_SOURCE,
)  # fmt: skip

MODELS = (_TINY, _SMALL, _BASE)
