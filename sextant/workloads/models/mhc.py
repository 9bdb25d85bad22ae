"""The models of mHC (arXiv:2512.24880): mixtures of experts with four residual streams, 3, 9 and 27 B parameters.

The paper does not print the width of the leading dense layer; it is assumed and marked so.
"""

from dataclasses import replace

from sextant.workloads.transformer import Transformer

_PAPER = "mHC arXiv:2512.24880 App. A.1"
_SOURCE = {
    "": _PAPER,
    "tie_word_embeddings": f"{_PAPER}: the vocabulary's parameters are two matrices of 129,280 rows",
    "vocab_size": "inferred, not published: vocabulary parameters of 331, 496 and 662 M are twice 129,280 rows",
    "q_lora_rank": "inferred, not published: queries are not compressed",
    "official.n_parameters": f"{_PAPER}, total with embedding and head",
    "official.n_activated_parameters": f"{_PAPER}; without the input embedding (inferred), with the mappings of mHC",
    "official.vocabulary_parameters": f"{_PAPER}, embedding and head",
}

_27B = Transformer(
    name="mhc-27b",
    system="mHC",
    attention="mla",
    hidden_size=2560.0,
    num_hidden_layers=30.0,
    num_attention_heads=32.0,
    num_key_value_heads=32.0,
    vocab_size=129280.0,
    intermediate_size=12288.0,
    kv_lora_rank=512.0,
    qk_nope_head_dim=128.0,
    qk_rope_head_dim=64.0,
    v_head_dim=128.0,
    first_k_dense_replace=1.0,
    moe_intermediate_size=1536.0,
    n_routed_experts=72.0,
    n_shared_experts=2.0,
    num_experts_per_tok=6.0,
    n_streams=4.0,
    sinkhorn_iters=20.0,
    official={"n_parameters": 27.0e9, "n_activated_parameters": 4.14e9, "vocabulary_parameters": 662e6},
    source={
        **_SOURCE,
        "intermediate_size": "assumed, not published: as DeepSeek-VL2, of the same hidden and expert width",
    },
)

MODELS = (
    replace(
        _27B,
        name="mhc-3b",
        hidden_size=1280.0,
        num_hidden_layers=12.0,
        num_attention_heads=16.0,
        num_key_value_heads=16.0,
        intermediate_size=6848.0,
        moe_intermediate_size=896.0,
        n_routed_experts=64.0,
        official={"n_parameters": 2.97e9, "n_activated_parameters": 612e6, "vocabulary_parameters": 331e6},
        source={
            **_SOURCE,
            "intermediate_size": "assumed, not published: as DeepSeek-VL2-Tiny, of the same hidden and expert width",
        },
    ),
    replace(
        _27B,
        name="mhc-9b",
        hidden_size=1920.0,
        num_hidden_layers=18.0,
        num_attention_heads=24.0,
        num_key_value_heads=24.0,
        intermediate_size=10240.0,
        moe_intermediate_size=1280.0,
        n_routed_experts=64.0,
        official={"n_parameters": 9.18e9, "n_activated_parameters": 1.66e9, "vocabulary_parameters": 496e6},
        source={**_SOURCE, "intermediate_size": "assumed, not published: eight experts' widths, as in mHC-27B"},
    ),
    _27B,
)
