"""Figures: drawn for what an answer holds, with nothing clipped and no point dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sextant.studies import answer, figures, report
from sextant.studies.report import Answer

pyplot = pytest.importorskip("matplotlib.pyplot")
DECODE, TRAINING = "deepseek_v3_h800_decode", "deepseek_v3_h800_training"
SMALL = ("plan.pipeline=4", "plan.data=64", "cluster.n_devices=256", "cluster.tiers.infiniband.n_devices=32",
         "load.batch=512")  # fmt: skip


def answered(name: str, *sets: str) -> Answer:
    asked = answer.question(name, sets)
    return Answer(question=asked, result=answer.answer(asked))


@pytest.fixture(autouse=True)
def style():
    with figures.styled():
        yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def training() -> Answer:
    return answered(TRAINING, *SMALL)


def labels(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_what_is_drawn_for_what(training: Answer, tmp_path: Path) -> None:
    assert {p.stem for p in figures.draw(training, tmp_path)} == {
        "step", "pipeline", "operators", "memory", "memory_over_time",
    }  # fmt: skip
    assert {p.stem for p in figures.draw(answered(DECODE), tmp_path)} == {"operators", "memory"}
    assert {p.stem for p in figures.draw(answered(DECODE, "axes.load.batch=[1,2]"), tmp_path)} == {"curve"}
    assert figures.draw(answered(DECODE, "axes.plan.overlap=[none,two_batch]"), tmp_path) == []
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


def test_bars_of_the_step_add_up_to_it(training: Answer) -> None:
    (axes,) = figures.step(training).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    widths = [p.get_width() for p in axes.patches if round(p.get_y() + 0.3) == names.index("predicted")]
    assert widths[0] == pytest.approx(training.result.columns["forward_s"][0])
    assert sum(widths) == pytest.approx(training.result.columns["step_time_s"][0])


def test_memory_bars_add_up_and_name_the_capacity(training: Answer) -> None:
    (axes,) = figures.memory(training).axes
    columns = training.result.columns
    assert sum(p.get_width() for p in axes.patches) == pytest.approx(columns["hbm_bytes"][0] / 1e9)
    limit = (columns["hbm_bytes"][0] + columns["hbm_free_bytes"][0]) / 1e9
    assert labels(axes.figure) == [f"capacity {limit:.1f}"]


def test_the_pipeline_draws_every_span_of_a_short_step(training: Answer) -> None:
    spans = report.pipeline_spans(training)
    figure = figures.pipeline(training)
    drawn = sum(len(c.get_paths()) for axes in figure.axes for c in axes.collections)
    assert drawn == len(spans)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [f"rank {i:02d}" for i in range(4)]
    assert figure.axes[0].get_xlim()[1] == pytest.approx(training.result.columns["step_time_s"][0])


def test_a_curve_drops_no_line_silently_and_marks_what_is_infeasible() -> None:
    found = answered(DECODE, "axes={load.batch: [1280, 64, 32], load.context_tokens: [512, 1024, 2048, 3000, 4096, "
                     "5000, 6000, 7000, 8192, 9000, 10000, 11000, 12000, 13000]}")  # fmt: skip
    (axes,) = figures.curve(found, "load.batch").axes
    lines = [line for line in axes.lines if line.get_linestyle() in ("-", "--")]
    assert len(lines) == 12
    assert "first 12 of 14" in axes.get_legend().get_title().get_text()
    for line in lines:
        assert list(line.get_xdata()) == [32, 64, 1280]
    styles = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(styles) == 12
    crosses = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "x")
    shown = np.array(found.axis_values()["load.context_tokens"]) <= 11000
    assert crosses == int((~found.result.feasible & shown).sum()) > 0
    assert axes.get_ylabel() == "time per output token, ms" and axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("axis", "scale", "label"),
    [
        ("load.batch=[16,32,64,128]", "log", "load.batch"),
        ("load.batch=[32,64,96,128]", "linear", "load.batch"),
        ("cluster.device.memories.hbm.bandwidth_bytes_per_s=[2 TB/s,3 TB/s,4 TB/s]", "linear",
         "cluster.device.memories.hbm.bandwidth_bytes_per_s"),
    ],
)  # fmt: skip
def test_axes_are_in_units(axis: str, scale: str, label: str) -> None:
    path = label
    (axes,) = figures.curve(answered(DECODE, f"axes.{axis}"), path).axes
    assert (axes.get_xscale(), axes.get_xlabel()) == (scale, label)
    axes.figure.canvas.draw()
    texts = [t.get_text() for t in axes.get_xticklabels()]
    assert ("16" in texts) if scale == "log" else texts
    if "bandwidth" in path:
        assert "3 TB/s" in texts


@pytest.mark.parametrize("name", ["step", "operators", "memory"])
def test_texts_do_not_overlap(name: str, training: Answer) -> None:
    figure = getattr(figures, name)(training)
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_legend().get_texts()] if text.get_text()]
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])
