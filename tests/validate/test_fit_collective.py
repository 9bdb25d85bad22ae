"""Collectives: one block of coefficients serves sizes, and numbers of ranks, that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sextant import validate
from sextant.hwmodels import device, own_fits
from sextant.simulator.errors import InputError
from sextant.validate.fit import read_rows
from sextant.validate.fit_collective import (
    collective_op,
    collective_test,
    errors_by_collective,
    fit_collective,
    fit_send,
    medians,
    plain_rows,
    predict_collective,
)
from sextant.validate.solver import Errors, Row, with_fit

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "measured" / "h100_sxm"
H100, NVLINK = device("h100"), 450e9


def rows_of(name: str) -> list[Row]:
    path = MEASURED / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    return list(read_rows(path))


def collective_errors(test_n_gpus: tuple[float, ...]) -> dict[str, Errors]:
    """Errors per collective of rows held out: whole message sizes, or whole numbers of ranks."""
    rows = rows_of("nccl")
    found = fit_collective(rows, H100, NVLINK, test_n_gpus=test_n_gpus)
    assert found.fit.coefficients["ring_efficiency"] < 1
    return errors_by_collective(found, rows, H100, NVLINK, collective_test(rows, test_n_gpus))


def test_unseen_collective_sizes() -> None:
    """Within 8% each: no size that is judged was fitted, on any number of ranks."""
    found = collective_errors(())
    assert sorted(found) == ["all_gather", "all_reduce", "all_to_all", "reduce_scatter"]
    assert all(e.n_rows == 18 and e.mape < 0.08 for e in found.values())


@pytest.mark.parametrize(("n_gpus", "bars"), [
    (2.0, (0.07, 0.09, 0.08, 0.08)), (4.0, (0.06, 0.07, 0.07, 0.06)), (8.0, (0.05, 0.07, 0.13, 0.06)),
])  # fmt: skip
def test_unseen_numbers_of_ranks(n_gpus: float, bars: tuple[float, ...]) -> None:
    """All rows of two, four or eight ranks left out. On eight, all_to_all misses 10%: one in nine of its rows took
    twice as long as the next smaller and the next larger message. The share that switches reach shows on eight alone,
    and its start, not a fit, stands in there for all_reduce."""
    found = collective_errors((n_gpus,))
    for (op, e), bar in zip(sorted(found.items()), bars, strict=True):
        assert e.n_rows == 42 and e.mape < bar, op


def test_switches_add_what_rings_would_take_longer_for() -> None:
    """Shipped coefficients: large BF16 messages of eight ranks are reduced in the switches, 8-bit integers never."""
    rows = [r for r in rows_of("nccl") if r["op"] == "all_reduce" and r["n_gpus"] == "8"]
    large = [r for r in rows if float(r["message_elements"]) >= 2**26]
    seconds = {f: predict_collective([r for r in large if r["format"] == f], H100, NVLINK)
               for f in ("bf16", "int8")}  # fmt: skip
    for format, predicted in seconds.items():
        measured = 1e-6 * np.asarray([float(r["us"]) for r in large if r["format"] == format])
        assert np.abs(predicted / measured - 1).mean() < 0.06


def test_rows_of_two_collectives_make_no_operator() -> None:
    row: Row = {"op": "all_gather", "format": "bf16", "n_gpus": "8", "message_elements": "1024"}
    with pytest.raises(InputError, match="got all_gather bf16, all_gather int8"):
        collective_op([row, {**row, "format": "int8"}])


def measured_between_two() -> list[Row]:
    """Ten passes over collectives of two GPUs of one host."""
    return list(read_rows(Path(validate.__file__).parent / "data" / "measured" / "h100_x2_collectives.csv"))


def test_unseen_sizes_between_two_gpus_of_our_own() -> None:
    """Within 8% each. Latencies are those of that host, twice the database's; the shipped block of sends is this."""
    rows = measured_between_two()
    found = fit_collective(rows, H100, NVLINK)
    fitted = with_fit(H100, found.name, found.fit)
    send = fit_send(rows, fitted, NVLINK)
    assert send.fit.coefficients == pytest.approx(own_fits("h100")["collective_send"].coefficients, rel=1e-3)
    plain = plain_rows(rows)
    both = errors_by_collective(found, plain, with_fit(fitted, send.name, send.fit), NVLINK, collective_test(plain))
    assert len(both) == 6
    assert all(e.n_rows == 5 and e.mape < 0.08 for e in both.values())


def test_what_is_only_sent_is_faster_than_a_ring_of_two() -> None:
    """Measured, 1 GiB: a broadcast is a send, both ways at once cost 7% more, a ring moves fewer bytes in a second."""
    us = {(r["op"], r["variant"]): float(r["us"]) for r in medians(measured_between_two())
          if float(r["message_elements"]) == 2**29}  # fmt: skip
    assert us["broadcast", ""] == pytest.approx(us["send_recv", ""], rel=0.02)
    assert us["send_recv", "both"] == pytest.approx(1.07 * us["send_recv", ""], rel=0.02)
    assert 2.0 * us["all_gather", ""] > 1.3 * us["send_recv", ""]


def test_a_case_measured_several_times_is_its_median() -> None:
    row = {
        "op": "all_gather",
        "variant": "",
        "format": "bf16",
        "n_gpus": "2",
        "message_elements": "1024",
        "us": "5",
    }
    found = medians([row, {**row, "us": "9"}, {**row, "us": "6"}, {**row, "n_gpus": "4", "us": "7.25"}])
    assert [r["us"] for r in found] == ["6", "7.25"]


def test_no_message_of_send_no_block() -> None:
    rows = [row for row in measured_between_two() if row["op"] == "all_gather"]
    with pytest.raises(InputError, match="no rows of send_recv or broadcast"):
        fit_send(rows, H100, NVLINK)
