"""Published figures beside predictions: which, with what error, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from sextant.simulator.errors import InputError
from sextant.studies import judged, tables
from sextant.validate import published


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return judged.published_errors()


def test_every_row_is_a_published_figure_with_its_error(rows: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows) > 25
    for row in rows:
        figure = published.figure(row["id"])
        assert (row["published"], row["source"]) == (figure.value, figure.source)
        assert figure.confidence != "unconfirmed"
        assert row["error"] == pytest.approx(row["predicted"] / figure.value - 1)
        if row["inside"] is not None:
            assert row["inside"] == (row["low"] <= figure.high and row["high"] >= figure.low)


def test_exact_counts_are_exact(rows: list[dict[str, Any]]) -> None:
    exact = {row["id"]: row for row in rows if row["id"].startswith("kv_cache.")}
    assert exact and all(row["error"] == 0 and row["inside"] is None for row in exact.values())
    # Recounts of the same configurations, printed with three to six digits.
    recounts = [row for row in rows if ".recount." in row["id"]]
    assert len(recounts) >= 15 and all(abs(row["error"]) < 5e-4 for row in recounts)


def test_checkpoints_are_as_large_as_the_published_files(rows: list[dict[str, Any]]) -> None:
    """Janus-Pro-7B, Janus-1.3B, JanusFlow-1.3B and DeepSeek-VL-1.3B, to the third digit that is printed."""
    sizes = [row for row in rows if row["id"].endswith("checkpoint.checkpoint_bytes")]
    assert len(sizes) == 4 and all(abs(row["error"]) < 1e-3 for row in sizes)


def test_published_counts_of_all_ten_systems_are_met(rows: list[dict[str, Any]]) -> None:
    """Within 2%, or within what the digits that are printed leave open."""
    rounded = {
        # 2.451 B, printed as 2.4.
        "deepseek_v2_lite.n_activated_parameters": 0.0515e9, "deepseek_vl2_tiny.n_language_parameters": 0.5e9,
        "deepseek_vl2_small.n_activated_language_parameters": 0.0515e9,
        # The sum of 2.4 B and 0.4 B, each rounded down.
        "deepseek_vl2_small.with_vision.n_activated_parameters": 0.1e9,
    }  # fmt: skip
    counts = [row for row in rows if "parameters" in row["id"].rpartition(".")[2]]
    assert len(counts) >= 40
    for row in counts:
        allowed = max(0.02 * row["published"], rounded.get(row["id"], 0.0))
        assert abs(row["predicted"] - row["published"]) <= 1.0001 * allowed, row["id"]


def test_a_prefix_chooses_and_an_unknown_one_is_refused() -> None:
    chosen = judged.published_errors("kv_cache")
    assert chosen and all(row["id"].startswith("kv_cache") for row in chosen)
    with pytest.raises(InputError, match=r"no predicted figure begins with 'kv_cahe'; did you mean 'kv_cache"):
        judged.published_errors("kv_cahe")


def test_the_table_fits_and_sums_up(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_width", lambda: 100)
    lines = tables.judged(rows).splitlines()
    assert max(map(len, lines)) <= 100
    for row in rows:
        error = f"{100 * row['error']:+.2f}%"
        (line,) = [x for x in lines if x.split()[:1] == [tables.figure_name(row["id"])] and error in x]
        assert bool(re.search(r"\*\d$", line)) == (row["fitted"] != "none")
    assert any(line.startswith("*1 rests on fits: ") for line in lines)


def test_errors_of_a_group_are_summed_up() -> None:
    def row(id: str, error: float, inside: bool | None) -> Mapping[str, Any]:
        return {"id": id, "predicted": 1.0, "published": 1.0, "error": error, "inside": inside, "fitted": "none"}

    found = [row("a.x.step_time_s", -0.1, True), row("a.y.step_time_s", 0.2, False), row("b.tpot_s", 0.04, None)]
    lines = [" ".join(line.split()) for line in tables.judged(found).splitlines()]
    assert "a 2 15.00% 15.00% 20.00% 1 of 2" in lines
    assert "b 1 4.00% 4.00% 4.00%" in lines
    assert "all 3 11.33% 10.00% 20.00% 1 of 2" in lines
