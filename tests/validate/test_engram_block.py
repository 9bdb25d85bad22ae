"""Engram blocks by way of fetching: cases, what a fetch exposes, files; and the fit of fetches alone."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sextant import hwmodels  # noqa: E402
from sextant.hwmodels.fits import read_fits  # noqa: E402
from sextant.simulator.errors import InputError  # noqa: E402
from sextant.validate import fit  # noqa: E402
from sextant.validate.whole import engram_block, engram_cases, memory  # noqa: E402

MEASURED = Path(fit.__file__).parent / "data" / "measured"


def test_cases_cover_batches_lengths_and_places() -> None:
    found = engram_cases.cases()
    assert len({case.name for case in found}) == len(found) == 17
    assert {case.model.engram_layers for case in found} == {(1.0,), (2.0,), (4.0,)}
    for case in found:
        (place,) = case.model.engram_layers
        assert case.model.num_hidden_layers >= place and case.model.engram_rows == 2262400.0
        assert case.batch * case.seq == (case.batch if case.phase == "decode" else case.context_tokens)


def test_every_way_has_a_plan_and_a_kernel() -> None:
    assert set(engram_cases.WAYS) == {*memory.WAYS, "hbm"}
    ahead = {way for way, plan in engram_cases.PLANS.items() if plan.prefetch != "none"}
    assert ahead == set(memory.AHEAD)


def test_what_a_fetch_exposes_is_the_median_of_differences_in_a_round() -> None:
    """A pass that drifts by more than the fetch takes, and one round that something disturbed."""
    none = [100.0 + 10.0 * i for i in range(9)]
    way = [us + 7.0 + 0.1 * (i - 4) for i, us in enumerate(none)]
    way[8] += 1000.0
    middle, error = engram_block.exposed(way, none)
    assert middle == pytest.approx(7.0)
    assert error == pytest.approx(1.2533 * 1.4826 * 0.2 / 3.0)
    assert engram_block.exposed(none, none) == (0.0, 0.0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_every_way_of_a_case_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--out", str(tmp_path), "--device", "cpu", "--tiny", "--rounds", "2", "--name", "here"]
    assert engram_block.main([*given, "--only", "decode-b8-layer-2"]) == 0
    found = rows(tmp_path / "here_engram_block.csv")
    assert [row["way"] for row in found] == list(engram_cases.WAYS)
    assert all(float(row["us"]) > 0.0 and not row["error"] for row in found)
    assert float(found[0]["exposed_us"]) == 0.0 and float(found[0]["relative_error"]) < 0.05
    assert float(next(row for row in found if row["way"] == "copy")["cpu_gather_us"]) > 0.0
    text = (tmp_path / "here_engram_block.csv").read_text(encoding="utf-8")
    assert "# command: python -m sextant.validate.whole.engram_block --rounds 2" in text
    assert engram_block.main([*given, "--only", "decode-b8-layer-2"]) == 0
    assert (tmp_path / "here_engram_block.csv").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("way", ["few", "bounded", "full", "copy", "inline"])
def test_every_way_brings_the_same_rows(way: str) -> None:
    from sextant.validate.measure import find_target
    from sextant.validate.whole import reduction

    torch.manual_seed(1)
    (case,) = (case for case in engram_cases.cases() if case.name == "decode-b8-layer-2")
    block = engram_block.Block(reduction.tiny(case), replace(find_target("cpu"), fused=False))
    with torch.no_grad():
        block.refresh(way)
        block.memory.rows.zero_()
        block.net()
        index = block.memory.at.kernels.hash(
            block.net.history, block.memory.primes, block.memory.starts, block.memory.orders
        )
        assert torch.equal(block.memory.rows, block.host[index.flatten()])


def test_a_case_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engram_block, "measure", lambda *_, **__: (_ for _ in ()).throw(ValueError("check: off by 3")))
    given = ["--out", str(tmp_path), "--device", "cpu", "--name", "here", "--only", "decode-b1-"]
    assert engram_block.main(given) == 1
    (row,) = rows(tmp_path / "here_engram_block.csv")
    assert row["error"] == "ValueError: check: off by 3" and not row["us"]


def test_the_shipped_coefficients_are_those_of_the_shipped_kernels(tmp_path: Path) -> None:
    """No pass is in the file that they are fitted to."""
    paths = [MEASURED / name for name in ("h200_fetch.csv", "h200_resident.csv")]
    assert all("way" not in rows(path)[0] and "case" not in rows(path)[0] for path in paths)
    out = tmp_path / "fits.yaml"
    assert fit.main(["fetch", *map(str, paths), "--device", "h200", "--out", str(out)]) == 0
    shipped = hwmodels.device("h200").kernels
    found = read_fits(out)
    assert set(found) == {"gather_host_cold", "gather_host_few", "beside_fetch"}
    for name, block in found.items():
        for key, value in block.coefficients.items():
            assert value == pytest.approx(shipped[name].coefficients[key], rel=1e-3), (name, key)


def test_rows_of_something_else_are_refused() -> None:
    with pytest.raises(InputError, match=r"validate\.resident"):
        fit.FITTERS["fetch"]([{"op": "gather", "us": "3"}], hwmodels.device("h200"), "")
