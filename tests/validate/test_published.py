"""Published figures: unique, sourced, in SI, equal to the collected facts, and comparable with a prediction."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from sextant.simulator import units
from sextant.simulator.errors import InputError
from sextant.validate import published

FACTS = Path(__file__).parents[3] / "shared" / "facts"
FIGURES = published.figures()


def fact(id: str) -> dict:
    """One collected fact; skips where the folder of facts does not lie beside the repository."""
    if not FACTS.is_dir():
        pytest.skip(f"no collected facts at {FACTS.name!r} in a shared folder beside the repository")
    return facts()[id]


@cache
def facts() -> dict[str, dict]:
    return {entry["id"]: entry for path in FACTS.glob("*.yaml") for entry in yaml.safe_load(path.read_text())}


def value(id: str) -> float:
    return published.figure(id).value


def test_ids_are_unique_and_end_in_their_metric() -> None:
    ids = [f.id for f in FIGURES] + [f.id for f in published.formulas()]
    assert len(ids) == len(set(ids)) > 200
    assert all(f.id.endswith(f".{f.metric}") for f in FIGURES)
    assert all(re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", id) for id in ids)


def test_every_figure_says_whence_and_under_what() -> None:
    for f in FIGURES:
        assert len(f.source) > 10, f.id
        assert len(f.setting) > 2, f.id
        assert len(f.system) > 1, f.id
        assert f.confidence in published.CONFIDENCES
        assert f.value > 0, f.id
        assert f.low <= f.value <= f.high, f.id
        assert not re.search(r"\bF0\d{3}\b|/work|memory$", f.source), f.id


def test_unconfirmed_is_never_published() -> None:
    """What nobody found in a source is flagged, and stays out of a comparison unless asked for."""
    flagged = {f.id for f in FIGURES if f.confidence == "unconfirmed"}
    assert flagged == {"mtp.report.mtp_acceptance", "mtp.report.mtp_speedup"}
    assert published.compare({"mtp_speedup": 1.8}, "mtp.report") == []
    assert len(published.compare({"mtp_speedup": 1.8}, "mtp.report", unconfirmed=True)) == 1


def test_metric_names_end_in_their_unit() -> None:
    """A metric with a dimension ends in its unit; one without is a count, a fraction or a rate of counts."""
    counts = re.compile(
        r"n_|.*_parameters$|gpu_hours|tokens_per_|mfu_|mtp_|.*_per_(token|endpoint)$|.*_(overhead|loss)$"
    )
    for metric, dimension in published.METRICS.items():
        if dimension:
            assert metric.endswith("_" + dimension), metric
            assert units.dimension(metric) == dimension, metric
        else:
            assert counts.match(metric), metric
    assert {f.metric for f in FIGURES} == set(published.METRICS), "a metric that no figure has"


@pytest.mark.parametrize(("suffix", "low", "high"), [
    ("_s", 1e-6, 100.0), ("flops_per_s", 1e14, 2e15), ("bytes_per_s", 30e9, 4e12), ("mfu_causal", 0.3, 0.5),
    ("n_parameters", 5e8, 1e12), ("kv_bytes_per_token", 5e4, 1e6), ("training_flops_per_token", 1e11, 1e13),
    ("tokens_per_s_per_device", 1e3, 1e4),
])  # fmt: skip
def test_values_are_si(suffix: str, low: float, high: float) -> None:
    """No microseconds, gigabytes or percent: every value of a metric lies where SI puts it."""
    chosen = [f for f in FIGURES if f.metric.endswith(suffix) and not (suffix == "_s" and "_per_s" in f.metric)]
    assert chosen
    for f in chosen:
        assert low <= f.value <= high, f.id


@pytest.mark.parametrize(("id", "fact_id", "scale"), [
    ("deepseek_v3.n_parameters", "F0022", 1e9),
    ("deepseek_v3.n_activated_parameters", "F0023", 1e9),
    ("deepseek_v3.mtp_parameters", "F0025", 1e9),
    ("deepseek_v3.recount.n_parameters", "F0028", 1e9),
    ("engram.engram_40b.engram_parameters", "F0205", 1e9),
    ("deepseek_v3_training.pre_training.gpu_hours", "F0336", 1e3),
    ("deepseek_v3_training.total.gpu_hours", "F0339", 1e3),
    ("deepseek_v3_training.report.gpu_hours_per_trillion_tokens", "F0340", 1e3),
    ("deepseek_v3_training.report.n_tokens", "F0341", 1e12),
    ("kv_cache.deepseek_v3.kv_bytes_per_token", "F0352", 1e3),
    ("kv_cache.llama_3_1_405b.kv_bytes_per_token", "F0354", 1e3),
    ("training_flops.deepseek_v2_236b.training_flops_per_token", "F0355", 1e9),
    ("training_flops.deepseek_v3_671b.training_flops_per_token", "F0356", 1e9),
    ("deepseek_v3_training.mpft.tokens_per_day", "F0359", 1e9),
    ("deepseek_v3_training.mpft.step_time_s", "F0361", 1.0),
    ("deepseek_v3_training.mrft.step_time_s", "F0362", 1.0),
    ("deepseek_v3_training.mpft.forward_s", "F0363", 1.0),
    ("deepseek_v3_training.mpft.bubble_s", "F0365", 1.0),
    ("deepseek_v3_training.mrft.bubble_s", "F0366", 1.0),
    ("deepseek_v3_training.mpft.backward_input_s", "F0367", 1.0),
    ("deepseek_v3_training.mpft.backward_weight_s", "F0369", 1.0),
    ("deepseek_v3_training.mpft.forward_backward_s", "F0371", 1.0),
    ("deepseek_v3_training.mrft.forward_backward_s", "F0372", 1.0),
    ("deepseek_v3_training.mpft.optimizer_s", "F0373", 1.0),
    ("deepseek_v3_training.mrft.optimizer_s", "F0374", 1.0),
    ("deepseek_v3_training.mpft.achieved_noncausal_flops_per_s", "F0375", 1e12),
    ("deepseek_v3_training.mpft.achieved_causal_flops_per_s", "F0377", 1e12),
    ("deepseek_v3_training.mpft.mfu_noncausal", "F0379", 0.01),
    ("deepseek_v3_training.mrft.mfu_noncausal", "F0380", 0.01),
    ("deepseek_v3_training.mpft.mfu_causal", "F0381", 0.01),
    ("deepseek_v3_training.mrft.mfu_causal", "F0382", 0.01),
    ("dualpipe_trace.chunk_pair_s", "F0461", 1e-3),
    ("dualpipe_trace.exposed_comm_s", "F0466", 1e-3),
    ("profile_data.prefill.tokens_per_s_per_device", "PD1", 1.0),
    ("profile_data.decode.tokens_per_s_per_device", "PD2", 1.0),
    ("sglang.prefill.tokens_per_s_per_node", "SG1", 1e3),
    ("sglang.decode.tokens_per_s_per_node", "SG2", 1e3),
    ("deepgemm.best.achieved_flops_per_s", "F0459", 1e12),
    ("mhc.training.time_overhead", "F0273", 0.01),
    ("megatron.175b_full.step_time_s", "MEG-gpt3-175B-full", 1.0),
])  # fmt: skip
def test_figures_equal_the_collected_facts(id: str, fact_id: str, scale: float) -> None:
    assert value(id) == pytest.approx(float(fact(fact_id)["value"]) * scale, rel=1e-12)


@pytest.mark.parametrize(("ids", "fact_id", "scales"), [
    (("deepep.low_latency.ep8.ep_dispatch_s", "deepep.low_latency.ep8.ep_dispatch_bytes_per_s",
      "deepep.low_latency.ep8.ep_combine_s", "deepep.low_latency.ep8.ep_combine_bytes_per_s"), "F0416",
     (1e-6, 1e9, 1e-6, 1e9)),
    (("deepep.normal.ep32.ep_dispatch_bytes_per_s", "deepep.normal.ep32.ep_combine_bytes_per_s"), "F0412", (1e9, 1e9)),
    (("deepgemm.dense.m4096_n7168_k16384.achieved_flops_per_s",
      "deepgemm.dense.m4096_n7168_k16384.achieved_bytes_per_s"), "F0446", (1e12, 1e9)),
    (("deepgemm.grouped_masked.g4_m256_n7168_k2048.achieved_flops_per_s",
      "deepgemm.grouped_masked.g4_m256_n7168_k2048.achieved_bytes_per_s"), "F0458", (1e12, 1e9)),
    (("engram_offload.baseline.tokens_per_s", "engram_offload.host.tokens_per_s"), "F0256", (1.0, 1.0)),
])  # fmt: skip
def test_several_figures_in_one_fact(ids: tuple[str, ...], fact_id: str, scales: tuple[float, ...]) -> None:
    numbers = [float(n) for n in re.findall(r"(?<![A-Za-z\d])\d+(?:\.\d+)?", str(fact(fact_id)["value"]))]
    for id, number, scale in zip(ids, numbers, scales, strict=False):
        assert value(id) == pytest.approx(number * scale, rel=1e-12), id


@pytest.mark.parametrize(("key", "fact_id"), [
    ("1f1b", "F0345"), ("zb1p", "F0346"), ("dualpipe", "F0347"), ("dualpipev", "F0348"),
])  # fmt: skip
def test_bubble_formulas(key: str, fact_id: str) -> None:
    texts = {f.id: f.text for f in published.formulas("pipeline")}
    assert texts[f"pipeline.bubble_{key}"] == fact(fact_id)["value"]


def test_published_training_table_agrees_with_itself() -> None:
    """The rows add up to the step, tokens per day follow from it, and MFU from the peak, within their rounding."""
    for network in ("mpft", "mrft"):
        t = {f.metric: f.value for f in published.figures(f"deepseek_v3_training.{network}")}
        rows = ("forward_s", "bubble_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "optimizer_s")
        assert sum(t[row] for row in rows) == pytest.approx(t["step_time_s"], abs=6 * 0.005 + 0.001)
        tokens = value("deepseek_v3_training.implied.n_tokens")
        assert tokens * 86400 / t["step_time_s"] == pytest.approx(t["tokens_per_day"], rel=1e-4)
        peak = value("deepseek_v3_training.implied.peak_flops_per_s")
        assert t["mfu_causal"] * peak == pytest.approx(t["achieved_causal_flops_per_s"], rel=0.5 / 385 + 1e-4)


def test_costs_follow_from_hours() -> None:
    phases = ("pre_training", "context_extension", "post_training")
    hours = value("deepseek_v3_training.total.gpu_hours")
    assert sum(value(f"deepseek_v3_training.{phase}.gpu_hours") for phase in phases) == hours
    assert value("deepseek_v3_training.total.cost_usd") == pytest.approx(2 * hours)


def test_computed_rates_are_an_eighth_of_a_node() -> None:
    nodes = [f for f in FIGURES if f.metric == "tokens_per_s_per_node"]
    assert len(nodes) == 4
    for f in nodes:
        device = published.figure(f.id.replace("per_node", "per_device"))
        assert device.value == f.value / 8
        assert device.confidence == "computed"


def test_compare_reports_error_and_interval() -> None:
    """Relative error is predicted over published less one; inside asks whether the interval holds the figure."""
    rows = published.compare(
        {"step_time_s": 20.0, "mfu_causal": 0.30, "ttft_s": 1.0}, "deepseek_v3_training.mpft",
        low={"step_time_s": 19.0}, high={"step_time_s": 21.0},
    )  # fmt: skip
    step, mfu = rows
    assert (step.metric, mfu.metric) == ("step_time_s", "mfu_causal")
    assert step.error == pytest.approx(20.0 / 19.926 - 1)
    assert step.inside
    assert not mfu.inside
    assert (mfu.low, mfu.high) == (0.30, 0.30)
    assert "Table 4" in step.source


def test_compare_takes_arrays_and_stated_ranges() -> None:
    """Arrays of predictions give arrays; a figure stated as 20 to 22 is met anywhere in that range."""
    predicted = np.array([19.0, 20.5, 23.0])
    (row,) = published.compare({"tokens_per_s_per_user": predicted}, "online_serving.decode")
    assert row.inside.tolist() == [False, True, False]
    assert row.error == pytest.approx(predicted / 21 - 1)


def test_compare_stays_in_its_group() -> None:
    """The group of the model is not the group of its checkpoint."""
    assert [r.published for r in published.compare({"n_parameters": 671e9}, "deepseek_v3")] == [671e9]


def test_groups_are_what_compare_takes() -> None:
    assert len(published.groups()) == len(set(published.groups()))
    assert sum(len(published.compare(dict.fromkeys(published.METRICS, 1.0), g, unconfirmed=True))
               for g in published.groups()) == len(FIGURES)  # fmt: skip


def test_prefix_is_whole_words() -> None:
    assert not [f for f in published.figures("deepseek_v3") if f.id.startswith("deepseek_v3_training")]
    assert {f.id for f in published.figures("deepseek_v3_training.mpft")} < {f.id for f in FIGURES}


@pytest.mark.parametrize("call", [
    lambda: published.figure("deepseek_v3.n_parameter"),
    lambda: published.compare({}, "deepseek_v3_trainin.mpft"),
])  # fmt: skip
def test_unknown_ids_offer_the_nearest(call) -> None:
    with pytest.raises(InputError, match="did you mean"):
        call()


def load(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "x.yaml").write_text(text)
    monkeypatch.setattr(published, "FOLDER", folder)
    published._load.__wrapped__()


GROUP = "a.b: {system: s, setting: t, source: u, figures: {%s}}\n"


@pytest.mark.parametrize(("text", "says"), [
    (GROUP % "step_time_s: 2 GB", "expected seconds"),
    (GROUP % "steptime_s: 2 s", "did you mean 'step_time_s'"),
    (GROUP % "step_time_s: {value: 2 s, confidence: surely}", "unknown confidence"),
    (GROUP % "step_time_s: 2 s, step_time_s: 3 s", "given twice"),
])  # fmt: skip
def test_bad_data_is_refused(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        load(tmp_path, text, monkeypatch)
