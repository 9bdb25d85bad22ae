"""Engram (arXiv:2601.07372): an n-gram lookup memory beside a mixture of experts, with the baselines of its Table 1.

All four have four residual streams (mHC). The paper prints neither the width of dense layers nor whether embedding and
head share their matrix; both are inferred from its parameter counts and marked so. Of the models with which it weighs
experts against tables (s3.1) it prints P_tot, P_act and the experts alone: their shapes are inferred whole.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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

_SWEEP = f"{_PAPER} s3.1"
_SHAPE = {
    "": f"{_SWEEP}: P_tot, P_act and routed experts; the shape is inferred, not published",
    "n_routed_experts": f"{_SWEEP}, at rho = 100%",
    "num_experts_per_tok": f"inferred, not published: with six, 46 and 43 experts are 40% of what is unused ({_SWEEP})",
    "hidden_size": "inferred, not published: of the widths with heads and depths as in the models of mHC "
    "(arXiv:2512.24880 App. A.1), one that gives P_act and P_tot",
    "moe_intermediate_size": "inferred, not published: (P_tot - P_act) / (experts - 6) is one expert in all layers",
    "intermediate_size": "inferred, not published: what is left of P_act",
    "tie_word_embeddings": _TIED,
    "engram_layers": f"inferred, not published: as the 3B model of {_PAPER} s6.2",
    "engram_dim": f"inferred, not published: 1e7 slots are 13 B parameters ({_PAPER} s3.2)",
    "engram_rows": "what is left of P_tot at 80% in experts (sextant.workloads.allocation)",
    "official.backbone_parameters": f"{_SWEEP}, P_tot: without embedding and head",
    "official.activated_backbone_parameters": f"{_SWEEP}, P_act: without embedding and head",
}
_SMALL = replace(
    _MOE,
    name="moe-5.7b",
    hidden_size=1280.0,
    num_hidden_layers=12.0,
    num_attention_heads=16.0,
    num_key_value_heads=16.0,
    intermediate_size=10432.0,
    moe_intermediate_size=1216.0,
    n_routed_experts=106.0,
    official={"backbone_parameters": 5.7e9, "activated_backbone_parameters": 568e6},
    source=_SHAPE,
)
_MIDDLE = replace(
    _SMALL,
    name="moe-9.9b",
    hidden_size=1440.0,
    num_hidden_layers=16.0,
    num_attention_heads=18.0,
    num_key_value_heads=18.0,
    intermediate_size=9152.0,
    moe_intermediate_size=1472.0,
    n_routed_experts=99.0,
    official={"backbone_parameters": 9.9e9, "activated_backbone_parameters": 993e6},
)
_SHORT: Mapping[str, Any] = {"engram_layers": (2.0, 6.0), "engram_dim": 1280.0}

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
    _SMALL,
    replace(_SMALL, name="engram-5.7b", n_routed_experts=86.0, engram_rows=394957.0, **_SHORT),
    _MIDDLE,
    replace(_MIDDLE, name="engram-9.9b", n_routed_experts=80.0, engram_rows=700864.0, **_SHORT),
)
