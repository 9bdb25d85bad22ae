"""DeepSeek-V2 and DeepSeek-Coder-V2, of the same dimensions: 236 B parameters, 21 B activated; Lite 16 B, 2.4 B.

Coder-V2 was trained further to 128K tokens of context; its cost per token differs by that alone.
"""

from dataclasses import replace

from sextant.workloads.transformer import Transformer

_CONFIG = "deepseek-ai/DeepSeek-V3 inference/configs/config_236B.json; DeepSeek-V2 report s3.1.2"
_LITE_CONFIG = "deepseek-ai/DeepSeek-V3 inference/configs/config_16B.json; DeepSeek-V2 report App. B.1"
_PAPER = "DeepSeek-Coder-V2 paper Table 2"
_ROUNDED = "total; activated without the input embedding"

_V2 = Transformer(
    name="deepseek-v2",
    system="DeepSeek-V2",
    attention="mla",
    hidden_size=5120.0,
    num_hidden_layers=60.0,
    num_attention_heads=128.0,
    num_key_value_heads=128.0,
    vocab_size=102400.0,
    intermediate_size=12288.0,
    q_lora_rank=1536.0,
    kv_lora_rank=512.0,
    qk_nope_head_dim=128.0,
    qk_rope_head_dim=64.0,
    v_head_dim=128.0,
    first_k_dense_replace=1.0,
    moe_intermediate_size=1536.0,
    n_routed_experts=160.0,
    n_shared_experts=2.0,
    num_experts_per_tok=6.0,
    n_group=8.0,
    topk_group=3.0,
    topk_method="group_limited_greedy",
    official={"n_parameters": 236e9, "n_activated_parameters": 21e9},
    source={"": _CONFIG, "official.n_parameters": _PAPER, "official.n_activated_parameters": f"{_PAPER} ({_ROUNDED})"},
)

_LITE = replace(
    _V2,
    name="deepseek-coder-v2-lite",
    system="DeepSeek-Coder-V2",
    hidden_size=2048.0,
    num_hidden_layers=27.0,
    num_attention_heads=16.0,
    num_key_value_heads=16.0,
    intermediate_size=10944.0,
    q_lora_rank=0.0,
    moe_intermediate_size=1408.0,
    n_routed_experts=64.0,
    n_group=1.0,
    topk_group=1.0,
    topk_method="greedy",
    official={"n_parameters": 15.7e9, "n_activated_parameters": 2.4e9},
    source={
        "": _LITE_CONFIG,
        "official.n_parameters": "DeepSeek-V2 report App. B.1; the Coder-V2 paper rounds to 16 B",
        "official.n_activated_parameters": f"DeepSeek-V2 report App. B.1; {_PAPER} ({_ROUNDED})",
    },
)

MODELS = (_V2, replace(_V2, name="deepseek-coder-v2-236b", system="DeepSeek-Coder-V2"), _LITE)
