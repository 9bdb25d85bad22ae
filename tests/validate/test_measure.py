"""The measuring command end to end on the CPU: schema, header, resuming, failures, checks, case lists."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sextant.validate import cases as case_lists
from sextant.validate.case_sets import case_set

torch = pytest.importorskip("torch", reason="the measuring harness needs the torch extra")

from sextant.validate import kernels, measure  # noqa: E402
from sextant.validate.kernels import attention  # noqa: E402

CASES: list[case_lists.Case] = [
    {"op": "gemm", "format": "bf16", "direction": "forward", "m": 16, "n": 32, "k": 64},
    {"op": "gemm", "format": "bf16", "direction": "backward", "variant": "wgrad", "m": 32, "n": 64, "k": 16},
    {"op": "gemm", "format": "fp8_block", "direction": "forward", "m": 4, "n": 192, "k": 256},
    {
        "op": "grouped_gemm",
        "format": "fp8",
        "direction": "forward",
        "groups": 2,
        "tokens_per_group": 4,
        "n": 16,
        "k": 32,
    },
    {
        "op": "attention",
        "phase": "prefill",
        "format": "bf16",
        "direction": "backward",
        "variant": "cudnn",
        "batch": 1,
        "heads": 4,
        "kv_heads": 2,
        "q_len": 96,
        "kv_len": 96,
        "head_dim": 32,
        "v_head_dim": 16,
        "causal": 1,
    },
    {"op": "swiglu", "format": "fp8", "direction": "forward", "n_tokens": 4, "expert_ffn": 256},
    {"op": "requant_transpose", "format": "fp8", "direction": "backward", "n_tokens": 128, "hidden": 128},
    {"op": "unpermute", "format": "bf16", "direction": "forward", "n_tokens": 4, "hidden": 64, "top_k": 2},
    {"op": "adam", "format": "bf16", "n_elements": 4096},
    {"op": "h2d", "bytes": 4096},
]
BROKEN: list[case_lists.Case] = [
    {"op": "rmsnrom", "n_tokens": 4, "hidden": 64},
    {"op": "cast_transpose", "n_tokens": 100, "hidden": 128},
    {"op": "rmsnorm", "n_tokens": 4},
]


def run(tmp_path: Path, cases: list[case_lists.Case], *extra: str) -> tuple[int, Path]:
    """Run the command over a CSV of cases with a tiny budget."""
    listed, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    listed.parent.mkdir(exist_ok=True)
    case_lists.write_cases(listed, cases)
    arguments = ["--cases", str(listed), "--out", str(out), "--device", "cpu", "--budget-ms", "0.01", *extra]
    return measure.main(arguments), out


def test_every_case_becomes_a_row_of_the_schema(tmp_path: Path, capsys):
    status, out = run(tmp_path, CASES)
    assert status == 0
    header, rows = measure.read_results(out)
    assert {"device", "torch", "triton", "cuda", "cudnn", "date", "command", "revision", "timing"} <= set(header)
    assert header["device"] == "cpu"
    assert [case_lists.case_key(row) for row in rows] == [case_lists.case_key(case) for case in CASES]
    for row in rows:
        assert row["error"] == "", row
        assert 0.0 < float(row["us_p10"]) <= float(row["us"]) * 1.001 <= float(row["us_p90"]) * 1.002
        assert int(row["n_repeats"]) >= 7
        assert (row["library"], row["timing"]) == ("torch_eager_cpu", "host")
        assert float(row["read_bytes"]) > 0 and float(row["write_bytes"]) > 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{len(CASES)} measured" in captured.err


def test_the_stated_traffic_is_the_least(tmp_path: Path):
    """Figures by hand: bf16 GEMM 2 (mk + nk) read and 2 mn written; AdamW 12 and 10 bytes per element."""
    _, out = run(tmp_path, CASES)
    rows = measure.read_results(out)[1]
    assert (rows[0]["read_bytes"], rows[0]["write_bytes"]) == (str(2 * (16 * 64 + 32 * 64)), str(2 * 16 * 32))
    adam = next(row for row in rows if row["op"] == "adam")
    assert (adam["read_bytes"], adam["write_bytes"]) == (str(12 * 4096), str(10 * 4096))


def test_failures_are_rows_and_stop_nothing(tmp_path: Path):
    status, out = run(tmp_path, [*BROKEN, CASES[0]])
    rows = measure.read_results(out)[1]
    assert status == 0 and len(rows) == len(BROKEN) + 1
    assert "nearest: rmsnorm" in rows[0]["error"]
    assert "multiples of 128" in rows[1]["error"]
    assert rows[2]["error"].startswith("ValueError: hidden: ")
    assert [row["us"] for row in rows[:3]] == ["", "", ""] and rows[3]["error"] == ""


def test_nothing_measured_is_status_1(tmp_path: Path):
    assert run(tmp_path, BROKEN)[0] == 1


def test_a_second_run_adds_only_what_is_missing(tmp_path: Path, capsys):
    _, out = run(tmp_path, CASES[:2])
    first = out.read_text()
    status, _ = run(tmp_path, [*CASES[:2], CASES[5]])
    assert status == 0
    assert out.read_text().startswith(first)
    assert len(measure.read_results(out)[1]) == 3
    assert "2 skipped" in capsys.readouterr().err


def test_failed_rows_are_tried_again_on_request_only(tmp_path: Path, monkeypatch):
    """A case that failed once stays failed until asked for, and is then measured; good rows are kept as they are."""
    with monkeypatch.context() as broken:
        broken.setattr(
            measure,
            "prepare",
            lambda case, target: (
                kernels.prepare(case, target)
                if case["op"] == "adam"
                else (_ for _ in ()).throw(RuntimeError("no memory"))
            ),
        )
        _, out = run(tmp_path, [CASES[0], CASES[8]])
    before = measure.read_results(out)[1]
    assert [bool(row["error"]) for row in before] == [True, False]
    run(tmp_path, [CASES[0], CASES[8]])
    assert measure.read_results(out)[1] == before
    run(tmp_path, [CASES[0], CASES[8]], "--retry-failed")
    after = measure.read_results(out)[1]
    assert after[0] == before[1]
    assert (after[1]["op"], after[1]["error"]) == ("gemm", "") and len(after) == 2


def test_time_that_is_up_leaves_cases_for_the_next_run(tmp_path: Path, capsys):
    _, out = run(tmp_path, CASES[:3], "--max-seconds", "0")
    assert measure.read_results(out)[1] == []
    assert "3 left" in capsys.readouterr().err


def test_a_file_of_another_device_is_not_continued(tmp_path: Path, capsys):
    _, out = run(tmp_path, CASES[:1])
    out.write_text(out.read_text().replace("# device: cpu", "# device: NVIDIA H200"))
    assert run(tmp_path, CASES[:2])[0] == 2
    assert "was measured on 'NVIDIA H200'" in capsys.readouterr().err


def test_unknown_list_is_bad_input(tmp_path: Path, capsys):
    assert measure.main(["--cases", "deepseek-v4", "--out", str(tmp_path / "out.csv"), "--device", "cpu"]) == 2
    assert "nearest: deepseek-v" in capsys.readouterr().err


def test_a_wrong_kernel_is_an_error_not_a_time(tmp_path: Path, monkeypatch):
    """A product with one operand's scale left out fails its check."""
    from sextant.validate.kernels import gemm

    monkeypatch.setattr(gemm, "_FORMATS", gemm._FORMATS | {"bf16": (gemm._fp8, 2, "wrong")})
    original = gemm._scaled
    monkeypatch.setattr(gemm, "_scaled", lambda a, scale, picked, dtype: original(a, None, picked, dtype))
    _, out = run(tmp_path, CASES[:1])
    row = measure.read_results(out)[1][0]
    assert row["error"].startswith("ValueError: check: the product is off by")


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_reference_agrees_with_autograd_in_float64(kv_heads: int):
    """The tail reference against plain attention differentiated by autograd, with and without grouped keys."""
    torch.manual_seed(0)
    q, do = torch.randn(1, 4, 80, 16).double(), torch.randn(1, 4, 80, 8).double()
    k, v = torch.randn(1, kv_heads, 80, 16).double(), torch.randn(1, kv_heads, 80, 8).double()
    found = attention.reference_tail(q, k, v, do, causal=True)
    leaves = [tensor.clone().requires_grad_(True) for tensor in (q, k, v)]
    group = 4 // kv_heads
    keys, values = (leaves[i].repeat_interleave(group, dim=1) for i in (1, 2))
    scores = leaves[0] @ keys.transpose(2, 3) / 4.0
    scores = scores.masked_fill(torch.ones(80, 80, dtype=torch.bool).triu(1), float("-inf"))
    out = scores.softmax(-1) @ values
    dq, dk, dv = torch.autograd.grad(out, leaves, do)
    expected = {"out": out[0, :group, -64:], "dq": dq[0, :group, -64:], "dk": dk[0, 0, -64:], "dv": dv[0, 0, -64:]}
    for name, tensor in expected.items():
        assert kernels.relative_error(found[name], tensor.detach()) < 1e-5, name


def test_every_listed_operator_has_a_kernel():
    for name in ("all", "tile-kernels", "collectives-2"):
        assert {str(case["op"]) for case in case_set(name)} <= set(kernels.builders())


def test_the_check_fails_where_a_kernel_does(tmp_path: Path, capsys):
    """--check takes the smallest case of each kernel; its exit status says whether all were right."""
    small = CASES[0] | {"m": 4}
    status, out = run(tmp_path, [CASES[0], small, CASES[5]], "--check")
    rows = measure.read_results(out)[1]
    assert status == 0 and {(row["op"], row["m"]) for row in rows} == {("gemm", "4"), ("swiglu", "")}
    assert all(0.0 <= float(row["relative_error"]) < 1e-2 for row in rows)
    assert run(tmp_path / "more", [CASES[0], BROKEN[2]], "--check")[0] == 1


def test_a_case_that_never_ends_is_a_row_and_the_run_goes_on_elsewhere(tmp_path: Path, monkeypatch):
    """The watchdog writes the row and hands over what time is left; here the hand-over is only recorded."""
    handed: list[list[str]] = []
    ended = threading.Event()

    def hang(case, target):
        assert ended.wait(5.0)
        raise RuntimeError("ended by the test")

    def execute(program: str, words: list[str]) -> None:
        handed.append(words)
        ended.set()

    monkeypatch.setattr(measure, "prepare", hang)
    monkeypatch.setattr(measure.os, "execv", execute)
    _, out = run(tmp_path, CASES[:1], "--case-seconds", "0.05", "--max-seconds", "100", "--retry-failed")
    assert "TimeoutError: not done within 0.05 s" in measure.read_results(out)[1][0]["error"]
    assert handed and "--retry-failed" not in handed[0]
    left = float(handed[0][-1])
    assert handed[0][-2] == "--max-seconds" and 90.0 < left <= 100.0


def test_estimate_measures_nothing(tmp_path: Path, capsys):
    assert measure.main(["--cases", "deepseek-v3", "--ops", "add", "--estimate"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["in", "all", "5"]
    assert measure.main(["--cases", "deepseek-v3", "--ops", "add"]) == 2
    assert "--out" in capsys.readouterr().err
    assert measure.main(["--cases", "all", "--shard", "4/3", "--out", str(tmp_path / "x.csv")]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="processes are started with POSIX sockets")
def test_two_processes_measure_collectives_together(tmp_path: Path):
    """gloo on the CPU: sums, gathered and exchanged parts are right on both; the first process writes the rows."""
    import torch.distributed

    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    listed: list[case_lists.Case] = [
        {"op": op, "format": "bf16", "n_gpus": n, "message_elements": 4096}
        for op, n in (("all_reduce", 2), ("all_gather", 2), ("reduce_scatter", 2), ("all_to_all", 2), ("all_reduce", 4))
    ]
    cases, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    case_lists.write_cases(cases, listed)
    command = [sys.executable, "-m", "sextant.validate.measure", "--cases", str(cases), "--out", str(out)]
    command += ["--device", "cpu", "--budget-ms", "0.01", "--ranks", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["op"], row["n_gpus"]): row for row in measure.read_results(out)[1]}
    assert "--ranks 4" in rows.pop(("all_reduce", "4"))["error"]
    assert len(rows) == 4
    for row in rows.values():
        assert row["error"] == "" and float(row["us"]) > 0 and row["library"] == "gloo"
        assert float(row["relative_error"]) == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kernel_is_right_on_this_gpu(tmp_path: Path):
    out = tmp_path / "check.csv"
    command = [sys.executable, "-m", "sextant.validate.measure", "--cases", "all", "--check", "--out", str(out)]
    subprocess.run(command, timeout=600, check=False)
    failed = [(row["op"], row["error"]) for row in measure.read_results(out)[1] if row["error"]]
    assert failed == []
