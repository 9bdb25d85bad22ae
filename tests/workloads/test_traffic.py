"""What a load's routing does to a step: nothing where balanced, the most loaded GPU's operators where not."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.types import Load, Plan
from sextant.workloads.models import model
from sextant.workloads.traffic import BALANCED, received_copies, skew

V3 = model("deepseek-v3")
PLAN = Plan(data=32.0, expert=32.0, formats="fp8")
LOAD = Load(phase="prefill", batch=4.0, context_tokens=4096.0)
TOKENS = 4 * 4096.0


def ops(load: Load, plan: Plan = PLAN):
    return {op.name: op for op in V3.step(load, plan).ops if op.part == "moe_layer"}


def test_equal_counts_are_balanced_routing() -> None:
    even = replace(LOAD, routing="counts", expert_tokens=(3.0,) * 256)
    assert skew(V3, PLAN, even, TOKENS) == BALANCED
    assert skew(V3, PLAN, LOAD, TOKENS) is BALANCED
    for name, op in ops(even).items():
        assert dict(op.shape) == dict(ops(LOAD)[name].shape)


def test_given_counts_load_the_gpu_that_holds_the_hot_expert() -> None:
    """Expert 0 is chosen nine times as often as any other: its GPU of 8 experts has 16/8.25 of the mean load, its
    node of 64 has 72/66."""
    counts = replace(LOAD, routing="counts", expert_tokens=(9.0,) + (1.0,) * 255)
    found = skew(V3, PLAN, counts, TOKENS)
    assert found.gpu == pytest.approx(16 / 8.25)
    assert found.node == pytest.approx(72 / 66)
    hot, even = ops(counts), ops(LOAD)
    assert hot["expert_up_gate"].flops == pytest.approx(even["expert_up_gate"].flops * 16 / 8.25)
    assert hot["dispatch"].shape["hot_gpu"] == found.gpu
    assert hot["shared_expert_up_gate"].flops == even["shared_expert_up_gate"].flops


def test_redundant_experts_help_and_steeper_laws_hurt() -> None:
    laws = [replace(LOAD, routing=f"power_law_{a}") for a in (0.2, 0.6, 1.0)]
    plain = [float(skew(V3, PLAN, law, TOKENS).gpu) for law in laws]
    copied = [float(skew(V3, replace(PLAN, redundant_experts=32.0), law, TOKENS).gpu) for law in laws]
    assert plain == sorted(plain)
    assert all(1.0 <= c < p for c, p in zip(copied, plain, strict=True))


def test_arrays_are_their_scalars() -> None:
    degrees = np.array([8.0, 32.0, 64.0])
    for redundant in (0.0, 64.0):
        law = replace(LOAD, routing="power_law_0.7")
        whole = skew(V3, replace(PLAN, expert=degrees, redundant_experts=redundant), law, TOKENS)
        for i, degree in enumerate(degrees):
            one = skew(V3, replace(PLAN, expert=degree, redundant_experts=redundant), law, TOKENS)
            assert np.asarray(whole.gpu)[i] == pytest.approx(float(one.gpu), rel=1e-12)
            assert np.asarray(whole.node)[i] == pytest.approx(float(one.node), rel=1e-12)


def test_copies_of_a_hot_device_and_unknown_routing() -> None:
    law = replace(LOAD, routing="power_law_0.7")
    hot = skew(V3, PLAN, law, TOKENS)
    assert received_copies(V3, 32.0) < received_copies(V3, 32.0, skew=hot) <= 32.0
    with pytest.raises(InputError, match="power_law_A"):
        skew(V3, PLAN, replace(LOAD, routing="zipf"), TOKENS)
    with pytest.raises(InputError, match="3 numbers for 256"):
        skew(V3, PLAN, replace(LOAD, routing="counts", expert_tokens=(1.0, 2.0, 3.0)), TOKENS)
