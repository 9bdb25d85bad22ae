"""DeepSeek-V2, 236 B parameters, 21 B activated; DeepSeek-Coder-V2 has the same dimensions."""

from sextant.workloads.transformer import Transformer

_CONFIG = "deepseek-ai/DeepSeek-V3 inference/configs/config_236B.json; DeepSeek-V2 report s3.1.2"

MODELS = (
    Transformer(
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
        official={"n_parameters": 236e9, "n_activated_parameters": 21e9},
        source={"": _CONFIG, "official.n_parameters": "DeepSeek-Coder-V2 paper Table 2"},
    ),
)
