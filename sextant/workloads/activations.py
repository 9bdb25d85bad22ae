"""Tensors that a layer keeps from its forward to its backward pass, one by one: bytes per token.

With a fused attention kernel, which keeps one number per head and token, and no dropout these are the layers of the
catalogue. With neither they are those of Korthikanti et al. (arXiv:2205.05198, s4.1), whose sum is
s b h (34 + 5 a s / h) bytes per layer, divided by the tensor degree where sequences are split as well.
"""

from __future__ import annotations

from sextant.simulator.types import Num


def norm_tensors(hidden: Num, n_norms: float = 2.0) -> dict[str, Num]:
    """The inputs of a layer's norms, in 16 bits."""
    return {"norm_inputs": 2.0 * n_norms * hidden}


def attention_tensors(
    *, heads: Num, kv_heads: Num, head_dim: Num, input_bytes: Num, output_element_bytes: float = 2.0,
    kv_len: Num = 0.0, fused: bool = True, dropout_width: Num = 0.0, recomputed: bool = False,
) -> dict[str, Num]:  # fmt: skip
    """Attention on ``kv_heads`` heads of keys and values: the projections' input (``input_bytes``), queries, keys and
    values in 16 bits, the output; the softmax of a kernel that is not ``fused``, unless ``recomputed``.

    ``dropout_width`` is the hidden size where attention probabilities and output pass dropout (a byte per element of a
    mask), else 0.
    """
    dropped = bool(dropout_width > 0)
    tensors: dict[str, Num] = {
        "qkv_input": input_bytes, "queries": 2.0 * heads * head_dim, "keys_values": 4.0 * kv_heads * head_dim,
        "attention_output": output_element_bytes * heads * head_dim, "output_mask": 1.0 * dropout_width,
    }  # fmt: skip
    if fused:
        return {**tensors, "log_sum_exp": 4.0 * heads}
    if not recomputed:
        tensors["softmax"] = 2.0 * heads * kv_len
        if dropped:
            tensors |= {"softmax_mask": 1.0 * heads * kv_len, "softmax_dropped": 2.0 * heads * kv_len}
    return tensors


def mlp_tensors(
    *, width: Num, input_bytes: Num, element_bytes: float = 2.0, n_up: float = 2.0, dropout_width: Num = 0.0,
    recomputed: bool = False,
) -> dict[str, Num]:  # fmt: skip
    """A feed-forward of ``width``: its input (``input_bytes``), the ``n_up`` projections that the activation function
    takes (2 where one gates the other), its output unless ``recomputed``, the mask of a dropout behind it."""
    return {
        "mlp_input": input_bytes, "activation_input": element_bytes * n_up * width,
        "activation_output": 0.0 if recomputed else element_bytes * width, "mlp_mask": 1.0 * dropout_width,
    }  # fmt: skip
