"""Laws of whole answers: what must hold for any machine, model and plan."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator import paths
from sextant.studies.answer import answer, evaluate, question

DECODE = "deepseek_v3_h800_decode"
TRAINING = "deepseek_v3_h800_training"
#: A fixed layout: where rates move layers between stages, a faster part may make another stage the slowest.
FIXED = "plan.layers_per_stage=[4,4,4,4,4,4,4,4,4,4,4,4,4,4,3,2]"


def column(name, sets, metric="step_time_s"):
    """One metric of every point."""
    return answer(question(name, sets)).columns[metric]


@pytest.mark.parametrize("name", [DECODE, TRAINING])
@pytest.mark.parametrize(
    "path",
    [
        "device.memories.hbm.bandwidth_bytes_per_s", "tiers.nvlink.link.bandwidth_bytes_per_s",
        "tiers.infiniband.link.bandwidth_bytes_per_s", "device.peak_flops_per_s.bf16", "device.peak_flops_per_s.fp8",
        "device.clock_under_load",
    ],
)  # fmt: skip
def test_a_faster_machine_is_never_slower(name, path):
    """More bandwidth, more FLOP/s, a higher clock: no step takes longer."""
    sets = ["engine=analytic"] + ([FIXED] if name == TRAINING else [])
    scenario = question(name, sets).scenario
    base = paths.get(scenario.cluster, path)
    factors = (
        np.array([0.5, 0.8, 0.95, 1.0, 1.05, 1.5, 3.0]) if path != "device.clock_under_load" else np.linspace(0.5, 1, 7)
    )
    scenario = replace(scenario, cluster=paths.put(scenario.cluster, path, base * factors))
    steps = evaluate(scenario, len(factors)).columns["step_time_s"]
    assert np.all(np.diff(steps) <= 1e-12 * steps[:-1])


def test_double_the_layers_doubles_the_layers_time():
    """Decode: embedding and head aside, and once the two half batches are in step."""
    steps = column(DECODE, ["axes.model.num_hidden_layers=[31,59,87]"])
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "axis", "values"),
    [
        (DECODE, "load.batch", [2, 64, 100, 512]), (DECODE, "load.context_tokens", [1, 777, 131072]),
        (DECODE, "model.n_routed_experts", [112, 256, 400]), (DECODE, "plan.expert", [1, 18, 144]),
        (DECODE, "cluster.device.memories.hbm.bandwidth_bytes_per_s", [1e12, 3e12, 9e12]),
        (DECODE, "model.moe_intermediate_size", [512, 2048]), (DECODE, "plan.tensor", [1, 2, 8]),
        (TRAINING, "plan.expert", [8, 32, 64]), (TRAINING, "plan.data", [64, 128]), (TRAINING, "plan.tensor", [1, 2]),
        (TRAINING, "load.batch", [7680, 15360]), (TRAINING, "plan.micro_batch", [1, 2]),
        (TRAINING, "cluster.device.memories.hbm.bandwidth_bytes_per_s", [2e12, 5e12]),
        (TRAINING, "model.n_routed_experts", [128, 256]),
    ],
)  # fmt: skip
def test_a_sweep_is_its_points_side_by_side(name, axis, values):
    """Array result = scalar results, in every metric, to rounding."""
    engine = ["engine=analytic"]
    swept = answer(question(name, [f"axes.{axis}={values}", *engine]))
    for i, value in enumerate(values):
        alone = evaluate(paths.put(question(name, engine).scenario, axis, float(value)))
        for metric, numbers in alone.columns.items():
            assert swept.columns[metric][i] == pytest.approx(numbers[0], rel=1e-9), metric
        assert swept.feasible[i] == alone.feasible[0]
        assert swept.limits[i] == alone.limits[0]


@pytest.mark.parametrize("sets", [[], ["load.batch=2"], ["load.context_tokens=100"], ["plan.overlap=none"]])
def test_the_event_engine_agrees_on_decode(sets):
    """The same tasks, played: the same step, though the formula only plays the first layers."""
    assert column(DECODE, [*sets, "engine=event"]) == pytest.approx(
        column(DECODE, [*sets, "engine=analytic"]), rel=1e-9
    )


def test_the_event_engine_agrees_on_equal_stages():
    """Training: without ends, MTP and messages between stages in the way, the formulas are the simulation."""
    sets = [
        "plan.schedule=1f1b", "plan.overlap=none", "plan.n_comm_sms=0", "model.num_nextn_predict_layers=0",
        "model.vocab_size=1", "model.first_k_dense_replace=0", "model.num_hidden_layers=64",
        "plan.layers_per_stage=[4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4]",
        "cluster.tiers.infiniband.link.bandwidth_bytes_per_s=1e9 GB/s",
    ]  # fmt: skip
    event, formula = (column(TRAINING, [*sets, f"engine={e}"])[0] for e in ("event", "analytic"))
    assert event == pytest.approx(formula, rel=1e-3)


def test_the_engines_differ_little_on_the_published_step():
    """Stages of unequal length are what the formulas only approximate."""
    event, formula = (column(TRAINING, [f"engine={e}"])[0] for e in ("event", "analytic"))
    assert formula == pytest.approx(event, rel=0.01)


@pytest.mark.parametrize("name", [DECODE, TRAINING, "deepseek_v3_h800_prefill"])
def test_memory_adds_up(name):
    """The parts of the fullest device are what it uses, and what it uses and what is free are what it has."""
    asked = question(name)
    columns = answer(asked).columns
    total = ("hbm_bytes", "hbm_free_bytes")
    parts = sum(v[0] for n, v in columns.items() if n.startswith("hbm_") and n not in total)
    assert parts == pytest.approx(columns["hbm_bytes"][0], rel=1e-12)
    capacity = asked.scenario.cluster.device.memories["hbm"].capacity_bytes
    assert columns["hbm_bytes"][0] + columns["hbm_free_bytes"][0] == pytest.approx(capacity, rel=1e-12)


def test_parts_of_the_step_add_up():
    """Forward, backward, weight gradients, pairs, bubble and optimizer are the step."""
    columns = answer(question(TRAINING)).columns
    parts = ("forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s", "optimizer_s")
    assert sum(columns[p][0] for p in parts) == pytest.approx(columns["step_time_s"][0], rel=1e-12)


def test_the_published_recompute_policy_fits_and_none_does_not():
    """DeepSeek-V3 report s3.2.3: norms and MLA up-projections are recomputed to save memory; 80 GB need it."""
    published, none = (answer(question(TRAINING, s)) for s in ([], ["plan.recompute=[]"]))
    assert published.feasible[0]
    assert not none.feasible[0]
    assert none.columns["step_time_s"][0] < published.columns["step_time_s"][0]
    full = answer(question(TRAINING, ["plan.recompute=[full]"]))
    assert full.columns["hbm_activations_bytes"][0] < published.columns["hbm_activations_bytes"][0]
    assert full.columns["step_time_s"][0] > published.columns["step_time_s"][0]


def test_zero_stages_save_memory_in_order():
    """ZeRO 0 keeps everything everywhere, each stage shards more."""
    used = column(TRAINING, ["axes.plan.zero_stage=[0,1,2,3]"], "hbm_bytes")
    assert np.all(np.diff(used) < 0)


@pytest.mark.parametrize(
    ("name", "axis", "reasons"),
    [
        (TRAINING, "plan.expert=[7]", "divisibility: routed"), (TRAINING, "load.batch=[15361]", "divisibility: seq"),
        (TRAINING, "load.batch=[1280]", "schedule: DualPipe"), (TRAINING, "plan.pipeline=[15]", "schedule: DualPipe"),
        (TRAINING, "plan.data=[256]", "devices:"), (TRAINING, "plan.schedule=[interleaved]", "schedule: interleaved"),
        (TRAINING, "plan.pipeline=[64]", "divisibility: fewer layers"), (DECODE, "load.batch=[4096]", "hbm:"),
        (DECODE, "plan.tensor=[3]", "divisibility: heads"), (DECODE, "plan.context=[2]", "unsupported:"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_answer(name, axis, reasons):
    """Infeasible points are data with a reason; nothing raises, nothing is NaN."""
    found = answer(question(name, [f"axes.{axis}"]))
    assert not found.feasible[0]
    assert any(text.startswith(reasons) for text in found.limits[0]), found.limits
    assert all(np.isfinite(values).all() for values in found.columns.values())


def test_constraints_mark_points_with_their_value():
    """An SLO is a limit like any other, and says what was reached."""
    found = answer(question(DECODE, ["axes.load.batch=[16,256]", "constraints.tpot_s.max=40 ms"]))
    assert found.feasible.tolist() == [True, False]
    assert "tpot_s max 0.04, got" in found.limits[1][-1]


def test_dualpipe_beats_one_f_one_b_as_published():
    """The reason it was built: at equal everything, overlap and a smaller bubble."""
    steps = column(TRAINING, ["axes.plan.schedule=[dualpipe,zb1p,1f1b,gpipe]"])
    assert np.all(np.diff(steps) > 0)
