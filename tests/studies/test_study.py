"""A scenario that a study answers: found by name, given variants of the scenario, told at its place when wrong."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from sextant.simulator.errors import InputError
from sextant.simulator.result import result
from sextant.studies import answer, report, study, tables
from sextant.studies.cli import app
from sextant.studies.study import Study

SCENARIO = """
name: both phases
study: halves
model: engram-27b
cluster: {base: hgx-h800, n_devices: 1}
plan: {placement: {engram: host}}
load: {phase: decode, batch: 64, context_tokens: 4096}
axes: {cluster.device.memories.host.bandwidth_bytes_per_s: [32 GB/s, 64 GB/s]}
variants:
  prompts: {load.phase: prefill, load: {batch: 1}, plan.placement.engram: hbm}
"""


@pytest.fixture
def halves(monkeypatch):
    """A study that adds the steps of a scenario and of its variant."""

    def answered(asked, progress):
        phases = (asked, asked.variants["prompts"])
        steps = [answer.answer(replace(each, study="")).columns["step_time_s"] for each in phases]
        return result(2, {"step_time_s": steps[0] + steps[1], "ttft_s": steps[1]}, {})

    found = Study(about="two phases", answer=answered, columns=("ttft_s",), text=None)
    monkeypatch.setattr(study, "names", lambda: ("halves",))
    monkeypatch.setattr(study, "find", lambda name: found)
    return found


def asked(text=SCENARIO, sets=()):
    return answer.question(text, sets)


def test_a_variant_is_the_scenario_with_some_entries_changed(halves):
    found = asked()
    prompts = found.variants["prompts"].scenario
    assert (prompts.load.phase, prompts.load.batch, prompts.load.context_tokens) == ("prefill", 1.0, 4096.0)
    assert prompts.plan.placement == {"engram": "hbm"} and found.scenario.plan.placement == {"engram": "host"}
    assert prompts.axes == found.scenario.axes
    assert found.variants["prompts"].study == "halves"


def test_the_study_answers_and_its_columns_stand_in_the_table(halves):
    question = asked(SCENARIO.replace("study: halves", ""))
    steps = [answer.answer(each).columns["step_time_s"] for each in (question, question.variants["prompts"])]

    whole = asked()
    found = answer.answer(whole)
    assert np.array_equal(found.columns["step_time_s"], steps[0] + steps[1])
    text = tables.answer(report.Answer(question=whole, result=found))
    assert "time to first token" in text and "time per output token" not in text


def test_a_setting_reaches_into_a_variant(halves):
    assert asked(sets=["variants.prompts.load.batch=4"]).variants["prompts"].scenario.load.batch == 4.0
    assert asked(sets=["load.context_tokens=1024"]).variants["prompts"].scenario.load.context_tokens == 1024.0


@pytest.mark.parametrize(
    ("old", "new", "sets", "message"),
    [
        ("study: halves", "study: halfs", [], ":3:8: study: unknown study 'halfs'; did you mean 'halves'?"),
        ("load: {batch: 1}", "load: {bach: 1}", [], "'load' has no field 'bach'; did you mean 'batch'?"),
        ("plan.placement.engram: hbm", "axes.plan.tensor: [1]", [], "a variant changes fields"),
        ("", "", ["load.batch=2"], "the variant prompts has a value of its own here; write --set 'variants.prompts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_its_place(halves, old, new, sets, message):
    with pytest.raises(InputError) as error:
        asked(SCENARIO.replace(old, new) if old else SCENARIO, sets)
    assert message in "\n".join(map(str, error.value.problems))


def test_every_study_of_the_package_has_a_record():
    for name in study.names():
        assert isinstance(study.find(name), Study) and study.find(name).about
    with pytest.raises(InputError, match="unknown study"):
        study.find("nothing")


@pytest.mark.parametrize("command", ["search", "sensitivity"])
def test_commands_about_one_phase_refuse_a_study(command, tmp_path):
    file = tmp_path / "one.yaml"
    text = SCENARIO.replace("study: halves", "study: prefetch").partition("axes:")[0]
    file.write_text(text)
    found = CliRunner().invoke(app, [command, str(file)])
    assert isinstance(found.exception, InputError) and "the study prefetch answers it" in str(found.exception)


def test_what_a_variant_sets_stays_beside_an_axis(halves):
    """An axis moves the scenario and every variant that says nothing of the field."""
    swept = SCENARIO.replace("axes: {", "axes: {load.batch: [8, 16, 32], ")
    found = asked(swept)
    prompts = replace(found.variants["prompts"], study="")
    assert prompts.scenario.load.batch == 1.0 and found.scenario.load.batch == 8.0
    assert len(set(answer.answer(prompts).columns["step_time_s"])) == 1
    assert len(set(answer.answer(replace(found, study="")).columns["step_time_s"].round(4))) == 3
    changed = asked(swept, ["variants.prompts.load.batch=4"])
    assert changed.variants["prompts"].scenario.load.batch == 4.0
