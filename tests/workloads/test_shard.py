"""Laying a step over a plan moves work between devices; it neither makes nor loses any."""

import numpy as np
import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads.models import model
from sextant.workloads.shard import shard

TRAINING = Load(phase="training", batch=64.0, context_tokens=1024.0)


def total(step, field, kinds):
    """Sum of a field over the operators of some kinds."""
    return sum(getattr(op, field) for op in step.ops if op.kind in kinds)


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-405b"])
@pytest.mark.parametrize("tensor", [2.0, 4.0, 8.0])
def test_tensor_parallelism_conserves_flops(name, tensor):
    """Split products add up to the whole ones; what every device repeats (router, latent down-projection) is extra."""
    found = model(name)
    whole = found.step(TRAINING, Plan())
    part = shard(whole, found, Plan(tensor=tensor), 8.0)
    split = {op.name for op in whole.ops if "tensor" in op.shards}
    before = sum(op.flops for op in whole.ops if op.name in split)
    after = sum(op.flops for op in part.ops if op.name in split)
    assert after * tensor == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("expert", [8.0, 64.0, 256.0])
def test_expert_parallelism_conserves_pairs_and_divides_weights(expert):
    """Every device still computes tokens x top-k pairs, over 1/expert of the experts."""
    v3 = model("deepseek-v3")
    whole, part = (shard(v3.step(TRAINING, Plan(expert=e)), v3, Plan(expert=e), 8.0) for e in (1.0, expert))
    for a, b in zip(whole.ops, part.ops, strict=True):
        if a.kind == "grouped_gemm":
            assert b.flops == pytest.approx(a.flops, rel=1e-12)
            if a.phase == "forward":
                assert b.shape["groups"] * expert == a.shape["groups"]


def test_a_plan_of_one_device_changes_nothing():
    """Degrees of 1 leave every operator as it was, and send nothing."""
    v3 = model("deepseek-v3")
    step = v3.step(TRAINING, Plan())
    same = shard(step, v3, Plan(), 8.0)
    assert len(same.ops) == len(step.ops)
    for a, b in zip(step.ops, same.ops, strict=True):
        assert (a.name, a.flops, dict(a.traffic_bytes)) == (b.name, b.flops, dict(b.traffic_bytes))


def test_backward_products_have_twice_the_forward_flops():
    """Input and weight gradient each need as many FLOPs as the product itself."""
    v3 = model("deepseek-v3")
    step = v3.step(TRAINING, Plan())
    sums = {p: 0.0 for p in ("forward", "backward_input", "backward_weight")}
    for op in step.ops:
        if op.kind in ("gemm", "grouped_gemm"):
            sums[op.phase] += float(op.flops)
    assert sums["backward_input"] == pytest.approx(sums["forward"], rel=1e-12)
    assert sums["backward_weight"] == pytest.approx(sums["forward"], rel=1e-12)


def test_recompute_adds_exactly_the_forward_products_again():
    """MLA up-projections under recompute run once more in the backward pass, and nothing else changes."""
    v3 = model("deepseek-v3")
    plain, again = (v3.step(TRAINING, Plan(recompute=r)) for r in ((), ("mla_up",)))
    extra = {op.name for op in again.ops} - {op.name for op in plain.ops}
    assert extra == {f"{n}_recompute" for n in ("q_b_proj", "kv_b_proj", "rope", "key_concat", "value_copy")}


def test_degrees_may_be_arrays():
    """A sweep over the tensor degree is one call."""
    v3 = model("deepseek-v3")
    degrees = np.array([1.0, 2.0, 8.0])
    swept = shard(v3.step(TRAINING, Plan(tensor=degrees)), v3, Plan(tensor=degrees), 8.0)
    for i, degree in enumerate(degrees):
        one = shard(v3.step(TRAINING, Plan(tensor=degree)), v3, Plan(tensor=degree), 8.0)
        named = {op.name: op for op in one.ops}
        for op in swept.ops:
            if op.name in named:
                flops = np.broadcast_to(op.flops, degrees.shape)[i]
                assert flops == named[op.name].flops
