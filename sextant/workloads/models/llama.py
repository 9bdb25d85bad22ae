"""Llama 3.1, dense with grouped-query attention: the 405B variant, a published reference for cache and FLOPs."""

from sextant.workloads.transformer import Transformer

MODELS = (
    Transformer(
        name="llama-3.1-405b",
        system="Llama 3.1",
        attention="gqa",
        hidden_size=16384.0,
        num_hidden_layers=126.0,
        num_attention_heads=128.0,
        num_key_value_heads=8.0,
        head_dim=128.0,
        vocab_size=128256.0,
        intermediate_size=53248.0,
        official={"n_parameters": 405e9, "n_activated_parameters": 405e9},
        source={
            "": "Llama-3.1-405B config.json as quoted in public model tables; cache size as in arXiv:2505.09343v2",
        },
    ),
)
