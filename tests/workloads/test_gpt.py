"""GPT models as Megatron-LM ran them in 2022: FLOPs, parameters, activations, messages against published formulas."""

import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters, residency
from sextant.workloads.models import model
from sextant.workloads.shard import shard

NAMES = ("megatron-22b", "gpt3-175b", "megatron-530b", "megatron-1t")
S, V = 2048.0, 51200.0


def plan(**changes):
    return Plan(**{"formats": "fp16", "attention": "unfused", "tensor": 8.0, **changes})


def load(batch=1.0):
    return Load(phase="training", batch=batch, context_tokens=S)


def step_flops(name, given):
    """FLOPs of one sequence over the whole tensor group."""
    found = model(name)
    step = shard(found.step(load(), given), found, given, 8.0)
    return given.tensor * sum(op.flops * op.count * step.layers[op.part] for op in step.ops)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_flops_of_an_iteration_are_the_papers(name, sequence_parallel):
    """72 B L s h^2 (1 + s / 6h + V / 12hL); all layers once more forward: 96 B L s h^2 (1 + s / 6h + V / 16hL)."""
    found = model(name)
    n_layers, h = found.num_hidden_layers, found.hidden_size
    unit = n_layers * S * h * h
    once = step_flops(name, plan(sequence_parallel=sequence_parallel))
    assert once == pytest.approx(72 * unit * (1 + S / (6 * h) + V / (12 * h * n_layers)), rel=1e-12)
    again = step_flops(name, plan(sequence_parallel=sequence_parallel, recompute=("full",)))
    assert again == pytest.approx(96 * unit * (1 + S / (6 * h) + V / (16 * h * n_layers)), rel=1e-12)
    core = step_flops(name, plan(sequence_parallel=sequence_parallel, recompute=("attention",)))
    assert core - once == pytest.approx(4 * n_layers * S * S * h, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_model_flops_are_those_of_the_operators(name):
    """The convention behind MFU, not causal, counts the same products."""
    found = model(name)
    counted = parameters.training_flops_per_token(found, S, causal=False) * S
    # The convention counts a few biases as weights.
    assert step_flops(name, plan()) == pytest.approx(counted, rel=2e-4)


@pytest.mark.parametrize(("name", "billions"), tuple(zip(NAMES, (22, 175, 530, 1000), strict=True)))
def test_parameters_are_what_the_name_says(name, billions):
    """12 L h^2 (1 + 13 / 12h + (V + s) / 12hL) exactly (arXiv:2104.04473 equation 2), the name's number within 1%."""
    found = model(name)
    n_layers, h = found.num_hidden_layers, found.hidden_size
    final_norm = 2 * h
    expected = 12 * n_layers * h * h * (1 + 13 / (12 * h) + (V + S) / (12 * h * n_layers)) + final_norm
    assert parameters.n_parameters(found) == pytest.approx(expected, rel=1e-12)
    assert parameters.n_parameters(found) == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_activations_of_a_layer_are_the_papers(name):
    """s b h (10 + 24/t + 5as/ht) without sequence parallelism, 34/t + 5as/ht with it, 34/t with selective recompute,
    and the input alone with full recompute (arXiv:2205.05198 Table 2)."""
    found = model(name)
    a, h, t, b = found.num_attention_heads, found.hidden_size, 8.0, 4.0
    scores = 5 * a * S / (h * t)

    def kept(**changes):
        return residency.activation_bytes(found, plan(micro_batch=b, **changes), load())["dense_layer"] / (S * b * h)

    assert kept(sequence_parallel=False) == pytest.approx(10 + 24 / t + scores, rel=1e-12)
    assert kept() == pytest.approx(34 / t + scores, rel=1e-12)
    assert kept(recompute=("attention",)) == pytest.approx(34 / t, rel=1e-12)
    assert kept(sequence_parallel=False, recompute=("full",)) == pytest.approx(2.0, rel=1e-12)
    assert kept(recompute=("full",)) == pytest.approx(2.0 / t, rel=1e-12)


def test_state_is_eighteen_bytes_per_parameter():
    """FP16 weights, FP32 main gradients, master weights, two moments; the last of several stages has a table copy."""
    found = model("megatron-22b")
    state = residency.state_bytes(found, plan(zero_stage=0.0))
    device = residency.device_parameters(found, plan())
    assert sum(state["dense_layer"].values()) == pytest.approx(18.0 * device["dense_layer"]["dense"], rel=1e-12)
    several = residency.device_parameters(found, plan(pipeline=8.0))
    assert several["head"]["dense"] - device["head"]["dense"] == V * found.hidden_size / 8.0


def messages(**changes):
    found, given = model("megatron-22b"), plan(**changes)
    step = shard(found.step(load(), given), found, given, 8.0)
    return [op for op in step.ops if op.kind == "collective" and op.part == "dense_layer"], step


def test_both_kinds_of_tensor_parallelism_send_the_same_bytes():
    """An all-reduce is a reduce-scatter and an all-gather; the gather of saved inputs comes on top."""
    summed, _ = messages(sequence_parallel=False)
    split, _ = messages()
    assert {op.variant for op in summed} == {"all_reduce"} and len(summed) == 4
    again = [op for op in split if op.name.endswith("gather_input")]
    assert len(again) == 2
    before = sum(op.message_bytes for op in summed)
    assert sum(op.message_bytes for op in split) - sum(op.message_bytes for op in again) == pytest.approx(before)


def test_full_recompute_sends_forward_messages_again():
    """Six all-reduces per layer instead of four."""
    again, _ = messages(sequence_parallel=False, recompute=("full",))
    assert sum(op.name.endswith("_recompute") for op in again) == 2 and len(again) == 6


def test_only_what_need_not_be_waited_for_runs_beside_gradients():
    """The reduction of an input's gradient beside its weight gradient, the gather of the input beside its own."""
    hidden = {op.name: op.beside for op in messages(overlap="tensor")[0] if op.beside}
    assert hidden == {
        "attention_all_gather_input": "qkv_proj_dgrad", "attention_reduce_scatter_gradient": "qkv_proj_wgrad",
        "mlp_all_gather_input": "mlp_up_dgrad", "mlp_reduce_scatter_gradient": "mlp_up_wgrad",
    }  # fmt: skip
    assert not any(op.beside for op in messages()[0])


def test_what_lies_on_the_residual_is_split_by_sequence_parallelism_alone():
    found = model("megatron-22b")
    for name in ("attention_norm", "mlp_dropout_add", "embedding_dropout"):
        sizes = []
        for split in (True, False):
            given = plan(sequence_parallel=split)
            step = shard(found.step(load(), given), found, given, 8.0)
            sizes += [op.shape["read_bytes"] for op in step.ops if op.name == name]
        assert sizes[1] == 8.0 * sizes[0]


def test_selective_recompute_runs_the_core_again():
    """Scores, softmax, dropout, the weighted sum and its copy, and nothing else; under full recompute once only."""
    found = model("megatron-22b")
    plain, core, full = (found.step(load(), plan(recompute=r)) for r in ((), ("attention",), ("full", "attention")))
    extra = {op.name for op in core.ops} - {op.name for op in plain.ops}
    pieces = ("scores", "softmax", "attention_dropout", "weighted_sum", "heads_to_tokens")
    assert extra == {f"{piece}_recompute" for piece in pieces}
    assert [op.name for op in full.ops].count("scores_recompute") == 1


def test_without_dropout_no_mask_is_made_or_kept():
    from dataclasses import replace

    bare = replace(model("megatron-22b"), attention_dropout=0.0, hidden_dropout=0.0)
    assert not any("dropout" in op.variant for op in bare.step(load(), plan()).ops)
    kept = [residency.activation_bytes(m, plan(), load())["dense_layer"] for m in (bare, model("megatron-22b"))]
    # A byte per score and two per softmax output dropped, a byte for each of two masks of the residual.
    assert kept[1] - kept[0] == pytest.approx(S / 8.0 * (3.0 * 64.0 * S + 2.0 * 6144.0))


def test_a_loss_scaled_optimizer_moves_58_bytes_per_parameter():
    """Norm 4, unscale 8, clip 8, AdamW 28, copy 6, reset 4; fused attention still fits a GPT."""
    from sextant.workloads.ops.optimizer import optimizer_step

    found = model("megatron-22b")
    ops = optimizer_step(found, plan(), {"dense_layer": 48.0}, 8.0).ops
    moved = sum(op.traffic_bytes["hbm"] for op in ops if op.kind == "memory")
    n = 48.0 * residency.device_parameters(found, plan())["dense_layer"]["dense"]
    assert moved == pytest.approx(58.0 * n, rel=1e-12)


def test_fused_attention_is_one_kernel():
    kinds = {op.kind for op in model("megatron-22b").step(load(), plan(attention="fused")).ops}
    assert "attention" in kinds and "batched_gemm" not in kinds
