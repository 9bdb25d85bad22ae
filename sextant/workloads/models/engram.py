"""Engram (arXiv:2601.07372): an n-gram lookup memory beside a mixture of experts, with the baselines of its Table 1.

All four have four residual streams (mHC). The paper prints neither the width of dense layers nor whether embedding and
head share their matrix; both are inferred from its parameter counts and marked so.
"""

from dataclasses import replace

from sextant.workloads.transformer import Transformer

_PAPER = "Engram arXiv:2601.07372"
_TABLE = f"{_PAPER} Table 1"
_WIDTH = (
    "inferred, not published: as DeepSeek-VL2, of the same hidden and expert width; gives Dense-4B its 3.8 B activated "
    "and 4.1 B total parameters"
)
_TIED = (
    "inferred, not published: with one vocabulary matrix of 0.331 B, 26.7, 39.5 and 4.1 B in total and 3.8 B activated "
    "without it come out as printed"
)
_LATENT = f"{_PAPER} Table 5: MLA with 32 heads; latent and head sizes as the models of mHC, arXiv:2512.24880 App. A.1"
_SOURCE = {
    "": f"{_PAPER} s4.1, App. A Table 5",
    "intermediate_size": _WIDTH,
    "tie_word_embeddings": _TIED,
    "kv_lora_rank": _LATENT,
    "q_lora_rank": "inferred, not published: queries are not compressed",
    "sinkhorn_iters": "mHC arXiv:2512.24880 App. A, 20 iterations",
    "official.n_parameters": f"{_TABLE}, total with one vocabulary matrix (inferred)",
    "official.n_activated_parameters": f"{_TABLE}, activated without the token embedding, whose matrix the head shares "
    "(inferred)",
}

_MOE = Transformer(
    name="moe-27b",
    system="Engram",
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
    tie_word_embeddings=True,
    n_streams=4.0,
    sinkhorn_iters=20.0,
    official={"n_parameters": 26.7e9, "n_activated_parameters": 3.8e9},
    source=_SOURCE,
)

_TABLES = {
    "engram_rows": f"{_PAPER} App. A Table 5, rows of each table; the tables' own sizes are primes from there upwards",
    "official.engram_table_parameters": f"{_TABLE}, Engram parameters: both layers' tables",
}

_ENGRAM = replace(
    _MOE,
    name="engram-27b",
    n_routed_experts=55.0,
    engram_layers=(2.0, 15.0),
    engram_orders=(2.0, 3.0),
    engram_heads=8.0,
    engram_dim=1280.0,
    engram_rows=2262400.0,
    engram_conv_kernel=4.0,
    official={**_MOE.official, "engram_table_parameters": 5.7e9},
    source={**_SOURCE, **_TABLES},
)

MODELS = (
    _ENGRAM,
    replace(
        _ENGRAM,
        name="engram-40b",
        engram_rows=7239680.0,
        official={**_MOE.official, "n_parameters": 39.5e9, "engram_table_parameters": 18.5e9},
    ),
    _MOE,
    replace(
        _MOE,
        name="dense-4b",
        first_k_dense_replace=0.0,
        moe_intermediate_size=0.0,
        n_routed_experts=0.0,
        n_shared_experts=0.0,
        num_experts_per_tok=0.0,
        official={"n_parameters": 4.1e9, "n_activated_parameters": 3.8e9},
    ),
)
