"""DeepSeek-V3, 671 B parameters, 37 B activated (arXiv:2412.19437)."""

from sextant.workloads.transformer import Transformer

_CONFIG = "deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json"
_WEIGHTS = "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md"
_REPORT = "DeepSeek-V3 report arXiv:2412.19437"

MODELS = (
    Transformer(
        name="deepseek-v3",
        system="DeepSeek-V3",
        attention="mla",
        hidden_size=7168.0,
        num_hidden_layers=61.0,
        num_attention_heads=128.0,
        num_key_value_heads=128.0,
        vocab_size=129280.0,
        intermediate_size=18432.0,
        q_lora_rank=1536.0,
        kv_lora_rank=512.0,
        qk_nope_head_dim=128.0,
        qk_rope_head_dim=64.0,
        v_head_dim=128.0,
        first_k_dense_replace=3.0,
        moe_intermediate_size=2048.0,
        n_routed_experts=256.0,
        n_shared_experts=1.0,
        num_experts_per_tok=8.0,
        n_group=8.0,
        topk_group=4.0,
        topk_method="noaux_tc",
        num_nextn_predict_layers=1.0,
        official={"n_parameters": 671e9, "n_activated_parameters": 37e9, "mtp_parameters": 11.5e9},
        source={
            "": _CONFIG,
            "num_nextn_predict_layers": _WEIGHTS,
            "official.n_parameters": _WEIGHTS + ", 61 layers without MTP",
            "official.n_activated_parameters": _REPORT + " s4.2",
            "official.mtp_parameters": _WEIGHTS + ", without the shared embedding and head",
        },
    ),
)
