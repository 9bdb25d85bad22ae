"""Self-attention: multi-head latent attention (MLA) expanded and absorbed, and grouped-query attention (GQA)."""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved, norm

#: The library of attention kernels in training (``simulator.kernels.attention``).
TRAINING_LIBRARY = "cudnn"


def core(
    place: Place,
    batch: Num,
    heads: Num,
    kv_heads: Num,
    q_len: Num,
    kv_len: Num,
    dim: Num,
    v_dim: Num,
    causal: float = 1.0,
) -> list[Op]:
    """The attention kernel on expanded keys and values, forward and (training) backward; ``causal`` is 1 or 0.

    Training runs both directions from one library, the one whose backward kernels were measured.
    """
    shape = {
        "batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": q_len, "kv_len": kv_len,
        "head_dim": dim, "v_head_dim": v_dim, "causal": causal,
    }  # fmt: skip
    phases = {"forward": "forward"}
    if place.training:
        phases = {f"forward_{TRAINING_LIBRARY}": "forward", "backward": "backward_input"}
    return [
        operator(
            "attention", "attention" if phase == "forward" else "attention_backward", "bf16", shape, variant=variant,
            part=place.part, block=place.block, phase=phase, count=place.count,
            shards={"tensor": ("heads", "kv_heads")},
        )
        for variant, phase in phases.items()
    ]  # fmt: skip


def mla_expanded(place: Place, model, recipe: Recipe, batch: Num, seq: Num, kv_len: Num) -> list[Op]:
    """MLA with keys and values expanded from the latent, as training and prefill run it.

    The products and copies are those of the published DualPipe trace: queries and the latent are projected down,
    normalised and projected up, RoPE acts on 64 dimensions, keys are concatenated to 192 per head.
    With recompute ``mla_up`` the up-projections, RoPE and the concatenation run again in the backward pass.
    """
    m, heads = batch * seq, model.num_attention_heads
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    ops = _down(place, model, recipe, m)
    up = _up(place, model, recipe, m)
    ops += up
    if place.training and "mla_up" in place.recompute:
        ops += [_again(op) for op in up if op.phase == "forward"]
    ops += core(place, batch, heads, heads, seq, kv_len, dim, model.v_head_dim)
    width = heads * model.v_head_dim
    if place.training and BYTES[recipe.saved_attention] != BYTES["bf16"]:
        size = m * width
        ops.append(moved("attention_output_save", place, 2.0 * size, BYTES[recipe.saved_attention] * size))
        ops.append(
            moved("attention_output_load", place, BYTES[recipe.saved_attention] * size, 2.0 * size, "backward_input")
        )
    ops += linear("o_proj", place, m, model.hidden_size, width, recipe, split="k")
    if place.training:
        # The published trace multiplies the output, and its gradient, by a scalar.
        size = 2.0 * m * model.hidden_size
        ops.append(moved("output_scale", place, size, size))
        ops.append(moved("output_scale_backward", place, size, size, "backward_input"))
    return ops


def mla_absorbed(place: Place, model, recipe: Recipe, batch: Num, context: Num) -> list[Op]:
    """MLA with the up-projections absorbed into query and output, as decode runs it on the latent cache.

    One token per request; the per-head absorption is a product batched over heads.
    """
    heads, rank = model.num_attention_heads, model.kv_lora_rank
    ops = _down(place, model, recipe, batch)
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    ops += _query(place, model, recipe, batch, heads * dim)
    rope = 2.0 * batch * heads * model.qk_rope_head_dim
    ops.append(moved("rope", place, rope, rope))
    latent = 2.0 * batch * (rank + model.qk_rope_head_dim)
    ops.append(moved("kv_cache_write", place, latent, latent, sharded=()))
    ops.append(_per_head("q_absorb", place, heads, batch, rank, model.qk_nope_head_dim))
    shape = {
        "batch": batch, "heads": heads, "q_len": 1.0, "kv_len": context, "kv_lora_rank": rank,
        "qk_rope_head_dim": model.qk_rope_head_dim,
    }  # fmt: skip
    ops.append(
        operator(
            "mla", "mla_decode", "bf16", shape, variant="decode", part=place.part, block=place.block,
            count=place.count, shards={"tensor": ("heads",)},
        )
    )  # fmt: skip
    ops.append(_per_head("v_up", place, heads, batch, model.v_head_dim, rank))
    ops += linear("o_proj", place, batch, model.hidden_size, heads * model.v_head_dim, recipe, split="k")
    return ops


def gqa(place: Place, model, recipe: Recipe, batch: Num, seq: Num, kv_len: Num) -> list[Op]:
    """Grouped-query attention with one fused query-key-value projection; ``seq`` new tokens see ``kv_len``."""
    m, dim = batch * seq, model.head_dim
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    ops = linear("qkv_proj", place, m, (heads + 2 * kv_heads) * dim, model.hidden_size, recipe, split="n")
    if model.qk_norm:
        ops += norm("q_norm", place, m * heads, dim) + norm("k_norm", place, m * kv_heads, dim)
    size = 2.0 * m * (heads + kv_heads) * dim
    ops.append(moved("rope", place, size, size))
    if place.training:
        ops.append(moved("rope_backward", place, size, size, "backward_input"))
    ops += core(place, batch, heads, kv_heads, seq, kv_len, dim, dim)
    ops += linear("o_proj", place, m, model.hidden_size, heads * dim, recipe, split="k")
    return ops


def _down(place: Place, model, recipe: Recipe, m: Num) -> list[Op]:
    ops: list[Op] = []
    if _has_query_latent(model):
        ops += linear("q_a_proj", place, m, model.q_lora_rank, model.hidden_size, recipe)
        ops += norm("q_norm", place, m, model.q_lora_rank)
    width = model.kv_lora_rank + model.qk_rope_head_dim
    ops += linear("kv_a_proj", place, m, width, model.hidden_size, recipe)
    if place.training:
        ops += _shared_input(place, m, model.hidden_size, width)
    return ops + norm("kv_norm", place, m, model.kv_lora_rank)


def _shared_input(place: Place, m: Num, hidden: Num, width: Num) -> list[Op]:
    """What training pays for two products of one input, and for two parts of one output of ``width``: both parts are
    copied, their gradients are joined by filling, copying and adding, and the two input gradients are added."""
    latent, residual = 2.0 * m * width, 2.0 * m * hidden
    return [
        moved("latent_split_copy", place, latent, latent, sharded=()),
        moved("latent_join_backward_copy", place, 3.0 * latent, 4.0 * latent, "backward_input", sharded=()),
        moved("attention_input_gradient_sum", place, 2.0 * residual, residual, "backward_input", sharded=()),
    ]


def _query(place: Place, model, recipe: Recipe, m: Num, width: Num) -> list[Op]:
    if _has_query_latent(model):
        return linear("q_b_proj", place, m, width, model.q_lora_rank, recipe, split="n")
    return linear("q_proj", place, m, width, model.hidden_size, recipe, split="n")


def _up(place: Place, model, recipe: Recipe, m: Num) -> list[Op]:
    heads = model.num_attention_heads
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    ops = _query(place, model, recipe, m, heads * dim)
    width = heads * (model.qk_nope_head_dim + model.v_head_dim)
    ops += linear("kv_b_proj", place, m, width, model.kv_lora_rank, recipe, split="n")
    query = 2.0 * m * heads * dim
    nope, value = 2.0 * m * heads * model.qk_nope_head_dim, 2.0 * m * heads * model.v_head_dim
    ops.append(moved("rope", place, query, query))
    ops.append(moved("key_concat", place, nope, query))
    ops.append(moved("value_copy", place, value, value))
    if place.training:
        ops.append(moved("rope_backward", place, query, query, "backward_input"))
        rope = 2.0 * m * model.qk_rope_head_dim
        ops.append(moved("key_rope_gradient_sum", place, rope * heads, rope, "backward_input"))
        ops.append(moved("key_value_split_backward", place, query + value, nope + value, "backward_input"))
    return ops


def _per_head(name: str, place: Place, heads: Num, m: Num, n: Num, k: Num) -> Op:
    return operator(
        "grouped_gemm", name, "bf16", {"groups": heads, "tokens_per_group": m, "n": n, "k": k},
        part=place.part, block=place.block, count=place.count, shards={"tensor": ("groups",)}, variant="exact",
    )  # fmt: skip


def _again(op: Op) -> Op:
    return replace(op, name=op.name + "_recompute", phase="backward_input")


def _has_query_latent(model) -> bool:
    return bool(model.q_lora_rank > 0)
