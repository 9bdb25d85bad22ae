"""The allocation study and model.engram_fraction in plain scenarios: arrays are scalars, optima, what is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.studies import allocation, allocation_report, loss_curve, tables
from sextant.studies.answer import answer, evaluate, question
from sextant.studies.provenance import canonical, resolved
from sextant.studies.report import Answer, write
from sextant.workloads import parameters
from sextant.workloads.allocation import allocated
from sextant.workloads.models import model

PLAIN = """
name: plain
model: engram-9.9b
cluster: {base: h800-2048, n_devices: 64, tiers.infiniband.n_devices: 8}
plan: {data: 16, pipeline: 4}
load: {phase: training, batch: 512, context_tokens: 4096}
axes:
  model.engram_fraction: [0.0, 0.07, 0.2, 0.205, 0.33, 0.6]
  cluster.device.memories.host.bandwidth_bytes_per_s: [32 GB/s, 55 GB/s]
"""
SERVING = [
    "plan.data=1", "plan.pipeline=1", "load.batch=16", "plan.placement.engram=host", "plan.prefetch=tokens",
]  # fmt: skip
FRACTION = "axes.model.engram_fraction"
STUDY = "engram_allocation_9_9b"
FEW = [f"{FRACTION}=[0.0, 0.1, 0.2, 0.22, 0.3, 0.35, 0.6]", "axes.cluster=[hgx-h800, hgx-b200]",
       "axes.cluster.device.memories.host.bandwidth_bytes_per_s=[32 GB/s, 120 GB/s, 128 GB/s]"]  # fmt: skip


def phase(name):
    return [f"load.phase={name}", *([] if name == "training" else SERVING)]


@pytest.fixture(scope="module")
def studied():
    asked = question(STUDY, FEW)
    return Answer(question=asked, result=answer(asked))


@pytest.mark.parametrize("name", ["training", "decode", "prefill"])
def test_a_plain_sweep_is_its_points(name):
    """Exactly, in every column; also where stages of a pipeline are laid differently, and where there are no tables."""
    asked = question(PLAIN, phase(name))
    whole = answer(asked)
    for i, fraction in enumerate(asked.scenario.axes["model.engram_fraction"]):
        alone = answer(question(PLAIN, [*phase(name), f"{FRACTION}=[{fraction}]"]))
        for column, values in whole.columns.items():
            expected = alone.columns.get(column, np.zeros(2))  # a model without tables says nothing of them
            assert np.array_equal(values[2 * i : 2 * i + 2], expected), (column, fraction)
    assert whole.feasible.all()


@pytest.mark.parametrize("path", ["model.n_routed_experts", "model.engram_rows"])
def test_experts_and_rows_of_a_training_sweep_are_its_points(path):
    """They are swept as arrays, and layers laid on stages per point."""
    values = [45, 60, 99] if path == "model.n_routed_experts" else [3e5, 1e6, 4e6]
    text = PLAIN.replace("model.engram_fraction: [0.0, 0.07, 0.2, 0.205, 0.33, 0.6]", f"{path}: {values}")
    whole = answer(question(text))
    for i, value in enumerate(values):
        alone = answer(question(text, [f"axes.{path}=[{value}]"]))
        for column, got in whole.columns.items():
            assert np.array_equal(got[2 * i : 2 * i + 2], alone.columns[column]), column


def test_without_tables_the_answer_is_that_of_the_mixture():
    for name in ("training", "decode"):
        sets = [*phase(name), f"{FRACTION}=[0.0]"]
        pure = PLAIN.replace("engram-9.9b", "moe-9.9b").replace("  model.engram_fraction: [0.0", "  plan.tensor: [1.0")
        pure = pure.replace("[1.0, 0.07, 0.2, 0.205, 0.33, 0.6]", "[1]")
        ours, theirs = answer(question(PLAIN, sets)), answer(question(pure, phase(name)[: len(sets) - 1]))
        assert ours.columns["step_time_s"].tolist() == theirs.columns["step_time_s"].tolist()
        assert not any("not used" in text for text in ours.warnings)


def test_one_fraction_is_an_ordinary_field():
    """Without an axis, and the answer says what it decided."""
    text = PLAIN.partition("axes:")[0].replace("model: engram-9.9b", "model: {base: engram-9.9b, engram_fraction: 0.2}")
    asked = question(text)
    found = answer(asked)
    assert asked.scenario.model.n_routed_experts == found.columns["n_routed_experts"][0] == 80.0
    assert asked.scenario.model.engram_fraction is None
    told = {leaf.path: leaf for leaf in resolved(asked)}
    assert told["model.engram_fraction"].text == "0.2"
    assert told["model.n_routed_experts"].source == "follows from model.engram_fraction"
    again = question(canonical(asked))
    assert again.scenario.model == asked.scenario.model


def test_the_budget_is_that_of_a_solved_model():
    """Solving another field first, then dividing what it leaves."""
    text = PLAIN + "solve: {model.moe_intermediate_size: {n_parameters: 12e9, multiple_of: 32}}\n"
    found = answer(question(text, [f"{FRACTION}=[0.2]"]))
    width = found.columns["moe_intermediate_size"][0]
    base = paths.put(model("engram-9.9b"), "moe_intermediate_size", float(width))
    assert abs(parameters.n_parameters(base) - 12e9) < 0.2e9 and width != 1472
    wanted = allocated(replace(base, engram_fraction=0.2))
    assert wanted.n_routed_experts == found.columns["n_routed_experts"][0] != 80.0
    assert wanted.engram_rows == found.columns["engram_rows"][0]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([f"{FRACTION}=[1.0]"], "below 1, got 1"),
        ([f"{FRACTION}=[1.5]"], "below 1, got 1.5"),
        ([f"{FRACTION}=[-0.1]"], "must not be negative"),
        (["axes.model.n_routed_experts=[50, 60]"], "follows from model.engram_fraction"),
        (["axes.model.engram_rows=[100, 200]"], "follows from model.engram_fraction"),
        (["solve.model.n_routed_experts={n_parameters: 9e9}"], "follows from model.engram_fraction"),
        (["model=dense-4b"], "no routed experts"),
        (["model=moe-9.9b"], "no Engram layers"),
    ],
)
def test_broken_input_has_one_error_at_its_place(sets, message):
    with pytest.raises(InputError, match=message) as told:
        question(PLAIN, sets)
    assert len(told.value.problems) == 1 and str(told.value).startswith(("--set", "<", "scenario"))


def test_a_plan_that_does_not_divide_the_experts_is_infeasible_in_a_plain_scenario():
    found = answer(question(PLAIN, ["plan.expert=8", "plan.pipeline=1", "plan.data=64"]))
    experts = found.columns["n_routed_experts"]
    assert found.feasible.tolist() == (np.mod(experts, 8) == 0).tolist() and found.feasible.any()


def test_the_study_fills_slots_up(studied):
    """Every point has a plan: 99 experts on eight devices take 104 slots."""
    asked = studied.question
    assert studied.result.feasible.all()
    padded = allocation.padded(asked.scenario)
    assert padded.model.n_routed_experts == 99.0 and padded.plan.redundant_experts == 5.0
    assert evaluate(padded).columns["step_time_s"][0] == studied.result.columns["training_step_time_s"][0]


def test_the_study_is_its_phases(studied):
    """Every phase is the plain answer of its variant with the slots filled up, point by point."""
    columns = studied.result.columns
    for name, asked in allocation.phases(studied.question).items():
        for i in (2, 3, 11):
            point = {path: values[i] for path, values in studied.axis_values().items()}
            sets = [f"axes.{path}=[{value}]" for path, value in point.items()]
            alone = allocation.phases(question(STUDY, sets))[name].scenario
            found = evaluate(allocation.padded(alone))
            for told in allocation.TOLD[name]:
                if told in found.columns:
                    assert found.columns[told][0] == columns[f"{name}_{told}"][i], (name, told)
        assert asked.study == ""


def test_losses_are_those_of_the_curve_at_the_models_rho(studied):
    columns = studied.result.columns
    band = loss_curve.band(columns["rho"])
    for name, values in (("loss_change", band.middle), ("loss_change_low", band.low), ("loss_change_high", band.high)):
        assert np.allclose(columns[name], values)
    pure = columns["rho"] == 1.0
    assert pure.any() and np.all(columns["loss_change"][pure] == 0.0)


def test_messages_per_token(studied):
    """63/64 of 2 layers x 16 rows forward and back leave a device; tokens go to as many experts whatever rho is."""
    columns = studied.result.columns
    tables_in = columns["engram_rows"] > 0
    assert np.allclose(columns["training_engram_rows_sent"][tables_in], 2 * 16 * 2 * 63 / 64)
    assert np.all(columns["training_engram_rows_sent"][~tables_in] == 0)
    indices = 2 * 16 * 8 * 63 / 64
    assert np.allclose(columns["training_engram_exchange_bytes"][tables_in], 2 * 16 * 2 * 63 / 64 * 160 + indices)
    ratio = columns["training_expert_exchange_bytes"] / columns["training_expert_rows"]
    assert np.allclose(ratio, 1440 * 2)
    assert np.ptp(columns["training_expert_rows"]) / columns["training_expert_rows"][0] < 0.03


def test_host_memory_holds_the_tables(studied):
    columns = studied.result.columns
    held = 2 * columns["engram_rows"] * 1280 * 2 / 8
    assert np.allclose(columns["decode_host_bytes"], held)
    assert np.array_equal(columns["decode_host_bytes"], columns["prefill_host_bytes"])
    assert np.all(np.diff(columns["decode_hbm_bytes"][:7]) <= 0.01e9)


def test_the_optima_are_the_best_points(studied):
    columns, costs = studied.result.columns, allocation_report.costs(studied)
    found = list(allocation_report.machines(studied))
    assert len(found) == 2 * 3 and sorted(np.concatenate([m.points for m in found])) == list(range(studied.n_points))
    for machine in found:
        best = allocation_report.optima(studied, machine)
        loss = columns["loss_change"][machine.points]
        assert columns["loss_change"][best["least loss"]] == loss.min()
        pure = machine.points[0]
        assert columns["rho"][pure] == 1.0
        for name, cost in costs.items():
            equal, cheap = best[f"at equal cost: {name}"], best[f"cheapest: {name}"]
            assert columns[cost][equal] <= columns[cost][pure]
            better = machine.points[loss < columns["loss_change"][equal]]
            assert np.all(columns[cost][better] > columns[cost][pure])
            assert columns["loss_change"][cheap] <= loss.min() + allocation_report.NEAR
            near = machine.points[loss <= loss.min() + allocation_report.NEAR]
            assert columns[cost][cheap] == columns[cost][near].min()


def test_the_table_and_the_figures(studied, tmp_path):
    text = tables.answer(studied)
    assert "least loss" in text and "hgx-b200" in text and "not fitted" in text
    assert "120 GB/s, 128 GB/s" in text  # machines alike in all that is shown stand together
    files = {path.name for path in write(studied, tmp_path)}
    assert {"allocation.png", "allocation.svg", "memory_law.png", "points.csv", "result.json"} <= files
    assert "rho" in json.loads((tmp_path / "result.json").read_text())["points"][0]["metrics"]


def test_a_machine_on_which_nothing_fits_says_why():
    asked = question(STUDY, [*FEW, "cluster.device.memories.hbm.capacity_bytes=8 GB"])
    found = Answer(question=asked, result=answer(asked))
    assert not found.result.feasible.any()
    assert "(training)" in found.result.limits[0][0]
    assert "infeasible: hbm" in tables.answer(found)


@pytest.mark.parametrize("name", ["engram_allocation_5_7b", "engram_allocation_27b"])
def test_the_other_budgets_run(name):
    found = answer(question(name, [f"{FRACTION}=[0.0, 0.2, 0.257, 0.6]", "axes.cluster=[hgx-h800]"]))
    assert found.feasible.all()
    wanted = [106, 86, 80, 46] if "5_7b" in name else [72, 58, 55, 32]
    assert found.columns["n_routed_experts"][::1].reshape(3, 4)[0].tolist() == wanted


def test_the_command_line():
    """As a user runs it: the table on stdout, no traceback, exit 0."""
    words = ["run", STUDY, *(word for each in FEW for word in ("--set", each))]
    code = "from sextant.studies.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cheapest" in done.stdout and "Traceback" not in done.stderr
