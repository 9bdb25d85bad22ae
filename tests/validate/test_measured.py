"""The committed measurements: who made them, how many, and what a fit may see of them."""

import csv
from collections import Counter
from pathlib import Path

import pytest

import sextant.validate
from sextant.validate.cases import split

FOLDER = Path(sextant.validate.__file__).parent / "data" / "measured"
PEAK_FLOPS_PER_S = {"bf16": 989.5e12, "fp8": 1979e12, "fp8_block": 1979e12}
HBM_BYTES_PER_S, L2_BYTES = 4.8e12, 63e6


def rows(name):
    lines = [
        line
        for line in (FOLDER / name).read_text(encoding="utf-8").splitlines(keepends=True)
        if not line.startswith("#")
    ]
    return list(csv.DictReader(lines))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.csv")), ids=lambda path: path.stem)
def test_every_file_says_where_it_comes_from(path):
    header = [
        line[2:].partition(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")
    ]
    assert {"device", "torch", "date", "command"} <= set(header), path.name


def test_kernels_of_the_h200_are_many_and_a_quarter_is_held_out():
    """At least 1,500 measured cases; of each operator with ten or more, 10 to 40% held out."""
    measured = [row for row in rows("h200_kernels.csv") if row["us"] and not row["error"]]
    assert len(measured) >= 1500
    counts = Counter((row["op"], split({k: v for k, v in row.items() if v})) for row in measured)
    for op in {op for op, _ in counts}:
        fit, held_out = counts[op, "fit"], counts[op, "held_out"]
        if fit + held_out >= 10:
            assert 0.1 <= held_out / (fit + held_out) <= 0.4, op


def test_no_kernel_is_faster_than_physics():
    """Products no faster than the tensor cores; tensors that no cache holds no faster than HBM."""
    for row in rows("h200_kernels.csv"):
        if not row["us"] or row["error"]:
            continue
        seconds = 1e-6 * float(row["us"])
        if row["op"] == "gemm":
            flops = 2.0 * float(row["m"]) * float(row["n"]) * float(row["k"])
            assert seconds >= flops / PEAK_FLOPS_PER_S[row["format"]], row
        moved = float(row["read_bytes"] or 0) + float(row["write_bytes"] or 0)
        if row["tier"] in ("", "hbm") and row["op"] not in ("h2d", "d2h"):
            assert seconds >= (moved - L2_BYTES) / HBM_BYTES_PER_S, row
