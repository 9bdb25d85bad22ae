"""DeepSeek-Coder: dense, 1.3 B, 6.7 B and 33 B parameters, a window of 16K tokens; 33 B has grouped-query attention.

Filling in the middle orders the same tokens otherwise: its cost is that of a sequence of the same length.
"""

from dataclasses import replace

from sextant.workloads.transformer import Transformer

_PAPER = "DeepSeek-Coder arXiv:2401.14196 Table 2 and configs of its derivatives"
_SOURCE = {
    "": _PAPER,
    "vocab_size": f"{_PAPER}: 32,256 rows, padded; the tokenizer has 32,000",
    "official.n_parameters": "the number in the model's name, in units of 1e9",
}

_1_3B = Transformer(
    name="deepseek-coder-1.3b",
    system="DeepSeek-Coder",
    attention="gqa",
    hidden_size=2048.0,
    num_hidden_layers=24.0,
    num_attention_heads=16.0,
    num_key_value_heads=16.0,
    head_dim=128.0,
    vocab_size=32256.0,
    intermediate_size=5504.0,
    official={"n_parameters": 1.3e9},
    source=_SOURCE,
)

MODELS = (
    _1_3B,
    replace(
        _1_3B, name="deepseek-coder-6.7b", hidden_size=4096.0, num_hidden_layers=32.0, num_attention_heads=32.0,
        num_key_value_heads=32.0, intermediate_size=11008.0, official={"n_parameters": 6.7e9},
    ),
    replace(
        _1_3B, name="deepseek-coder-33b", hidden_size=7168.0, num_hidden_layers=62.0, num_attention_heads=56.0,
        num_key_value_heads=8.0, intermediate_size=19200.0, official={"n_parameters": 33e9},
    ),
)  # fmt: skip
