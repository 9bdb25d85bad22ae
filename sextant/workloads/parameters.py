"""Sizes that follow from a model's dimensions: parameters by part and piece, activated parameters, cache, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping

from sextant.simulator.types import Num


def layer_counts(model) -> dict[str, Num]:
    """How often each part occurs, in the order in which a token meets them; parts that never occur are left out."""
    moe = bool(model.n_routed_experts > 0) if not hasattr(model.n_routed_experts, "any") else True
    dense = min(float(model.first_k_dense_replace), float(model.num_hidden_layers)) if moe else model.num_hidden_layers
    counts: dict[str, Num] = {
        "embedding": 1.0, "dense_layer": dense, "moe_layer": model.num_hidden_layers - dense if moe else 0.0,
        "mtp": model.num_nextn_predict_layers, "head": 1.0,
    }  # fmt: skip
    return {part: n for part, n in counts.items() if n > 0}


def attention_parameters(model) -> Num:
    """Weights of one layer's attention, with the norms of the MLA latents."""
    h, heads = model.hidden_size, model.num_attention_heads
    if model.attention == "gqa":
        kv = model.num_key_value_heads
        bias = (heads + 2 * kv) * model.head_dim if model.attention_bias else 0.0
        return h * (heads + 2 * kv) * model.head_dim + heads * model.head_dim * h + bias
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    rank = model.kv_lora_rank
    latent = model.q_lora_rank > 0
    query = h * model.q_lora_rank + model.q_lora_rank * heads * dim + model.q_lora_rank if latent else h * heads * dim
    down = h * (rank + model.qk_rope_head_dim) + rank
    return query + down + rank * heads * (model.qk_nope_head_dim + model.v_head_dim) + heads * model.v_head_dim * h


def layer_parameters(model) -> dict[str, dict[str, Num]]:
    """Parameters of one occurrence of each part, by piece. The MTP module's embedding and head are shared, not counted.

    DeepSeek-V3's router carries one correction bias per expert.
    """
    h = model.hidden_size
    layer: dict[str, Num] = {"attention": attention_parameters(model), "norm": 2.0 * h}
    expert = 3.0 * h * model.moe_intermediate_size
    moe = {
        **layer,
        "router": h * model.n_routed_experts + (model.n_routed_experts if model.n_group > 1 else 0.0),
        "shared_experts": model.n_shared_experts * expert,
        "routed_experts": model.n_routed_experts * expert,
    }
    vocabulary = model.vocab_size * h
    dense = {**layer, "mlp": 3.0 * h * model.intermediate_size}
    inner = moe if "moe_layer" in layer_counts(model) else dense
    return {
        "embedding": {"embedding": vocabulary},
        "dense_layer": dense,
        "moe_layer": moe,
        "mtp": {**inner, "mtp_projection": 2.0 * h * h, "mtp_norm": 3.0 * h},
        "head": {"head": 0.0 * vocabulary if model.tie_word_embeddings else vocabulary, "norm": h},
    }


def n_parameters(model, *, mtp: bool = False) -> Num:
    """All parameters; MTP modules count only when asked for, as their publishers do."""
    counts, sizes = layer_counts(model), layer_parameters(model)
    return sum(n * sum(sizes[part].values()) for part, n in counts.items() if mtp or part != "mtp")


def mtp_parameters(model) -> Num:
    """Parameters that only the MTP modules have (embedding and head are shared with the model)."""
    return model.num_nextn_predict_layers * sum(layer_parameters(model)["mtp"].values())


def activated_parameters(model, *, embedding: bool = False) -> Num:
    """Parameters that one token uses: all but the experts it is not routed to; the input embedding by choice."""
    counts, sizes = layer_counts(model), layer_parameters(model)
    total: Num = 0.0
    for part, n in counts.items():
        if part == "mtp" or (part == "embedding" and not embedding):
            continue
        total = total + n * sum(_active(model, piece, size) for piece, size in sizes[part].items())
    return total


def _active(model, piece: str, size: Num) -> Num:
    return size * model.num_experts_per_tok / model.n_routed_experts if piece == "routed_experts" else size


def kv_bytes_per_token(model, element_bytes: float = 2.0) -> Num:
    """Cache of one token over all layers: the MLA latent and its RoPE part, or keys and values of GQA."""
    if model.attention == "gqa":
        return model.num_hidden_layers * 2.0 * model.num_key_value_heads * model.head_dim * element_bytes
    return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim) * element_bytes


def training_flops_per_token(model, context_tokens: Num, *, causal: bool = True) -> Num:
    """Model FLOPs of one trained token: 6 per activated weight, and attention, whose causal half is context/2 keys.

    Without MTP and without the input embedding, which multiplies nothing; norms are not counted. This is the
    convention behind the published GFLOP per token and the MFU of DeepSeek-V3.
    """
    sizes, counts = layer_parameters(model), layer_counts(model)
    weights: Num = 0.0
    for part, n in counts.items():
        if part in ("mtp", "embedding"):
            continue
        products = {piece: size for piece, size in sizes[part].items() if piece != "norm"}
        weights = weights + n * sum(_active(model, piece, size) for piece, size in products.items())
    if model.tie_word_embeddings:
        weights = weights + model.vocab_size * model.hidden_size
    gqa = model.attention == "gqa"
    dims = 2 * model.head_dim if gqa else model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
    keys = context_tokens / 2 if causal else context_tokens
    attention = 2.0 * model.num_hidden_layers * model.num_attention_heads * dims * keys
    return 6.0 * weights + 3.0 * attention


def by_piece(model) -> Mapping[str, Num]:
    """Parameters of the whole model without MTP, summed by piece (attention, routed_experts, ...)."""
    totals: dict[str, Num] = {}
    for part, n in layer_counts(model).items():
        if part != "mtp":
            for piece, size in layer_parameters(model)[part].items():
                totals[piece] = totals.get(piece, 0.0) + n * size
    return totals
