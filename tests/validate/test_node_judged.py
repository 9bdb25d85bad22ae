"""Predictions beside rows of several GPUs: each law is used for what it says, and a fit takes the file as it is."""

import csv
from pathlib import Path

import pytest

from sextant.hwmodels import device
from sextant.simulator.errors import InputError
from sextant.validate import fit
from sextant.validate.fit_collective import even_all_to_all, plain_case
from sextant.validate.node import judged

H100 = device("h100")


def _collective(op: str, elements: int, variant: str = "", busiest: int = 0, us: str = "") -> dict[str, str]:
    return {
        "op": op, "variant": variant, "format": "bf16", "n_gpus": "2", "message_elements": str(elements), "us": us,
        "busiest_elements": str(busiest or elements), "error": "",
    }  # fmt: skip


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("# device: 2 x NVIDIA H100\n# torch: 2.11.0\n")
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rows_by_the_law() -> list[dict[str, str]]:
    """Collectives that take 1.25 times what the H100's block says."""
    rows = [
        _collective(op, 4**i)
        for i in range(5, 15)
        for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")
    ]
    rows += [_collective("all_to_all", 4**i, "power_law_1.2", 4**i * 3 // 4) for i in range(5, 15)]
    times = judged.predicted_us([plain_case(row) for row in rows], judged.node("h100"))
    return [{**row, "us": str(1.25 * us)} for row, us in zip(rows, times, strict=True)]


def test_uneven_parts_are_the_even_exchange_of_the_busiest_rank():
    """Two ranks, three quarters of the message away from one of them: as an even exchange of 1.5 messages, which sends
    three quarters away too."""
    case = plain_case(_collective("all_to_all", 1000, "power_law_1.2", busiest=750))
    assert case == even_all_to_all(2.0, 1500.0) and case["message_elements"] == pytest.approx(1500.0)
    assert plain_case(_collective("all_to_all", 1000))["message_elements"] == "1000"
    four = {**_collective("send_recv", 8), "n_gpus": "4"}
    assert plain_case(four)["n_gpus"] == 2.0


def test_errors_are_those_of_the_rows(tmp_path: Path):
    """Rows 1.25 times as slow as predicted show as a bias of -20% in every kind; a row with an error is no row."""
    rows = _rows_by_the_law()
    _write(tmp_path / "collectives.csv", [*rows, {**rows[0], "us": "", "error": "TimeoutError"}])
    found = judged.judged(tmp_path, "h100")
    assert sum(row.errors.n_rows for row in found if row.errors) == len(rows)
    for row in found:
        assert row.errors is not None and row.n_unknown == 0
        assert row.errors.bias == pytest.approx(-0.2) and row.errors.mape == pytest.approx(0.2)
    assert "all_to_all power_law_1.2, large" in judged.table(found)
    assert judged.as_json(found)[0]["errors"]["n_rows"] > 0
    with pytest.raises(InputError, match="sextant measure ranks"):
        judged.judged(tmp_path / "nowhere", "h100")


def test_a_pipeline_is_judged_by_its_own_stages(tmp_path: Path):
    """1F1B on two equal stages ends (m + 1) micro-batches after it began, and once more for two messages in the way;
    a row that says so has no error, whatever the kernels are."""
    forward, backward, send, m = 4000.0, 8000.0, 150.0, 8
    row = {
        "schedule": "1f1b", "n_gpus": "2", "n_layers": "2", "n_tokens": "4096", "n_micro_batches": str(m),
        "hidden": "7168", "forward_us": f"{forward} {forward}", "backward_us": f"{backward} {backward}",
        "send_us": str(send), "error": "",
    }  # fmt: skip
    pairs = judged.pipeline([{**row, "us": "1"}], judged.node("h100"))
    (step,) = [us for kind, us, _ in pairs if kind.startswith("1f1b")]
    plain = (m + 1) * (forward + backward)
    # Steady state of two ranks: each micro-batch crosses forth and back, and both ranks wait for it.
    assert plain + 2 * send <= step <= plain + 2 * m * send
    _write(tmp_path / "pipeline.csv", [{**row, "us": str(step)}])
    (mine,) = [found for found in judged.judged(tmp_path, "h100") if found.kind.startswith("1f1b")]
    assert mine.errors is not None and mine.errors.mape < 1e-9


def test_a_product_beside_thread_blocks_has_fewer_sms():
    """The law of the simulator: what communication holds is not there; of NCCL's own choice nothing is predicted."""
    row = {
        "call": "all_reduce", "max_ctas": "16", "n_gpus": "2", "message_elements": "1024", "n_tokens": "", "m": "4096",
        "n": "7168", "k": "16384", "gemm_us": "1300", "gemm_beside_us": "1500", "call_us": "1", "call_beside_us": "1",
    }  # fmt: skip
    cluster = judged.node("h100")
    slowed = {kind: us for kind, us, _ in judged.beside([row], cluster)}[
        "product beside all_reduce, from its time alone"
    ]
    assert 1300 * 1.02 < slowed < 1300 * 132 / (132 - 16) * 1.15
    unknown = judged.beside([{**row, "max_ctas": "0"}], cluster)
    assert any(us != us for kind, us, _ in unknown if kind.endswith("from its time alone"))


def test_the_harness_file_can_be_fitted(tmp_path: Path, capsys):
    """sextant fit collective takes the file; variants and failed rows are left out, and what one group size cannot
    tell stays as it was."""
    rows = _rows_by_the_law()
    path, out = tmp_path / "collectives.csv", tmp_path / "h100.yaml"
    _write(path, [*rows, {**rows[0], "us": "", "error": "TimeoutError"}])
    assert fit.main(["collective", str(path), "--device", "h100", "--out", str(out)]) == 0
    assert "held out" in capsys.readouterr().out
    found = fit.read_fits(out)["collective"]
    before = H100.kernels["collective"].coefficients
    for name in ("pair_loss", "step_s"):
        assert found.coefficients[name] == before[name]
    assert found.coefficients["ring_efficiency"] < before["ring_efficiency"]
    blocks = fit.fit_collectives(rows, H100, "")
    n_judges = sum(bool(row["variant"]) for row in rows)
    assert sum(block.training.n_rows + block.held_out.n_rows for block in blocks) == len(rows) - n_judges
    assert [block.name for block in blocks] == ["collective", "collective_send"]
    assert all(block.held_out.mape < 0.03 for block in blocks)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("op,variant\nx,y\n", "the column 'error' is missing"),
        (
            "op,variant,format,n_gpus,message_elements,busiest_elements,us,error\nall_gather,,bf16,2,128,128,fast,\n",
            "fast",
        ),
    ],
)
def test_a_file_that_is_none_is_one_clear_error(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "collectives.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"collectives\.csv: .*{what}.*sextant measure ranks"):
        judged.judged(tmp_path, "h100")
