"""Reports: numbers for people, JSON that is JSON, files whole or absent and the same every time."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.studies import answer, files, metrics, report, tables
from sextant.studies.report import Answer

DECODE, TRAINING = "deepseek_v3_h800_decode", "deepseek_v3_h800_training"


def answered(name: str, *sets: str) -> Answer:
    asked = answer.question(name, sets)
    return Answer(question=asked, result=answer.answer(asked))


@pytest.fixture(scope="module")
def decode() -> Answer:
    return answered(DECODE)


@pytest.fixture(scope="module")
def sweep() -> Answer:
    return answered(DECODE, "axes={load.batch: [32, 64, 1280], plan.overlap: [none, two_batch]}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.5, "1.5"), (999.96, "1000"), (1697.4, "1,697"), (99_994.0, "99,994"), (163_725.0, "163.7 K"),
        (999_940.0, "999.9 K"), (999_960.0, "1.000 M"), (3.0021e11, "300.2 B"), (2.728e11, "272.8 B"),
        (9.9996e11, "1.000 T"), (2.473e15, "2,473 T"), (-1.5e6, "-1.500 M"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_counts_in_four_digits(value: float, text: str) -> None:
    assert metrics.count(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kv_bytes_per_token", 70272.0, "70.272 kB"), ("kv_bytes_per_token", 516096.0, "516.096 kB"),
        ("mfu_causal", 0.42955, "42.95%"), ("step_time_s", 19.9264, "19.926 s"), ("tpot_s", 0.0476, "47.6 ms"),
        ("tokens_per_day", 272.8e9, "272.8 B"), ("usd_per_trillion_tokens", 327_451.0, "327.5 K USD"),
        ("hbm_bytes", 80.12e9, "80.12 GB"), ("hbm_weights_bytes", 9.9e9, "9.9 GB"),
        ("tokens_per_s_per_device", 2153.2, "2,153"),
    ],
)  # fmt: skip
def test_metrics_in_their_units(name: str, value: float, text: str) -> None:
    assert metrics.shown(name, value) == text


def test_the_short_table_says_nothing_twice(decode: Answer) -> None:
    assert set(report.headline(decode)) < set(decode.result.columns)
    assert "tpot_s" in report.headline(decode) and "step_time_s" not in report.headline(decode)
    names = [*decode.result.columns, "tokens_per_day", "usd_per_trillion_tokens"]
    assert not {"tokens_per_s", "tokens_per_s_per_device", "usd_per_million_tokens"} & set(metrics.headline(names))


def test_intervals_hold_the_prediction_and_follow_the_step(decode: Answer) -> None:
    columns = decode.result.columns
    for name in filter(report.scales, report.headline(decode)):
        low, high = report.interval(decode, name)
        assert low <= columns[name][0] <= high
    assert report.interval(decode, "tpot_s") == pytest.approx(
        (columns["step_time_low_s"][0], columns["step_time_high_s"][0])
    )


def test_json_has_no_infinity_and_keeps_every_digit() -> None:
    value = {"a": math.inf, "b": [math.nan, 0.1 + 0.2], "c": np.array([1.5, np.inf]), "d": np.float64(2), "e": ("x",)}
    assert json.loads(report.dumps(value)) == {"a": None, "b": [None, 0.1 + 0.2], "c": [1.5, None], "d": 2, "e": ["x"]}
    assert "Infinity" not in report.dumps(value) and "NaN" not in report.dumps(value)


def test_points_csv_holds_what_json_holds(sweep: Answer, tmp_path: Path) -> None:
    report.write(sweep, tmp_path)
    points = json.loads((tmp_path / "result.json").read_text())["points"]
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points) == 6
    for row, point in zip(rows, points, strict=True):
        assert (float(row["load.batch"]), row["plan.overlap"]) == (point["load.batch"], point["plan.overlap"])
        assert {name: float(row[name]) for name in point["metrics"]} == point["metrics"]
        assert (row["feasible"] == "1", row["limits"]) == (point["feasible"], "; ".join(point["limits"]))


@pytest.mark.parametrize("name", ["decode", "sweep"])
def test_the_same_answer_gives_the_same_bytes(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(name)
    again = Answer(question=found.question, result=answer.answer(found.question))
    a = {path.name: path.read_bytes() for path in report.write(found, tmp_path / "a")}
    b = {path.name: path.read_bytes() for path in report.write(again, tmp_path / "b")}
    assert {Path(n).suffix for n in a} == {".csv", ".json", ".png", ".svg"}
    assert a == b
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(a)


def test_the_best_point_comes_first_and_the_infeasible_last() -> None:
    found = answered(DECODE, "axes.load.batch=[1280, 32, 64]", "objectives.tokens_per_s_per_device=max")
    assert report.best(found) == [2, 1, 0]
    lines = tables.answer(found).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["64", "32", "1,280"]
    assert "GB too much" in " ".join(lines[4:])


def test_a_nearest_miss_is_told_where_memory_is_missing(decode: Answer, sweep: Answer) -> None:
    assert report.limits(decode, 0) == []
    (reason,) = report.limits(sweep, 4)
    miss = -sweep.result.columns["hbm_free_bytes"][4] / 1e9
    assert reason == f"hbm: weights, cache and activations do not fit: {miss:.1f} GB too much" and miss > 100


def test_phases_may_be_swept_together() -> None:
    found = answered(DECODE, "axes.load.phase=[decode, prefill]", "load.batch=4")
    assert {"tpot_s", "ttft_s"} <= set(found.result.columns)
    assert len(tables.answer(found).splitlines()) >= 4


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("before")

    def half(file) -> None:
        file.write("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.save(path, half)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    files.save(path, lambda f: f.write("after"))
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_input_error(tmp_path: Path) -> None:
    def full(_) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"x\.txt: cannot be written \(No space left on device\)"):
        files.save(tmp_path / "x.txt", full)


def test_compare_shows_differences_with_sign_and_ratio() -> None:
    from sextant.studies import comparison

    a, b = answered(DECODE, "load.batch=64"), answered(DECODE)
    found = comparison.compare(a, b)
    rows = {row["name"]: row for row in found["metrics"]}
    assert rows["tpot_s"]["b"] > rows["tpot_s"]["a"]
    gaps = [abs(row["b"] - row["a"]) for row in found["operators"]]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0
    assert sum(r["b"] for r in found["operators"]) == pytest.approx(sum(r["b"] for r in found["resources"]))
    line = next(x for x in tables.comparison(found).splitlines() if x.startswith("time per output token"))
    assert "+" in line and float(line.split()[-1]) == pytest.approx(rows["tpot_s"]["b"] / rows["tpot_s"]["a"], abs=1e-3)
    with pytest.raises(InputError, match="compare takes single points"):
        comparison.compare(a, answered(DECODE, "axes.load.batch=[1,2]"))
