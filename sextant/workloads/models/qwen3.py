"""Qwen3, dense: the 4B and 8B variants, which small inference engines are shown with."""

from dataclasses import replace

from sextant.workloads.transformer import Transformer

_CARD = "model cards of Qwen/Qwen3-4B and Qwen/Qwen3-8B: 4.0B and 8.2B, without embeddings 3.6B and 6.95B"

_8B = Transformer(
    name="qwen3-8b",
    system="Qwen3",
    attention="gqa",
    hidden_size=4096.0,
    num_hidden_layers=36.0,
    num_attention_heads=32.0,
    num_key_value_heads=8.0,
    head_dim=128.0,
    vocab_size=151936.0,
    intermediate_size=12288.0,
    qk_norm=True,
    official={"n_parameters": 8.2e9},
    source={
        "": "config.json of Qwen/Qwen3-8B and Qwen/Qwen3-4B as quoted in public repositories",
        "official.n_parameters": _CARD,
    },
)

MODELS = (
    replace(
        _8B,
        name="qwen3-4b",
        hidden_size=2560.0,
        intermediate_size=9728.0,
        tie_word_embeddings=True,
        official={"n_parameters": 4.0e9},
    ),
    _8B,
)
