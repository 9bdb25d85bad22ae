"""Qwen 2.5, dense with grouped-query attention: the 72B variant, a published reference for cache and FLOPs."""

from sextant.workloads.transformer import Transformer

MODELS = (
    Transformer(
        name="qwen-2.5-72b",
        system="Qwen 2.5",
        attention="gqa",
        hidden_size=8192.0,
        num_hidden_layers=80.0,
        num_attention_heads=64.0,
        num_key_value_heads=8.0,
        head_dim=128.0,
        vocab_size=152064.0,
        intermediate_size=29568.0,
        attention_bias=True,
        official={"n_parameters": 72.7e9, "n_activated_parameters": 72.7e9},
        source={
            "": "Qwen2.5-72B config.json as quoted in public model tables; cache size confirmed by arXiv:2505.09343v2",
            "official.n_parameters": "Qwen/Qwen2.5-72B model card",
        },
    ),
)
