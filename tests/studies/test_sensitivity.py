"""Sensitivity: the numbers are those of a run with the rate changed, and together they obey the dimension of time."""

import json

import pytest
from typer.testing import CliRunner

from sextant.simulator.errors import InputError
from sextant.simulator.units import dimension
from sextant.studies.answer import answer, question
from sextant.studies.cli import app
from sextant.studies.sensitivity import share, study


@pytest.mark.parametrize("name", ["deepseek_v3_h800_training", "deepseek_v3_h800_decode"])
def test_a_row_is_a_run_with_that_rate(name):
    """Training and serving: --set of the rate gives the number in the table."""
    found = study(question(name, ["engine=analytic"]).scenario, "step_time_s")
    assert found.rates
    for rate in found.rates[:4]:
        sets = ["engine=analytic", f"{rate.path}={rate.value * 1.1!r}"]
        # The table holds the layers where they are; a run might move one.
        if name.endswith("training"):
            base = question(name, ["engine=analytic"]).scenario
            assert base.plan.layers_per_stage == ()
            assert answer(question(name, sets)).columns["step_time_s"][0] == pytest.approx(rate.more, rel=0.02)
        else:
            assert answer(question(name, sets)).columns["step_time_s"][0] == rate.more


@pytest.mark.parametrize("name", ["deepseek_v3_h800_training", "deepseek_v3_h800_decode"])
def test_time_has_the_dimension_of_time(name):
    """Everything per second a per cent faster and every latency a per cent shorter make a step a per cent shorter: the
    rates' elasticities less those of the seconds add up to -1 (Euler), but for steps in the models."""
    found = study(question(name, ["engine=analytic"]).scenario, "step_time_s", 0.002, kernels=True)
    total = 0.0
    for rate in found.rates:
        *_, outer, field = ("", *rate.path.split("."))
        kind = dimension(field) or dimension(outer)
        total += rate.elasticity if kind.endswith("per_s") else -rate.elasticity if kind == "s" else 0.0
    assert total == pytest.approx(-1.0, abs=0.05)


def test_faster_is_never_slower():
    """More FLOP/s or bandwidth does not lengthen a training step; the most important come first."""
    found = study(question("deepseek_v3_h800_training", ["engine=analytic"]).scenario)
    assert found.metric == "step_time_s"
    for rate in found.rates:
        if rate.path.endswith("_per_s") or ".peak_flops_per_s." in rate.path:
            assert rate.more <= rate.base <= rate.less, rate.path
    sizes = [abs(rate.elasticity) for rate in found.rates]
    assert sizes == sorted(sizes, reverse=True)


def test_every_positive_rate_is_there_once():
    """None is listed by hand: those that move nothing are named too."""
    found = study(question("deepseek_v3_h800_decode").scenario)
    names = [rate.path for rate in found.rates] + list(found.idle)
    assert len(set(names)) == len(names)
    for path in ("cluster.device.memories.hbm.bandwidth_bytes_per_s", "cluster.device.launch_s",
                 "cluster.tiers.infiniband.link.latency_s", "cluster.device.memories.host.bandwidth_bytes_per_s",
                 "cluster.device.clock_under_load"):  # fmt: skip
        assert path in names


def test_price_moves_the_price_alone():
    """One per cent for one per cent."""
    found = study(question("deepseek_v3_h800_training", ["engine=analytic"]).scenario, "usd_per_trillion_tokens")
    (price,) = (rate for rate in found.rates if rate.path == "cluster.device.price_usd_per_h")
    assert price.elasticity == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["0", "100%", "-5%", "x", "nan"])
def test_a_change_is_a_share(text):
    """Between nothing and everything."""
    with pytest.raises(InputError, match="--change"):
        share(text)


def test_a_sweep_or_an_unknown_metric_is_refused():
    """With a remedy."""
    with pytest.raises(InputError, match="fix the axes"):
        study(question("deepseek_v3_h800_decode", ["axes.load.batch=[64, 128]"]).scenario)
    with pytest.raises(InputError, match="not a metric"):
        study(question("deepseek_v3_h800_decode").scenario, "tpot")


def test_command(tmp_path):
    """Table, JSON and files."""
    shown = CliRunner().invoke(app, ["sensitivity", "deepseek_v3_h800_decode", "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "no effect" in shown.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"sensitivity.json", "sensitivity.png", "sensitivity.svg"}
    words = ["sensitivity", "deepseek_v3_h800_decode", "--by", "tpot_s", "--change", "5%", "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert found["change"] == 0.05
    assert found["rates"][0]["elasticity"] < 0
