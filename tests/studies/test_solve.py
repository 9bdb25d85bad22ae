"""Solved fields: the value found is the nearest one to the target, at every point, whatever the axes move."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Load, Result
from sextant.studies import answer as answering
from sextant.studies import provenance, solve, tables, workers
from sextant.studies.cli import app
from sextant.studies.equations import figure
from sextant.studies.report import Answer
from sextant.studies.scenario import Question, load
from sextant.workloads import models, parameters
from sextant.workloads.sizes import SIZES

HEAD = """\
name: equal sizes
model: {model}
cluster: h800-2048
plan: {{expert: 8, data: 8}}
load: {{phase: {phase}, batch: 8, context_tokens: 4096}}
"""

EXAMPLE = (
    HEAD.format(model="deepseek-v3", phase="decode")
    + """\
axes:
  model.num_experts_per_tok: [4, 8]
  model.moe_intermediate_size: [1024, 1536, 2048]
solve:
  model.n_routed_experts: {n_parameters: base, multiple_of: 8}
"""
)


def asked(rest: str, model: str = "deepseek-v3", phase: str = "decode", sets: tuple[str, ...] = ()) -> Question:
    return answering.question(HEAD.format(model=model, phase=phase) + rest, sets)


def found(question: Question) -> list[solve.Part]:
    return list(solve.parts(question, answering.structural(question.scenario)))


def points(question: Question) -> tuple[dict[str, np.ndarray], list[str]]:
    """The solved columns of all points in their order, and why each has no solution."""
    every = found(question)
    n = sum(len(part.index) for part in every)
    columns = {name: np.full(n, np.nan) for name in every[0].columns}
    missed = [""] * n
    for part in every:
        for name, values in part.columns.items():
            columns[name][part.index] = values
        for i, text in zip(part.index, part.missed or ("",) * len(part.index), strict=True):
            missed[i] = text
    return columns, missed


def size_at(question: Question, point: dict[str, Any], name: str) -> float:
    """The size of one point, built from scalars without ``solve``."""
    scenario = question.at({})
    for path, value in point.items():
        scenario = paths.put(scenario, path, float(value))
    return float(SIZES[name](scenario.model, scenario.load))


def test_the_value_found_is_nearer_than_its_neighbours_at_every_point():
    question = answering.question(EXAMPLE)
    columns, missed = points(question)
    target = float(parameters.n_parameters(models.model("deepseek-v3")))
    assert not any(missed)
    swept = itertools.product(*question.scenario.axes.values())
    for i, values in enumerate(swept):
        point = dict(zip(question.scenario.axes, values, strict=True))
        experts = columns["n_routed_experts"][i]
        assert experts % 8 == 0
        sizes = [
            size_at(question, {**point, "model.n_routed_experts": experts + step}, "n_parameters")
            for step in (-8, 0, 8)
        ]
        assert columns["n_parameters"][i] == sizes[1]
        assert abs(sizes[1] - target) <= min(abs(sizes[0] - target), abs(sizes[2] - target))
    # The published width has the published number of experts, and half the width almost twice as many.
    assert columns["n_routed_experts"].tolist() == [512, 344, 256] * 2


FIELDS = {
    "model.n_routed_experts": "n_parameters",
    "model.moe_intermediate_size": "n_activated_parameters",
    "model.hidden_size": "training_flops_per_token",
    "model.num_experts_per_tok": "weight_bytes_per_token",
    "model.num_hidden_layers": "n_sparse_parameters",
    "model.kv_lora_rank": "kv_bytes_per_token",
    "model.first_k_dense_replace": "n_parameters",
    "load.context_tokens": "training_flops_per_token",
}


@settings(max_examples=25, deadline=None)
@given(
    path=st.sampled_from(sorted(FIELDS)),
    share=st.floats(0.3, 3.0),
    multiple=st.sampled_from([1, 2, 3, 8]),
    model=st.sampled_from(["deepseek-v3", "deepseek-coder-v2-lite"]),
)
def test_solving_and_then_sizing_gives_the_target_within_half_a_step(path, share, multiple, model):
    """For fields of every kind: structural or not, of the model or the load, rising or falling with the size."""
    name = FIELDS[path]
    record, context = models.model(model), Load(phase="decode", batch=8.0, context_tokens=4096.0)
    target = share * float(SIZES[name](record, context))
    text = f"solve:\n  {path}: {{{name}: {target!r}, multiple_of: {multiple}}}\n"
    question = asked(text, model=model)
    columns, missed = points(question)
    value, got = columns[path.rpartition(".")[2]][0], columns[name][0]
    assert value % multiple == 0
    gaps = [
        abs(size_at(question, {path: value + step}, name) - target)
        for step in (-multiple, 0, multiple)
        if value + step >= 0
    ]
    assert got == size_at(question, {path: value}, name)
    if missed[0]:
        least, most = (size_at(question, {path: end}, name) for end in (multiple, 1e9 // multiple * multiple))
        assert not min(least, most) < target < max(least, most) or path == "model.first_k_dense_replace"
    else:
        assert abs(got - target) <= min(gaps)


def test_a_size_that_the_field_already_gives_is_found_again():
    """Solving for the size of a catalogue model gives that model back, for every model with routed experts."""
    for name in ("deepseek-v3", "deepseek-v2", "deepseek-coder-v2-lite"):
        columns, missed = points(asked("solve: {model.n_routed_experts: {n_parameters: base}}\n", model=name))
        assert not missed[0]
        assert columns["n_routed_experts"][0] == models.model(name).n_routed_experts


def test_the_base_is_the_unchanged_model_and_follows_an_axis_of_models():
    text = "axes: {model: [deepseek-v3, deepseek-v2]}\nsolve: {model.n_routed_experts: {n_parameters: base}}\n"
    changed = asked(text, sets=("model.moe_intermediate_size=1024",))
    columns, _ = points(changed)
    targets = [float(parameters.n_parameters(models.model(name))) for name in ("deepseek-v3", "deepseek-v2")]
    step = [3 * 58 * 7168 * 1024, 3 * 59 * 5120 * 1024]
    assert np.all(np.abs(columns["n_parameters"] - targets) <= 0.51 * np.array(step))


def test_engram_rows_take_the_parameters_that_experts_leave():
    text = """\
axes: {model.n_routed_experts: [40, 55, 70]}
solve: {model.engram_rows: {n_parameters: base}}
"""
    columns, missed = points(asked(text, model="engram-27b", sets=("plan.expert=1",)))
    assert not any(missed)
    base = models.model("engram-27b")
    step = len(base.engram_layers) * base.engram_dim
    assert np.all(np.abs(columns["n_parameters"] - parameters.n_parameters(base)) <= step / 2)
    rows = columns["engram_rows"]
    assert rows[1] == base.engram_rows
    # Every expert less frees the same number of rows.
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=2)


def test_a_structural_field_splits_its_group_and_the_rest_stays_an_array():
    text = """\
axes:
  model.moe_intermediate_size: [1024, 1536, 2048]
  load.batch: [8, 16, 32, 64]
solve: {model.num_hidden_layers: {training_flops_per_token: 2.5e11, multiple_of: 2}}
"""
    question = asked(text)
    every = found(question)
    assert len(every) == 3
    assert sorted(i for part in every for i in part.index) == list(range(12))
    for part in every:
        assert np.ndim(part.scenario.model.num_hidden_layers) == 0
        assert part.scenario.model.num_hidden_layers % 2 == 0
        assert np.asarray(part.scenario.load.batch).tolist() == [8, 16, 32, 64]


def test_training_sees_one_model_per_group():
    text = """\
axes:
  model.moe_intermediate_size: [1024, 2048]
  load.batch: [480, 960]
solve: {model.n_routed_experts: {n_parameters: base, multiple_of: 8}}
"""
    question = asked(text, phase="training")
    assert "model.moe_intermediate_size" in answering.structural(question.scenario)
    for part in found(question):
        assert np.ndim(part.scenario.model.n_routed_experts) == 0


def test_evaluations_are_counted_per_group_not_per_point(monkeypatch):
    calls = []
    real = SIZES["n_parameters"]
    monkeypatch.setitem(SIZES, "n_parameters", lambda model, load: calls.append(1) or real(model, load))  # type: ignore[arg-type]
    text = """\
axes: {model.moe_intermediate_size: {linspace: [512, 4607, 4096]}}
solve: {model.n_routed_experts: {n_parameters: base}}
"""
    question = asked(text)
    calls.clear()
    columns, missed = points(question)
    assert len(columns["n_routed_experts"]) == 4096 and not any(missed)
    assert len(calls) <= 25


def test_two_equations_hold_together():
    """Experts hold all parameters while their width holds the activated ones; each moves the other's size."""
    text = """\
axes: {model.num_experts_per_tok: [4, 8, 12]}
solve:
  model.n_routed_experts: {n_parameters: base}
  model.moe_intermediate_size: {n_activated_parameters: base}
"""
    question = asked(text)
    columns, missed = points(question)
    assert not any(missed)
    base = models.model("deepseek-v3")
    for i, k in enumerate((4, 8, 12)):
        at = {p: columns[p.rpartition(".")[2]][i] for p in question.scenario.solve} | {"model.num_experts_per_tok": k}
        for path, name in (
            ("model.n_routed_experts", "n_parameters"),
            ("model.moe_intermediate_size", "n_activated_parameters"),
        ):
            target = float(SIZES[name](base, question.scenario.load))
            gaps = [abs(size_at(question, {**at, path: at[path] + d}, name) - target) for d in (-1, 0, 1)]
            assert gaps[1] == min(gaps)
            assert columns[name][i] == size_at(question, at, name)
    assert (columns["n_routed_experts"][1], columns["moe_intermediate_size"][1]) == (256, 2048)


def test_equations_that_chase_each_other_are_a_limit(catalogue_of, good):
    """Each is solved for the size that the other moves most, so that every turn overshoots the last one."""
    from dataclasses import replace as changed

    sizes = {
        "n_parameters": lambda model, load: model.hidden_size + 3.0 * model.num_hidden_layers,
        "kv_bytes_per_token": lambda model, load: 3.0 * model.hidden_size + 1.0 * model.num_hidden_layers,
    }
    known = changed(catalogue_of(), sizes=sizes)
    words = (
        "solve.model.hidden_size={n_parameters: 4000, multiple_of: 2}",
        "solve.model.num_hidden_layers={kv_bytes_per_token: 4000}",
    )
    _, missed = points(load(good, sets=words, catalogue=known))
    assert all(text.endswith("; solve each field for the size that it moves most") for text in missed)
    words = (
        "solve.model.num_hidden_layers={n_parameters: 4000}",
        "solve.model.hidden_size={kv_bytes_per_token: 4000, multiple_of: 2}",
    )
    columns, missed = points(load(good, sets=words, catalogue=known))
    assert not any(missed)
    assert set(columns["hidden_size"]) == {1000.0} and set(columns["num_hidden_layers"]) == {1000.0}


def test_a_target_out_of_reach_is_a_point_that_does_not_fit():
    text = """\
axes: {model.moe_intermediate_size: [64, 2048]}
solve: {model.n_routed_experts: {n_parameters: 2.0e+10, multiple_of: 8}}
"""
    question = asked(text)
    result = answering.answer(question)
    assert result.limits[0] == () or not result.limits[0][0].startswith("solve")
    (limit,) = result.limits[1]
    least = size_at(question, {"model.moe_intermediate_size": 2048, "model.n_routed_experts": 8}, "n_parameters")
    nearest = f"the nearest, 8, gives {figure(least)}"
    assert limit == f"solve: no n_routed_experts gives n_parameters = 20e9; {nearest}"
    assert not result.feasible[1] and result.columns["step_time_s"][1] == 0.0
    assert result.columns["n_routed_experts"][1] == 8


def test_a_target_beyond_the_largest_value_names_it():
    _, missed = points(asked("solve: {model.n_routed_experts: {n_parameters: 1.0e+25}}\n"))
    assert missed[0].startswith("solve: no n_routed_experts gives n_parameters = 10e24; the nearest, 1e9, gives")


def test_the_example_runs_from_a_file_to_table_json_and_csv(tmp_path: Path):
    file = tmp_path / "equal.yaml"
    file.write_text(EXAMPLE, encoding="utf-8")
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
    assert shown.exit_code == 1, shown.output  # eight devices hold no such model
    head = shown.output.splitlines()[1:3]
    assert "n_routed_experts" in " ".join(head) and "n_parameters" in " ".join(head)
    rows = list(csv.DictReader((out / "points.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["n_routed_experts"]) for row in rows] == [512, 344, 256] * 2
    points_ = json.loads((out / "result.json").read_text(encoding="utf-8"))["points"]
    assert [p["metrics"]["n_parameters"] for p in points_] == [float(row["n_parameters"]) for row in rows]
    assert all(p["metrics"]["tpot_s"] > 0 for p in points_)


def test_a_solved_point_is_the_point_with_that_value_set(tmp_path: Path):
    """The answer is that of a scenario that says the value itself."""
    text = "solve: {model.n_routed_experts: {n_parameters: 3.0e+11, multiple_of: 8}}\n"
    solved = answering.answer(asked(text))
    experts = solved.columns["n_routed_experts"][0]
    plain = answering.answer(asked("", sets=(f"model.n_routed_experts={experts:g}",)))
    for name, values in plain.columns.items():
        assert solved.columns[name].tolist() == values.tolist(), name


def test_a_single_point_without_solution_is_told_and_exits_1(tmp_path: Path):
    file = tmp_path / "small.yaml"
    file.write_text(
        HEAD.format(model="deepseek-v3", phase="decode")
        + "solve: {model.n_routed_experts: {n_parameters: 1.0e+9, multiple_of: 8}}\n",
        encoding="utf-8",
    )
    shown = CliRunner().invoke(app, ["run", str(file)])
    assert shown.exit_code == 1, shown.output
    assert "infeasible: solve: no n_routed_experts gives n_parameters = 1e9; the nearest, 8, gives" in shown.output


def test_a_single_point_shows_what_was_solved():
    question = asked("solve: {model.n_routed_experts: {n_parameters: base, multiple_of: 8}}\n")
    text = tables.answer(Answer(question=question, result=answering.answer(question)))
    assert "solved: n_routed_experts 256, n_parameters 671.0 B" in text


def test_check_names_the_equation_as_the_source():
    question = asked("solve: {model.n_routed_experts: {n_parameters: 26.7e9}}\n", model="deepseek-v2")
    (leaf,) = (x for x in provenance.resolved(question) if x.path == "model.n_routed_experts")
    assert leaf.source.startswith("solved: n_parameters = 26.7e9; 26.")
    assert leaf.value == question.scenario.model.n_routed_experts
    got = float(parameters.n_parameters(question.scenario.model))
    assert leaf.source.endswith(f"{figure(got)} here")


def test_the_canonical_file_asks_the_same():
    question = answering.question(EXAMPLE)
    text = provenance.canonical(question)
    again = answering.question(text)
    assert again.scenario == question.scenario
    assert provenance.canonical(again) == text
    assert points(again)[0]["n_routed_experts"].tolist() == points(question)[0]["n_routed_experts"].tolist()


def test_workers_give_the_same_answer():
    text = """\
axes: {model.moe_intermediate_size: [1536, 2048]}
solve: {model.num_hidden_layers: {n_parameters: base}}
"""
    question = asked(text)
    alone, shared = answering.answer(question), workers.answer(question, 2)
    assert _same(alone, shared)


def _same(a: Result, b: Result) -> bool:
    columns = all(np.array_equal(a.columns[n], b.columns[n]) for n in a.columns)
    return columns and list(a.columns) == list(b.columns) and a.limits == b.limits


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (
            "model.n_routed_experts=64",
            "this field is solved; write --set 'solve.model.n_routed_experts=off' too to hold it fixed",
        ),
        (
            "axes.model.n_routed_experts=[64, 128]",
            "this field is solved; write --set 'solve.model.n_routed_experts=off' too to sweep it",
        ),
    ],
)
def test_a_solved_field_cannot_be_set_but_its_equation_can_be_taken_out(word: str, text: str):
    with pytest.raises(InputError) as caught:
        answering.question(EXAMPLE, (word,))
    path = word.partition("=")[0]
    assert str(caught.value) == f"--set {word}: {path}: {text}"
    question = answering.question(EXAMPLE, (word, "solve.model.n_routed_experts=off"))
    assert not question.scenario.solve
    assert all(not part.columns for part in found(question))


def test_an_equation_is_set_by_a_word(catalogue, good):
    word = "solve.model.num_hidden_layers={kv_bytes_per_token: 57600, multiple_of: 5}"
    question = load(good, sets=(word,), catalogue=catalogue)
    assert question.scenario.solve == {"model.num_hidden_layers": {"kv_bytes_per_token": 57600.0, "multiple_of": 5.0}}
    assert question.scenario.model.num_hidden_layers == 50
    assert isinstance(question.scenario.model.num_hidden_layers, int)


def test_a_field_that_is_no_count_is_solved_finely(catalogue_of, good):
    from dataclasses import replace as changed

    sizes = {"n_parameters": lambda model, load: 1e9 * model.engram_fraction**2}
    known = changed(catalogue_of(), sizes=sizes)
    question = load(good, sets=("solve.model.engram_fraction={n_parameters: 2.0e+8}",), catalogue=known)
    assert question.scenario.model.engram_fraction == pytest.approx(0.2**0.5, rel=1e-12)
    question = load(good, sets=("solve.model.engram_fraction={n_parameters: 2.0e+9}",), catalogue=known)
    assert question.scenario.model.engram_fraction == 1.0  # a share is at most 1: no solution


def test_columns_of_fields_with_one_name_are_told_apart():
    given: dict[str, dict[str, float | str]] = {
        "model.a.width": {"n_parameters": 1.0}, "model.b.width": {"n_sparse_parameters": 1.0},
        "model.depth": {"kv_bytes_per_token": 1.0},
    }  # fmt: skip
    assert list(solve.columns(given).values()) == ["model.a.width", "model.b.width", "depth"]


def test_sizes_are_those_of_the_report():
    model, context = models.model("deepseek-v3"), Load(phase="decode", batch=1.0, context_tokens=4096.0)
    values = {name: float(size(model, context)) for name, size in SIZES.items()}
    vocabulary = model.vocab_size * model.hidden_size
    assert values["n_activated_parameters_with_embedding"] == values["n_activated_parameters"] + vocabulary
    assert values["weight_bytes_per_token"] == 2 * values["n_activated_parameters"]
    # 58 layers leave 248 of 256 experts of 3 x 7168 x 2048 weights unused.
    assert values["n_sparse_parameters"] == 58 * 248 * 3 * 7168 * 2048
    assert values["kv_bytes_per_token"] == 61 * (512 + 64) * 2
