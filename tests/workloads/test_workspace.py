"""Working sets are read off operators: what these read and write, no weights, no message."""

import pytest

from sextant.simulator.kernels import operator
from sextant.simulator.types import Load, Plan
from sextant.workloads import workspace
from sextant.workloads.models import catalogue, model

V3 = model("deepseek-v3")
LOAD = Load(phase="training", batch=64.0, context_tokens=4096.0)


def test_operands_of_products():
    """Input in the product's format and result in BF16; a weight gradient has two operands, its result is state."""
    forward = operator("gemm", "x", "bf16", {"m": 100.0, "n": 30.0, "k": 20.0})
    assert workspace.operand_bytes(forward) == 2 * (100 * 20 + 100 * 30)
    fp8 = operator("gemm", "x", "fp8_block", {"m": 100.0, "n": 30.0, "k": 20.0})
    assert workspace.operand_bytes(fp8) == (1 + 4 / 128) * 100 * 20 + 2 * 100 * 30
    wgrad = operator("gemm", "x", "bf16", {"m": 30.0, "n": 20.0, "k": 100.0}, variant="wgrad")
    assert workspace.operand_bytes(wgrad) == 2 * (100 * 30 + 100 * 20)
    grouped = operator("grouped_gemm", "x", "bf16", {"groups": 4.0, "tokens_per_group": 25.0, "n": 30.0, "k": 20.0})
    assert workspace.operand_bytes(grouped) == 2 * (100 * 20 + 100 * 30)


def test_operands_of_attention():
    """Queries, keys, values and output in BF16; backward their gradients too, those of queries in FP32 as well."""
    shape = {"batch": 1.0, "heads": 8.0, "kv_heads": 2.0, "q_len": 64.0, "kv_len": 64.0, "head_dim": 16.0,
             "v_head_dim": 16.0, "causal": 1.0}  # fmt: skip
    query, keys = 8 * 64 * 16, 2 * 64 * 16
    forward = operator("attention", "a", "bf16", shape, variant="forward")
    assert workspace.operand_bytes(forward) == 2 * (query + 2 * keys + query)
    backward = operator("attention", "a", "bf16", shape, variant="backward")
    assert workspace.operand_bytes(backward) == 2 * 2 * (query + 2 * keys + query) + 4 * query


def test_what_weight_gradients_wait_with():
    """Inputs and output gradients of every linear layer, in the format their products run in."""
    llama = model("llama-3.1-405b")
    step = llama.step(LOAD, Plan())
    inputs, gradients = workspace.weight_gradient_operands(step)["dense_layer"]
    h, width, kv = llama.hidden_size, llama.intermediate_size, llama.num_key_value_heads * llama.head_dim
    assert inputs == pytest.approx(2 * 4096 * (h + h + h + width))
    assert gradients == pytest.approx(2 * 4096 * ((h + 2 * kv) + h + 2 * width + h))


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_part_that_trains_has_a_working_set(name):
    """Forward and backward, no smaller than a token's hidden state."""
    found = model(name)
    step = found.step(LOAD, Plan())
    for part, phases in workspace.largest_operands(step).items():
        if part.endswith("layer"):
            assert min(phases["forward"], phases["backward_input"]) >= 2.0 * found.hidden_size * 4096
