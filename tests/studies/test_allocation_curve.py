"""The measured allocation curve as a table and a figure: means, spread and noise of the seeds, nothing fitted."""

import json
from pathlib import Path

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.studies import allocation_curve

COLUMNS = (
    "corpus,budget,learning_rate,rho_asked,seed,rho,n_parameters,n_activated_parameters,n_tokens,loss,unigram_loss,"
    "bigram_loss,error"
)


def _file(folder: Path, losses: dict[tuple[float, int], float], *more: str) -> Path:
    rows = [f"python,small,0.003,{rho},{seed},{rho},100,10,1000,{loss},6,5," for (rho, seed), loss in losses.items()]
    (folder / "x_allocation.csv").write_text("\n".join(("# device: x", COLUMNS, *rows, *more)) + "\n")
    return folder


def test_means_noise_and_what_is_as_good(tmp_path: Path):
    """Two seeds 0.02 apart have a standard deviation of 0.0141, and a mean's difference a standard error of as much; a
    rho that one seed lacks, and a row that failed, are left out."""
    losses = {(1.0, 0): 2.10, (1.0, 1): 2.12, (0.5, 0): 2.00, (0.5, 1): 2.02, (0.2, 0): 2.01, (0.2, 1): 2.03}
    failed = "python,small,0.003,0.0,0,0.0,100,10,1000,,6,5,RuntimeError: no"
    alone = "python,small,0.003,0.7,0,0.7,100,10,1000,1.5,6,5,"
    (curve,) = allocation_curve.curves("x", _file(tmp_path, losses, failed, alone))
    assert curve.rho.tolist() == [0.2, 0.5, 1.0]
    assert curve.mean == pytest.approx([2.02, 2.01, 2.11])
    assert curve.seed_std == pytest.approx(0.02 / np.sqrt(2))
    assert curve.best == 0.5 and curve.as_good == (0.2, 0.5)
    assert "lowest at rho 0.50; within noise of it from 0.20 to 0.50" in allocation_curve.table([curve])


def test_learning_rates_are_curves_of_their_own(tmp_path: Path):
    """Models that learned at another rate are not averaged with these."""
    other = "python,small,0.001,1.0,0,1.0,100,10,1000,3.0,6,5,"
    found = allocation_curve.curves("x", _file(tmp_path, {(1.0, 0): 2.0}, other))
    assert [(curve.learning_rate, curve.mean.tolist(), curve.seed_std) for curve in found] == [
        (0.003, [2.0], 0.0), (0.001, [3.0], 0.0)
    ]  # fmt: skip


def test_the_shipped_curves_are_drawn(tmp_path: Path):
    """Models without tables are the worst of both budgets, by more than the seeds differ; same data, same bytes."""
    found = allocation_curve.curves("h200")
    assert {curve.budget for curve in found} == {"small", "large"}
    for curve in found:
        assert curve.rho[-1] == 1.0 and np.argmax(curve.mean) == len(curve.rho) - 1
        assert curve.loss[-1].min() > curve.loss[:-1].max()
    first, again = (allocation_curve.draw(found, folder) for folder in (_folder(tmp_path, "a"), _folder(tmp_path, "b")))
    assert [path.name for path in first] == ["allocation_curve.png", "allocation_curve.svg"]
    assert all(a.read_bytes() == b.read_bytes() and a.stat().st_size > 5000 for a, b in zip(first, again, strict=True))
    assert json.loads(json.dumps(allocation_curve.as_json(found)))[0]["rho"][-1] == 1.0


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_a_device_without_curves_says_how_to_measure_them(tmp_path: Path):
    """One error that names the command."""
    with pytest.raises(InputError, match="sextant measure allocation --out"):
        allocation_curve.curves("h20", tmp_path)
