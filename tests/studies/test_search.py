"""The search over plans: it finds what evaluating plans one by one finds, keeps what cannot be, and says why."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.studies import search_report
from sextant.studies.answer import evaluate, question
from sextant.studies.cli import app
from sextant.studies.pareto import front
from sextant.studies.search import search

SMALL = [
    "engine=analytic", "search.pipeline=[1, 4, 8]", "search.tensor=[1, 2]", "search.expert=[8, 64]",
    "search.micro_batch=[1, 2]", "search.zero_stage=[0, 1]", "search.recompute=[[], [norm, swiglu]]",
]  # fmt: skip


@pytest.fixture(scope="module")
def found():
    """A search of a few hundred plans of every schedule."""
    return search(question("deepseek_v3_h800_training", SMALL).scenario)


def alone(found, i):
    """The metrics of plan ``i`` evaluated by itself."""
    plan = replace(found.scenario.plan, layers_per_stage=(), **found.plan(i))
    return evaluate(replace(found.scenario, plan=plan))


def test_a_plan_of_the_search_is_the_plan_alone(found):
    """Every schedule, with and without recomputation: the same metrics to rounding, the same verdict."""
    done = np.flatnonzero(found.columns["step_time_s"] > 0)
    picks = {}
    for i in done.tolist():
        plan = found.plan(i)
        picks[plan["schedule"], plan["pipeline"], plan["recompute"], plan["zero_stage"], i % 3] = i
    assert {key[0] for key in picks} == {"gpipe", "1f1b", "interleaved", "zb1p", "dualpipe"}
    for i in picks.values():
        one = alone(found, i)
        assert bool(one.feasible[0]) == bool(found.feasible[i]), found.plan(i)
        for name, values in one.columns.items():
            assert values[0] == pytest.approx(found.columns[name][i], rel=1e-12), (name, found.plan(i))


def test_streams_made_again_are_those_of_the_plan_in_a_search_too():
    """When messages leave depends on operators by name (mHC's recompute), and what is kept on the stages of a rank: a
    search must tell both apart, whoever shares it."""
    space = [
        "engine=analytic", "search.pipeline=[2, 4]", "search.expert=[8]", "search.micro_batch=[1]",
        "search.zero_stage=[1]", "search.tensor=[1]", "search.schedule=[interleaved, 1f1b, zbv, dualpipe]",
        "search.virtual_stages=[1, 2]",
        "search.recompute=[[norm, mla_up], [norm, mla_up, mhc]]",
    ]  # fmt: skip
    asked = replace(question("mhc_h800_training", space).scenario, axes=())
    asked = replace(asked, model=replace(asked.model, n_streams=4.0), plan=replace(asked.plan, early_sends=True))
    found = search(asked)
    done = np.flatnonzero(found.columns["step_time_s"] > 0)
    assert {(found.plan(i)["schedule"], "mhc" in found.plan(i)["recompute"]) for i in done.tolist()} >= {
        ("1f1b", True), ("1f1b", False), ("interleaved", True), ("zbv", True), ("dualpipe", True),
    }  # fmt: skip
    by_two = search(asked, n_workers=2)
    assert all(np.array_equal(values, by_two.columns[name]) for name, values in found.columns.items())
    for i in done.tolist():
        for name, values in alone(found, i).columns.items():
            assert values[0] == pytest.approx(found.columns[name][i], rel=1e-12), (name, found.plan(i))


def test_several_processes_find_the_same(found):
    """To the last bit, in the same order."""
    shared = search(question("deepseek_v3_h800_training", SMALL).scenario, n_workers=2)
    for mine, theirs in ((found.columns, shared.columns), (found.plans, shared.plans), (found.reasons, shared.reasons)):
        assert list(mine) == list(theirs)
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_what_is_not_evaluated_could_not_be(found):
    """A plan without metrics is infeasible alone too, for the same reasons."""
    without = np.flatnonzero(found.columns["step_time_s"] == 0)
    assert len(without) > 20
    for i in without[:: len(without) // 20].tolist():
        one = alone(found, i)
        assert not one.feasible[0]
        reasons = {text for text, hit in found.reasons.items() if hit[i]}
        assert reasons & set(one.limits[0]), found.plan(i)


def test_plans_use_every_device_and_differ(found):
    """Without a list for data it takes the devices left over; no plan is listed twice."""
    used = np.prod([found.plans[name].astype(float) for name in ("tensor", "context", "pipeline", "data")], axis=0)
    assert (used == 2048).all()
    assert len({tuple(found.plan(i).values()) for i in range(found.n_plans)}) == found.n_plans


def test_the_best_is_the_best_and_the_front_holds_it(found):
    """By time, by memory and by a rate of which more is better."""
    ok = found.feasible
    for name, least in (("step_time_s", True), ("hbm_bytes", True), ("tokens_per_s", False)):
        values = found.columns[name][ok]
        assert found.columns[name][found.best(name, 1)[0]] == (values.min() if least else values.max())
    assert found.best("step_time_s", 1)[0] == found.front()[0]
    assert found.columns["hbm_bytes"][found.front()[-1]] == found.columns["hbm_bytes"][ok].min()


def test_every_infeasible_plan_has_a_counted_reason(found):
    """Feasible plans have none; counts are of plans."""
    assert (found.feasible == ~np.any(list(found.reasons.values()), axis=0)).all()
    assert all(number > 0 for number in found.counts().values())
    assert sum(found.counts().values()) >= found.n_plans - found.feasible.sum()


def test_constraints_rule_plans_out():
    """A bound that half of the plans break becomes a reason."""
    free = search(question("deepseek_v3_h800_training", SMALL).scenario)
    bound = float(np.median(free.columns["step_time_s"][free.feasible]))
    scenario = replace(free.scenario, constraints={"step_time_s": {"max": bound}})
    held = search(scenario)
    assert 0 < held.feasible.sum() < free.feasible.sum()
    assert (held.columns["step_time_s"][held.feasible] <= bound).all()


def test_the_same_search_gives_the_same_bytes(found):
    """And its words run the plan again."""
    again = search(question("deepseek_v3_h800_training", SMALL).scenario)
    assert json.dumps(search_report.as_json(again, "step_time_s", 5)) == json.dumps(
        search_report.as_json(found, "step_time_s", 5)
    )
    best = found.best("step_time_s", 1)[0]
    asked = question("deepseek_v3_h800_training", search_report.sets(found.plan(best)))
    assert evaluate(asked.scenario).columns["step_time_s"][0] == found.columns["step_time_s"][best]


def test_a_scenario_may_give_the_devices(found):
    """With a list for data, plans on fewer devices are looked at."""
    few = search(question("deepseek_v3_h800_training", [*SMALL, "search.data=[64, 512]"]).scenario)
    assert set(few.plans["data"].tolist()) == {64.0, 512.0}
    assert "devices: tensor x context x pipeline x data exceeds the cluster" in few.reasons


def test_serving_is_searched_too():
    """Decode: tensor, data and expert degrees and the overlap of batches; no pipelines."""
    decode = search(question("deepseek_v3_h800_decode_ep128").scenario)
    assert set(decode.plans["overlap"].tolist()) == {"none", "two_batch"}
    i = decode.best("tokens_per_s_per_device", 1)[0]
    one = evaluate(replace(decode.scenario, plan=replace(decode.scenario.plan, **decode.plan(i))))
    assert one.columns["tpot_s"][0] == decode.columns["tpot_s"][i]


@pytest.mark.parametrize(
    ("set_", "what"),
    [
        ("search.pipelin=[1]", "did you mean 'pipeline'"),
        ("search.tensor=[1.5]", "whole number"),
        ("search.schedule=[dualpip]", "did you mean 'dualpipe'"),
        ("search.recompute=[norm]", "expected a list"),
        ("search.tensor=[]", "has no values"),
    ],
)
def test_a_wrong_space_is_refused(set_, what):
    """At its place, with what to write instead."""
    with pytest.raises(InputError, match=what):
        question("deepseek_v3_h800_training", [set_])


def test_places_in_a_file():
    """Errors of the space name line and column."""
    text = "model: deepseek-v3\ncluster: h800-2048\nload: {phase: training, batch: 15360, context_tokens: 4096}\n"
    with pytest.raises(InputError) as caught:
        question(text + "search:\n  tensor: [1, x]\n", checks=())
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (5, 15)


def test_a_sweep_is_not_searched():
    """Axes vary something else than the plan."""
    with pytest.raises(InputError, match="remove axes"):
        search(question("deepseek_v3_h800_training", ["axes.load.batch=[15360, 30720]"]).scenario)


def test_command(tmp_path):
    """Table, JSON and files; exit 1 where nothing fits; an unknown metric is refused."""
    from typer.testing import CliRunner

    words = ["search", "deepseek_v3_h800_training", *(w for s in SMALL[1:] for w in ("--set", s))]
    shown = CliRunner().invoke(app, [*words, "--top", "3", "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "ruled out by" in shown.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"search.json", "plans.csv", "pareto.png", "pareto.svg"}
    rows = (tmp_path / "plans.csv").read_text().splitlines()
    summary = json.loads((tmp_path / "search.json").read_text())
    assert len(rows) == summary["n_plans"] + 1
    found = CliRunner().invoke(app, [*words, "--by", "hbm_bytes", "--json"])
    assert json.loads(found.stdout)["best"][0]["metrics"]["hbm_bytes"] > 0
    tiny = ["--set", "cluster.device.memories.hbm.capacity_bytes=8 GB"]
    nothing = CliRunner().invoke(app, [*words, *tiny])
    assert nothing.exit_code == 1
    assert "nearest miss" in nothing.stdout


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_front_is_what_nothing_dominates(pairs):
    """Against the definition, pair by pair."""
    first, second = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    kept = front(first, second).tolist()
    beaten = {
        i for i, j in product(range(len(pairs)), repeat=2)
        if first[j] <= first[i] and second[j] <= second[i] and (first[j] < first[i] or second[j] < second[i])
    }  # fmt: skip
    assert {pairs[i] for i in kept} == {pairs[i] for i in range(len(pairs)) if i not in beaten}
    assert len({pairs[i] for i in kept}) == len(kept)
