"""Memory of every rank: it adds up, the timeline peaks where the formula says, plans fit or do not, offload costs."""

import csv
import json

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.types import Scenario
from sextant.studies import memory_report, report
from sextant.studies.answer import answer, question
from sextant.studies.training import memory_by_rank, memory_over_time

TRAINING = "deepseek_v3_h800_training"
ANALYTIC = "engine=analytic"

#: All devices of one pace: what waits for the slowest device would otherwise hide messages.
EVEN = ("load.routing_spread=0", "cluster.device.clock_spread=0")


def columns(*sets):
    return {name: values[0] for name, values in answer(question(TRAINING, [ANALYTIC, *sets])).columns.items()}


def scenario(*sets) -> Scenario:
    return question(TRAINING, list(sets)).scenario


@pytest.fixture(scope="module")
def published():
    """The shipped question with its answer, by the event engine."""
    asked = question(TRAINING)
    return report.Answer(question=asked, result=answer(asked))


@pytest.mark.parametrize(
    "sets",
    [
        [], ["plan.recompute=[full]"], ["plan.schedule=1f1b", "plan.overlap=none"], ["plan.schedule=gpipe"],
        ["plan.schedule=zb1p"], ["plan.schedule=1f1b", "load.batch=1024"], ["plan.placement.activations=host"],
        ["plan.schedule=interleaved", "plan.virtual_stages=2", "load.batch=16384", "plan.overlap=none"],
    ],
    ids=lambda sets: " ".join(s.rpartition(".")[2] for s in sets) or "published",
)  # fmt: skip
def test_the_timeline_peaks_at_what_the_formula_says(sets):
    """On every rank, to rounding."""
    asked = scenario(*sets)
    ranks, over_time = memory_by_rank(asked), memory_over_time(asked)
    for memory, rows in zip(ranks, over_time, strict=True):
        total = 1.06e9 + sum(float(np.ravel(size)[0]) for size in memory.hbm.values())
        assert memory_report.peak(rows)[1] == pytest.approx(total, rel=1e-9)


def test_the_answer_is_of_the_fullest_rank(published):
    """Whose parts are those of the table; every rank has the same parts, and none has more in all."""
    records = memory_report.ranks(published)
    found = {name: values[0] for name, values in published.result.columns.items()}
    assert len(records) == 16
    fullest = records[int(found["fullest_rank"])]
    assert fullest["hbm_bytes"] == max(record["hbm_bytes"] for record in records) == found["hbm_bytes"]
    assert {f"hbm_{part}_bytes": size for part, size in fullest["hbm"].items()} == {
        name: size
        for name, size in found.items()
        if name.startswith("hbm_") and name not in ("hbm_bytes", "hbm_free_bytes")
    }
    for record in records:
        assert sum(record["hbm"].values()) == pytest.approx(record["hbm_bytes"], rel=1e-12)
        assert 0 <= record["peak_at_s"] < found["step_time_s"]
        assert record["fits"] == (record["hbm_free_bytes"] >= 0)


def test_files_and_json_have_every_rank(published, tmp_path):
    """memory.csv (rank, tier, part, bytes), memory_over_time.csv and --json say the same."""
    written = {path.name for path in report.write(published, tmp_path)}
    assert {"memory.csv", "memory_over_time.csv", "memory_over_time.png"} <= written
    with (tmp_path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = json.loads((tmp_path / "result.json").read_text())["memory"]
    assert [record["rank"] for record in records] == list(range(16))
    for record in records:
        mine = {row["part"]: float(row["bytes"]) for row in rows if row["rank"] == str(record["rank"])}
        assert mine == record["hbm"] | record["host"]
    with (tmp_path / "memory_over_time.csv").open() as file:
        most = max(float(row["hbm_bytes"]) for row in csv.DictReader(file))
    assert most == pytest.approx(max(record["hbm_bytes"] for record in records), rel=1e-9)


def test_sweeps_and_serving_report_no_ranks():
    """There is no one plan, or no pipeline."""
    for name, sets in ((TRAINING, [ANALYTIC, "axes.load.batch=[15360,30720]"]), ("deepseek_v3_h800_decode", [])):
        asked = question(name, sets)
        assert memory_report.ranks(report.Answer(question=asked, result=answer(asked))) == []


@pytest.mark.parametrize("left_out", ["norm", "mla_up", "swiglu"])
def test_the_published_policy_is_what_fits(left_out):
    """DeepSeek-V3 on 80 GB (84.94e9 bytes) fits with all three recomputed, with 1.1 GB to spare, and without any one of
    them does not; each saves time where it is not recomputed."""
    policy = ["norm", "mla_up", "swiglu"]
    whole = columns()
    assert whole["hbm_bytes"] + whole["hbm_free_bytes"] == 84_943_110_144.0
    assert 0 < whole["hbm_free_bytes"] < 5e9
    policy.remove(left_out)
    less = columns(f"plan.recompute=[{','.join(policy)}]")
    assert less["hbm_free_bytes"] < 0
    assert less["step_time_s"] < whole["step_time_s"]


def test_counterfactual_plans():
    """ZeRO 0 and GPipe do not fit; ZeRO 2, ZeRO 3, 1F1B and full recompute do, and are slower."""
    whole = columns("engine=event", *EVEN)
    plain = ["plan.overlap=none"]
    for sets, fits in (
        (["plan.zero_stage=0"], False), (["plan.zero_stage=2"], True), (["plan.zero_stage=3"], True),
        (["plan.schedule=1f1b", *plain], True), (["plan.schedule=gpipe", *plain], False),
        (["plan.recompute=[full]"], True),
    ):  # fmt: skip
        found = columns(*sets, "engine=event", *EVEN)
        assert (found["hbm_free_bytes"] >= 0) == fits, sets
        assert found["step_time_s"] > whole["step_time_s"], sets


def test_full_recompute_holds_one_layer_while_it_works():
    """What it does not keep it makes again, a layer at a time: the working set grows, by no more than a layer's."""
    plain = ["plan.schedule=1f1b", "plan.overlap=none"]
    none, full = columns(*plain, "plan.recompute=[]"), columns(*plain, "plan.recompute=[full]")
    assert full["hbm_workspace_bytes"] > none["hbm_workspace_bytes"]
    assert full["hbm_activations_bytes"] < 0.2 * none["hbm_activations_bytes"]
    assert full["hbm_workspace_bytes"] - none["hbm_workspace_bytes"] < 0.25 * none["hbm_activations_bytes"]


def test_zero_sends_what_it_does_not_keep():
    """A stage that shards more of the state sends more, so that its chunks wait longer for the network."""
    times = [columns(f"plan.zero_stage={stage}", "engine=event", *EVEN)["step_time_s"] for stage in (1, 2, 3)]
    assert times[0] < times[1] < times[2]
    # Without replicas there is nothing to shard or to send.
    alone = ["plan.pipeline=1", "plan.data=1", "plan.expert=1", "plan.schedule=1f1b", "plan.overlap=none",
             "load.batch=16", "plan.n_comm_sms=0"]  # fmt: skip
    steps = [columns(*alone, f"plan.zero_stage={stage}")["step_time_s"] for stage in (0, 1, 2, 3)]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-3)


def test_a_slower_network_makes_sharding_dearer():
    """The same plan under ZeRO 3 on a tenth of the network."""
    slow = "cluster.tiers.infiniband.link.bandwidth_bytes_per_s=5 GB/s"
    ratio = [columns("plan.zero_stage=3", *s)["step_time_s"] / columns(*s)["step_time_s"] for s in ([], [slow])]
    assert ratio[1] > ratio[0] > 1


def test_state_and_activations_on_the_host_leave_hbm_and_take_time():
    """Bytes move from one tier to the other; slower links to the host make the step longer."""
    for part, names in (("ema", ["ema"]), ("optimizer", ["master", "moments"])):
        here, there = (memory_by_rank(scenario(f"plan.placement.{part}={tier}")) for tier in ("hbm", "host"))
        for near, far in zip(here, there, strict=True):
            assert {name: near.hbm[name] for name in names} == {name: far.host[name] for name in names}
            assert not set(names) & set(far.hbm)
    base, away = columns(), columns("plan.placement.optimizer=host")
    assert away["optimizer_s"] > base["optimizer_s"]
    kept = columns("plan.placement.activations=host")
    assert kept["hbm_bytes"] < base["hbm_bytes"]
    assert kept["host_bytes"] >= base["hbm_activations_bytes"] * (1 - 1e-9)
    slow = columns(
        "plan.placement.activations=host", "cluster.device.memories.host.bandwidth_bytes_per_s=6.4 GB/s"
    )  # fmt: skip
    assert slow["step_time_s"] > kept["step_time_s"] >= base["step_time_s"]


def test_a_full_host_is_a_limit():
    """Infeasible is data with a reason."""
    found = answer(question(TRAINING, [
        ANALYTIC, "plan.placement.activations=host", "cluster.device.memories.host.capacity_bytes=10 GB",
    ]))  # fmt: skip
    assert any(reason.startswith("host:") for reason in found.limits[0])


def test_a_placement_of_nothing_is_said():
    """A name that means nothing in the phase is a note, not silence; one that means nothing at all an error."""
    with pytest.raises(InputError, match="did you mean 'optimizer'"):
        question(TRAINING, ["plan.placement.optimiser=host"])
    found = answer(question("engram_h800_training", [ANALYTIC, "plan.placement.engram=host"]))
    assert any("plan.placement.engram" in note for note in found.warnings)
    decode = answer(question("deepseek_v3_h800_decode", ["plan.placement.optimizer=host"]))
    assert any("plan.placement.optimizer" in note for note in decode.warnings)
