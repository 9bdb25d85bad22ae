"""Fits of matrix products: known coefficients are found again, no fit sees a held-out row, laws survive, and the
shipped coefficients come from the committed rows with the errors they claim."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sextant.hwmodels import FITS, device
from sextant.hwmodels.fits import read_fits, write_fits
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.kernels.correction import correction
from sextant.simulator.types import Device, KernelFit, Memory
from sextant.studies import kernel_errors
from sextant.validate.fit import fit_gemms, main, read_rows, report
from sextant.validate.fit_gemm import BARE_COEFFICIENTS, COEFFICIENTS, fit_gemm, gemm_op
from sextant.validate.residuals import Pairs, _constrained, held_out_rows, interval, learned
from sextant.validate.solver import Row, alone, column, errors, with_fit

SHARED = Path(__file__).resolve().parents[3] / "shared"
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
#: One that knows nothing, and those of the catalogue with what was fitted to them, of one kernel alone.
BLANK = Device(
    name="blank", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=2e-6,
    power_w=700.0, price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
H100, H200 = (replace(device(name), clock_under_load=1.0) for name in ("h100", "h200"))
FORMATS = ("bf16", "fp8", "fp8_block")
#: A value of every coefficient of any format.
KNOWN = {
    "launch_s": 2e-6, "math_share": 0.8, "load_ratio": 5.0, "fill_s": 2e-6, "hbm_share": 0.8, "ramp_s": 5e-7,
    "exposed": 0.4, "step_s": 6e-10, "l2_warm": 0.3, "reduce_s": 4e-6, "unaligned": 1.8, "whole_waves": 0.7,
    "crowding": 0.3, "padding": 1.4, "convert_s": 5e-6, "convert": 5.0, "convert_spill": 3.5, "tile": 128.0,
}  # fmt: skip
#: A library whose FP8 products take FP8 operands; none named: calls that convert BF16.
BARE, CONVERTING = "cublaslt", ""


def known(format: str, library: str) -> KernelFit:
    names = set((BARE_COEFFICIENTS if library == BARE else COEFFICIENTS)[format]) | {"launch_s"}
    if library == BARE and format != "bf16":
        names.add("tile")
    values = {name: KNOWN[name] for name in KNOWN if name in names}
    return KernelFit(coefficients=values, low=1.0, high=1.0, provenance="fitted")


def made(noise: float, format: str = "bf16", library: str = BARE) -> list[Row]:
    """Rows of thirty sites, five of them unaligned, timed by the model itself, with log-normal noise."""
    sites = [(n, k) for n in (64, 256, 1024, 2052, 4096, 16384) for k in (128, 512, 2048, 8192, 32768)]
    rows: list[Row] = [
        {"op": "gemm", "format": format, "library": library, "m": str(m), "n": str(n), "k": str(k), "us": 1.0}
        for n, k in sites for m in (1, 16, 100, 128, 700, 2048, 8192)
    ]  # fmt: skip
    on = alone(with_fit(BLANK, f"gemm_{format}", known(format, library)))
    us = 1e6 * np.asarray(estimate(gemm_op(rows, format), on).seconds)
    us = us * np.exp(np.random.default_rng(0).normal(0.0, noise, len(rows)))
    return [{**row, "us": float(t)} for row, t in zip(rows, us, strict=True)]


@cache
def committed(format: str) -> list[Row]:
    """Rows of the block ``gemm_<format>`` that were measured on an H200."""
    rows = [row for name in ("h200_kernels", "h200_between") for row in read_rows(MEASURED / f"{name}.csv")]
    apart = ("accumulate", "per_tensor", *(("wgrad", "wgrad_bf16") if format == "fp8_block" else ()))
    found = [row for row in rows if row["op"] == "gemm" and row["format"] == format and row["us"]]
    return [row for row in found if row["variant"] not in apart]


@cache
def shared(name: str) -> list[Row]:
    path = SHARED / "measured" / "h100_sxm" / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no measured rows: {path.name} is absent from a shared folder beside the repository")
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("library", [BARE, CONVERTING])
@pytest.mark.parametrize("format", FORMATS)
def test_known_coefficients_are_found_again(format: str, library: str) -> None:
    """Where one tile shape serves all, time per k and mathematics are one number in two: what they predict is not."""
    rows, truth = made(0.0, format, library), known(format, library).coefficients
    found = fit_gemm(rows, BLANK, format, correct=False)
    assert found.held_out.n_rows > 40
    assert found.held_out.mape < 2e-3
    assert set(found.fit.coefficients) == set(truth)
    together = {"math_share", "step_s", "load_ratio", "launch_s", "ramp_s"} if "tile" in truth else set()
    for name in set(truth) - together:
        assert found.fit.coefficients[name] == pytest.approx(truth[name], rel=0.02), name


def test_noise_shows_in_the_interval_and_not_in_the_bias() -> None:
    """5% of log-normal noise: 4.0% on average, 90% of it within a factor of exp(1.645 x 0.05) = 1.086."""
    for format, library in (("bf16", BARE), ("fp8", CONVERTING), ("fp8_block", BARE)):
        found = fit_gemm(made(0.05, format, library), BLANK, format)
        assert abs(found.held_out.bias) < 0.02
        assert 0.035 < found.held_out.mape < 0.053
        assert np.log(found.fit.high) == pytest.approx(0.082, abs=0.03)
        assert np.log(found.fit.low) == pytest.approx(-0.082, abs=0.045)
        assert found.cross_validated is not None and found.cross_validated.n_rows == 154


def test_nothing_is_fitted_to_the_rows_that_judge_it() -> None:
    """Held-out times three times as long change the errors and the interval, no coefficient and no weight."""
    rows = made(0.05)
    test = held_out_rows(rows)
    spoilt = [{**row, "us": 3.0 * float(row["us"])} if out else row for row, out in zip(rows, test, strict=True)]
    one, other = (fit_gemm(given, BLANK, "bf16") for given in (rows, spoilt))
    assert one.fit.coefficients == other.fit.coefficients
    assert one.fit.correction == other.fit.correction
    assert one.training == other.training and one.cross_validated == other.cross_validated
    assert other.held_out.mape > 0.6 and other.fit.high > 2.5 * one.fit.high


@pytest.mark.parametrize("format", FORMATS)
def test_no_site_is_on_both_sides(format: str) -> None:
    """A site is the weight, whichever of the three products of a layer is timed."""
    rows = committed(format)
    test = held_out_rows(rows)
    assert 0.15 < test.mean() < 0.35
    names = {"wgrad": ("m", "n"), "wgrad_bf16": ("m", "n"), "dgrad": ("k", "n")}
    sites: list[set[tuple[object, ...]]] = [set(), set()]
    for row, out in zip(rows, test, strict=True):
        sites[int(out)].add(tuple(row[name] for name in names.get(str(row["variant"]), ("n", "k"))))
    assert min(map(len, sites)) >= 5
    assert not sites[0] & sites[1]


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        fit_gemm(made(0.0), BLANK, "bf1")
    with pytest.raises(InputError, match="held out"):
        fit_gemm([row for row in made(0.0) if (row["n"], row["k"]) == ("64", "128")], BLANK, "bf16")
    with pytest.raises(InputError, match="some rows take FP8 operands and some convert BF16"):
        fit_gemm([*made(0.0, "fp8", BARE), *made(0.0, "fp8", CONVERTING)], BLANK, "fp8")
    with pytest.raises(InputError, match="'k' is absent"):
        fit_gemm([{name: cell for name, cell in row.items() if name != "k"} for row in made(0.0)], BLANK, "bf16")


def test_rows_of_other_kernels_take_no_part() -> None:
    rows = made(0.02, "fp8_block")
    other = [{**row, "us": 1e3} for row in rows]
    odd = [{**row, "variant": v} for row in other for v in ("wgrad", "wgrad_bf16", "per_tensor", "accumulate")]
    odd += [{**row, "op": "moe"} for row in other] + [{**row, "us": ""} for row in other] + made(0.0, "fp8")
    assert fit_gemm([*odd, *rows], BLANK, "fp8_block", correct=False) == fit_gemm(
        rows, BLANK, "fp8_block", correct=False
    )


def test_a_correction_learns_a_trend_and_obeys_the_law_it_is_given() -> None:
    """Measured times fall by a fifth between two sizes, and whole shapes agree on it: learned, unless more work must
    not take less time."""
    x = np.repeat(np.linspace(0.0, 10.0, 41), 4)
    noise = np.random.default_rng(1).normal(0.0, 0.01, len(x))
    residual = 0.1 - 0.2 / (1.0 + np.exp(-4.0 * (x - 5.0))) + noise
    groups = [f"{i}" for i in np.arange(len(x)) // 4]
    steps = np.linspace(0.0, 9.0, 91)
    pairs = Pairs(lower={"x": steps}, upper={"x": steps + 1.0}, growth=np.full(91, 0.01))

    def growth(**given: object) -> np.ndarray:
        found, unseen = learned({"x": x}, residual, groups, **given)  # type: ignore[arg-type]
        fit = KernelFit(coefficients={}, low=1.0, high=1.0, provenance="fitted", correction=found)
        assert np.abs(unseen - residual + noise).mean() < 0.01
        return 0.01 + np.log(correction(fit, {"x": steps + 1.0}) / correction(fit, {"x": steps}))

    assert growth().min() < -0.1
    lawful = growth(pairs=pairs)
    assert lawful.min() > 0.0
    assert lawful.max() < 0.1


def test_constrained_point_is_the_nearest_allowed_one() -> None:
    rng = np.random.default_rng(3)
    free, allowed, root = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(4, 4))
    normal, steps = root.T @ root + np.eye(4), rng.normal(size=(30, 4))
    least = steps @ allowed - rng.uniform(0.1, 0.5, 30)
    point = _constrained(free, normal, steps, least)
    assert (steps @ free < least).any()
    assert (steps @ point >= least - 1e-9).all()

    def distance(other: np.ndarray) -> float:
        return float((other - free) @ normal @ (other - free))

    tried = [point + share * (allowed - point) + rng.normal(scale=0.03, size=4) for share in rng.uniform(0, 1, 4000)]
    tried = [other for other in tried if (steps @ other >= least).all()]
    assert len(tried) > 100 and all(distance(other) >= distance(point) - 1e-9 for other in tried)
    np.testing.assert_array_equal(_constrained(allowed, normal, steps, least), allowed)


@pytest.mark.parametrize("format", FORMATS)
def test_shipped_coefficients_come_from_the_committed_rows_and_have_the_errors_they_claim(format: str) -> None:
    """The coefficients are fitted again, with the correction where that is quick; the errors are predicted again."""
    rows, shipped = committed(format), H200.kernels[f"gemm_{format}"]
    plain = fit_gemm(rows, H200, format, correct=False)
    assert plain.fit.coefficients == pytest.approx(dict(shipped.coefficients), rel=1e-6)
    test = held_out_rows(rows)
    part = [row for row, out in zip(rows, test, strict=True) if out]
    predicted, measured = np.asarray(estimate(gemm_op(part, format), alone(H200)).seconds), column(part, "us") * 1e-6
    e = errors(predicted, measured)
    assert e.n_rows == shipped.held_out["n_rows"]
    assert e.mape < 0.05 and e.mape < 0.85 * plain.held_out.mape
    for name in ("mape", "median", "p95", "bias"):
        assert shipped.held_out[name] == pytest.approx(getattr(e, name), abs=2e-4), name
    assert f"held-out error {e.mape:.1%} mean, {e.median:.1%} median" in shipped.source
    assert (shipped.low, shipped.high) == pytest.approx(interval(measured / predicted, e, np.empty(0)), rel=1e-6)
    if format == "fp8_block":
        again = fit_gemm(rows, H200, format).fit.correction
        assert again is not None and shipped.correction is not None
        np.testing.assert_allclose(again.weights, shipped.correction.weights, rtol=1e-2, atol=1e-3)


def test_what_predicts_kernel_cases_has_the_errors_that_the_fit_files_claim() -> None:
    """By the way of ``sextant predict``: library and variant of a row decide which block it takes."""
    found = kernel_errors.judged("h200")
    rows = {row.kind: row for row in kernel_errors.errors(found.only(found.held_out))}
    shipped = read_fits(FITS / "h200.yaml")
    for format in FORMATS:
        row, fit = rows[f"gemm {format}"], shipped[f"gemm_{format}"]
        assert (row.n_rows, row.n_missing) == (fit.held_out["n_rows"], 0)
        assert row.mape == pytest.approx(fit.held_out["mape"], abs=2e-3)
        assert row.mape < 0.05 and row.p95 < 0.15
        assert 0.85 < row.inside < 0.95


@pytest.mark.parametrize("format", FORMATS)
def test_sites_of_an_h100_that_no_fit_saw_are_predicted(format: str) -> None:
    rows = [row for row in shared("gemm") if row["format"] == format]
    part = [row for row, out in zip(rows, held_out_rows(rows), strict=True) if out]
    fit = H100.kernels[f"gemm_{format}"]
    e = errors(np.asarray(estimate(gemm_op(part, format), alone(H100)).seconds), column(part, "us") * 1e-6)
    assert e.n_rows == fit.held_out["n_rows"] > 900
    assert e.mape == pytest.approx(fit.held_out["mape"], abs=2e-3)
    assert e.mape < 0.05 and abs(e.bias) < 0.01
    assert (fit.low, fit.high) == pytest.approx((e.low, e.high), abs=1e-3)


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


def written(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as lines:
        lines.write("# device: a made GPU\n# date: 2026-01-02T03:04:05\n")
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_command_fits_and_writes(tmp_path: Path) -> None:
    rows, out = written(tmp_path / "rows.csv", made(0.02)), tmp_path / "h200.yaml"
    kept = KernelFit(coefficients={"a": 1.0}, low=0.9, high=1.1, provenance="fitted")
    write_fits(out, {"kept": kept})
    asked = [sys.executable, "-m", "sextant.validate.fit", "gemm", str(rows), "--device", "h200", "--out", str(out)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["kernel", "gemm_bf16", "crossed", "held"]
    found = read_fits(out)
    assert found.pop("kept") == kept
    assert list(found) == ["gemm_bf16"]
    fit, direct = found["gemm_bf16"], fit_gemm(read_rows(rows), H200, "bf16")
    assert fit.coefficients == pytest.approx(dict(direct.fit.coefficients), rel=1e-9)
    assert (fit.low, fit.high, fit.correction) == (direct.fit.low, direct.fit.high, direct.fit.correction)
    assert fit.held_out["n_rows"] == direct.held_out.n_rows == 56
    assert fit.held_out["mape"] == pytest.approx(direct.held_out.mape, abs=1e-5)
    assert fit.source.startswith("kernels measured on one a made GPU, 2026-01-02 (rows.csv); held out: whole (n, k)")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = written(tmp_path / "rows.csv.gz", made(0.0)[:7]), tmp_path / "gpu.yaml"
    for given, says in (
        (["gem", str(rows)], "did you mean 'gemm'"),
        (["gemm", str(tmp_path / "absent.csv")], "absent.csv: cannot be read"),
        (["gemm", str(rows)], "a fit needs both kinds of rows"),
        (["moe", str(rows)], "no rows of a format that can be fitted"),
    ):
        assert main([*given, "--device", "h200", "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
    assert main(["gemm", str(rows), "--device", "h2000", "--out", str(out)]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not out.exists()


def test_formats_are_fitted_one_after_the_other_and_reported() -> None:
    """BF16 first, whose launch the conversion of FP8 calls is told by."""
    fitted = fit_gemms([*made(0.0, "fp8", CONVERTING), *made(0.02)], BLANK, "made")
    assert [block.name for block in fitted] == ["gemm_bf16", "gemm_fp8"]
    assert fitted[1].fit.coefficients["launch_s"] == fitted[0].fit.coefficients["launch_s"]
    lines = report(fitted).splitlines()
    assert [line.split()[0] for line in lines] == [
        "kernel",
        *("gemm_bf16", "crossed", "held"),
        *("gemm_fp8", "crossed", "held"),
    ]
    assert "training" in lines[1] and "154" in lines[1] and "56" in lines[3]
    assert f"{100 * fitted[0].held_out.mape:.2f}%" in lines[3]


def test_rows_reader(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("# device: none\nformat,m\nbf16,1\n")
    assert read_rows(path) == [{"format": "bf16", "m": "1"}]
    path.write_text("format,m\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(path)
    with pytest.raises(InputError, match="check column 'format'"):
        fit_gemms([{"format": "int4"}], BLANK, "")
