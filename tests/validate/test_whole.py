"""Whole models in torch: every case, small, against its reference; how they are measured and written."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sextant.simulator.errors import InputError  # noqa: E402
from sextant.validate.measure import find_target  # noqa: E402
from sextant.validate.whole import cases, network, reduction, run  # noqa: E402

SHIPPED = {case.name: case for case in cases.read()}
CPU = find_target("cpu")
# Triton's interpreter gives the target kernels that this small suite need not run.
CPU = replace(CPU, fused=False)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_case_computes_what_its_reference_does(name: str) -> None:
    torch.manual_seed(1)
    net = network.network(reduction.tiny(SHIPPED[name]), CPU, dtype=torch.float32)
    assert network.check(net) < 1e-5


def test_a_wrong_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    net = network.network(reduction.tiny(SHIPPED["coder-1.3b-prefill-b1-2048"]), CPU)
    kernels = type(net.at.kernels)
    monkeypatch.setattr(kernels, "swiglu", lambda self, x: 1.5 * x.chunk(2, dim=-1)[1])
    with pytest.raises(ValueError, match="check: off by"):
        network.check(net)


def test_a_training_step_moves_the_weights() -> None:
    torch.manual_seed(1)
    net = network.network(reduction.tiny(SHIPPED["coder-1.3b-training-b1-4096"]), CPU, dtype=torch.float32)
    before = net.masters.clone()
    losses = [float(net()) for _ in range(4)]
    assert losses[-1] < losses[0] and not torch.equal(before, net.masters)
    assert float(net.gradients.abs().max()) == 0.0


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


ARGUMENTS = ["--device", "cpu", "--tiny", "--burst", "2", "--seconds", "0.001", "--name", "here"]


def test_cases_are_measured_once_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--out", str(tmp_path), *ARGUMENTS]
    assert run.main([*given, "--only", "siglip-l-b1"]) == 0
    first = (tmp_path / "here_models.csv").read_text(encoding="utf-8")
    assert "# torch: " in first and "# command: python -m sextant.validate.whole.run" in first
    assert run.main([*given, "--only", "siglip-l-b1,coder-1.3b-decode*"]) == 0
    text = (tmp_path / "here_models.csv").read_text(encoding="utf-8")
    assert text.startswith(first)
    found = rows(tmp_path / "here_models.csv")
    assert [row["case"] for row in found] == ["siglip-l-b1", "coder-1.3b-decode-b1-2048", "coder-1.3b-decode-b64-2048"]
    for row in found:
        assert float(row["us_p10"]) <= float(row["us"]) <= float(row["us_p90"]) and not row["error"]
        assert float(row["lasting_us"]) > 0.0 and float(row["relative_error"]) < network.TOLERANCE
    assert "[1/1" in capsys.readouterr().err


def test_a_case_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "check", lambda net: (_ for _ in ()).throw(ValueError("check: off by 3")))
    assert run.main(["--out", str(tmp_path), *ARGUMENTS, "--only", "siglip-l-b1"]) == 1
    (row,) = rows(tmp_path / "here_models.csv")
    assert row["error"] == "ValueError: check: off by 3" and not row["us"]


def test_an_unknown_case_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--out", str(tmp_path), *ARGUMENTS, "--only", "siglip-l-b2"]) == 2
    assert "siglip-l-b1" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a, model: {base: engram-27b, layers: 2}, load: {phase: decode, batch: 1}}", "layers"),
        ("- {name: a, model: {base: engram-27b}, load: {phase: decoding, batch: 1, context_tokens: 8}}", "load.phase"),
        ("- {name: a, model: {base: engram-27b}, load: {phase: decode, batch: 0, context_tokens: 8}}", "load.batch"),
        ("- {name: a, model: {base: engram-27b}, load: {phase: vision, batch: 1}}", "no image encoder"),
        ("- {name: a, modell: {base: engram-27b}}", "modell: unknown key"),
        ("a: 1", "a list of cases is needed"),
    ],
)  # fmt: skip
def test_wrong_cases_say_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        cases.read(path)
