"""Operators of a training layer that only move data, against what the published DualPipe trace launches per layer."""

from collections import Counter
from dataclasses import replace

import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import models

LOAD = Load(phase="training", batch=1.0, context_tokens=4096.0)
PLAN = Plan(formats="fp8", recompute=("norm", "mla_up", "swiglu"))
M, HIDDEN = 4096.0, 7168.0


def layer(plan=PLAN, load=LOAD, **changes):
    """Operators of one MoE layer of DeepSeek-V3."""
    model = replace(models.model("deepseek-v3"), **changes)
    return [op for op in model.step(load, plan).ops if op.part == "moe_layer"]


def named(ops, ending):
    return [op for op in ops if op.name.removesuffix("_recompute").endswith(ending)]


def test_a_layer_transposes_its_weights_once_and_the_scales_of_every_operand():
    """9 weights (5 of attention, 2 of the shared expert, 2 of the routed ones); scales of 7 inputs, 2 of them again
    where products run again, and of 7 gradients, and of 2 inputs and 2 gradients of routed experts."""
    ops = layer()
    assert len(named(ops, "_weight_transpose")) == 9
    assert len(named(ops, "_scale_transpose")) == 16 + 4


def test_transposed_weights_move_one_byte_each_way():
    """The output projection: 7,168 x 16,384 weights in FP8, in and out; those of all 256 experts, before sharding."""
    sizes = {op.name: op.shape["read_bytes"] for op in layer() if op.kind == "memory"}
    assert sizes["o_proj_weight_transpose"] == HIDDEN * 128 * 128
    assert sizes["expert_up_gate_weight_transpose"] == 256 * 4096 * HIDDEN
    for op in named(layer(), "_weight_transpose"):
        assert op.shape["read_bytes"] == op.shape["write_bytes"]


def test_gradients_that_come_from_the_exchange_in_fp8_are_not_cast_again():
    """They are re-quantised for the weight gradient alone; a BF16 recipe has neither casts nor transposes."""
    names = {op.name for op in layer()}
    assert {"expert_down_grad_requant_transpose", "shared_expert_down_grad_requant_transpose"} <= names
    assert not {"expert_down_grad_cast", "shared_expert_down_grad_cast", "shared_expert_up_gate_cast"} & names
    assert not named(layer(replace(PLAN, formats="bf16")), "_transpose")


def test_the_gradient_is_cast_on_the_stream_that_sends_it():
    """Before the dispatch of gradients, which is the backward pass of the combine."""
    (cast,) = [op for op in layer() if op.name == "combine_backward_cast"]
    assert (cast.stream, cast.block, cast.phase) == ("communication", "combine_backward", "backward_input")
    assert cast.shape["read_bytes"] == 2.0 * M * HIDDEN


def test_two_input_gradients_are_added_twice_a_layer():
    """Of the two projections of attention, and of router and experts: two BF16 tensors read, one written."""
    sums = [op for op in layer() if op.name.endswith("input_gradient_sum")]
    assert len(sums) == 2
    for op in sums:
        assert (op.shape["read_bytes"], op.shape["write_bytes"]) == (4.0 * M * HIDDEN, 2.0 * M * HIDDEN)


def test_the_key_gradient_of_rope_is_summed_over_heads():
    """128 heads of 64 dimensions share one key."""
    (op,) = [op for op in layer() if op.name == "key_rope_gradient_sum"]
    assert op.shape["read_bytes"] == 128 * op.shape["write_bytes"] == 2.0 * M * 128 * 64


def test_serving_pays_for_none_of_it():
    """Fused into other kernels of an engine, or of the backward pass."""
    ops = layer(load=replace(LOAD, phase="prefill"))
    endings = ("_transpose", "_gradient_sum", "_split_copy", "_load", "router_topk_backward", "combine_backward_cast")
    assert not [op.name for op in ops if op.name.endswith(endings)]


@pytest.mark.parametrize("recompute", [(), ("norm",), ("norm", "mla_up", "swiglu"), ("full",)])
def test_no_operator_has_the_name_of_another(recompute):
    """Of one layer, whatever is made again."""
    counts = Counter(op.name for op in layer(replace(PLAN, recompute=recompute)))
    assert not [name for name, n in counts.items() if n > 1]
