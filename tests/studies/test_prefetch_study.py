"""The study of prefetch: its limits are limits, both engines agree, caches and shared hosts, what it draws."""

from __future__ import annotations

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.fetch import WAYS
from sextant.simulator.types import Result
from sextant.studies import figures, prefetch_figures, report, tables
from sextant.studies.answer import answer, question

SCENARIO = """
name: rows
study: prefetch
model: {base: engram-27b, engram_layers: [2]}
cluster: {base: hgx-h800, n_devices: 1}
plan: {prefetch: few_sms, placement: {engram: host}}
load: {phase: prefill, batch: 1, context_tokens: 4096}
"""
BANDWIDTH = "cluster.device.memories.host.bandwidth_bytes_per_s"
CACHED = ["plan.deduplicate=true", "load.zipf_exponent=1", "load.phase=decode", "load.batch=256"]


def asked(*sets: str) -> Result:
    return answer(question(SCENARIO, sets))


def column(name: str, *sets: str) -> float:
    return float(asked(*sets).columns[name][0])


@pytest.mark.parametrize("way", ["tokens", "copy_engine", "few_sms"])
def test_limits_are_limits(way):
    """A part in a thousand on this side hides the fetch, on the other side not."""
    way_set = f"plan.prefetch={way}"
    found = {name: float(values[0]) for name, values in asked(way_set).columns.items()}
    rate = found["hidden_bandwidth_bytes_per_s"]
    assert 1e9 < rate < 64e9
    assert column("waited_fetch_s", way_set, f"{BANDWIDTH}={rate * 1.001}") == 0.0
    assert column("waited_fetch_s", way_set, f"{BANDWIDTH}={rate * 0.999}") > 0.0
    layer = int(found["hidden_from_layer"])
    assert layer > 1
    assert column("waited_fetch_s", way_set, f"model.engram_layers=[{layer}]") == 0.0
    assert column("waited_fetch_s", way_set, f"model.engram_layers=[{layer - 1}]") > 0.0
    # Sixteen rows of a token are hidden, so more must be until there are too many; a table of the host's size too.
    assert 16 < found["hidden_rows_per_token"] < 100
    assert 5.8e9 < found["hidden_table_bytes"] <= 2e12


def test_on_demand_nothing_is_hidden():
    found = asked("axes.plan.prefetch=[none, full_grid]").columns
    assert found["waited_fetch_s"] == pytest.approx(found["fetch_s"])
    for name in ("hidden_bandwidth_bytes_per_s", "hidden_from_layer", "hidden_rows_per_token", "first_free_batch"):
        assert not found[name].any()


def test_free_batches_wait_for_nothing():
    """Decode from the first to the last that fits."""
    decode = ["load.phase=decode", "plan.prefetch=tokens", "model.engram_layers=[2, 15]"]
    found = asked(*decode).columns
    first, last = int(found["first_free_batch"][0]), int(found["last_free_batch"][0])
    assert 1 <= first < last <= 4096
    swept = asked(*decode, f"axes.load.batch=[{first}, {last}]").columns
    assert not swept["waited_fetch_s"].any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("extra", [[], ["plan.overlap=two_batch", "load.batch=2"], ["load.copied_bytes=512 MB"]])
def test_the_engines_agree(way, extra):
    """The same tasks, played: the same step and the same exposed time, at every point of a sweep."""
    sets = [f"plan.prefetch={way}", f"axes.{BANDWIDTH}=[2 GB/s, 8 GB/s, 64 GB/s]", *extra]
    played, formula = (asked(*sets, f"engine={engine}").columns for engine in ("event", "analytic"))
    for name in ("step_time_s", "exposed_fetch_s"):
        assert played[name] == pytest.approx(formula[name], rel=1e-9, abs=1e-12)


def test_a_sweep_is_its_points_side_by_side():
    values = [0, 64, 512]
    swept = asked(*CACHED, f"axes.plan.cache_bytes={[f'{v} MB' for v in values]}".replace("'", ""))
    for i, value in enumerate(values):
        alone = asked(*CACHED, f"plan.cache_bytes={value} MB")
        for name, numbers in alone.columns.items():
            assert swept.columns[name][i] == pytest.approx(numbers[0], rel=1e-6, abs=1e-9), name


def test_caches_spare_fetches():
    """More cache, more hits, less fetched; drives are slower than the host, and a cache there helps."""
    # At the kernel's own rate: few programs take fewer rows in turn where there are few, and more rounds.
    cached = [*CACHED, "plan.prefetch=tokens"]
    sizes = "axes.plan.cache_bytes=[0, 16 MB, 256 MB, 2 GB]"
    found = asked(*cached, sizes).columns
    assert np.all(np.diff(found["cache_hit_rate"]) > 0) and np.all(np.diff(found["fetch_s"]) < 0)
    assert np.all((found["distinct_rows_share"] > 0) & (found["distinct_rows_share"] <= 1))
    assert np.all(np.diff(found["hbm_engram_tables_bytes"]) > 0)
    drives = column("fetch_s", *cached, "plan.placement.engram=nvme")
    helped = column("fetch_s", *cached, "plan.placement.engram=nvme", "plan.host_cache_bytes=1 GB")
    assert found["fetch_s"][0] < helped < drives
    lfu = asked(*cached, sizes, "plan.cache_policy=lfu").columns["cache_hit_rate"]
    assert np.all(lfu[1:] > found["cache_hit_rate"][1:])


def test_devices_of_one_host_share_it():
    """Little memory bandwidth for eight is told, and slows each; for one it suffices."""
    eight = ["cluster.n_devices=8", "axes.plan.data=[1, 8]", "cluster.device.memories.host.node_bytes_per_s=64 GB/s"]
    found = asked(*eight)
    assert found.columns["fetch_s"][1] > 1.2 * found.columns["fetch_s"][0]
    assert any("devices of one host read less than their links carry" in note for note in found.warnings)
    assert not any("one host" in note for note in asked().warnings)


def test_what_is_not_known_is_told_and_widens_the_interval():
    for way in ("few_sms", "copy_engine"):
        found = asked(f"plan.prefetch={way}", "model.engram_layers=[1]")
        assert any(f"prefetch: {way}: " in note for note in found.warnings)
        low, value, high = (float(found.columns[f"exposed_fetch{end}_s"][0]) for end in ("_low", "", "_high"))
        assert low < 0.9 * value and high > 1.1 * value


def test_training_tells_what_tables_cost():
    """The touched rows alone are updated faster than all; different rows alone travel less."""
    training = [
        "load.phase=training", "load.batch=64", "plan.placement={}", "plan.data=8", "cluster.n_devices=8",
        "load.zipf_exponent=1", "plan.sparse_optimizer=true",
    ]  # fmt: skip
    text = SCENARIO.replace("plan: {prefetch: few_sms, placement: {engram: host}}\n", "")
    training = [word for word in training if not word.startswith("plan.placement")]
    every, once = (
        answer(question(text, [*training, f"plan.deduplicate={flag}"])).columns for flag in ("false", "true")
    )
    assert 0 < every["touched_rows_share"][0] < 0.5
    assert every["table_update_s"][0] < 0.5 * every["dense_table_update_s"][0]
    assert 0 < once["row_exchange_s"][0] < every["row_exchange_s"][0]
    dense = answer(question(text, [*training, "plan.sparse_optimizer=false"])).columns["optimizer_s"][0]
    saved = every["dense_table_update_s"][0] - every["table_update_s"][0]
    assert dense - every["optimizer_s"][0] == pytest.approx(saved, rel=0.02)


def test_it_draws_a_timeline_and_what_is_exposed():
    whole = question(SCENARIO, ["axes.load.context_tokens=[1024, 4096]"])
    found = report.Answer(question=whole, result=answer(whole))
    with figures.styled():
        drawn = prefetch_figures.figures(found)
        assert set(drawn) == {"timeline", "exposed_over_bandwidth", "exposed_over_layer"}
        lines = {line.get_label(): line.get_ydata() for line in drawn["exposed_over_layer"].axes[0].get_lines()}
    assert set(lines) == set(WAYS)
    assert lines["none"].min() == lines["none"].max() > 0 and lines["tokens"][-1] == 0.0
    assert "bandwidth that" in tables.answer(found)
    near = question(SCENARIO, ["plan.placement.engram=hbm", "plan.prefetch=none"])
    assert prefetch_figures.figures(report.Answer(question=near, result=answer(near))) == {}


def test_fields_without_effect_are_named():
    near = ["plan.placement.engram=hbm", "plan.cache_bytes=1 GB", "plan.host_cache_bytes=1 GB"]
    notes = "\n".join(asked(*near, "plan.sparse_optimizer=true").warnings)
    for field in ("plan.prefetch", "plan.cache_bytes", "plan.host_cache_bytes", "plan.sparse_optimizer"):
        assert f"not used: {field}" in notes


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("plan.prefetch=few_sm", "unknown value 'few_sm'; did you mean 'few_sms'"),
        ("plan.cache_policy=lur", "unknown value 'lur'; did you mean 'lru'"),
        ("plan.placement.engram=nvm", "unknown value 'nvm'; did you mean"),
        ("plan.deduplicate=1", "expected true or false, got 1"),
        ("plan.cache_bytes=1 GB/s", "expected bytes"),
        ("load.zipf_exponent=-1", "must not be negative"),
        ("cluster.device.memories.host.remote_fraction=2", "is a share between 0 and 1"),
        ("cluster.device.memories.host.node_bytes_per_s=0", "must be more than zero"),
    ],
)
def test_bad_input_gets_one_clear_error(word, said):
    with pytest.raises(InputError, match=said):
        question(SCENARIO, [word])


def test_a_point_reads_the_same_whatever_else_is_on_its_axis():
    """Different rows among those looked up: a law of the batch, whether any point has a cache or none."""
    sets = ["plan.deduplicate=false", "axes.plan.placement.engram=[host]", "axes.load.zipf_exponent=[1]"]
    shares = [
        answer(question("engram_prefetch_cache", [*sets, f"axes.plan.cache_bytes={sizes}"])).columns[
            "distinct_rows_share"
        ][0]
        for sizes in ("[0]", "[0, 1 GB]")
    ]
    assert shares[0] == shares[1] < 1.0
