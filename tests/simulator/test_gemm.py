"""The time of matrix products: laws of the tile model, and what the coefficients mean at simple limits."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.kernels import BYTES, estimate, grouped_gemm, operator, tiles, with_sms
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Memory, Num

TUNED = {
    "launch_s": 1.3e-6, "math_share": 0.9, "load_ratio": 6.8, "fill_s": 1.2e-6, "hbm_share": 0.88, "ramp_s": 1e-6,
    "exposed": 0.3, "step_s": 4.5e-10, "l2_warm": 0.24, "reduce_s": 2.6e-6,
}  # fmt: skip
FP8 = {**TUNED, "math_share": 0.84, "step_s": 2e-10, "convert_s": 9.5e-6, "convert": 4.3, "convert_spill": 3.8}
BLOCK = {
    "launch_s": 1.3e-6, "math_share": 0.71, "load_ratio": 3.8, "fill_s": 1.9e-6, "hbm_share": 0.92, "ramp_s": 2e-6,
    "exposed": 0.17, "whole_waves": 0.75, "crowding": 0.33, "padding": 1.4, "convert_s": 9e-7, "convert": 5.9,
}  # fmt: skip
KERNELS = {
    f"gemm_{name}": KernelFit(coefficients=c, low=0.9, high=1.1, provenance="fitted")
    for name, c in (("bf16", TUNED), ("fp8", FP8), ("fp8_block", BLOCK))
}
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=2e-6,
    power_w=700.0, price_usd_per_h=2.0, kernels=KERNELS,
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
BANDWIDTH = "memories.hbm.bandwidth_bytes_per_s"
FORMATS = st.sampled_from(["bf16", "fp8", "fp8_block"])
VARIANTS = st.sampled_from(["", "wgrad", "from_bf16"])
ROWS = st.integers(1, 1_000_000).map(float)
SIDES = st.integers(2, 8192).map(lambda i: 16.0 * i)


def gemm(m: Num, n: Num, k: Num, format: str = "bf16", variant: str = "", device: Device = H100) -> Estimate:
    cluster = Cluster(name="one", device=device, n_devices=1.0, tiers={})
    return estimate(operator("gemm", "g", format, {"m": m, "n": n, "k": k}, variant=variant), cluster)


def grouped(
    groups: Num, tokens: Num, n: Num, k: Num, format: str = "bf16", variant: str = "", device: Device = H100
) -> Estimate:
    cluster = Cluster(name="one", device=device, n_devices=1.0, tiers={})
    shape = {"groups": groups, "tokens_per_group": tokens, "n": n, "k": k}
    return estimate(operator("grouped_gemm", "g", format, shape, variant=variant), cluster)


def corrected(value: float) -> Device:
    """H100 with a correction of ``value`` (log) at every knot."""
    table = {key: value for row in tiles.CORRECTION_KEYS for key in row}
    fit = replace(KERNELS["gemm_bf16"], coefficients={**TUNED, **table})
    return replace(H100, kernels={**KERNELS, "gemm_bf16": fit})


@given(ROWS, SIDES, SIDES, FORMATS, VARIANTS)
def test_finite_and_never_below_the_physical_bound(m: float, n: float, k: float, format: str, variant: str) -> None:
    op = operator("gemm", "g", format, {"m": m, "n": n, "k": k}, variant=variant)
    seconds = gemm(m, n, k, format, variant).seconds
    peak = 989e12 if format == "bf16" else 1978e12
    assert np.isfinite(seconds)
    assert seconds >= max(2.0 * m * n * k / peak, op.traffic_bytes["hbm"] / 3.35e12) > 0


@given(ROWS, SIDES, SIDES, FORMATS, st.floats(1.0, 8.0))
def test_more_bandwidth_or_peak_is_never_slower(m: float, n: float, k: float, format: str, factor: float) -> None:
    seconds = gemm(m, n, k, format).seconds
    peaks = {name: rate * factor for name, rate in H100.peak_flops_per_s.items()}
    for faster in (paths.put(H100, BANDWIDTH, 3.35e12 * factor), replace(H100, peak_flops_per_s=peaks)):
        assert gemm(m, n, k, format, device=faster).seconds <= seconds * (1 + 1e-12)


@given(st.integers(1, 1024), SIDES, SIDES, FORMATS, VARIANTS)
def test_twice_the_rows_take_longer_by_whole_tiles(count: int, n: float, k: float, format: str, variant: str) -> None:
    m = 256.0 * count
    assert gemm(2 * m, n, k, format, variant).seconds > gemm(m, n, k, format, variant).seconds


@pytest.mark.parametrize("format", ["bf16", "fp8", "fp8_block"])
def test_an_empty_product_is_a_launch_and_reading_its_weights(format: str) -> None:
    device = corrected(0.0)
    no_rows = gemm(np.zeros(2), 64.0, 64.0, format, device=device).seconds
    assert (no_rows > 1e-6).all()
    assert (no_rows <= gemm(1.0, 64.0, 64.0, format, device=device).seconds).all()
    no_tokens = grouped(32.0, np.zeros(2), 2048.0, 7168.0, format, device=device).seconds
    assert ((no_tokens > 1e-6) & (no_tokens < 1e-5)).all()


@given(SIDES, SIDES, FORMATS)
def test_a_wgrad_takes_no_less_than_a_forward_product(n: float, k: float, format: str) -> None:
    assert gemm(512.0, n, k, format, "wgrad").seconds >= gemm(512.0, n, k, format).seconds


@settings(max_examples=20)
@given(st.lists(st.tuples(ROWS, SIDES, SIDES), min_size=1, max_size=8), FORMATS)
def test_arrays_equal_scalars(shapes: list[tuple[float, float, float]], format: str) -> None:
    m, n, k = (np.array(side) for side in zip(*shapes, strict=True))
    device = corrected(0.05)
    many, one = gemm(m, n, k, format, device=device), [gemm(*shape, format, device=device) for shape in shapes]
    np.testing.assert_array_equal(many.seconds, [e.seconds for e in one])
    assert many.bound.tolist() == [str(e.bound) for e in one]
    tokens = grouped(8.0, m / 64.0, n, k, format).seconds
    np.testing.assert_array_equal(tokens, [grouped(8.0, s[0] / 64.0, s[1], s[2], format).seconds for s in shapes])


def test_rates_of_the_device_may_be_arrays() -> None:
    rates = np.array([1e12, 3.35e12, 8e12])
    seconds = gemm(16.0, 7168.0, 2048.0, device=paths.put(H100, BANDWIDTH, rates)).seconds
    alone = [gemm(16.0, 7168.0, 2048.0, device=paths.put(H100, BANDWIDTH, r)).seconds for r in rates]
    np.testing.assert_array_equal(seconds, alone)
    assert (np.diff(seconds) < 0).all()


def test_large_products_reach_the_math_share_and_wide_ones_the_hbm_share() -> None:
    large = gemm(16384.0, 16384.0, 8192.0)
    share = 2.0 * 16384 * 16384 * 8192 / large.seconds / 989e12
    assert 0.75 < share < TUNED["math_share"]
    wide = gemm(1.0, 65536.0, 65536.0)
    assert 0.7 < 2.0 * 65536**2 / wide.seconds / 3.35e12 < TUNED["hbm_share"]
    assert (str(large.bound), str(wide.bound), str(gemm(1.0, 64.0, 64.0).bound)) == ("math", "memory", "launch")


def test_fewer_sms_slow_a_large_product_in_proportion() -> None:
    whole = gemm(16384.0, 8192.0, 8192.0).seconds
    part = gemm(16384.0, 8192.0, 8192.0, device=with_sms(H100, 112.0)).seconds
    assert part / whole == pytest.approx(132 / 112, rel=0.03)


def test_a_split_along_k_fills_idle_sms() -> None:
    never = {key: value for key, value in TUNED.items() if key != "reduce_s"}
    device = replace(H100, kernels={"gemm_bf16": replace(KERNELS["gemm_bf16"], coefficients=never)})
    deep, shallow = (128.0, 128.0, 65536.0), (128.0, 128.0, 512.0)
    assert gemm(*deep).seconds < 0.3 * gemm(*deep, device=device).seconds
    assert gemm(*shallow).seconds == gemm(*shallow, device=device).seconds


def test_padding_rows_cost_a_block_scaled_kernel() -> None:
    full, ragged = gemm(128.0, 4096.0, 7168.0, "fp8_block"), gemm(129.0, 4096.0, 7168.0, "fp8_block")
    assert ragged.seconds > 1.5 * full.seconds
    assert gemm(129.0, 4096.0, 7168.0, "fp8").seconds < 1.2 * gemm(128.0, 4096.0, 7168.0, "fp8").seconds


def test_conversion_of_x_is_paid_only_where_asked_and_spills_from_l2() -> None:
    def extra(m: float) -> float:
        both = [gemm(m, 128.0, 4096.0, "fp8", variant).seconds for variant in ("from_bf16", "")]
        return float(both[0] - both[1]) - FP8["convert_s"]

    assert extra(256.0) * 3.35e12 / (256 * 4096) == pytest.approx(FP8["convert"], rel=0.01)
    assert extra(65536.0) * 3.35e12 / (65536 * 4096) == pytest.approx(FP8["convert"] + FP8["convert_spill"], rel=0.01)


def test_the_correction_applies_inside_its_knots_and_vanishes_outside() -> None:
    up = corrected(0.1)
    assert gemm(2048.0, 4096.0, 4096.0, device=up).seconds == pytest.approx(
        np.exp(0.1) * gemm(2048.0, 4096.0, 4096.0).seconds, rel=1e-12
    )
    outside = (1e6, 131072.0, 2.0**19)
    assert gemm(*outside, device=up).seconds == gemm(*outside).seconds
    lower_bound = gemm(2048.0, 4096.0, 4096.0, device=corrected(-9.0)).seconds
    assert lower_bound == 2.0 * 2048 * 4096 * 4096 / 989e12


def test_correction_weights_are_those_that_the_estimate_uses() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.0, 0.05, (len(tiles.CORRECTION_TILES), len(tiles.CORRECTION_K)))
    table = {
        key: v
        for keys, row in zip(tiles.CORRECTION_KEYS, values, strict=True)
        for key, v in zip(keys, row, strict=True)
    }
    fit = replace(KERNELS["gemm_bf16"], coefficients={**TUNED, **table})
    m, n, k = (np.round(2.0 ** rng.uniform(low, 15.0, 200)) for low in (0.0, 5.0, 5.0))
    ratio = gemm(m, n, k, device=replace(H100, kernels={"gemm_bf16": fit})).seconds / gemm(m, n, k).seconds
    weights = tiles.correction_weights(np.ceil(m / 128) * np.ceil(n / 128) / 132.0, k)
    np.testing.assert_allclose(ratio, np.exp(weights @ values.ravel()), rtol=1e-12)


def test_a_format_without_coefficients_borrows_with_a_wider_interval() -> None:
    own, lent = gemm(64.0, 4096.0, 4096.0), gemm(64.0, 4096.0, 4096.0, "fp16")
    assert (own.seconds, own.provenance) == (lent.seconds, lent.provenance)
    bare = replace(H100, kernels={"gemm_bf16": KERNELS["gemm_bf16"]})
    borrowed = gemm(64.0, 4096.0, 4096.0, "fp8", device=bare)
    assert borrowed.provenance == "assumed"
    assert borrowed.low / borrowed.seconds < 0.9 < 1.1 < borrowed.high / borrowed.seconds
    with pytest.raises(KeyError, match="gemm_bf16"):
        gemm(64.0, 64.0, 64.0, device=replace(H100, kernels={}))


def test_work_counts_flops_and_bytes() -> None:
    op = operator("gemm", "g", "bf16", {"m": 3.0, "n": 5.0, "k": 7.0})
    assert (op.flops, op.traffic_bytes["hbm"]) == (210.0, 2.0 * 7 * 8 + 2.0 * 15)
    wgrad = operator("gemm", "g", "fp8_block", {"m": 3.0, "n": 5.0, "k": 128.0}, variant="wgrad")
    assert wgrad.traffic_bytes["hbm"] == BYTES["fp8_block"] * 128 * 8 + 8.0 * 15


@given(st.integers(1, 64).map(float), st.integers(1, 4096).map(float), SIDES, SIDES, FORMATS)
def test_one_group_of_exact_rows_is_a_dense_product(groups: float, m: float, n: float, k: float, format: str) -> None:
    assert grouped(1.0, m, n, k, format, "exact").seconds == pytest.approx(gemm(m, n, k, format).seconds, rel=1e-12)
    assert grouped(groups, m, n, k, format, "exact").seconds >= gemm(m, n, k, format).seconds * (1 - 1e-12)


@given(st.floats(1e-3, 1e4), st.floats(1.0, 64.0), SIDES, SIDES, FORMATS)
def test_grouped_products_stay_above_the_bound(t: float, groups: float, n: float, k: float, format: str) -> None:
    for variant in ("", "exact", "wgrad"):
        shape = {"groups": groups, "tokens_per_group": t, "n": n, "k": k}
        op = operator("grouped_gemm", "g", format, shape, variant=variant)
        seconds = grouped(groups, t, n, k, format, variant).seconds
        peak = 989e12 if format == "bf16" else 1978e12
        assert np.isfinite(seconds)
        assert seconds >= max(op.flops / peak, op.traffic_bytes["hbm"] / 3.35e12) > 0


def test_only_the_weights_of_experts_hit_are_read() -> None:
    def traffic(tokens: float, variant: str = "") -> float:
        shape = {"groups": 256.0, "tokens_per_group": tokens, "n": 2048.0, "k": 7168.0}
        op = operator("grouped_gemm", "g", "bf16", shape, variant=variant)
        return float(op.traffic_bytes["hbm"]) - 2.0 * 256 * tokens * (7168 + 2048)

    weights = 2.0 * 256 * 2048 * 7168
    assert traffic(0.5) / weights == pytest.approx(1 - np.exp(-0.5))
    assert traffic(0.5, "exact") / weights == pytest.approx(0.5)
    assert traffic(64.0) / weights == pytest.approx(1.0)
    assert traffic(1e-9) / weights == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("tokens", [0.05, 0.5, 3.0, 40.0, 300.0, 5000.0])
@pytest.mark.parametrize("height", [32.0, 64.0, 128.0, 256.0])
def test_expected_tiles_agree_with_random_routing(tokens: float, height: float) -> None:
    counts = np.random.default_rng(0).poisson(tokens * np.random.default_rng(1).gamma(4.0, 0.25, 200_000))
    drawn = np.ceil(counts / height).mean()
    modelled = grouped_gemm._row_tiles(1.0, tokens, "")(height)
    assert modelled == pytest.approx(drawn, rel=0.08)


@pytest.mark.parametrize("format", ["bf16", "fp8", "fp8_block"])
def test_a_million_products_per_second(format: str) -> None:
    rng = np.random.default_rng(0)
    m, k = np.round(2.0 ** rng.uniform(0, 13, 10_000)), 128.0 * rng.integers(1, 128, 10_000)
    device = corrected(0.02)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        gemm(m, 7168.0, k, format, device=device)
        best = min(best, time.perf_counter() - start)
    assert 10_000 / best > 1e6
