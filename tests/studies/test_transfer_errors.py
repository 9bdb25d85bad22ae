"""How far coefficients carry from one GPU to another."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.studies import cli, transfer_errors
from sextant.studies.transfer_errors import SAME_LIBRARY, Study, carried, study
from sextant.validate.prediction import single_kernel_cluster


@pytest.fixture(scope="module")
def found() -> Study:
    return study("h100", "h200")


def test_the_same_library_carries_within_12_percent(found: Study) -> None:
    same = {row.kind: row for row in found.rows if row.same_library}
    assert set(same) == set(SAME_LIBRARY) and sum(row.n_rows for row in same.values()) > 1500
    for row in same.values():
        assert row.mape <= 0.12 and 0.88 <= row.inside <= 0.97
    assert [row.same_library for row in found.rows] == sorted((row.same_library for row in found.rows), reverse=True)


def test_only_the_datasheet_is_the_targets() -> None:
    device = carried("h100", "h200").device
    assert set(device.kernels) == set(hwmodels.own_fits("h100"))
    assert device.memories["hbm"].bandwidth_bytes_per_s == hwmodels.device("h200").memories["hbm"].bandwidth_bytes_per_s
    # What streams from memory takes as much less time as the memory is faster, what computes as much as before.
    long = operator("gemm", "gemm", "bf16", {"m": 16.0, "n": 65536.0, "k": 16384.0})
    square = operator("gemm", "gemm", "bf16", {"m": 16384.0, "n": 8192.0, "k": 8192.0})
    home = single_kernel_cluster("h100")
    home = replace(home, device=replace(home.device, kernels=hwmodels.own_fits("h100")))
    ratio = [float(estimate(op, carried("h100", "h200")).seconds / estimate(op, home).seconds) for op in (long, square)]
    assert ratio[0] == pytest.approx(3.35 / 4.8, rel=0.03) and ratio[1] == pytest.approx(1.0, rel=0.02)


def test_a_file_of_its_own_predictions_has_no_error(tmp_path) -> None:
    shapes = [(m, 4096, 7168) for m in (16, 128, 1024, 8192)]
    cluster = carried("h200", "h100")
    lines = ["op,format,library,m,n,k,us"]
    for m, n, k in shapes:
        op = operator("gemm", "gemm", "bf16", {"m": float(m), "n": float(n), "k": float(k)})
        lines.append(f"gemm,bf16,cublas,{m},{n},{k},{1e6 * float(estimate(op, cluster).seconds):.9f}")
    path = tmp_path / "h100.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (row,) = study("h200", "h100", [path]).rows
    # The largest square product is the target's rate and is not judged.
    assert (row.kind, row.n_rows, row.same_library, row.inside) == ("gemm bf16", 3, True, 1.0)
    assert row.mape < 1e-6


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("h100", "h300", "unknown GPU"), ("b200", "h200", "no fits of its own"), ("h100", "h100", "name another"),
        ("h200", "h100", "no measured kernels of 'h100' are shipped"),
    ],
)  # fmt: skip
def test_what_cannot_be_studied_says_why(source: str, target: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        study(source, target)


def test_the_command(found: Study, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["sextant", "validate", "transfer", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    assert run("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["widened"] == [0.9, 1.1]
    assert np.isclose([row["mape"] for row in told["rows"]], [row.mape for row in found.rows]).all()
    assert run() == 0
    assert "another" in capsys.readouterr().out
    assert run("--to", "h100") == 2
    assert transfer_errors.SHIPPED and "name another GPU" in capsys.readouterr().err


def test_the_targets_rates_are_named_and_not_judged(found: Study) -> None:
    assert found.rates.copy is not None and found.rates.gemm is not None
    assert found.rates.copy.case["op"] == "copy" and float(found.rates.copy.case["bytes"]) == 2.0**32
    rows = transfer_errors.measured_rows("h200")
    n_rows = sum(transfer_errors.kind_of(row) == "gemm bf16" for row in rows)
    assert {row.kind: row.n_rows for row in found.rows}["gemm bf16"] == n_rows - 1
    # A copy is in no block of the H100: nothing of the kind is predicted.
    assert "memory-bound" in found.unknown and "memory-bound" not in {row.kind for row in found.rows}


def test_stating_what_belongs_to_an_sm_anew_helps() -> None:
    """Products of an H200 with the H100's coefficients as they are, and restated for its memory."""
    rows = [row for row in transfer_errors.measured_rows("h200") if transfer_errors.kind_of(row) in SAME_LIBRARY]
    restated = carried("h100", "h200")
    plain = replace(restated, device=replace(restated.device, kernels=hwmodels.own_fits("h100")))
    widening = transfer_errors.widening_between("h100", "h200")
    errors = []
    for cluster in (restated, plain):
        part = transfer_errors.judged(rows, cluster, widening)
        errors.append(np.abs(part.predicted_s / part.measured_s - 1.0).mean())
    assert errors[0] < errors[1]


def test_calls_that_convert_are_not_judged_by_products_that_do_not(tmp_path) -> None:
    path = tmp_path / "h100.csv"
    path.write_text("op,format,m,n,k,us\ngemm,fp8,4096,4096,4096,160\ngemm,bf16,128,4096,4096,9\n", encoding="utf-8")
    told = study("h200", "h100", [path])
    known = "convert" in hwmodels.own_fits("h200")["gemm_fp8"].coefficients
    assert [row.kind for row in told.rows] == ["gemm bf16", *(["gemm fp8 converted"] if known else [])]
    assert told.unknown == ({} if known else {"gemm fp8 converted": 1})
    assert told.rates.copy is None and "datasheet alone" in told.text()
