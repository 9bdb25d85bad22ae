"""Laws of whole answers: what must hold for any machine, model and plan."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.errors import InputError
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
    assert formula == pytest.approx(event, rel=0.0125)


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
    """The reason it was built: at equal everything, overlap and a smaller bubble. 1F1B saves memory, no time: it has
    GPipe's bubble, beside which its steady state waits for messages."""
    *steps, gpipe = column(TRAINING, ["axes.plan.schedule=[dualpipe,zb1p,1f1b,gpipe]"])
    assert np.all(np.diff(steps) > 0)
    assert gpipe == pytest.approx(steps[-1], rel=0.0112)


@pytest.mark.parametrize("engine", ["analytic", "event"])
@pytest.mark.parametrize(
    ("axis", "feasible", "reasons"),
    [
        ("load.batch=[15360,15361,1280,15232]", [1, 0, 0, 0], ("divisibility: seq", "schedule:", "schedule:")),
        ("plan.pipeline=[16,15,64]", [1, 0, 0], ("schedule: DualPipe needs an even p", "divisibility: fewer")),
        ("plan.expert=[64,7]", [1, 0], ("divisibility: routed",)),
        ("plan.n_comm_sms=[20,132,200]", [1, 0, 0], ("sms:", "sms:")),
        ("model.num_experts_per_tok=[8,257]", [1, 0], ("choice:",)),
        ("model.num_hidden_layers=[61,8]", [1, 0], ("divisibility: fewer",)),
    ],
)  # fmt: skip
def test_impossible_points_leave_their_neighbours_alone(engine, axis, feasible, reasons):
    """In one sweep with possible points, on both engines: these keep their answer, those get a reason."""
    alone = answer(question(TRAINING, [f"engine={engine}"]))
    found = answer(question(TRAINING, [f"axes.{axis}", f"engine={engine}"]))
    assert found.feasible.tolist() == [bool(x) for x in feasible]
    for metric, values in alone.columns.items():
        assert found.columns[metric][0] == pytest.approx(values[0], rel=1e-12), metric
    for text, limits in zip(reasons, found.limits[1:], strict=True):
        assert any(limit.startswith(text) for limit in limits), limits
    assert all(np.isfinite(values).all() for values in found.columns.values())


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        (DECODE, "model.base=[deepseek-v3,llama-3.1-405b]"), (DECODE, "model.n_routed_experts=[256,0]"),
        (DECODE, "model.n_group=[8,1]"), (DECODE, "model.n_shared_experts=[1,0]"),
        (TRAINING, "model.base=[deepseek-v3,llama-3.1-405b]"), (TRAINING, "model.n_routed_experts=[256,0]"),
        (TRAINING, "model.n_group=[8,1]"), (TRAINING, "model.n_shared_experts=[1,0]"),
    ],
)  # fmt: skip
def test_a_sweep_may_change_what_a_model_consists_of(name, axis):
    """With experts or without, grouped or not: the first point is what it is alone, the second an answer."""
    engine = ["engine=analytic"]
    found, alone = answer(question(name, [f"axes.{axis}", *engine])), answer(question(name, engine))
    assert found.columns["step_time_s"][0] == pytest.approx(alone.columns["step_time_s"][0], rel=1e-12)
    assert found.feasible[1] == (not found.limits[1])
    assert found.feasible[1] == ("n_group" in axis or "n_shared" in axis)
    if not found.feasible[1]:
        assert "divisibility: expert without routed experts" in found.limits[1]


def test_a_sweep_may_leave_the_experts_out():
    """Without expert parallelism zero routed experts is a dense model, and not an error of the sweep."""
    sets = ["plan.expert=1", "plan.redundant_experts=0", "engine=analytic"]
    found = answer(question(DECODE, [*sets, "axes.model.n_routed_experts=[256,0]"]))
    assert not any("numeric" in text for limits in found.limits for text in limits)
    assert 0.0 < found.columns["step_time_s"][1] < found.columns["step_time_s"][0]
    assert found.columns["communication_s"][1] == 0.0


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["plan.layers_per_stage=[61]"], "list 16 numbers that add up to 61"),
        (["plan.layers_per_stage=[4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4]"], "add up to 61"),
        (["plan.n_comm_sms=132"], "fewer than 132"), (["model.num_experts_per_tok=257"], "at most 256"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_an_error_with_its_remedy(sets, words):
    """Where nothing is swept, the file is wrong."""
    with pytest.raises(InputError, match=words):
        question(TRAINING, sets)


def test_a_layout_that_fits_one_depth_is_infeasible_at_others():
    """``layers_per_stage`` is for 16 stages: a sweep of the pipeline degree says so for 8."""
    found = answer(question(TRAINING, [FIXED, "axes.plan.pipeline=[16,8]"]))
    assert found.feasible.tolist() == [True, False]
    assert "divisibility: layers by layers_per_stage" in found.limits[1]


@settings(max_examples=12)
@given(st.integers(1, 2048), st.integers(1, 200_000), st.sampled_from([8, 16, 32, 64, 144]), st.floats(0.3, 3.0))
def test_decode_is_whole_at_any_point(batch, context, expert, bandwidth):
    """Both engines agree; the step is no shorter than its compute; memory adds up; rates follow from the step."""
    shipped = question(DECODE, ["engine=analytic"]).scenario
    hbm = "cluster.device.memories.hbm.bandwidth_bytes_per_s"
    values = {
        "load.batch": float(batch), "load.context_tokens": float(context), "plan.expert": float(expert),
        "plan.redundant_experts": float(-256 % expert), hbm: bandwidth * paths.get(shipped, hbm),
    }  # fmt: skip
    for path, value in values.items():
        shipped = paths.put(shipped, path, value)
    formula, event = evaluate(shipped), evaluate(replace(shipped, engine="event"))
    c = {name: v[0] for name, v in formula.columns.items()}
    assert event.columns["step_time_s"][0] == pytest.approx(c["step_time_s"], rel=1e-9)
    assert c["step_time_s"] >= c["compute_s"] * (1 - 1e-12)
    assert c["step_time_s"] <= (c["compute_s"] + c["communication_s"]) * (1 + 1e-12)
    assert c["step_time_low_s"] < c["step_time_s"] < c["step_time_high_s"]
    assert c["exposed_comm_s"] >= 0
    assert c["tokens_per_s"] == pytest.approx(batch * 144 / c["step_time_s"], rel=1e-12)
    assert any("hbm:" in text for text in formula.limits[0]) == (c["hbm_free_bytes"] < 0)


def test_a_pipeline_of_one_stage_is_the_sum_of_its_work():
    """No bubble, no messages: micro-batches times one forward and one backward pass, on both engines, exactly."""
    sets = ["plan.pipeline=1", "plan.schedule=1f1b", "plan.overlap=none", "plan.n_comm_sms=0", "load.batch=1024"]
    event, formula = (answer(question(TRAINING, [*sets, f"engine={e}"])).columns for e in ("event", "analytic"))
    assert event["step_time_s"][0] == pytest.approx(formula["step_time_s"][0], rel=1e-12)
    assert abs(event["bubble_s"][0]) < 1e-9 * event["step_time_s"][0]
    longer = answer(question(TRAINING, [*sets, "load.batch=2048", "engine=event"])).columns
    work = event["step_time_s"][0] - event["optimizer_s"][0]
    assert longer["step_time_s"][0] - longer["optimizer_s"][0] == pytest.approx(2.0 * work, rel=1e-9)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb1p", "dualpipe", "dualpipev", "zbv"])
@pytest.mark.parametrize("batch", [4096, 15360])
def test_the_formulas_are_close_for_every_schedule(schedule, batch):
    """Uneven stages and messages in the way: within 5% of the event engine, DualPipe with few micro-batches 5.8%."""
    sets = [f"plan.schedule={schedule}", f"load.batch={batch}"]
    event, formula = (column(TRAINING, [*sets, f"engine={e}"])[0] for e in ("event", "analytic"))
    assert formula == pytest.approx(event, rel=0.058 if (schedule, batch) == ("dualpipe", 4096) else 0.05)
