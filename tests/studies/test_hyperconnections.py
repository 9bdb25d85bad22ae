"""The study of residual streams: beside the plain residual, on the same layers per stage; laws, columns, figure."""

from dataclasses import replace

import numpy as np
import pytest

from sextant.studies import answer as answering
from sextant.studies import figures, hyperconnections, judged, report, study, training
from sextant.studies.early_sends import early, remade_s
from sextant.studies.stages import chunk_times, layout

SCENARIO = """
name: streams
study: hyperconnections
model: mhc-27b
cluster: {base: h800-2048, n_devices: 64, tiers.infiniband.n_devices: 8}
plan:
  {pipeline: 4, data: 16, expert: 8, schedule: dualpipe, overlap: forward_backward, n_comm_sms: 20, early_sends: true,
   recompute: [norm, mla_up, mhc]}
load: {phase: training, batch: 128, context_tokens: 4096}
axes:
  plan.hyper_connections: [fused, tile_kernels, unfused]
  plan.recompute: [[norm, mla_up, mhc], [norm, mla_up]]
  model.n_streams: [1, 2, 3, 4, 6, 8]
published: [mhc.training]
"""
N = np.array([1, 2, 3, 4, 6, 8])


def asked(*sets):
    return answering.question(SCENARIO, sets)


@pytest.fixture(scope="module")
def found():
    question = asked()
    return report.Answer(question=question, result=answering.answer(question))


def table(found, name):
    """A metric as [kernels, recompute, streams]."""
    return found.result.columns[name].reshape(3, 2, len(N))


def test_one_stream_is_the_plain_residual(found):
    """Without overhead, without kernels of streams, whatever the plan says of them; the step that training answers."""
    assert np.all(table(found, "time_overhead")[..., 0] == 0.0)
    assert np.all(table(found, "streams_s")[..., 0] == 0.0) and np.all(table(found, "streams_bytes")[..., 0] == 0.0)
    alone = answering.question(SCENARIO.replace("study: hyperconnections\n", ""), ("axes.model.n_streams=[1]",))
    assert np.all(table(found, "step_time_s")[..., 0] == answering.answer(alone).columns["step_time_s"][0])


def test_overhead_rises_with_the_streams(found):
    assert np.all(np.diff(table(found, "time_overhead"), axis=-1) > 0)
    assert np.all(np.diff(table(found, "streams_bytes"), axis=-1) > 0)


def test_fused_kernels_move_less_and_take_less_time(found):
    """Released ones read and write the residual's gradient twice, unfused ones more often. In time up to six streams;
    with eight the fused product, measured, waits for its matrix units."""
    fused, released, unfused = table(found, "streams_bytes")
    assert np.all(fused[:, 1:] < released[:, 1:]) and np.all(released[:, 1:] < unfused[:, 1:])
    for name in ("time_overhead", "streams_s"):
        fused, released, unfused = table(found, name)
        assert np.all(fused[:, 1:5] < unfused[:, 1:5]), name
        assert np.all(fused[:, 1:5] < released[:, 1:5]), name
        assert np.all(fused[:, 5] > 1.5 * fused[:, 4]), name


def test_released_kernels_are_of_training():
    """A prompt is prefilled by the fused kernels, and told so."""
    sets = [(f"plan.hyper_connections={kernels}",) for kernels in ("fused", "tile_kernels")]
    fused, released = (answering.question("mhc_h800_prefill", one) for one in sets)
    alone, other = (answering.answer(one).columns for one in (fused, released))
    assert all(np.array_equal(values, other[name]) for name, values in alone.items())
    assert any("about training" in note for note in answering.notes(released.scenario))
    assert not any("hyper_connections" in note for note in answering.notes(fused.scenario))


def test_recompute_takes_time_and_frees_memory(found):
    for name, sign in (("time_overhead", 1.0), ("remade_s", 1.0), ("hbm_bytes", -1.0)):
        again, kept = table(found, name)[:, 0], table(found, name)[:, 1]
        assert np.all(sign * (again - kept)[:, 1:] > 0), name


def test_the_pipeline_carries_every_stream(found):
    """n activations and n gradients per micro-batch over three boundaries of four ranks, of one sequence in BF16."""
    sent = 2 * 3 / 4 * 8 * 2 * 2560 * 4096 * N
    assert np.all(table(found, "pipeline_bytes") == sent)
    exposed = table(found, "exposed_pipeline_s")
    assert np.all(exposed >= 0) and np.all(exposed <= found.result.columns["step_time_s"].max())


def test_columns_of_a_step_are_sums_of_its_operators(found):
    """streams_s: the streams' kernels of thirty layers, of embedding and head, eight micro-batches on four ranks."""
    point = asked("axes.plan.hyper_connections=[fused]", "axes.plan.recompute=[[norm, mla_up, mhc]]",
                  "axes.model.n_streams=[4]").scenario  # fmt: skip
    timed = training.timed_step(point)
    each = {}
    for item in timed.ops:
        if any(mark in item.op.name for mark in ("streams_pre", "streams_post", "streams_expand", "streams_merge")):
            each[item.op.part] = each.get(item.op.part, 0.0) + float(item.seconds)
    whole = (each["embedding"] + each["dense_layer"] + 29 * each["moe_layer"] + each["head"]) * 8 / 4
    assert table(found, "streams_s")[0, 0, 3] == pytest.approx(whole, rel=1e-12)


def test_points_at_once_are_points_one_by_one(found):
    for i, n in [(1, 2), (5, 8)]:
        one = answering.answer(asked(f"axes.model.n_streams=[{n}]"))
        for name, values in one.columns.items():
            assert table(found, name)[..., i].ravel() == pytest.approx(values, rel=1e-9, abs=1e-12), (name, n)


def test_plain_and_streams_lie_on_the_same_stages():
    """DeepSeek-V3's last layer moves to another stage with four streams; the plain residual is laid as they are."""
    sets = ("axes.model.n_streams=[4]", "axes.plan.hyper_connections=[fused]", "engine=analytic")
    question = answering.question("mhc_overhead_671b", sets)
    point = answering.answer(question)
    base = hyperconnections.plain(question.scenario)
    timed = training.timed_step(replace(question.scenario, model=replace(question.scenario.model, n_streams=4.0)))
    laid = layout(question.scenario, timed, 1).at(0).chunks
    assert laid != layout(base, training.timed_step(base), 1).at(0).chunks
    held = tuple(float(sum(part.endswith("layer") for part in chunk)) for chunk in laid)
    same = replace(base, axes={}, plan=replace(base.plan, layers_per_stage=held))
    assert point.columns["plain_step_time_s"][0] == training.evaluate_training(same, 1).columns["step_time_s"][0]


def test_early_messages_are_less_exposed():
    """Decoupled recompute and early outputs hide messages; blocking sends leave when they block."""
    sets = ("axes.plan.hyper_connections=[fused]", "axes.plan.recompute=[[norm, mla_up, mhc]]")
    early_, late = (answering.answer(asked(*sets, f"plan.early_sends={how}")) for how in ("true", "false"))
    assert np.all(early_.columns["exposed_pipeline_s"] < late.columns["exposed_pipeline_s"])
    point = asked("axes.model.n_streams=[4]").scenario
    timed = training.timed_step(point)
    stages = layout(point, timed, 1)
    times = chunk_times(point, timed, stages)
    leads = early(point, timed, stages, times).leads
    again = remade_s(timed)
    assert again["moe_layer"] > 0 and "head" not in again
    assert leads["B", -1, 1][1] == pytest.approx(sum(again.get(part, 0.0) for part in stages.at(0).chunks[0]))
    assert all(lead >= 0 for pair in leads.values() for lead in pair)
    blocking = replace(point, plan=replace(point.plan, blocking_sends=True))
    assert early(blocking, timed, stages, times) is times


def test_unknown_kernels_and_useless_ones_are_told():
    with pytest.raises(Exception, match="did you mean 'unfused'"):
        asked("axes.plan.hyper_connections=[unfuse]")
    plain = answering.question("deepseek_v3_h800_chunk_pair", ("plan.hyper_connections=unfused",))
    assert any("one stream" in note for note in answering.notes(plain.scenario))


def test_the_published_overhead_is_judged(found):
    """The point of four fused streams that are made again, with an interval of the streams' kernels alone."""
    (group,) = hyperconnections.judged(found).items()
    value, low, high = group[1]["time_overhead"]
    assert group[0] == "mhc.training" and value == table(found, "time_overhead")[0, 0, 3]
    assert low < value < high
    (row,) = judged._study(found, study.find("hyperconnections"))
    assert (row["id"], row["predicted"], row["published"]) == ("mhc.training.time_overhead", value, 0.067)
    other = asked("axes.model.n_streams=[2, 8]")
    assert hyperconnections.judged(report.Answer(question=other, result=answering.answer(other))) == {}


def test_the_figure_has_a_line_per_kernels_and_recompute(found):
    import matplotlib.pyplot as plt

    with figures.styled():
        figure = hyperconnections.figures(found)["overhead"]
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        kernels = ("fused", "tile_kernels", "unfused")
        assert {f"{one}, {how}" for one in kernels for how in ("made again", "kept")} < lines.keys()
        assert np.array_equal(lines["fused, kept"].get_xdata(), N)
        assert lines["fused, kept"].get_ydata() == pytest.approx(100 * table(found, "time_overhead")[0, 1])
        plt.close(figure)


def test_a_plan_that_does_not_exist_has_no_overhead():
    """Too few micro-batches for DualPipe on half of the points: no times, and the reason."""
    sets = ("axes.load.batch=[128, 32]", "axes.model.n_streams=[1, 4]", "axes.plan.hyper_connections=[fused]")
    result = answering.answer(asked(*sets))
    bad = ~result.feasible
    assert bad.sum() == 4 and all("DualPipe" in " ".join(result.limits[i]) for i in np.flatnonzero(bad))
    assert np.all(result.columns["time_overhead"][bad] == 0.0)
    streams = report.Answer(question=asked(*sets), result=result).axis_values()["model.n_streams"]
    good = ~bad & (streams == 4)
    assert good.sum() == 2 and np.all(result.columns["time_overhead"][good] > 0)
