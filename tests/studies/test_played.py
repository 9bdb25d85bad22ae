"""Schedules in a V, jitter and stragglers as a scenario asks for them; what the trace counts."""

import json

import numpy as np
import pytest

from sextant.studies import report
from sextant.studies.answer import answer, question
from sextant.studies.report import Answer
from sextant.studies.training import pipeline_run

TRAINING = "deepseek_v3_h800_training"
SMALL = ["plan.pipeline=4", "plan.data=128", "load.batch=1024", "model.num_hidden_layers=15"]


def columns(*sets):
    """The metrics of the shipped training scenario, changed by ``sets``."""
    return answer(question(TRAINING, [*SMALL, *sets])).columns


def test_a_quiet_cluster_says_nothing_of_jitter():
    """No metric, no change; zero by default."""
    cluster = question(TRAINING).scenario.cluster
    assert (cluster.jitter, cluster.stragglers) == (0.0, 0.0)
    assert "jitter_s" not in columns()


@pytest.mark.parametrize("engine", ["event", "analytic"])
def test_jitter_is_added_to_the_step(engine):
    """The parts still add up, the others are as without it, and both engines add the same seconds."""
    quiet, found = columns(f"engine={engine}"), columns(f"engine={engine}", "cluster.jitter=0.02")
    assert found["jitter_s"][0] > 0
    assert found["step_time_s"][0] == pytest.approx(quiet["step_time_s"][0] + found["jitter_s"][0], rel=1e-12)
    for name in ("forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s", "optimizer_s"):
        assert found[name][0] == quiet[name][0]
    other = columns("engine=analytic", "cluster.jitter=0.02")
    assert found["jitter_s"][0] == other["jitter_s"][0]


def test_a_sweep_of_jitter_is_its_points():
    """Each value as if asked alone, more jitter costs more, and the point without it nothing."""
    swept = columns("axes.cluster.jitter=[0, 0.01, 0.05]", "engine=analytic")["jitter_s"]
    alone = [columns(f"cluster.jitter={v}", "engine=analytic").get("jitter_s", [0.0])[0] for v in (0, 0.01, 0.05)]
    assert swept.tolist() == [float(x) for x in alone]
    assert 0.0 == swept[0] < swept[1] < swept[2]


def test_the_seed_decides_which_devices_are_slow():
    """The same seed, the same answer; with all devices slow the pipeline takes the factor longer, but for messages (and
    for what the closed form of the quiet step errs)."""
    one, again, other = (columns("cluster.jitter=0.03", f"seed={s}", "engine=analytic") for s in (1, 1, 2))
    assert one["jitter_s"][0] == again["jitter_s"][0] != other["jitter_s"][0]
    quiet = columns("engine=analytic")
    all_slow = columns("cluster.stragglers=512", "cluster.straggler_slowdown=1.5", "engine=analytic")
    pipeline = quiet["step_time_s"][0] - quiet["optimizer_s"][0]
    assert all_slow["jitter_s"][0] == pytest.approx(0.5 * pipeline, rel=0.05)
    slower = columns("cluster.stragglers=512", "cluster.straggler_slowdown=2", "engine=analytic")
    assert slower["jitter_s"][0] == pytest.approx(2 * all_slow["jitter_s"][0], rel=1e-3)


def test_experts_couple_the_replicas():
    """A larger expert group waits for more devices in every exchange: the same jitter costs more."""
    coupled = [columns("cluster.jitter=0.02", f"plan.expert={e}", "engine=analytic")["jitter_s"][0] for e in (8, 64)]
    dense = answer(
        question(
            TRAINING, ["model=deepseek-coder-6.7b", "plan={pipeline: 4, data: 128, expert: 1, schedule: 1f1b, "
                       "overlap: none, n_comm_sms: 0, recompute: []}", "load.batch=1024", "cluster.jitter=0.02",
                       "engine=analytic"]
        )
    ).columns  # fmt: skip
    quiet = columns("engine=analytic")["step_time_s"][0]
    assert coupled[0] < coupled[1]
    assert 0 < dense["jitter_s"][0] / dense["step_time_s"][0] < coupled[0] / quiet


def test_jitter_while_serving_is_noted():
    """Nothing happens silently."""
    found = answer(question("deepseek_v3_h800_decode", ["cluster.jitter=0.1"]))
    assert any("cluster.jitter" in note for note in found.warnings)


@pytest.mark.parametrize(("name", "overlap"), [("zbv", "none"), ("dualpipev", "forward_backward")])
@pytest.mark.parametrize("batch", [4096, 15360])
def test_vees_answer_on_both_engines(name, overlap, batch):
    """Two stages per rank, 61 layers on 16 of them: the engines within 5%, and every stage held once."""
    sets = [f"plan.schedule={name}", f"plan.overlap={overlap}", "plan.pipeline=8", "plan.data=128"]
    event, formula = (
        answer(question(TRAINING, [*sets, f"load.batch={batch}", f"engine={e}"])) for e in ("event", "analytic")
    )
    # More than an H800 holds, with what waits for a weight gradient; nothing else stands against them.
    assert [text.partition(":")[0] for text in event.limits[0]] == ["hbm"]
    assert formula.columns["step_time_s"][0] == pytest.approx(event.columns["step_time_s"][0], rel=0.05)
    plain = answer(question(TRAINING, ["plan.pipeline=8", f"load.batch={batch}"])).columns
    assert event.columns["hbm_weights_bytes"][0] < plain["hbm_weights_bytes"][0]


def test_dualpipev_is_dualpipe_on_half_the_ranks():
    """The published table: the same stages on P/2 devices, and with twice the replicas the same micro-batches per
    stage: the same step, up to messages."""
    whole = answer(question(TRAINING)).columns
    half = answer(question(TRAINING, ["plan.schedule=dualpipev", "plan.pipeline=8", "plan.data=256"])).columns
    assert half["step_time_s"][0] == pytest.approx(whole["step_time_s"][0], rel=0.005)


@pytest.mark.parametrize(("name", "overlap"), [("zbv", "none"), ("dualpipev", "forward_backward")])
def test_a_sweep_over_a_vee_is_its_points(name, overlap):
    """Different numbers of micro-batches, different chunk times: each point as if asked alone, to the last bit."""
    sets = [f"plan.schedule={name}", f"plan.overlap={overlap}", "plan.pipeline=4", "engine=analytic"]
    axes = "axes={load.batch: [2048, 4096], plan.micro_batch: [1, 2]}"
    swept = answer(question(TRAINING, [*sets, axes])).columns["step_time_s"]
    alone = [
        answer(question(TRAINING, [*sets, f"load.batch={b}", f"plan.micro_batch={m}"])).columns["step_time_s"][0]
        for b in (2048, 4096) for m in (1, 2)
    ]  # fmt: skip
    assert swept.tolist() == [float(x) for x in alone]
    assert len(set(alone)) == 4


@pytest.mark.parametrize(
    ("sets", "word"),
    [
        (["plan.schedule=dualpipev", "load.batch=1920"], "twice as many micro-batches"),
        (["plan.schedule=zbv", "plan.pipeline=32", "plan.data=64"], "fewer layers than pipeline stages"),
        (["plan.schedule=zbv", "plan.virtual_stages=2"], "only interleaved"),
        (["plan.schedule=zbv", "plan.layers_per_stage=[30,31]", "plan.pipeline=2"], "4 numbers"),
    ],
)
def test_vees_that_do_not_exist_say_why(sets, word):
    """As a limit of the point, or as an error of the file."""
    from sextant.simulator.errors import InputError

    try:
        found = " ".join(sum(answer(question(TRAINING, sets)).limits, ()))
    except InputError as error:
        found = str(error)
    assert word in found


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A small step with its trace."""
    asked = question(TRAINING, SMALL)
    found = Answer(question=asked, result=answer(asked))
    path = report.write_trace(found, tmp_path_factory.mktemp("trace"))
    return found, json.loads(path.read_text())["traceEvents"]


def test_the_trace_has_streams_and_counters(traced):
    """Compute and communication are threads of a rank; counters start and end at zero, and the activations of the
    fullest rank peak at what the memory of the answer says."""
    found, events = traced
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == {"compute", "communication"}
    counted = {}
    for event in (e for e in events if e["ph"] == "C"):
        ((unit, value),) = event["args"].items()
        assert unit == "bytes"
        counted.setdefault((event["name"], event["pid"]), []).append((event["ts"], value))
    assert {name for name, _ in counted} == {"activations", "messages in flight"}
    for samples in counted.values():
        assert samples == sorted(samples, key=lambda s: s[0])
        assert samples[0][1] >= 0 and abs(samples[-1][1]) < 1.0
    most = max(v for (name, _), samples in counted.items() if name == "activations" for _, v in samples)
    assert most == pytest.approx(found.result.columns["hbm_activations_bytes"][0], rel=1e-9)


def test_bytes_in_flight_are_whole_messages(traced):
    """A port sends one at a time: nothing or one message of hidden size x tokens x 2 bytes."""
    found, events = traced
    scenario = found.question.scenario
    size = 2.0 * scenario.model.hidden_size * scenario.load.context_tokens
    values = {e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == "messages in flight"}
    assert values == {0.0, size}


def test_the_run_with_jitter_is_the_slowest_replica():
    """The figure and the trace show the replica that the step waits for."""
    asked = question(TRAINING, [*SMALL, "cluster.jitter=0.05"])
    found = answer(asked).columns
    run = pipeline_run(asked.scenario)
    spans = {span.track: [] for span in run.spans}
    for span in run.spans:
        spans[span.track].append(span)
    assert all(a.end_s <= b.start_s + 1e-12 for rank in spans.values() for a, b in zip(rank, rank[1:], strict=False))
    # Queues of messages are on the event engine alone.
    assert run.step_s == pytest.approx(found["step_time_s"][0] - found["optimizer_s"][0], rel=0.02)
    assert len({round(s.end_s - s.start_s, 9) for s in run.spans}) > 0.5 * len(run.spans)
    assert np.isfinite(run.step_s)
