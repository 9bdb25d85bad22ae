"""Fits of grouped products and of expert layers: known coefficients are found again, unseen shapes are predicted, and
the shipped coefficients come from the committed rows."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from sextant.hwmodels import FITS, device
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Device, KernelFit, Memory
from sextant.studies import kernel_errors
from sextant.validate.fit import read_rows
from sextant.validate.fit_grouped import expert_layers, fit_grouped, fit_layers, fit_products, moe_seconds
from sextant.validate.solver import Fitted, Row, alone, column, with_fit

SHARED = Path(__file__).resolve().parents[3] / "shared"
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
#: One that knows nothing, and those of the catalogue with what was fitted to them, of one kernel alone.
BLANK = Device(
    name="blank", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=2e-6,
    power_w=700.0, price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
H100, H200 = (replace(device(name), clock_under_load=1.0) for name in ("h100", "h200"))
KNOWN = {
    "launch_s": 2e-6, "math_share": 0.8, "load_ratio": 5.0, "fill_s": 2e-6, "hbm_share": 0.8, "ramp_s": 5e-7,
    "exposed": 0.4, "step_s": 6e-10, "l2_warm": 0.3, "whole_waves": 0.7, "crowding": 0.3, "cluster": 2.0,
}  # fmt: skip


@cache
def committed(format: str, op: str = "grouped_gemm") -> list[Row]:
    """Rows that were measured on an H200."""
    rows = [row for name in ("h200_kernels", "h200_between") for row in read_rows(MEASURED / f"{name}.csv")]
    return [row for row in rows if row["op"] == op and row["format"] == format and row["us"]]


@cache
def shared(name: str) -> list[Row]:
    path = SHARED / "measured" / "h100_sxm" / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines))


def test_known_grouped_coefficients_are_found_again() -> None:
    """Rows of an H200's own grid, timed by coefficients of this test; weight gradients are another kernel."""
    rows = [row for row in committed("bf16") if row["variant"] != "wgrad"]
    truth = KernelFit(coefficients=KNOWN, low=1.0, high=1.0, provenance="fitted")
    sides = {name: column(rows, name) for name in ("groups", "tokens_per_group", "n", "k")}
    op = operator("grouped_gemm", "g", "bf16", sides, variant="exact")
    us = 1e6 * np.asarray(estimate(op, alone(with_fit(BLANK, "grouped_gemm_bf16", truth))).seconds)
    timed: list[Row] = [{**row, "us": float(t)} for row, t in zip(rows, us, strict=True)]
    odd: list[Row] = [{**row, "variant": "wgrad", "us": 1.0} for row in timed]
    found = fit_products([*timed, *odd], BLANK, "bf16")
    assert found.name == "grouped_gemm_bf16" and found.held_out.n_rows > 50
    assert found.held_out.mape < 0.01
    for name in ("math_share", "hbm_share", "whole_waves"):
        assert found.fit.coefficients[name] == pytest.approx(KNOWN[name], rel=0.05), name


@cache
def expert_fits(format: str) -> list[Fitted]:
    return fit_grouped(shared("moe"), H100, format)


@pytest.mark.parametrize(("format", "median"), [("bf16", 0.08), ("fp8_block", 0.07)])
def test_unseen_expert_layers_are_predicted(format: str, median: float) -> None:
    """A tenth of the BF16 rows ran untuned kernels, 2 to 10 times slower: the median is judged, and the interval."""
    product, layer = expert_fits(format)
    assert layer.held_out.median < median
    assert 0.7 < layer.fit.low < 1 < product.fit.high < 1.4
    assert product.fit.high < layer.fit.high
    assert "interval without" in product.fit.source and "interval without" not in layer.fit.source


def test_expert_layers_count_what_one_device_computes() -> None:
    row: Row = {
        "n_tokens": "1024", "hidden": "7168", "expert_ffn": "2048", "top_k": "8", "n_experts": "256",
        "tensor_parallel": "2", "expert_parallel": "8",
    }  # fmt: skip
    layers = expert_layers([row])
    got = {name: float(values[0]) for name, values in layers.items()}
    assert got == {"groups": 32.0, "tokens_per_group": 32.0, "pairs": 1024.0, "n_tokens": 1024.0, "hidden": 7168.0,
                   "width": 1024.0, "gates": 2.0}  # fmt: skip
    device = with_fit(
        BLANK,
        "gemm_bf16",
        KernelFit(coefficients=KNOWN, low=1, high=1, provenance="fitted"),
    )
    passes = {"overhead_s": 1e-5, "hidden_passes": 4.0, "ffn_passes": 2.0, "token_passes": 1.0}
    device = with_fit(device, "moe_bf16", KernelFit(coefficients=passes, low=1, high=1, provenance="fitted"))
    up, down = (
        estimate(operator("grouped_gemm", "g", "bf16", {"groups": 32.0, "tokens_per_group": 32.0, "n": n, "k": k}),
                 alone(device)).seconds for n, k in ((2048.0, 7168.0), (7168.0, 1024.0))
    )  # fmt: skip
    moved = 2.0 * 1024 * (4.0 * 7168 + 2.0 * 1024 + 7168)
    assert moe_seconds(layers, "bf16", alone(device))[0] == pytest.approx(up + down + 1e-5 + moved / 3.35e12)


def deepgemm_errors(kind: str, fits: Sequence[KernelFit]) -> np.ndarray:
    """Predicted over published seconds, minus one, of DeepGEMM on H800 (same compute die, same HBM)."""
    path = SHARED / "facts" / "inference.yaml"
    if not path.is_file():
        pytest.skip("no collected facts: inference.yaml is absent from a shared folder beside the repository")
    h800 = replace(H100, name="h800")
    for fit in fits:
        h800 = with_fit(h800, "grouped_gemm_fp8_block", fit)
    found = []
    for fact in yaml.safe_load(path.read_text()):
        shape = re.fullmatch(r"(?:(\d+)x )?M(\d+) N(\d+) K(\d+)", str(fact["quantity"]))
        if fact["system"] != f"DeepGEMM {kind}" or shape is None:
            continue
        groups, m, n, k = (float(side or 1) for side in shape.groups())
        sides = {"groups": groups, "tokens_per_group": m, "n": n, "k": k}
        predicted = estimate(operator("grouped_gemm", "g", "fp8_block", sides, variant="exact"), alone(h800))
        published_s = 2.0 * groups * m * n * k / (float(fact["value"].split()[0]) * 1e12)
        found.append(float(predicted.seconds) / published_s - 1)
    return np.array(found)


def test_published_deepgemm_products_that_nothing_was_fitted_to() -> None:
    """The database's block-scaled dense kernels are slower than DeepGEMM's, most where the product is short."""
    dense = deepgemm_errors("dense FP8", [])
    assert len(dense) == 15
    assert 0.0 < np.mean(dense) < 0.22
    grouped = [block.fit for block in expert_fits("fp8_block")][:1]
    contiguous, masked = (deepgemm_errors(f"grouped {kind}", grouped) for kind in ("contiguous", "masked"))
    assert (len(contiguous), len(masked)) == (2, 4)
    assert np.abs(np.concatenate([contiguous, masked])).mean() < 0.08


@pytest.mark.parametrize("format", ["bf16", "fp8"])
def test_shipped_grouped_coefficients_come_from_the_committed_rows_and_have_the_errors_they_claim(format: str) -> None:
    fit = H200.kernels[f"grouped_gemm_{format}"]
    found = fit_products(committed(format), H200, format)
    assert found.fit.coefficients == pytest.approx(dict(fit.coefficients), rel=1e-6)
    assert (found.fit.low, found.fit.high) == pytest.approx((fit.low, fit.high), rel=1e-3)
    for name in ("n_rows", "mape", "median", "p95", "bias"):
        assert fit.held_out[name] == pytest.approx(getattr(found.held_out, name), abs=1e-3), name
    judged = kernel_errors.judged("h200")
    products = judged.only(judged.held_out & (judged.kind == f"grouped_gemm {format}"))
    (row, _) = kernel_errors.errors(products)
    # Weight gradients are judged with the products, whose block they take.
    assert (row.n_missing, row.n_rows >= found.held_out.n_rows) == (0, True)
    assert row.mape == pytest.approx(found.held_out.mape, abs=5e-3)
    assert row.mape < {"bf16": 0.05, "fp8": 0.08}[format]


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="no measured rows of grouped_gemm in 'fp8'"):
        fit_products(committed("bf16"), BLANK, "fp8")
    with pytest.raises(InputError, match="no measured rows of moe in 'bf16'"):
        fit_layers(committed("bf16"), BLANK, "bf16")
    layer = {"format": "bf16", "n_tokens": "64", "hidden": "512", "expert_ffn": "512", "top_k": "2", "n_experts": "8"}
    with pytest.raises(KeyError, match="gemm_bf16"):
        fit_grouped([{"op": "moe", **layer, "us": "9"}], BLANK, "bf16")
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        fit_grouped([{"op": "moe", **layer, "us": "9"}], BLANK, "bf1")
