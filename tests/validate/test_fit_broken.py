"""``sextant fit`` on files that it cannot use: one clear line for every kind, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sextant.validate import fit


@pytest.mark.parametrize("kind", sorted(fit.FITTERS))
def test_rows_of_something_else_are_one_clear_error(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "fits.yaml"
    rows.write_text("op,size\nsomething,3\n", encoding="utf-8")
    assert fit.main([kind, str(rows), "--device", "h100", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1
    assert not out.exists()
