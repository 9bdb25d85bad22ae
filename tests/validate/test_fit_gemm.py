"""Fits of matrix products: known coefficients are found again, unseen sites are predicted, laws survive the fit."""

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

from sextant.hwmodels.fits import read_fits, write_fits
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator, tiles
from sextant.simulator.types import Device, KernelFit, Memory
from sextant.validate import fit_gemm as module
from sextant.validate.fit import fit_gemms, main, read_rows, report
from sextant.validate.fit_gemm import COEFFICIENTS, fit_gemm, gemm_op
from sextant.validate.fit_grouped import expert_layers, fit_grouped, moe_seconds
from sextant.validate.solver import Fitted, Row, alone, column, errors, with_fit

SHARED = Path(__file__).resolve().parents[3] / "shared"
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=2e-6,
    power_w=700.0, price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
KNOWN = {
    "launch_s": 2e-6, "math_share": 0.8, "load_ratio": 5.0, "fill_s": 2e-6, "hbm_share": 0.8, "ramp_s": 5e-7,
    "exposed": 0.4, "step_s": 6e-10, "l2_warm": 0.3, "reduce_s": 4e-6,
}  # fmt: skip
#: The errors of a tile-and-wave model with seven parameters on unseen sites of the same rows: what to beat.
REFERENCE = {"bf16": 0.09, "fp8": 0.10, "fp8_block": 0.18}


@cache
def measured(name: str) -> list[Row]:
    path = SHARED / "measured" / "h100_sxm" / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines))


@cache
def dense_fits() -> dict[str, Fitted]:
    return {fitted.name: fitted for fitted in fit_gemms(measured("gemm"), H100, "measured")}


def fitted_h100() -> Device:
    device = H100
    for name, fitted in dense_fits().items():
        device = with_fit(device, name, fitted.fit)
    return device


def synthetic(noise: float) -> list[Row]:
    rng = np.random.default_rng(0)
    sites = [(float(n), float(k)) for n in (64, 256, 1024, 4096, 16384) for k in (128, 512, 2048, 8192, 32768)]
    rows: list[Row] = [
        {"format": "bf16", "m": float(m), "n": n, "k": k} for n, k in sites for m in (1, 16, 100, 128, 700, 2048, 8192)
    ]
    fit = KernelFit(coefficients=KNOWN, low=1.0, high=1.0, provenance="fitted")
    seconds = estimate(gemm_op(rows, "bf16"), alone(with_fit(H100, "gemm_bf16", fit))).seconds
    us = seconds * 1e6 * np.exp(rng.normal(0.0, noise, len(rows)))
    return [{**row, "us": float(t)} for row, t in zip(rows, us, strict=True)]


def test_known_coefficients_are_found_again() -> None:
    fitted = fit_gemm(synthetic(0.0), H100, "bf16", correct=False)
    assert fitted.held_out.mape < 1e-3
    for name in ("math_share", "hbm_share", "reduce_s", "exposed"):
        assert fitted.fit.coefficients[name] == pytest.approx(KNOWN[name], rel=0.05)


def test_noise_shows_in_the_interval_and_not_in_the_bias() -> None:
    e = fit_gemm(synthetic(0.05), H100, "bf16").held_out
    assert abs(e.bias) < 0.02
    assert 0.88 < e.low < 0.96 < 1.04 < e.high < 1.13


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        fit_gemm(synthetic(0.0), H100, "bf1")
    with pytest.raises(InputError, match="held out"):
        fit_gemm(synthetic(0.0)[:3], H100, "bf16")
    with pytest.raises(KeyError, match="gemm_bf16"):
        fit_grouped(measured("moe"), H100, "bf16")


@pytest.mark.parametrize("format", list(REFERENCE))
def test_unseen_sites_are_predicted_better_than_by_the_reference(format: str) -> None:
    e = dense_fits()[f"gemm_{format}"].held_out
    assert e.n_rows > 900
    assert e.mape < 0.65 * REFERENCE[format]
    assert abs(e.bias) < 0.01
    assert 0.85 < e.low < 1 < e.high < 1.2


def test_the_correction_helps_unseen_sites_and_no_site_is_on_both_sides() -> None:
    plain = fit_gemm(measured("gemm"), H100, "bf16", correct=False)
    assert dense_fits()["gemm_bf16"].held_out.mape < 0.95 * plain.held_out.mape
    rows = [row for row in measured("gemm") if row["format"] == "bf16"]
    test = module.held_out([(row["n"], row["k"]) for row in rows], module.HELD_OUT_SHARE)
    sites = [{(r["n"], r["k"]) for r, t in zip(rows, test, strict=True) if t is np.bool_(side)} for side in (0, 1)]
    assert not sites[0] & sites[1]
    assert 0.2 < test.mean() < 0.3


@pytest.mark.parametrize("format", list(COEFFICIENTS))
def test_twice_the_rows_take_longer_also_with_the_correction(format: str) -> None:
    rng = np.random.default_rng(2)
    m = 256.0 * np.ceil(2.0 ** rng.uniform(0, 10, 50_000))
    n, k = (16.0 * np.ceil(2.0 ** rng.uniform(1, 13, 50_000)) for _ in range(2))
    cluster = alone(fitted_h100())
    once, twice = (
        estimate(operator("gemm", "g", format, {"m": rows, "n": n, "k": k}), cluster).seconds for rows in (m, 2 * m)
    )
    assert (twice > once).all()


def test_constrained_point_is_the_nearest_allowed_one() -> None:
    rng = np.random.default_rng(3)
    free, allowed, root = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(4, 4))
    normal, steps = root.T @ root + np.eye(4), rng.normal(size=(30, 4))
    least = steps @ allowed - rng.uniform(0.1, 0.5, 30)
    point = module._constrained(free, normal, steps, least)
    assert (steps @ free < least).any()
    assert (steps @ point >= least - 1e-9).all()

    def distance(other: np.ndarray) -> float:
        return float((other - free) @ normal @ (other - free))

    tried = [point + share * (allowed - point) + rng.normal(scale=0.03, size=4) for share in rng.uniform(0, 1, 4000)]
    tried = [other for other in tried if (steps @ other >= least).all()]
    assert len(tried) > 100 and all(distance(other) >= distance(point) - 1e-9 for other in tried)
    np.testing.assert_array_equal(module._constrained(allowed, normal, steps, least), allowed)


@pytest.mark.parametrize(("format", "median"), [("bf16", 0.08), ("fp8_block", 0.07)])
def test_unseen_expert_layers_are_predicted(format: str, median: float) -> None:
    """A tenth of the BF16 rows ran untuned kernels, 2 to 10 times slower: the median is judged, and the interval."""
    product, layer = fit_grouped(measured("moe"), fitted_h100(), format)
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
    device = with_fit(H100, "gemm_bf16", KernelFit(coefficients=KNOWN, low=1, high=1, provenance="fitted"))
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
    device = replace(fitted_h100(), name="h800")
    for fit in fits:
        device = with_fit(device, "grouped_gemm_fp8_block", fit)
    found = []
    for fact in yaml.safe_load(path.read_text()):
        shape = re.fullmatch(r"(?:(\d+)x )?M(\d+) N(\d+) K(\d+)", str(fact["quantity"]))
        if fact["system"] != f"DeepGEMM {kind}" or shape is None:
            continue
        groups, m, n, k = (float(side or 1) for side in shape.groups())
        sides = {"groups": groups, "tokens_per_group": m, "n": n, "k": k}
        predicted = estimate(operator("grouped_gemm", "g", "fp8_block", sides, variant="exact"), alone(device))
        published_s = 2.0 * groups * m * n * k / (float(fact["value"].split()[0]) * 1e12)
        found.append(float(predicted.seconds) / published_s - 1)
    return np.array(found)


def test_published_deepgemm_products_that_nothing_was_fitted_to() -> None:
    """The database's block-scaled dense kernels are slower than DeepGEMM's, most where the product is short."""
    dense = deepgemm_errors("dense FP8", [])
    assert len(dense) == 15
    assert 0.0 < np.mean(dense) < 0.22
    grouped = [block.fit for block in fit_grouped(measured("moe"), fitted_h100(), "fp8_block")][:1]
    contiguous, masked = (deepgemm_errors(f"grouped {kind}", grouped) for kind in ("contiguous", "masked"))
    assert (len(contiguous), len(masked)) == (2, 4)
    assert np.abs(np.concatenate([contiguous, masked])).mean() < 0.08


def test_shipped_coefficients_have_the_errors_they_claim() -> None:
    shipped = read_fits(Path(module.__file__).parents[1] / "hwmodels" / "fits" / "h100.yaml")
    for format in COEFFICIENTS:
        rows = [row for row in measured("gemm") if row["format"] == format]
        test = module.held_out([(row["n"], row["k"]) for row in rows], module.HELD_OUT_SHARE)
        rows = [row for row, kept in zip(rows, test, strict=True) if kept]
        fit = shipped[f"gemm_{format}"]
        seconds = estimate(gemm_op(rows, format), alone(with_fit(H100, f"gemm_{format}", fit))).seconds
        e = errors(np.asarray(seconds), column(rows, "us") * 1e-6)
        assert (fit.low, fit.high) == pytest.approx((e.low, e.high), abs=1e-6)
        assert f"held-out error {e.mape:.1%} mean" in fit.source


def test_fit_files_round_trip_and_merge(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gpu.yaml"
    odd = {"a": 0.1 + 0.2, "b": 1e-6, "c": 5e-324, "d": 1.7976931348623157e308, "e": -1 / 3, "f": 2.0}
    one = KernelFit(coefficients=odd, low=0.9, high=1.1, provenance="fitted", source="somewhere: 'quoted' µs")
    two = replace(one, provenance="assumed", low=1 / 7)
    write_fits(path, {"one": one})
    write_fits(path, {"two": two})
    assert read_fits(path) == {"one": one, "two": two}
    write_fits(path, {"one": two})
    assert read_fits(path) == {"one": two, "two": two}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {low: 1", "not YAML"),
        ("- 1", "expected blocks"),
        ("one: {low: 0.9, high: 1.1, provenance: fitted}", "one.*coefficients"),
        ("one: {coefficients: {a: x}, low: 0.9, high: 1.1, provenance: fitted}", "one"),
        ("one: {coefficients: {a: 1}, low: 0.9, high: 1.1, provenance: guessed}", "provenance must be one of"),
    ],
)
def test_a_broken_fit_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"gpu.yaml.*{message}"):
        read_fits(path)


def test_the_command_fits_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.csv.gz", tmp_path / "h100.yaml"
    with gzip.open(rows, "wt") as lines:
        writer = csv.DictWriter(lines, ["format", "m", "n", "k", "us"])
        writer.writeheader()
        writer.writerows(synthetic(0.02))
    assert main(["gemm", str(rows), "--device", "h100", "--out", str(out), "--source", "synthetic"]) == 0
    assert "gemm_bf16" in capsys.readouterr().out
    fit = read_fits(out)["gemm_bf16"]
    assert set(fit.coefficients) == {*KNOWN, *(key for keys in tiles.CORRECTION_KEYS for key in keys)}
    assert fit.source.startswith("synthetic; held out: whole (n, k) sites")
    for wrong in (["gem", str(rows)], ["gemm", str(tmp_path / "absent.csv")]):
        assert main([*wrong, "--device", "h100", "--out", str(out)]) == 2
    assert "did you mean 'gemm'" in capsys.readouterr().err


def test_report_and_rows_reader(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("# device: none\nformat,m\nbf16,1\n")
    assert read_rows(path) == [{"format": "bf16", "m": "1"}]
    path.write_text("format,m\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(path)
    with pytest.raises(InputError, match="check column 'format'"):
        fit_gemms([{"format": "int4"}], H100, "")
    lines = report([fit_gemm(synthetic(0.02), H100, "bf16")]).splitlines()
    assert len(lines) == 3 and "training" in lines[1] and "held out" in lines[2]
