"""The layer of a GPT: LayerNorm, attention with all heads, a plain GELU feed-forward, biases and dropout everywhere.

Kernels are those of Megatron-LM in 2022: products by a library, bias + GELU and bias + dropout + residual compiled into
one kernel each, biases of the fused projection added and all their gradients summed by kernels of their own. The
residual's gradient is added where autograd joins its two branches.
"""

from __future__ import annotations

from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops import attention
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.ops.scores import MASK_BYTES, unfused

_RESIDUAL = ("sequence",)


def attention_half(
    place: Place, model, recipe: Recipe, batch: Num, seq: Num, kv_len: Num, *, fused: bool
) -> list[Op]:  # fmt: skip
    """From the residual (batch x seq, hidden_size) through self-attention back into it; keys and values of all heads.

    ``fused`` runs one attention kernel, else scores are written out (``scores.unfused``).
    """
    m, h, dim = batch * seq, model.hidden_size, model.head_dim
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    width = (heads + 2 * kv_heads) * dim
    ops = layer_norm("attention_norm", place, m, h)
    ops += linear("qkv_proj", place, m, width, h, recipe, split="n")
    ops += bias("qkv_bias", place, m, width)
    if fused:
        ops += attention.core(place, batch, heads, kv_heads, seq, kv_len, dim, dim)
    else:
        ops += unfused(place, recipe.attention, batch, heads, seq, kv_len, dim, model.attention_dropout)
    if place.training:
        size = 2.0 * m * width
        ops.append(moved("qkv_gradient_concat", place, size, size, "backward_input"))
    ops += linear("o_proj", place, m, h, heads * dim, recipe, split="k")
    return ops + bias_dropout_add("attention_dropout_add", place, m, h, model.hidden_dropout)


def feedforward_half(place: Place, model, recipe: Recipe, m: Num) -> list[Op]:
    """From the residual (m, hidden_size) through a feed-forward of ``intermediate_size`` back into it."""
    h, width = model.hidden_size, model.intermediate_size
    ops = layer_norm("mlp_norm", place, m, h)
    ops += linear("mlp_up", place, m, width, h, recipe, split="n")
    size = 2.0 * m * width
    ops.append(moved("mlp_bias_gelu", place, size, size, variant="gelu"))
    if place.training:
        ops.append(moved("mlp_bias_gelu_backward", place, 2.0 * size, size, "backward_input", variant="gelu"))
        ops.append(moved("mlp_bias_gradient", place, size, 0.0 * size, "backward_weight", variant="column_sum"))
    ops += linear("mlp_down", place, m, h, width, recipe, split="k")
    return ops + bias_dropout_add("mlp_dropout_add", place, m, h, model.hidden_dropout)


def layer_norm(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """LayerNorm of (n_tokens, width) in 16 bits, and backward the sum of its and the residual's gradient."""
    size = 2.0 * n_tokens * width
    ops = [moved(name, place, size, size, sharded=_RESIDUAL, variant="layernorm")]
    if place.training:
        back = "backward_input"
        ops.append(moved(f"{name}_backward", place, 2.0 * size, size, back, _RESIDUAL, "norm_backward"))
        ops.append(moved(f"{name}_residual_gradient", place, 2.0 * size, size, back, _RESIDUAL, "add"))
    return ops


def bias(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """A bias added in place to (n_tokens, width), split over tensor ranks; its gradient is a sum over tokens."""
    size = 2.0 * n_tokens * width
    ops = [moved(name, place, size, size, variant="gelu")]
    if place.training:
        ops.append(moved(f"{name}_gradient", place, size, 0.0 * size, "backward_weight", variant="column_sum"))
    return ops


def bias_dropout_add(name: str, place: Place, n_tokens: Num, width: Num, dropout: Num) -> list[Op]:
    """Bias, dropout (where it is not 0) and the residual added to (n_tokens, width) in one kernel."""
    size = 2.0 * n_tokens * width
    dropped = bool(dropout > 0)
    mask = MASK_BYTES * n_tokens * width if dropped else 0.0 * size
    access = "dropout" if dropped else "add"
    ops = [moved(name, place, 2.0 * size, size + mask, sharded=_RESIDUAL, variant=access)]
    if place.training:
        if dropped:
            back = "backward_input"
            ops.append(moved(f"{name}_backward", place, size + mask, size, back, _RESIDUAL, "dropout_backward"))
        summed = ("backward_weight", _RESIDUAL, "column_sum")
        ops.append(moved(f"{name}_bias_gradient", place, size, 0.0 * size, *summed))
    return ops


def embedding(place: Place, model, m: Num) -> list[Op]:
    """Rows of every tensor rank's share of the vocabulary, learned positions added, dropout; gradients in FP32.

    Each rank fills all (m, hidden_size) rows, with zeros where another one holds the word; ``shard`` adds their sum.
    """
    size, h = 2.0 * m * model.hidden_size, model.hidden_size
    ops = [moved("embedding", place, size, size, sharded=())]
    if bool(model.max_position_embeddings > 0):
        ops.append(moved("position_embedding", place, 2.0 * size, size, sharded=_RESIDUAL, variant="add"))
    if bool(model.hidden_dropout > 0):
        mask = MASK_BYTES * m * h
        ops.append(moved("embedding_dropout", place, size, size + mask, sharded=_RESIDUAL, variant="dropout"))
        if place.training:
            back = ("backward_input", _RESIDUAL, "dropout_backward")
            ops.append(moved("embedding_dropout_backward", place, size + mask, size, *back))
    if place.training:
        ops.append(moved("embedding_backward", place, 3 * size, 2 * size, "backward_weight", ()))
    return ops


def kept_bytes(model, n_split: Num, n_residual: Num, kv_len: Num, *, scores: bool) -> Num:
    """What one layer leaves for its backward pass, in bytes: 16-bit inputs of products, norms and GELU, dropout masks.

    ``n_split`` tokens times heads or widths of the tensor group's share, ``n_residual`` tokens of the residual;
    ``scores`` keeps softmax, mask and dropped weights of (tokens, kv_len) per head. With sequence parallelism and
    scores this is s b h (34 + 5 a s / h) / t (arXiv:2205.05198 equation 4), without s b h (10 + 24 / t + 5 a s / h t).
    """
    h, width = model.hidden_size, model.num_attention_heads * model.head_dim
    kv = 2.0 * model.num_key_value_heads * model.head_dim
    masks = 2.0 * MASK_BYTES * h if bool(model.hidden_dropout > 0) else 0.0
    residual = 2.0 * 4.0 * h + masks
    split = 2.0 * (2.0 * width + kv) + 2.0 * 2.0 * model.intermediate_size
    per_score = 2.0 + ((2.0 + MASK_BYTES) if bool(model.attention_dropout > 0) else 0.0)
    kept = per_score * model.num_attention_heads * kv_len if scores else 0.0 * kv_len
    return n_residual * residual + n_split * (split + kept)
