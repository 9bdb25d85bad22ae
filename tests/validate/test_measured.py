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
    # Text is made of tokens without torch.
    library = "tokenizers" if path.stem.startswith("h100_engine_text") else "torch"
    assert {"device", library, "date", "command"} <= set(header), path.name


def test_kernels_of_the_h200_are_many_and_a_quarter_is_held_out():
    """At least 1,500 measured cases; of each operator with ten or more, 10 to 40% held out."""
    measured = [row for row in rows("h200_kernels.csv") if row["us"] and not row["error"]]
    assert len(measured) >= 1500
    counts = Counter((row["op"], split({k: v for k, v in row.items() if v})) for row in measured)
    for op in {op for op, _ in counts}:
        fit, held_out = counts[op, "fit"], counts[op, "held_out"]
        if fit + held_out >= 10:
            assert 0.1 <= held_out / (fit + held_out) <= 0.4, op


@pytest.mark.parametrize("name", ["h200_kernels.csv", "h200_between.csv", "h200_per_tensor.csv", "h200_streams.csv"])
def test_no_kernel_is_faster_than_physics(name):
    """Products no faster than the tensor cores; tensors that no cache holds no faster than HBM."""
    for row in rows(name):
        if not row["us"] or row["error"]:
            continue
        seconds = 1e-6 * float(row["us"])
        if row["op"] == "gemm":
            flops = 2.0 * float(row["m"]) * float(row["n"]) * float(row["k"])
            assert seconds >= flops / PEAK_FLOPS_PER_S[row["format"]], row
        moved = float(row["read_bytes"] or 0) + float(row["write_bytes"] or 0)
        if row["tier"] in ("", "hbm") and row["op"] not in ("h2d", "d2h"):
            assert seconds >= (moved - L2_BYTES) / HBM_BYTES_PER_S, row


def test_whole_models_were_right_and_ran_at_a_known_clock():
    """Every pass was checked against a reference, and no step took less than its profiled kernels' longest stream."""
    found = rows("h200_models.csv")
    assert len(found) >= 12
    kernels = Counter()
    for row in rows("h200_model_kernels.csv"):
        kernels[row["case"]] += float(row["us"])
    for row in found:
        assert not row["error"] and float(row["relative_error"]) < 0.05, row
        assert 1000 < float(row["lasting_sm_clock_mhz"]) <= 1980
        # Some kernels of a prefetch run beside others; the profiled replay is one of a cool device.
        assert 0.6 < kernels[row["case"]] / float(row["lasting_us"]) < 1.5, row["case"]


def test_more_fetching_programs_slow_the_others_and_fetch_no_faster():
    """Why rows are fetched ahead by eight programs: more reads in flight only wait for each other."""
    found = {int(row["programs"]): float(row["lasting_us"]) for row in rows("h200_prefetch.csv")}
    assert min(found, key=found.get) in (4, 8)
    assert found[128] > 1.15 * found[8] and found[2] > 1.3 * found[8]
