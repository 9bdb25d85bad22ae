"""Timing a step: every operator exactly as if timed alone, on what communication leaves it."""

from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator import evaluate, paths
from sextant.simulator.evaluate import communication_share, provenance_shares, time_ops, time_steps
from sextant.simulator.kernels import COPY_SLOWDOWN, estimate, with_sms
from sextant.simulator.types import Load, Plan
from sextant.workloads.models import model
from sextant.workloads.parameters import layer_counts
from sextant.workloads.shard import shard

CLUSTER = hwmodels.cluster("h800-2048")
TRAINING = Load(phase="training", batch=64.0, context_tokens=4096.0)
PLAN = Plan(tensor=2.0, expert=64.0, data=64.0, formats="fp8", recompute=("norm", "mla_up", "swiglu"))


def step(load=TRAINING, plan=PLAN, name="deepseek-v3"):
    """A step of a model as one device runs it."""
    found = model(name)
    return shard(found.step(load, plan), found, plan, 8.0)


def test_times_are_those_of_each_operator_alone():
    """Sharing the time of equal shapes changes nothing."""
    given = step()
    for timed in time_ops(given, CLUSTER).ops:
        alone = estimate(timed.op, CLUSTER)
        assert (timed.time.seconds, timed.time.low, timed.time.high) == (alone.seconds, alone.low, alone.high)
        assert timed.seconds == timed.op.count * alone.seconds


def test_equal_shapes_are_timed_once(monkeypatch):
    """A layer of 61 is one layer; forward and input gradients share shapes."""
    calls = []
    monkeypatch.setattr(evaluate, "estimate", lambda op, cluster: calls.append(op) or estimate(op, cluster))
    given = step()
    time_ops(given, CLUSTER)
    shapes = {
        (op.kind, op.format, op.variant, op.stream == "communication", tuple(sorted(op.shape.items())))
        for op in given.ops
    }
    assert len(calls) == len(shapes) < len(given.ops)


def test_swept_shapes_are_not_taken_for_each_other():
    """Arrays of the same length in the same places, of different numbers."""
    load = replace(TRAINING, phase="decode", batch=np.array([8.0, 64.0]), context_tokens=np.array([4096.0, 512.0]))
    swept = time_ops(step(load), CLUSTER)
    for i in range(2):
        point = replace(load, batch=float(load.batch[i]), context_tokens=float(load.context_tokens[i]))
        alone = time_ops(step(point), CLUSTER)
        for a, b in zip(swept.ops, alone.ops, strict=True):
            assert np.broadcast_to(a.seconds, 2)[i] == pytest.approx(b.seconds, rel=1e-12), a.op.name


def sweep(n=600):
    """Plans that repeat, a link and an HBM bandwidth: the cluster of ``n`` points, the plans that differ, which each
    point has."""
    random = np.random.default_rng(0)
    grid = np.meshgrid([1.0, 2.0, 4.0], [8.0, 32.0, 64.0], [1.0, 2.0])
    tensor, expert, micro_batch = (each.ravel() for each in grid)
    swept = paths.put(CLUSTER, "tiers.infiniband.link.bandwidth_bytes_per_s", random.uniform(20e9, 100e9, n))
    swept = paths.put(swept, "device.memories.hbm.bandwidth_bytes_per_s", random.choice([2e12, 3e12], n))
    plan = replace(PLAN, tensor=tensor, expert=expert, micro_batch=micro_batch)
    return swept, plan, random.integers(0, len(tensor), n)


def same_times(some, others):
    """Whether timed steps agree to the last bit, and in how often their operators run."""
    for a, b in zip(some.ops, others.ops, strict=True):
        for end in ("seconds", "low", "high"):
            np.testing.assert_array_equal(getattr(a.time, end), getattr(b.time, end), err_msg=a.op.name)
        np.testing.assert_array_equal(a.op.count, b.op.count)


def test_equal_points_and_rows_of_a_kind_change_no_bit():
    """Operators timed at their distinct points, as rows of one array, on swept links and memories: as each one alone
    at all points."""
    swept, plan, which = sweep()
    given = step(plan=paths.take(plan, which))
    for timed in time_ops(given, swept, n_comm_sms=20.0).ops:
        left = swept if timed.op.stream == "communication" else replace(swept, device=with_sms(swept.device, 112.0))
        alone = estimate(timed.op, left)
        for end in ("seconds", "low", "high"):
            np.testing.assert_array_equal(getattr(timed.time, end), getattr(alone, end), err_msg=timed.op.name)


def test_a_step_of_fewer_points_is_the_step_of_all():
    """``at`` says which of them each point has; what is timed again beside messages needs no look at shapes."""
    swept, plan, which = sweep()
    few, whole = step(plan=plan), step(plan=paths.take(plan, which))
    alone, others = time_ops(few, swept, at=which), time_ops(whole, swept)
    same_times(alone, others)
    share = communication_share(others, swept.device)
    np.testing.assert_array_equal(communication_share(alone, swept.device), share)
    same_times(time_ops(few, swept, hbm_share=share, at=which, alone=alone), time_ops(whole, swept, hbm_share=share))


def test_steps_timed_together_are_those_timed_alone():
    """Plans that make other activations again share most operators."""
    _, plan, _ = sweep()
    steps = [step(plan=replace(plan, recompute=recompute)) for recompute in ((), ("norm", "mla_up"), ("full",))]
    for together, given in zip(time_steps(steps, CLUSTER, n_comm_sms=20.0), steps, strict=True):
        same_times(together, time_ops(given, CLUSTER, n_comm_sms=20.0))


@pytest.mark.parametrize("load", [TRAINING, replace(TRAINING, phase="prefill", batch=4.0)])
@pytest.mark.parametrize("recompute", [(), ("norm", "mla_up", "swiglu"), ("full",)])
def test_the_table_and_the_layers_hold_every_second(load, recompute):
    """Operators -> table -> pieces of a layer: no block of any part falls through."""
    from sextant.simulator.chunk import layer_times

    timed = time_ops(step(load, replace(PLAN, recompute=recompute)), CLUSTER)
    table = timed.table()
    assert sum(table.values()) == pytest.approx(timed.seconds(), rel=1e-12)
    for part in timed.step.layers:
        whole = timed.seconds(where=lambda op, part=part: op.part == part)
        times = layer_times(table, part)
        pieces = times.forward_s + times.backward_input_s + times.backward_weight_s
        assert pieces == pytest.approx(whole, rel=1e-12), part


def test_low_and_high_enclose_every_sum():
    """The interval holds the estimate, in the sum and in every entry of the table."""
    timed = time_ops(step(), CLUSTER)
    assert timed.seconds(end="low") < timed.seconds() < timed.seconds(end="high")
    low, middle, high = (timed.table(end) for end in ("low", "seconds", "high"))
    assert low.keys() == middle.keys() == high.keys()
    assert all(low[key] <= middle[key] <= high[key] for key in middle)


def test_communication_takes_sms_and_bandwidth_from_compute_alone():
    """Messages keep the links to themselves; compute as a whole gets slower from having less.

    Less bandwidth makes no operator faster. Fewer SMs may: where the number of waves stays, each SM of a product has
    a larger share of the bandwidth and a higher clock.
    """
    given = step()
    whole = time_ops(given, CLUSTER)

    def compute(op):
        return op.stream != "communication"

    for set_aside in ({"n_comm_sms": 20.0}, {"hbm_share": 0.3}):
        fewer = time_ops(given, CLUSTER, **set_aside)
        assert fewer.seconds(where=compute) > 1.02 * whole.seconds(where=compute)
        for a, b in zip(whole.ops, fewer.ops, strict=True):
            if not compute(a.op):
                # Kernels of the exchange copy more slowly beside compute; the links stay theirs.
                copies = "hbm_share" in set_aside and a.op.kind == "expert_exchange"
                slower = COPY_SLOWDOWN if copies else 1.0
                assert b.seconds == slower * a.seconds and b.time.limits == a.time.limits
            elif "hbm_share" in set_aside:
                assert b.seconds >= a.seconds * (1.0 - 1e-12), a.op.name


def test_messages_are_timed_on_the_whole_device(monkeypatch):
    """Whatever a kernel of messages may one day ask of its device."""
    seen = []
    monkeypatch.setattr(evaluate, "estimate", lambda op, cluster: seen.append((op, cluster)) or estimate(op, cluster))
    time_ops(step(), CLUSTER, n_comm_sms=20.0, hbm_share=0.3)
    assert {op.stream for op, _ in seen} == {"compute", "communication"}
    for op, cluster in seen:
        assert (cluster is CLUSTER) == (op.stream == "communication")
        if cluster is not CLUSTER:
            assert cluster.device.n_sms == CLUSTER.device.n_sms - 20.0


def test_nothing_set_aside_changes_nothing():
    """Zero SMs, zero bandwidth: the same numbers, for arrays of zeros too."""
    given = step()
    plain = time_ops(given, CLUSTER).seconds()
    assert time_ops(given, CLUSTER, n_comm_sms=0.0, hbm_share=0.0).seconds() == plain
    np.testing.assert_array_equal(time_ops(given, CLUSTER, n_comm_sms=np.array([0.0, 20.0])).seconds()[0], plain)


def test_the_share_of_bandwidth_that_messages_take():
    """Bytes of messages over the seconds of the compute beside them, layer by layer; none without messages, half at the
    most."""
    device = CLUSTER.device
    timed = time_ops(step(), CLUSTER)
    parts = {t.op.part for t in timed.ops if t.op.stream == "communication"}
    assert parts == {"moe_layer", "mtp"}
    layers = layer_counts(model("deepseek-v3"))
    bytes_ = sum(
        layers[t.op.part] * t.op.count * t.op.traffic_bytes.get("hbm", 0.0)
        for t in timed.ops
        if t.op.stream == "communication"
    )
    seconds = sum(
        layers[t.op.part] * t.seconds for t in timed.ops if t.op.stream != "communication" and t.op.part in parts
    )
    share = communication_share(timed, device)
    assert share == pytest.approx(bytes_ / seconds / device.memories["hbm"].bandwidth_bytes_per_s, rel=1e-12)
    assert 0.0 < share < 0.5
    dense = time_ops(step(plan=Plan(), name="llama-3.1-405b"), CLUSTER)
    assert communication_share(dense, device) == 0.0
    slow = replace(device, memories={"hbm": replace(device.memories["hbm"], bandwidth_bytes_per_s=1e9)})
    assert communication_share(timed, slow) == 0.5


def test_provenance_shares_are_a_whole():
    """Of the time of all layers, weighted by how many there are."""
    timed = time_ops(step(), CLUSTER)
    layers = layer_counts(model("deepseek-v3"))
    shares = provenance_shares(timed, layers)
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-12)
    total = sum(t.seconds * layers[t.op.part] for t in timed.ops)
    for name, share in shares.items():
        own = sum(t.seconds * layers[t.op.part] for t in timed.ops if t.time.provenance == name)
        assert share == pytest.approx(own / total, rel=1e-12)
