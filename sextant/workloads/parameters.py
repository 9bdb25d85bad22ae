"""Sizes that follow from a model's dimensions: parameters by part and piece, activated parameters, cache, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.types import Num
from sextant.workloads.ops import engram, hyperconnection


def layer_counts(model) -> dict[str, Num]:
    """How often each part occurs, in the order in which a token meets them; parts that never occur are left out."""
    moe = has_experts(model)
    dense = min(float(model.first_k_dense_replace), float(model.num_hidden_layers)) if moe else model.num_hidden_layers
    counts: dict[str, Num] = {
        "vision": float(model.vision is not None), "embedding": 1.0, "engram": float(len(model.engram_layers)),
        "dense_layer": dense, "moe_layer": model.num_hidden_layers - dense if moe else 0.0,
        "mtp": model.num_nextn_predict_layers, "head": 1.0, "generation": float(model.generation is not None),
    }  # fmt: skip
    return {part: n for part, n in counts.items() if n > 0}


def has_experts(model) -> bool:
    """Whether layers behind the leading dense ones have routed experts; a sweep that mixes 0 with others is refused."""
    routed = np.asarray(model.n_routed_experts) > 0
    if routed.any() and not routed.all():
        raise InputError("model.n_routed_experts: a sweep cannot mix 0 with other values; make two scenarios")
    return bool(routed.all())


def units(model) -> tuple[tuple[str, ...], ...]:
    """The parts in the order in which they run, cut where a pipeline may be cut.

    An image encoder and the embedding stay with the first layer, an Engram module with its layer (``engram_layers``
    counts from 1), the head with the MTP modules, whose weights it shares.
    """
    counts = layer_counts(model)
    dense = int(counts.get("dense_layer", 0.0))
    layers: list[tuple[str, ...]] = []
    for i in range(int(model.num_hidden_layers)):
        before = ("engram",) if float(i + 1) in model.engram_layers else ()
        layers.append((*before, "dense_layer" if i < dense else "moe_layer"))
    first = tuple(part for part in ("vision", "embedding") if part in counts)
    last = tuple(part for part in ("mtp", "head", "generation") for _ in range(int(counts.get(part, 0.0))))
    return ((*first, *layers[0]), *layers[1:], last)


def attention_parameters(model) -> Num:
    """Weights of one layer's attention, with the norms of the MLA latents."""
    h, heads = model.hidden_size, model.num_attention_heads
    if model.attention == "gqa":
        kv = model.num_key_value_heads
        bias = (heads + 2 * kv) * model.head_dim if model.attention_bias else 0.0
        bias = bias + (h if model.attention_output_bias else 0.0)
        norms = 2.0 * model.head_dim if model.qk_norm else 0.0
        return h * (heads + 2 * kv) * model.head_dim + heads * model.head_dim * h + bias + norms
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    rank = model.kv_lora_rank
    latent = model.q_lora_rank > 0
    query = h * model.q_lora_rank + model.q_lora_rank * heads * dim + model.q_lora_rank if latent else h * heads * dim
    down = h * (rank + model.qk_rope_head_dim) + rank
    return query + down + rank * heads * (model.qk_nope_head_dim + model.v_head_dim) + heads * model.v_head_dim * h


def layer_parameters(model) -> dict[str, dict[str, Num]]:
    """Parameters of one occurrence of each part, by piece. The MTP module's embedding and head are shared, not counted.

    A router with ``topk_method`` noaux_tc carries one correction bias per expert. Image encoders and generators count
    what their checkpoints hold.
    """
    h = model.hidden_size
    plain = model.hidden_act == "gelu"
    layer: dict[str, Num] = {"attention": attention_parameters(model), "norm": (4.0 if plain else 2.0) * h}
    if has_streams(model):
        layer["hyper_connection"] = 2.0 * hyperconnection.parameters(model)
    expert = 3.0 * h * model.moe_intermediate_size
    bias = model.n_routed_experts if model.topk_method == "noaux_tc" else 0.0
    moe = {
        **layer,
        "router": h * model.n_routed_experts + bias,
        "shared_experts": model.n_shared_experts * expert,
        "routed_experts": model.n_routed_experts * expert,
    }
    vocabulary = model.vocab_size * h
    # A plain feed-forward has two matrices and their biases, a gated one three without.
    ffn = model.intermediate_size
    dense = {**layer, "mlp": 2.0 * h * ffn + ffn + h if plain else 3.0 * h * ffn}
    inner = moe if has_experts(model) else dense
    memory: dict[str, Num] = {}
    if model.engram_layers:
        memory = {"engram_tables": engram.table_parameters(model), "engram_gate": engram.gate_parameters(model)}
    return {
        "vision": model.vision.parameters(h) if model.vision else {},
        "embedding": {"embedding": vocabulary, **_positions(model)},
        "engram": memory,
        "dense_layer": dense,
        "moe_layer": moe,
        "mtp": {**inner, "mtp_projection": 2.0 * h * h, "mtp_norm": 3.0 * h},
        "head": {
            "head": 0.0 * vocabulary if model.tie_word_embeddings else vocabulary,
            "norm": (2.0 if plain else 1.0) * h,
        },
        "generation": model.generation.parameters(h) if model.generation else {},
    }


def _positions(model) -> dict[str, Num]:
    """Learned position embeddings, which every tensor rank holds whole."""
    if not np.any(np.asarray(model.max_position_embeddings) > 0):
        return {}
    return {"position": model.max_position_embeddings * model.hidden_size}


def has_streams(model) -> bool:
    """Whether the residual has more than one stream (mHC)."""
    many = np.asarray(model.n_streams) > 1
    if many.any() and not many.all():
        raise InputError("model.n_streams: a sweep cannot mix 1 with other values; make two scenarios")
    return bool(many.all())


def n_parameters(model, *, mtp: bool = False) -> Num:
    """All parameters; MTP modules count only when asked for, as their publishers do."""
    counts, sizes = layer_counts(model), layer_parameters(model)
    return sum(n * sum(sizes[part].values()) for part, n in counts.items() if mtp or part != "mtp")


def language_parameters(model) -> Num:
    """Parameters of the language model alone: without image encoders and generators, without MTP."""
    return n_parameters(replace(model, vision=None, generation=None))


def language_activated_parameters(model) -> Num:
    """Activated parameters of the language model alone, without the input embedding."""
    return activated_parameters(replace(model, vision=None, generation=None))


def mtp_parameters(model) -> Num:
    """Parameters that only the MTP modules have (embedding and head are shared with the model)."""
    return model.num_nextn_predict_layers * sum(layer_parameters(model)["mtp"].values())


def activated_parameters(model, *, embedding: bool = False) -> Num:
    """Parameters that one token uses: all but the experts it is not routed to and the Engram rows it does not read.

    The input embedding counts by choice; image encoders and generators count whole.
    """
    counts, sizes = layer_counts(model), layer_parameters(model)
    total: Num = 0.0
    for part, n in counts.items():
        if part == "mtp" or (part == "embedding" and not embedding):
            continue
        total = total + n * sum(activated_piece(model, piece, size) for piece, size in sizes[part].items())
    return total


def backbone_parameters(model) -> Num:
    """All parameters without token embedding and head: P_tot of the Engram paper (arXiv:2601.07372 s3.1)."""
    sizes = layer_parameters(model)
    return n_parameters(model) - sizes["embedding"]["embedding"] - sizes["head"]["head"]


def activated_backbone_parameters(model) -> Num:
    """What one token uses of ``backbone_parameters``, among it the Engram rows that it reads: P_act of that paper."""
    return activated_parameters(model) - layer_parameters(model)["head"]["head"]


def activated_piece(model, piece: str, size: Num) -> Num:
    """What one token uses of ``size`` parameters of a piece: the experts it is routed to, the Engram rows it reads."""
    if piece == "engram_tables":
        return 1.0 * model.engram_dim
    return size * model.num_experts_per_tok / model.n_routed_experts if piece == "routed_experts" else size


def checkpoint_bytes(model, element_bytes: float = 2.0) -> Num:
    """A checkpoint of the model as published: all weights, an untied head, without MTP modules; by default 16 bits."""
    return element_bytes * n_parameters(model)


def kv_bytes_per_token(model, element_bytes: float = 2.0) -> Num:
    """Cache of one token over all layers: the MLA latent and its RoPE part, or keys and values of GQA."""
    if model.attention == "gqa":
        return model.num_hidden_layers * 2.0 * model.num_key_value_heads * model.head_dim * element_bytes
    return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim) * element_bytes


def training_flops_per_token(model, context_tokens: Num, *, causal: bool = True) -> Num:
    """Model FLOPs of one trained token: 6 per activated weight, and attention, whose causal half is context/2 keys.

    Of the language model, without MTP and without the input embedding and Engram tables, which multiply nothing; norms
    are not counted. This is the convention behind the published GFLOP per token and the MFU of DeepSeek-V3.
    """
    sizes, counts = layer_parameters(model), layer_counts(model)
    weights: Num = 0.0
    for part, n in counts.items():
        if part in ("mtp", "embedding", "vision", "generation"):
            continue
        products = {piece: size for piece, size in sizes[part].items() if piece not in ("norm", "engram_tables")}
        weights = weights + n * sum(activated_piece(model, piece, size) for piece, size in products.items())
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
