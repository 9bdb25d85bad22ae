"""A model's step and the optimizer's: which operators there are, how often, and what they move."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters, residency
from sextant.workloads.formats import recipe
from sextant.workloads.models import catalogue, model
from sextant.workloads.ops.optimizer import optimizer_step
from sextant.workloads.traffic import node_limit, received_copies

V3 = model("deepseek-v3")
TRAINING = Load(phase="training", batch=64.0, context_tokens=4096.0)


@pytest.mark.parametrize("name", sorted(catalogue()))
@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_steps_have_the_parts_of_the_model(name, phase):
    """Every part that occurs has operators, no operator belongs to another; MTP is for training alone."""
    found = model(name)
    step = found.step(Load(phase=phase, batch=4.0, context_tokens=1024.0), Plan(micro_batch=2.0))
    assert {op.part for op in step.ops} == set(step.layers)
    layers = {part for part in step.layers if part.endswith("layer")}
    assert sum(step.layers[part] for part in layers) == found.num_hidden_layers
    assert ("mtp" in step.layers) == (phase == "training" and found.num_nextn_predict_layers > 0)
    assert step.n_tokens == {"training": 2 * 1024, "prefill": 4 * 1024, "decode": 4}[phase]
    phases = {op.phase for op in step.ops}
    assert phases == ({"forward", "backward_input", "backward_weight"} if phase == "training" else {"forward"})


def test_backward_matrix_products_are_the_forward_ones_twice():
    """Input and weight gradients of every linear layer each cost what its forward pass costs."""
    step = V3.step(TRAINING, Plan(expert=64.0))
    flops = {
        phase: sum(op.flops for op in step.ops if op.kind in ("gemm", "grouped_gemm") and op.phase == phase)
        for phase in ("forward", "backward_input", "backward_weight")
    }
    assert flops["backward_input"] == pytest.approx(flops["forward"], rel=1e-12)
    assert flops["backward_weight"] == pytest.approx(flops["forward"], rel=1e-12)


@pytest.mark.parametrize("formats", ["bf16", "fp8"])
@pytest.mark.parametrize("recompute", ["norm", "mla_up", "swiglu", "full"])
def test_recompute_adds_work_to_the_backward_pass_alone(recompute, formats):
    """Forward operators stay as they are; the backward pass has more of them, or larger ones."""
    plan = Plan(expert=64.0, formats=formats)
    before, after = (V3.step(TRAINING, replace(plan, recompute=r)) for r in ((), (recompute,)))

    def work(step, backward):
        chosen = [op for op in step.ops if (op.phase != "forward") == backward]
        return sum(op.count * (op.flops + op.traffic_bytes.get("hbm", 0.0)) for op in chosen)

    assert work(after, True) > work(before, True)
    if recompute == "full":
        assert work(after, False) == work(before, False)
    assert sum(op.flops for op in after.ops if op.phase == "forward") == pytest.approx(
        sum(op.flops for op in before.ops if op.phase == "forward"), rel=1e-12
    )


def test_swiglu_kernels_are_as_many_as_the_published_trace_has():
    """Four MoE layers forward and four backward run 24 of them: per layer two forward, of the shared and the routed
    experts, and four backward: the shared product made again, its gradient, both at once for the routed experts, and
    the gradient of the routing weights (deepseek-ai/profile-data train.json). Casts alone are not among them."""
    step = V3.step(TRAINING, Plan(expert=64.0, formats="fp8", recompute=("norm", "mla_up", "swiglu")))
    names = [op for op in step.ops if op.part == "moe_layer" and "swiglu" in op.name]
    kernels = [op for op in names if not op.name.endswith(("_save", "_load"))]
    phases = [op.phase for op in kernels]
    assert 4 * len(kernels) == 24
    assert (phases.count("forward"), phases.count("backward_input")) == (2, 4)


@pytest.mark.parametrize("formats", ["bf16", "fp8"])
def test_the_optimizer_touches_every_parameter_of_the_device(formats):
    """Messages carry all of them, AdamW reads and writes this device's share, FP8 adds casts in two layouts."""
    plan, kind = Plan(data=128.0, expert=64.0, formats=formats), recipe(formats)
    layers = {"dense_layer": 3.0, "moe_layer": 4.0}
    step = optimizer_step(V3, plan, layers, 8.0)
    ops = {op.name: op for op in step.ops}
    sizes, copies = residency.device_parameters(V3, plan), residency.replicas(plan)
    for group in ("dense", "expert"):
        n = sum(count * sizes[part][group] for part, count in layers.items())
        share = n / copies[group]
        gradients, weights = ops[f"{group}_gradients"], ops[f"{group}_weights"]
        assert (gradients.variant, weights.variant) == ("reduce_scatter", "all_gather")
        assert gradients.shape["message_bytes"] == pytest.approx(n * kind.gradient_bytes, rel=1e-12)
        assert weights.shape["message_bytes"] == pytest.approx(n * kind.weight_bytes, rel=1e-12)
        assert gradients.shape["n_gpus"] == weights.shape["n_gpus"] == copies[group]
        state = kind.master_bytes + kind.moment_bytes
        adam = share * (2 * state + kind.gradient_bytes + kind.weight_bytes)
        assert ops[f"{group}_adamw"].traffic_bytes["hbm"] == pytest.approx(adam, rel=1e-12)
        assert (f"{group}_weight_cast" in ops) == kind.quantised
    assert step.phase == "optimizer"


def test_more_replicas_leave_less_of_the_optimizer_to_each():
    """Messages stay, the update shrinks in proportion."""

    def adam(data):
        step = optimizer_step(V3, Plan(data=data, expert=64.0), {"moe_layer": 1.0}, 8.0)
        return next(op for op in step.ops if op.name == "dense_adamw").traffic_bytes["hbm"]

    assert adam(64.0) == pytest.approx(2.0 * adam(128.0), rel=1e-12)


@pytest.mark.parametrize("expert", [1.0, 8.0, 64.0, 144.0, 256.0])
def test_copies_lie_between_one_and_top_k(expert):
    """A token is received at least once, at most once per expert it chose and per device that there is."""
    copies = received_copies(V3, expert)
    assert 1.0 <= copies <= min(V3.num_experts_per_tok, expert) * (1 + 1e-9)
    assert received_copies(V3, 2 * expert) >= copies * (1 - 1e-9)


def test_copies_are_those_of_drawn_experts():
    """Balanced choice of 8 experts in 4 of 8 groups, on 64 devices with 4 experts each."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(4000):
        groups = rng.choice(8, size=4, replace=False)
        pool = np.concatenate([np.arange(32) + 32 * g for g in groups])
        seen.append(len(set(rng.choice(pool, size=8, replace=False) // 4)))
    assert received_copies(V3, 64.0) == pytest.approx(np.mean(seen), abs=4 * np.std(seen) / 4000**0.5)


def test_node_limits():
    """DeepSeek-V3 sends to 4 of 8 groups; a model without groups to as many nodes as it has experts."""
    assert node_limit(V3) == 4
    assert node_limit(replace(V3, n_group=1.0, topk_group=1.0)) == V3.n_routed_experts


def test_wrong_phases_and_mixed_sweeps_are_refused():
    """With what to do instead."""
    with pytest.raises(InputError, match="training, prefill, decode"):
        V3.step(replace(TRAINING, phase="serving"), Plan())
    with pytest.raises(InputError, match="two scenarios"):
        replace(V3, n_routed_experts=np.array([0.0, 256.0])).step(TRAINING, Plan())


def test_parameters_and_step_agree_on_dense_models():
    """Forward FLOPs of the linears of a dense model are two per parameter and token, tables and norms aside."""
    llama = model("llama-3.1-405b")
    step = llama.step(TRAINING, Plan())
    flops = sum(step.layers[op.part] * op.flops for op in step.ops if op.kind == "gemm" and op.phase == "forward")
    pieces = parameters.layer_parameters(llama)["dense_layer"]
    linears = llama.num_hidden_layers * (pieces["attention"] + pieces["mlp"]) + llama.vocab_size * llama.hidden_size
    assert flops == pytest.approx(2.0 * linears * 4096, rel=1e-12)
