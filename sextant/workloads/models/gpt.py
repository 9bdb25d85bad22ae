"""GPT models that Megatron-LM was measured with: 22 billion to one trillion parameters, all of one structure."""

from __future__ import annotations

from sextant.workloads.transformer import Transformer

_SOURCE = {
    "": "arXiv:2205.05198 (Reducing Activation Recomputation in Large Transformer Models) Table 3; vocabulary 51,200, "
    "sequences of 2,048; learned positions, tied embeddings, biases, GELU and LayerNorm as in GPT-3 (arXiv:2005.14165)",
    "attention_dropout": "0.1, the default of Megatron-LM's arguments; the paper's memory formula counts its masks",
    "hidden_dropout": "0.1, the default of Megatron-LM's arguments; the paper's memory formula counts its masks",
}


def _gpt(name: str, heads: float, hidden: float, layers: float, n_parameters: float) -> Transformer:
    return Transformer(
        name=name, system="Megatron-LM GPT", attention="gqa", hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden / heads, vocab_size=51200.0,
        intermediate_size=4.0 * hidden, hidden_act="gelu", attention_bias=True, attention_output_bias=True,
        max_position_embeddings=2048.0, attention_dropout=0.1, hidden_dropout=0.1, tie_word_embeddings=True,
        official={"n_parameters": n_parameters}, source=_SOURCE,
    )  # fmt: skip


MODELS = (
    _gpt("megatron-22b", 64.0, 6144.0, 48.0, 22e9),
    _gpt("gpt3-175b", 96.0, 12288.0, 96.0, 175e9),
    _gpt("megatron-530b", 128.0, 20480.0, 105.0, 530e9),
    _gpt("megatron-1t", 160.0, 25600.0, 128.0, 1e12),
)
