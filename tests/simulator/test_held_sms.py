"""Products while a fetch holds some SMs: which tiles, how many turns more, and what was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import sextant.validate
from sextant import hwmodels
from sextant.simulator.kernels import estimate, held_sms, host_rows, operator
from sextant.simulator.types import Op

N_SMS = 132.0
H200 = hwmodels.cluster("hgx-h200")
MEASURED = Path(sextant.validate.__file__).parent / "data" / "measured" / "h200_resident.csv"


def product(m, n, k=2560.0) -> Op:
    return operator("gemm", "product", "bf16", {"m": m, "n": n, "k": k})


def measured(programs: str) -> list[dict[str, str]]:
    """Products beside a fetch that was there before; eight programs of eight rows, or one of 64."""
    with MEASURED.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    asked = ("before", programs, str(64 // int(programs)))
    return [
        row for row in rows
        if row["call"].startswith("gemm") and (row["start"], row["programs"], row["in_turn"]) == asked
    ]  # fmt: skip


def sizes(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(size) for size in row["call"].split()[1].split("x")] for row in rows]).T


def test_tiles_are_those_of_the_kernels_that_ran() -> None:
    """Blocks are as many as tiles while those fit; kernels of 512 and more rows, by their names: mostly the same count
    of tiles, and as many blocks."""
    rows = [row for row in measured("8") if float(row["call"].split()[1].split("x")[0]) >= 512]
    m, n, _ = sizes(rows)
    found = held_sms.tiles(m, n, N_SMS)
    shapes = [row["kernel"].split("_tst_")[1].split("_")[0].split("x") for row in rows]
    height, width = np.array([[float(side) for side in shape] for shape in shapes]).T
    named = np.ceil(n / height) * np.ceil(m / width)
    assert np.mean(found == named) >= 0.8
    blocks = np.array([float(row["blocks"]) for row in rows])
    assert np.mean(np.minimum(found, N_SMS) == blocks) >= 0.85


@pytest.mark.parametrize(
    ("m", "n", "held", "turns", "more"),
    [
        (2048.0, 2560.0, 8.0, 1, 1),  # one turn, and the late ones another
        (4096.0, 2560.0, 8.0, 2, 2),  # both tiles are their own
        (4096.0, 6144.0, 8.0, 6, 2),  # the others have taken all further tiles
        (4096.0, 2560.0, 1.0, 2, 0),  # the last cluster has one tile, and starts when another with one is through
        (8192.0, 2560.0, 1.0, 4, 1),
        (512.0, 576.0, 8.0, 1, 0),  # few blocks: all find room
        (4096.0, 6144.0, 0.0, 6, 0),
    ],
)
def test_late_clusters_do_their_own_tiles_last(m: float, n: float, held: float, turns: int, more: int) -> None:
    assert np.ceil(held_sms.tiles(m, n, N_SMS) / N_SMS) == turns
    assert held_sms.longer(product(m, n), N_SMS, held) == pytest.approx(more / turns)


def test_arrays_equal_scalars_and_a_grouped_kernel_doubles() -> None:
    m = np.array([512.0, 1024.0, 4096.0])
    together = held_sms.longer(product(m, 6144.0), N_SMS, 7.0)
    assert together.tolist() == [float(held_sms.longer(product(each, 6144.0), N_SMS, 7.0)) for each in m]
    shape = {"groups": 55.0, "tokens_per_group": 447.0, "n": 3072.0, "k": 2560.0}
    grouped = operator("grouped_gemm", "experts", "bf16", shape)
    assert [float(held_sms.longer(grouped, N_SMS, held)) for held in (0.0, 1.0, 7.0)] == [0.0, 1.0, 1.0]


def test_what_products_lose_is_near_what_was_measured() -> None:
    """Those above launch times; a share of all, or 124 of 132 SMs, explains next to nothing of it."""
    rows = [row for row in measured("8") if float(row["call_alone_us"]) > 12.0]
    m, n, k = sizes(rows)
    alone_us, beside_us = (np.array([float(row[name]) for row in rows]) for name in ("call_alone_us", "call_beside_us"))
    op = product(m, n, k)
    took = estimate(op, H200)
    slower = host_rows.slowed_s(op, took, H200.device, 64.0) / took.seconds
    off = np.abs(alone_us * (1.0 + slower) / beside_us - 1.0)
    assert np.median(off) < 0.04 and np.mean(off) < 0.07
    assert np.mean(np.abs(alone_us * 132.0 / 124.0 / beside_us - 1.0)) > 0.2


def test_one_program_holds_one_cluster() -> None:
    """The same law predicts a fetch that sits on one SM, which no fit has seen."""
    rows = [row for row in measured("1") if float(row["call_alone_us"]) > 50.0]
    m, n, k = sizes(rows)
    slower = np.array([float(row["call_beside_us"]) / float(row["call_alone_us"]) - 1.0 for row in rows])
    predicted = np.asarray(held_sms.longer(product(m, n, k), N_SMS, 1.0))
    assert np.median(np.abs(slower - predicted)) < 0.03
