"""Where the time of a step goes: everything is somewhere, nothing twice."""

import pytest

from sextant.studies import catalogue, tables
from sextant.studies.answer import answer, question
from sextant.studies.parts import REST, messages_s, parts
from sextant.studies.report import Answer
from sextant.studies.training import parts_by_rank


@pytest.mark.parametrize("name", catalogue.scenario_names())
def test_the_parts_add_up_to_the_step(name):
    """Of every shipped scenario; only training has a rest, and it is small."""
    found = answer(question(name))
    if len(found.feasible) > 1:
        return
    rows = {part.name: part.seconds for part in parts(found)}
    step = found.columns["step_time_s"][0]
    assert sum(rows.values()) == pytest.approx(step, rel=1e-9)
    assert len(rows) == len(parts(found))
    if found.columns.get("bubble_s") is None:
        assert abs(rows.get(REST, 0.0)) < 1e-6 * step
    else:
        assert abs(rows.get(REST, 0.0)) < 0.12 * step


def test_passes_are_those_of_the_operators():
    """A part's passes add up to it, and all operators are in one."""
    found = answer(question("deepseek_v3_h800_training"))
    made = [part for part in parts(found) if part.passes]
    assert all(sum(part.passes) == pytest.approx(part.seconds) for part in made)
    compute = sum(row["seconds"] for row in found.breakdown.values() if row["stream"] == "compute")
    assert sum(part.seconds for part in made) == pytest.approx(compute)
    assert messages_s(found) > found.columns["exposed_comm_s"][0]


def test_alone_and_even_nothing_is_left():
    """One rank without overlap: the operators are the step, with its optimizer and messages."""
    sets = ["engine=analytic", "plan.pipeline=1", "plan.data=2048", "plan.schedule=1f1b", "plan.overlap=none",
            "plan.n_comm_sms=0", "load.batch=16384", "load.routing_spread=0",
            "cluster.device.clock_spread=0"]  # fmt: skip
    found = answer(question("deepseek_v3_h800_training", sets))
    rows = {part.name: part.seconds for part in parts(found)}
    assert abs(rows.get(REST, 0.0)) < 1e-6 * found.columns["step_time_s"][0]


def test_run_shows_it():
    """Blocks, bubble, optimizer and the step itself."""
    asked = question("deepseek_v3_h800_training")
    text = tables.answer(Answer(question=asked, result=answer(asked)))
    words = ("where the time goes", "attention", "feed-forward", "bubble", "optimizer", "exposed messages", "100.0%")
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    "sets", [[], ["plan.schedule=1f1b", "plan.overlap=none"], ["engine=analytic"], ["cluster.jitter=0.02"]]
)
def test_the_parts_of_a_step_are_means_over_its_ranks(sets):
    """Every rank's parts add up to the pipeline's time, and the first, which holds the head, idles least."""
    asked = question("deepseek_v3_h800_training", sets)
    columns = answer(asked).columns
    pipeline_s = float(columns["step_time_s"][0] - columns["optimizer_s"][0] - columns.get("jitter_s", [0.0])[0])
    ranks = parts_by_rank(asked.scenario, pipeline_s)
    assert len(ranks) == 16
    names = ("forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s")
    for name in names:
        values = [float(each[name]) for each in ranks]
        assert sum(values) / 16 == pytest.approx(columns[name][0], rel=1e-9)
    assert all(sum(float(each[name]) for name in names) == pytest.approx(pipeline_s) for each in ranks)
    bubbles = [float(each["bubble_s"]) for each in ranks]
    assert min(bubbles) == bubbles[0] > 0 or sets[:1] == ["plan.schedule=1f1b"]
