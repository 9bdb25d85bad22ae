"""Kept tensors against the published count of a GPT layer (Korthikanti et al., arXiv:2205.05198, eq. 2, 4 and 6)."""

from dataclasses import replace

import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import residency
from sextant.workloads.activations import attention_tensors, mlp_tensors, norm_tensors
from sextant.workloads.models import model


def gpt_layer(h, a, s, *, recomputed=False, fused=False, dropout=True):
    """Bytes per token of a GPT layer in 16 bits: LayerNorm, multi-head attention, a GELU feed-forward of 4 h."""
    drop = h if dropout else 0.0
    tensors = norm_tensors(h)
    tensors |= attention_tensors(
        heads=a, kv_heads=a, head_dim=h / a, input_bytes=2.0 * h, kv_len=s, fused=fused, dropout_width=drop,
        recomputed=recomputed,
    )  # fmt: skip
    return tensors | mlp_tensors(width=4.0 * h, input_bytes=2.0 * h, n_up=1.0, dropout_width=drop)


@pytest.mark.parametrize(
    ("h", "a", "b"),
    [(6144, 64, 4), (12288, 96, 1), (20480, 128, 1), (25600, 160, 1)],
    ids=["22B", "175B", "530B", "1T"],
)
@pytest.mark.parametrize("t", [1, 8])
def test_a_gpt_layer_keeps_what_is_published(h, a, b, t):
    """To the byte: s b h (34 + 5 a s / h) / t with sequences split, and 34 s b h / t with attention recomputed."""
    s = 2048
    for recomputed in (False, True):
        ours = s * b / t * sum(gpt_layer(h, a, s, recomputed=recomputed).values())
        assert ours == s * b * (34 * h + (0 if recomputed else 5 * a * s)) / t


def test_attention_feed_forward_and_norms_are_11_19_and_4():
    """The three terms of the publication, without the softmax."""
    h, a = 12288.0, 96.0
    parts = gpt_layer(h, a, 2048.0, recomputed=True)
    attention = ("qkv_input", "queries", "keys_values", "attention_output", "output_mask")
    mlp = ("mlp_input", "activation_input", "activation_output", "mlp_mask")
    assert sum(parts[name] for name in attention) == 11 * h
    assert sum(parts[name] for name in mlp) == 19 * h
    assert parts["norm_inputs"] == 4 * h


def test_a_fused_kernel_keeps_one_number_where_softmax_kept_a_row():
    """Without dropout a fused attention leaves 32 s b h and four bytes per head and token."""
    h, a = 12288.0, 96.0
    assert sum(gpt_layer(h, a, 2048.0, fused=True, dropout=False).values()) == 32 * h + 4 * a


@pytest.mark.parametrize("tensor", [1.0, 8.0])
def test_dense_layers_of_the_catalogue_are_made_of_the_same_tensors(tensor):
    """A Llama layer in BF16: norms, grouped heads, a gated feed-forward, all split over tokens or heads."""
    llama, plan = model("llama-3.1-405b"), Plan(tensor=tensor)
    load = Load(phase="training", batch=8.0, context_tokens=4096.0)
    h = llama.hidden_size
    tensors = norm_tensors(h) | attention_tensors(
        heads=llama.num_attention_heads, kv_heads=llama.num_key_value_heads, head_dim=llama.head_dim,
        input_bytes=2.0 * h,
    )  # fmt: skip
    tensors |= mlp_tensors(width=llama.intermediate_size, input_bytes=2.0 * h)
    kept = residency.activation_bytes(llama, plan, load)["dense_layer"]
    assert kept == pytest.approx(4096 / tensor * sum(tensors.values()), rel=1e-12)
    less = residency.activation_bytes(llama, replace(plan, recompute=("swiglu",)), load)["dense_layer"]
    assert kept - less == pytest.approx(4096 / tensor * tensors["activation_output"], rel=1e-12)
