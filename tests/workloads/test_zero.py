"""What ZeRO sends and updates, stage by stage, and an optimizer on the host."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.hwmodels import cluster
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.collective import hop_bytes
from sextant.simulator.types import Plan
from sextant.workloads import residency
from sextant.workloads.formats import recipe
from sextant.workloads.models import model
from sextant.workloads.ops.optimizer import chunk_messages, optimizer_step

V3 = model("deepseek-v3")
LAYERS = {"dense_layer": 1.0, "moe_layer": 3.0}
PLAN = Plan(data=128.0, expert=64.0, formats="fp8")


def named(plan):
    return {op.name: op for op in optimizer_step(V3, plan, LAYERS, 8.0).ops}


def held(plan, group):
    return sum(n * residency.device_parameters(V3, plan)[part][group] for part, n in LAYERS.items())


def test_without_zero_gradients_are_summed_for_all_and_all_update_everything():
    """An all-reduce of FP32 gradients, no gather of weights, an update as many times larger as there are replicas."""
    none, one = named(replace(PLAN, zero_stage=0.0)), named(PLAN)
    assert none["dense_gradients"].variant == "all_reduce"
    assert "dense_weights" not in none
    ratio = none["dense_adamw"].traffic_bytes["hbm"] / one["dense_adamw"].traffic_bytes["hbm"]
    assert ratio == pytest.approx(residency.replicas(PLAN)["dense"], rel=1e-12)


def test_an_array_of_stages_is_each_stage_alone():
    """What a stage lacks is counted 0 times; seconds per point follow from counts and sizes."""
    stages = np.array([0.0, 1.0, 2.0, 3.0])
    several = replace(PLAN, zero_stage=stages)
    step, chunks = optimizer_step(V3, several, LAYERS, 8.0), chunk_messages(V3, several, LAYERS, 8.0)
    for i, stage in enumerate(stages):
        plan = replace(PLAN, zero_stage=float(stage))
        assert _sent(step.ops, i) == _sent(optimizer_step(V3, plan, LAYERS, 8.0).ops, 0)
        for phase, ops in chunk_messages(V3, plan, LAYERS, 8.0).items():
            assert _sent(chunks[phase], i) == _sent(ops, 0)


def _sent(ops, i):
    """Bytes of memory and of messages at point ``i`` by operator, of those that are there."""
    found = {}
    for op in ops:
        count, *sizes = (
            np.broadcast_to(n, (4,))[i] for n in (op.count, op.traffic_bytes.get("hbm", 0.0), op.message_bytes)
        )
        if count:
            found[op.name, op.variant] = tuple(count * size for size in sizes)
    return found


def test_zero_2_and_3_move_messages_from_the_end_of_the_step_to_its_chunks():
    """No reduction at the end from 2 on, no gather from 3 on."""
    two, three = named(replace(PLAN, zero_stage=2.0)), named(replace(PLAN, zero_stage=3.0))
    assert "dense_gradients" not in two and "dense_weights" in two
    assert "dense_gradients" not in three and "dense_weights" not in three
    assert chunk_messages(V3, PLAN, LAYERS, 8.0) == {"forward": [], "backward_input": [], "backward_weight": []}


def test_what_a_chunk_sends_under_zero_3():
    """Weights before either pass as its products read them, gradients once in FP32, over each group of replicas."""
    plan = replace(PLAN, zero_stage=3.0)
    found = chunk_messages(V3, plan, LAYERS, 8.0)
    kind, linear = recipe("fp8"), residency.linear_parameters(V3, plan)
    for i, group in enumerate(("dense", "expert")):
        n = held(plan, group)
        quantised = sum(count * linear[part][group] for part, count in LAYERS.items())
        reduction = found["backward_weight"][i]
        assert (reduction.variant, reduction.shape["message_bytes"]) == ("reduce_scatter", n * kind.gradient_bytes)
        for phase in ("forward", "backward_input"):
            gather = found[phase][i]
            assert gather.variant == "all_gather"
            assert gather.shape["message_bytes"] == pytest.approx((n - quantised) * 2 + quantised * (1 + 4 / 128))
    two = chunk_messages(V3, replace(plan, zero_stage=2.0), LAYERS, 8.0)
    assert not two["forward"] and not two["backward_input"]
    assert two["backward_weight"] == found["backward_weight"]


def test_zero_0_and_1_send_the_same_bytes_where_weights_are_as_wide_as_gradients():
    """An all-reduce is a reduce-scatter and an all-gather (ZeRO, arXiv:1910.02054, s7)."""
    plan = replace(PLAN, formats="bf16")
    none = named(replace(plan, zero_stage=0.0))["dense_gradients"]
    one = named(plan)["dense_gradients"]
    assert sum(hop_bytes(none.shape, none.variant)) == pytest.approx(2 * sum(hop_bytes(one.shape, one.variant)))


def test_an_optimizer_on_the_host_copies_gradients_out_and_weights_back():
    """Each over the link to the host; the update reads and writes host memory."""
    plan = replace(PLAN, placement={"optimizer": "host"})
    ops, kind = named(plan), recipe("fp8")
    share = held(plan, "dense") / residency.replicas(plan)["dense"]
    assert "dense_adamw" not in ops
    assert ops["dense_gradients_out"].shape["bytes"] == pytest.approx(share * kind.gradient_bytes)
    assert ops["dense_weights_back"].shape["bytes"] == pytest.approx(share * kind.weight_bytes)
    state = kind.master_bytes + kind.moment_bytes
    update = ops["dense_host_adamw"]
    assert update.traffic_bytes == {
        "host": pytest.approx(share * (2 * state + kind.gradient_bytes + kind.weight_bytes))
    }
    fast = estimate(named(PLAN)["dense_adamw"], cluster("h800-2048")).seconds
    assert estimate(update, cluster("h800-2048")).seconds > fast


def test_an_update_on_the_host_is_never_faster_than_its_memory():
    """And twice the bytes take twice as long."""
    where = cluster("h800-2048")
    rate = where.device.memories["host"].bandwidth_bytes_per_s
    one = estimate(operator("host_update", "x", "fp32", {"read_bytes": 1e9, "write_bytes": 5e8}), where)
    two = estimate(operator("host_update", "x", "fp32", {"read_bytes": 2e9, "write_bytes": 1e9}), where)
    assert one.seconds >= 1.5e9 / rate
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert one.low < one.seconds < one.high
