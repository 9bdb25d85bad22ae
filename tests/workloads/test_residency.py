"""What lies in memory: sharding moves bytes between devices and neither makes nor loses any."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import parameters, residency
from sextant.workloads.formats import recipe
from sextant.workloads.models import catalogue, model

V3 = model("deepseek-v3")
#: Norms, router and the like: every device of a tensor group holds them.
WHOLE = ("norm", "router", "mtp_norm")
LOAD = Load(phase="training", batch=64.0, context_tokens=4096.0)


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_one_device_holds_the_whole_model(name):
    """Without degrees to divide by, the parts and the tables add up to the model's parameters, MTP aside."""
    found = model(name)
    held, counts = residency.device_parameters(found, Plan()), parameters.layer_counts(found)
    total = sum(n * sum(held[part].values()) for part, n in counts.items() if part != "mtp")
    total += residency.table_bytes(found, Plan(), "decode", 8.0)["hbm"] / 2.0
    assert total == pytest.approx(parameters.n_parameters(found), rel=1e-12)


@pytest.mark.parametrize(("tensor", "expert"), [(1.0, 64.0), (2.0, 8.0), (8.0, 256.0)])
def test_sharded_parameters_add_up(tensor, expert):
    """Over a tensor group what is split adds up to the whole; over an expert group all experts are there once."""
    held = residency.device_parameters(V3, Plan(tensor=tensor, expert=expert))
    for part, pieces in parameters.layer_parameters(V3).items():
        whole = sum(size for piece, size in pieces.items() if piece in WHOLE)
        split = sum(size for piece, size in pieces.items() if piece not in (*WHOLE, "routed_experts"))
        assert (held[part]["dense"] - whole) * tensor == pytest.approx(split, rel=1e-12)
        assert held[part]["expert"] * expert == pytest.approx(pieces.get("routed_experts", 0.0), rel=1e-12)


def test_redundant_experts_are_as_large_as_the_others():
    """256 experts and 32 copies over 144 devices: two each, and what a copy costs is one expert."""
    held = residency.device_parameters(V3, Plan(expert=144.0, redundant_experts=32.0))["moe_layer"]["expert"]
    assert held == pytest.approx(2.0 * 3.0 * V3.hidden_size * V3.moe_intermediate_size, rel=1e-12)


@pytest.mark.parametrize("formats", ["bf16", "fp8"])
@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe"])
def test_zero_shards_one_kind_after_the_other(formats, schedule):
    """Stage 1 master weights and moments, 2 gradients, 3 weights: each falls by its replicas, nothing else changes."""
    kind = recipe(formats)
    plan = Plan(data=128.0, expert=64.0, formats=formats, schedule=schedule)
    sizes, copies = residency.device_parameters(V3, plan), residency.replicas(plan)
    twice = 2.0 if schedule == "dualpipe" else 1.0
    assert copies == {"dense": 128.0 * twice, "expert": 2.0 * twice}
    elements = {"gradients": kind.gradient_bytes, "master": kind.master_bytes, "moments": kind.moment_bytes}
    sharded = {0.0: (), 1.0: ("master", "moments"), 2.0: tuple(elements), 3.0: tuple(elements)}
    whole = residency.state_bytes(V3, replace(plan, zero_stage=0.0))
    for stage, names in sharded.items():
        state = residency.state_bytes(V3, replace(plan, zero_stage=stage))
        for part, groups in sizes.items():
            for name, size in elements.items():
                expected = sum(n * size / (copies[g] if name in names else 1.0) for g, n in groups.items())
                assert state[part][name] == pytest.approx(expected, rel=1e-12), (stage, part, name)
            for name in {"weights", "fp8_weights"} & set(state[part]):
                if stage < 3.0:
                    assert state[part][name] == whole[part][name]
                else:
                    assert state[part][name] <= whole[part][name] / min(copies.values()) * (1 + 1e-12)


def test_weights_lie_there_as_operators_read_them():
    """FP8 products read two layouts of a byte and a scale per 128 x 128 block; norms, router, embedding, head BF16."""
    plan = Plan(data=128.0, expert=64.0, formats="fp8")
    state, held = residency.state_bytes(V3, plan), residency.device_parameters(V3, plan)
    pieces = parameters.layer_parameters(V3)["moe_layer"]
    rest = pieces["norm"] + pieces["router"]
    linear = sum(held["moe_layer"].values()) - rest
    assert state["moe_layer"]["weights"] == pytest.approx(2.0 * rest, rel=1e-12)
    assert state["moe_layer"]["fp8_weights"] == pytest.approx(2.0 * linear * (1 + 4 / 128**2), rel=1e-12)
    assert state["head"]["fp8_weights"] == 0
    assert state["head"]["weights"] == 2.0 * sum(held["head"].values())
    bf16 = residency.state_bytes(V3, replace(plan, formats="bf16"))["moe_layer"]
    assert "fp8_weights" not in bf16
    assert bf16["weights"] == 2.0 * sum(held["moe_layer"].values())


def test_what_is_gathered_is_whole():
    """ZeRO 2 holds the gradients of the largest layer whole, ZeRO 3 its weights and the next one's as well."""
    plan = Plan(data=128.0, expert=64.0)
    whole = residency.state_bytes(V3, replace(plan, zero_stage=0.0))
    layers = {"dense_layer": 2.0, "moe_layer": 1.0, "head": 0.0}
    sizes = [residency.gathered_bytes(replace(plan, zero_stage=z), whole, layers) for z in (0.0, 1.0, 2.0, 3.0)]
    gradients, weights = (
        max(whole[part][name] for part in ("dense_layer", "moe_layer")) for name in ("gradients", "weights")
    )
    assert sizes == [0.0, 0.0, gradients, gradients + 2.0 * weights]


def test_optimizer_state_is_conserved_over_all_devices():
    """ZeRO 1: the shares of all devices of one stage are the state of one full copy."""
    plan = Plan(data=128.0, expert=64.0, formats="fp8", zero_stage=1.0)
    state = residency.state_bytes(V3, plan)["moe_layer"]
    whole = sum(parameters.layer_parameters(V3)["moe_layer"].values())
    assert 128.0 * state["moments"] == pytest.approx(whole * recipe("fp8").moment_bytes, rel=1e-12)


def test_serving_weights_of_deepseek_v3():
    """FP8 linears at a byte and a 16,384th of a scale each, embedding and head in BF16: two tables once more."""
    sizes, counts = residency.weight_bytes(V3, Plan(formats="fp8")), parameters.layer_counts(V3)
    total = sum(n * sizes[part] for part, n in counts.items() if part != "mtp")
    tables = 2 * V3.vocab_size * V3.hidden_size
    linears = parameters.n_parameters(V3) - tables
    assert total == pytest.approx(linears * (1 + 4 / 128**2) + 2 * tables, rel=1e-6)


@pytest.mark.parametrize("formats", ["bf16", "fp8"])
@pytest.mark.parametrize("kept", ["norm", "mla_up", "swiglu"])
def test_whatever_is_recomputed_is_not_kept(formats, kept):
    """Each policy saves its tensors in every layer that has them; ``full`` leaves no more than the input."""
    plan = Plan(expert=64.0, formats=formats)
    whole = residency.activation_bytes(V3, plan, LOAD)
    less = residency.activation_bytes(V3, replace(plan, recompute=(kept,)), LOAD)
    least = residency.activation_bytes(V3, replace(plan, recompute=("full",)), LOAD)
    for part in ("dense_layer", "moe_layer", "mtp"):
        assert least[part] < less[part] < whole[part]
    assert less["head"] == whole["head"]
    assert least["moe_layer"] == 2.0 * V3.hidden_size * 4096


def test_recomputed_queries_keys_and_values_have_their_sizes():
    """Query and key of 192, value of 128 per head and token, in BF16."""
    plan = Plan(expert=64.0, formats="fp8")
    saved = [residency.activation_bytes(V3, replace(plan, recompute=r), LOAD)["moe_layer"] for r in ((), ("mla_up",))]
    assert saved[0] - saved[1] == pytest.approx(4096 * 128 * (192 + 192 + 128) * 2, rel=1e-12)


def test_activations_grow_with_tokens_and_are_split_over_tensor_parallel_devices():
    """Sequence parallel: all of them are divided."""
    plan = Plan(expert=64.0, formats="fp8")
    one = residency.activation_bytes(V3, plan, LOAD)
    for other, factor in (
        (residency.activation_bytes(V3, replace(plan, micro_batch=2.0), LOAD), 2.0),
        (residency.activation_bytes(V3, plan, replace(LOAD, context_tokens=2048.0)), 0.5),
        (residency.activation_bytes(V3, replace(plan, tensor=4.0), LOAD), 0.25),
    ):
        for part, size in one.items():
            assert other[part] == pytest.approx(size * factor, rel=1e-12)


def test_the_cache_is_the_published_size_per_token():
    """70,272 bytes per token in BF16 (ISCA25 Insights Table 1); heads of GQA are split, the latent is not."""
    load = Load(phase="decode", batch=np.array([1.0, 128.0]), context_tokens=4096.0)
    np.testing.assert_array_equal(residency.cache_bytes(V3, Plan(tensor=8.0), load), np.array([1, 128]) * 4096 * 70_272)
    llama = model("llama-3.1-405b")
    assert residency.cache_bytes(llama, Plan(tensor=8.0), replace(load, batch=1.0)) == 4096 * 516_096 / 8
    assert residency.cache_bytes(V3, Plan(pipeline=2.0), replace(load, batch=1.0)) == 4096 * 70_272 / 2


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_model_can_be_held(name):
    """Dense models have no experts to divide, and nothing stumbles over that."""
    found = model(name)
    for sizes in (
        residency.weight_bytes(found, Plan(tensor=8.0)), residency.activation_bytes(found, Plan(tensor=8.0), LOAD),
        residency.state_bytes(found, Plan(tensor=8.0))["dense_layer"],
    ):  # fmt: skip
        assert all(np.isfinite(size) and size >= 0 for size in sizes.values())
    assert residency.working_bytes(found, Plan(tensor=8.0), 128.0) > 0
