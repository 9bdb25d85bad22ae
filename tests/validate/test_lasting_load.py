"""What is said of clocks under lasting load, and of kernels beside each other, is what the measured files say."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

import pytest

import sextant.validate
from sextant.hwmodels import gpus
from sextant.simulator.kernels import COPY_SLOWDOWN, PRODUCT_LOSS

MEASURED = Path(sextant.validate.__file__).parent / "data" / "measured"
#: Bytes per second of the H200's memory, in whose units the loss is stated.
H200_BANDWIDTH = 4.8e12
#: The mix reads and writes 1.5 arrays of 2^29 elements.
ADDS = 1.5


def rows(name: str) -> list[dict[str, str]]:
    lines = (MEASURED / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def kept(name: str) -> tuple[float, float, float]:
    """Share of the short-run speed kept by products (median) and by the mix's tensor-core work, and the share of the
    mix that is memory-bound; on all SMs."""
    found = {row["call"]: row for row in rows(name) if row["carved_sms"] == "0"}
    add = next(row for call, row in found.items() if call.startswith("add"))
    mix = next(row for call, row in found.items() if call.startswith("mixed"))
    products = [float(r["burst_us"]) / float(r["sustained_us"]) for call, r in found.items() if call.startswith("gemm")]
    adds = ADDS * float(add["sustained_us"])
    tensor = (float(mix["burst_us"]) - adds) / (float(mix["sustained_us"]) - adds)
    return median(products), tensor, adds / float(mix["sustained_us"])


def test_the_h200_keeps_what_its_mix_kept() -> None:
    assert kept("h200_sustained.csv")[1] == pytest.approx(gpus.SUSTAINED_CLOCK, abs=0.005)


@pytest.mark.parametrize("name", ["h100_sustained_0.csv", "h100_sustained_1.csv"])
def test_an_h100_keeps_more_the_more_of_the_mix_is_memory_bound(name: str) -> None:
    """Between products alone and a mix of 30%, at the 24% of DeepSeek-V3's layers."""
    products, mix, share = kept(name)
    assert products == pytest.approx(0.845, abs=0.01) and mix == pytest.approx(0.90, abs=0.005)
    assert share == pytest.approx(0.30, abs=0.005)
    assert products + (mix - products) * 0.24 / share == pytest.approx(gpus.SUSTAINED_CLOCK_H100, abs=0.005)


def test_two_h100_differ_by_about_a_standard_deviation_of_the_spread() -> None:
    times = [
        [float(r["sustained_us"]) for r in rows(f"h100_sustained_{i}.csv") if not r["call"].startswith("add")]
        for i in (0, 1)
    ]
    ratio = median(a / b for a, b in zip(*times, strict=True))
    assert 0.3 * gpus.CLOCK_SPREAD < abs(ratio - 1.0) < 3.0 * gpus.CLOCK_SPREAD


def test_products_beside_a_copying_kernel() -> None:
    found = rows("h200_beside.csv")
    spinning = {row["call"]: float(row["beside_us"]) for row in found if row["side"] == "spin"}
    copying = [row for row in found if row["side"] == "copy" and row["call"].startswith("gemm")]
    beside = [float(row["side_beside_bytes_per_s"]) for row in copying]
    losses = [
        (float(row["beside_us"]) / spinning[row["call"]] - 1.0) / (rate / H200_BANDWIDTH)
        for row, rate in zip(copying, beside, strict=True)
    ]
    slowdowns = [float(row["side_alone_bytes_per_s"]) / rate for row, rate in zip(copying, beside, strict=True)]
    assert median(losses) == pytest.approx(PRODUCT_LOSS, abs=0.005)
    assert median(slowdowns) == pytest.approx(COPY_SLOWDOWN, abs=0.005)
