"""Layers of an image encoder: LayerNorm, self-attention that is not causal, a GELU feed-forward, all with biases."""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.kernels import operator
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import RECIPES
from sextant.workloads.ops import attention
from sextant.workloads.ops.linear import linear
from sextant.workloads.ops.memory import Place, moved, residual_norm

#: Encoders compute in BF16 whatever the recipe of the language model.
BF16 = RECIPES["bf16"]


def gelu(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """GELU of (n_tokens, width) BF16; the backward pass reads its input and the gradient."""
    size = 2.0 * n_tokens * width
    ops = [moved(name, place, size, size, sharded=())]
    if place.training:
        ops.append(moved(f"{name}_backward", place, 2.0 * size, size, "backward_input", ()))
    return ops


def mlp(name: str, place: Place, n_tokens: Num, n_in: Num, n_inner: Num, n_out: Num) -> list[Op]:
    """Two linear layers with GELU between them."""
    ops = linear(f"{name}_up", place, n_tokens, n_inner, n_in, BF16)
    ops += gelu(f"{name}_gelu", place, n_tokens, n_inner)
    return ops + linear(f"{name}_down", place, n_tokens, n_out, n_inner, BF16)


def layer(
    name: str, place: Place, n_sequences: Num, seq: Num, width: Num, heads: Num, inner: Num, window: Num = 0.0
) -> list[Op]:
    """One layer over ``n_sequences`` of ``seq`` patches; with ``window`` attention stays inside squares of so many
    patches a side, to which the image is padded.

    Every device of a tensor-parallel group holds the whole encoder and runs it whole.
    """
    m = n_sequences * seq
    side = seq**0.5
    inside, span = n_sequences * n_windows(side, window), window or side
    rows = inside * span**2
    ops = residual_norm(f"{name}_attention_norm", place, m, width)
    ops += linear(f"{name}_qkv", place, rows, 3.0 * width, width, BF16)
    ops += attention.core(place, inside, heads, heads, span**2, span**2, width / heads, width / heads, causal=0.0)
    ops += linear(f"{name}_output", place, rows, width, width, BF16)
    ops += residual_norm(f"{name}_mlp_norm", place, m, width)
    ops += mlp(f"{name}_mlp", place, m, width, inner, width)
    return [replace(op, shards={}) for op in ops]


def n_windows(side: Num, window: Num) -> Num:
    """Windows of ``window`` patches a side that cover an image of ``side`` patches; one without windows."""
    return (-(-side // window)) ** 2 if window else 1.0


def relative_positions(name: str, place: Place, n_sequences: Num, side: Num, width: Num, heads: Num) -> list[Op]:
    """Each query times the embeddings of its row's and of its column's distances, (side, head_dim) each.

    The attention kernel adds both to its scores on the way; published code writes the scores out instead.
    """
    shape = {"groups": side, "tokens_per_group": n_sequences * heads * side, "n": side, "k": width / heads}
    phases = {"": "forward"}
    if place.training:
        phases |= {"dgrad": "backward_input", "wgrad": "backward_weight"}
    return [
        operator(
            "grouped_gemm", f"{name}_{variant}" if variant else name, "bf16", shape, variant="exact", part=place.part,
            block=place.block, phase=phase, count=2.0 * place.count,
        )
        for variant, phase in phases.items()
    ]  # fmt: skip


def layer_parameters(width: Num, inner: Num) -> Num:
    """Weights and biases of one layer, and its two norms."""
    return 4.0 * (width * width + width) + 2.0 * width * inner + inner + width + 4.0 * width


def kept_bytes(n_tokens: Num, n_padded: Num, width: Num, inner: Num) -> Num:
    """What one layer leaves for its backward pass, in BF16: both residuals, both normalised inputs, queries, keys and
    values, the attention output, the feed-forward before and after GELU.

    ``n_padded`` tokens fill whole windows: so many enter and leave attention.
    """
    attention_bytes = 2.0 * n_padded * (width + 3.0 * width + width)
    return attention_bytes + 2.0 * n_tokens * (2.0 * width + width + 2.0 * inner)


def working_bytes(n_tokens: Num, width: Num, inner: Num) -> Num:
    """The largest tensors that live at once inside a layer: the residual, and two of the feed-forward."""
    return 2.0 * n_tokens * (2.0 * width + 2.0 * inner)
