"""How many kernel cases are predicted per second, in one process: ``make bench``. Rates, not limits."""

import io

import numpy as np
import pytest

from sextant.studies.prediction_table import run
from sextant.validate.prediction import predict, single_kernel_cluster

N = 65_536


def _rate(benchmark):
    if benchmark.stats is not None:
        benchmark.extra_info["cases_per_s"] = round(N / benchmark.stats.stats.median)


def _columns(op):
    random = np.random.default_rng(0)

    def power(low, high):
        return [str(2**e) for e in random.integers(low, high, N).tolist()]

    if op == "gemm":
        formats = [("bf16", "fp8", "fp8_block")[i] for i in random.integers(0, 3, N).tolist()]
        return {"op": ["gemm"] * N, "format": formats, "m": power(0, 15), "n": power(6, 14), "k": power(6, 14)}
    phase = "prefill" if op == "prefill" else "decode"
    kv_len = power(7, 15)
    columns = {"phase": [phase] * N, "batch": power(0, 8), "heads": power(3, 7), "kv_len": kv_len}
    columns["q_len"] = kv_len if op == "prefill" else ["1"] * N
    if op == "mla":
        return {"op": ["mla"] * N, **columns}
    return {"op": ["attention"] * N, **columns, "kv_heads": ["8"] * N, "head_dim": ["128"] * N}


@pytest.mark.parametrize("op", ["gemm", "prefill", "decode", "mla"])
def test_evaluation(benchmark, op):
    """From cells of text to times with intervals: the design asks for 200,000 cases a second."""
    columns, cluster = _columns(op), single_kernel_cluster("h100")
    found = benchmark(predict, columns, N, cluster)
    _rate(benchmark)
    assert not any(found.error)


def test_file_to_file(benchmark, tmp_path):
    """Reading and writing included."""
    columns, path = _columns("gemm"), tmp_path / "cases.csv"
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    text.writelines(",".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    path.write_text(text.getvalue())
    _, outcome = benchmark(run, str(path), "h100", str(tmp_path / "out.csv"), json=False, progress=lambda n_rows: None)
    _rate(benchmark)
    assert outcome.n_predicted == N
