"""The time of matrix products: laws of the tile model, what the coefficients mean at simple limits, and what the
shipped coefficients with their corrections obey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant import hwmodels
from sextant.simulator import paths
from sextant.simulator.kernels import BYTES, estimate, operator, tiles, with_sms
from sextant.simulator.kernels.correction import correction
from sextant.simulator.kernels.gemm import product
from sextant.simulator.types import Cluster, Correction, Device, Estimate, KernelFit, Memory, Num, Op
from sextant.validate.fit_gemm import _doublings

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
#: With the coefficients and corrections of the fit files, of one kernel alone.
SHIPPED = {name: replace(hwmodels.device(name), clock_under_load=1.0) for name in ("h100", "h200")}
BANDWIDTH = "memories.hbm.bandwidth_bytes_per_s"
FORMATS = st.sampled_from(["bf16", "fp8", "fp8_block"])
VARIANTS = st.sampled_from(["", "wgrad", "from_bf16"])
ROWS = st.integers(1, 1_000_000).map(float)
SIDES = st.integers(2, 8192).map(lambda i: 16.0 * i)


def timed(op: Op, device: Device) -> Estimate:
    return estimate(op, Cluster(name="one", device=device, n_devices=1.0, tiers={}))


def gemm(m: Num, n: Num, k: Num, format: str = "bf16", variant: str = "", device: Device = H100) -> Estimate:
    return timed(operator("gemm", "g", format, {"m": m, "n": n, "k": k}, variant=variant), device)


def with_block(device: Device = H100, format: str = "bf16", **changed: object) -> Device:
    """``device`` with fields of a block ``gemm_<format>`` replaced; coefficients are added to those it has."""
    fit = device.kernels[f"gemm_{format}"]
    if "coefficients" in changed:
        changed["coefficients"] = {**fit.coefficients, **changed["coefficients"]}  # type: ignore[dict-item]
    return paths.put(device, f"kernels.gemm_{format}", replace(fit, **changed))  # type: ignore[arg-type]


def uncorrected(device: Device, format: str) -> Device:
    return with_block(device, format, correction=None)


def drawn_correction(seed: int = 1, size: float = 0.05) -> Correction:
    """Twenty centres among usual shapes."""
    rng = np.random.default_rng(seed)
    names = ("log2_tiles_per_sm", "log2_rows", "log2_n", "log2_k")
    centres = rng.uniform((-6.0, 0.0, 6.0, 6.0), (8.0, 15.0, 15.0, 15.0), (20, 4))
    return Correction(
        features=names, scales=np.array([2.0, 3.0, 4.0, 1.5]), centres=centres, weights=rng.normal(0.0, size, 20)
    )


def at(m: float, n: float, k: float, weight: float) -> Correction:
    """One centre at a shape."""
    known = tiles.features(product(operator("gemm", "g", "bf16", {"m": m, "n": n, "k": k})), H100)
    return Correction(
        features=tuple(known), scales=np.ones(4), centres=np.array([[float(x) for x in known.values()]]),
        weights=np.array([weight]),
    )  # fmt: skip


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


@given(ROWS, SIDES, SIDES, FORMATS, VARIANTS, st.sampled_from(sorted(SHIPPED)))
def test_no_shipped_correction_goes_below_the_physical_bound(
    m: float, n: float, k: float, format: str, variant: str, name: str
) -> None:
    device = SHIPPED[name]
    op = operator("gemm", "g", format, {"m": m, "n": n, "k": k}, variant=variant)
    found = timed(op, device)
    peak = device.peak_flops_per_s["bf16" if format == "bf16" else "fp8"]
    bandwidth = device.memories["hbm"].bandwidth_bytes_per_s
    assert np.isfinite(found.seconds)
    assert found.seconds >= max(2.0 * m * n * k / peak, op.traffic_bytes["hbm"] / bandwidth) > 0
    assert found.low < found.seconds < found.high


@given(st.integers(1, 1024), SIDES, SIDES, FORMATS, VARIANTS)
def test_twice_the_rows_take_longer_by_whole_tiles(count: int, n: float, k: float, format: str, variant: str) -> None:
    m = 256.0 * count
    assert gemm(2 * m, n, k, format, variant).seconds > gemm(m, n, k, format, variant).seconds


@pytest.mark.parametrize("format", ["bf16", "fp8", "fp8_block"])
def test_shipped_coefficients_take_longer_for_twice_the_rows_by_whole_tiles(format: str) -> None:
    """On the grid that binds the corrections, and between its points, where a dip of 0.1% may stay.

    Of an H100 the law bound FP8 calls that convert x; the product inside such a call may dip by 2%.
    """
    rng = np.random.default_rng(2)
    m = 256.0 * np.ceil(2.0 ** rng.uniform(0.0, 9.0, 50_000))
    n, k = (16.0 * np.ceil(2.0 ** rng.uniform(3.0, 13.0, 50_000)) for _ in range(2))
    between = [operator("gemm", "g", format, {"m": rows, "n": n, "k": k}) for rows in (m, 2.0 * m)]
    for name, device in SHIPPED.items():
        converting = name == "h100" and format != "bf16"
        for variant in ("", "from_bf16"):
            slack = 1.0 - (0.02 if converting and not variant else 1e-3)
            once, twice = (timed(replace(op, variant=variant), device).seconds for op in between)
            assert (twice > once * slack).all(), (name, variant)
        once, twice = (
            timed(replace(op, variant="from_bf16"), device).seconds for op in _doublings(format)
        )  # fmt: skip
        assert (twice > once).all(), name


@pytest.mark.parametrize("format", ["bf16", "fp8", "fp8_block"])
def test_an_empty_product_is_a_launch_and_reading_its_weights(format: str) -> None:
    for device in (with_block(format=format, correction=drawn_correction()), *SHIPPED.values()):
        no_rows = gemm(np.zeros(2), np.array([64.0, 16384.0]), np.array([64.0, 8192.0]), format, device=device).seconds
        c = device.kernels[f"gemm_{format}"].coefficients
        read_s = BYTES[format] * 16384.0 * 8192.0 / device.memories["hbm"].bandwidth_bytes_per_s
        assert 1e-6 < no_rows[0] < 1e-5
        assert read_s + c["launch_s"] < no_rows[1] < read_s / c["hbm_share"] + 1e-5
    device = with_block(format=format, correction=at(1.0, 64.0, 64.0, 0.05))
    no_rows = gemm(np.zeros(2), 64.0, 64.0, format, device=device).seconds
    assert (no_rows <= gemm(1.0, 64.0, 64.0, format, device=device).seconds).all()


@given(SIDES, SIDES, FORMATS)
def test_a_wgrad_takes_no_less_than_a_forward_product(n: float, k: float, format: str) -> None:
    assert gemm(512.0, n, k, format, "wgrad").seconds >= gemm(512.0, n, k, format).seconds


@settings(max_examples=20)
@given(st.lists(st.tuples(ROWS, SIDES, SIDES), min_size=1, max_size=8), FORMATS)
def test_arrays_equal_scalars(shapes: list[tuple[float, float, float]], format: str) -> None:
    m, n, k = (np.array(side) for side in zip(*shapes, strict=True))
    for device in (with_block(format=format, correction=drawn_correction()), SHIPPED["h200"]):
        many, one = gemm(m, n, k, format, device=device), [gemm(*shape, format, device=device) for shape in shapes]
        np.testing.assert_array_equal(many.seconds, [e.seconds for e in one])
        assert many.bound.tolist() == [str(e.bound) for e in one]


def test_long_sweeps_and_grids_equal_their_points() -> None:
    """Corrections are evaluated in pieces of a sweep; a grid of three axes broadcasts."""
    rng = np.random.default_rng(4)
    m, k = np.floor(2.0 ** rng.uniform(0.0, 14.0, 1500)), 128.0 * rng.integers(1, 128, 1500)
    many = gemm(m, 7168.0, k, device=SHIPPED["h200"]).seconds
    for i in (0, 511, 512, 513, 1023, 1024, 1499):
        assert many[i] == gemm(m[i], 7168.0, k[i], device=SHIPPED["h200"]).seconds
    grid = gemm(m[:40, None], np.array([512.0, 4096.0]), k[:40, None], device=SHIPPED["h200"]).seconds
    assert grid.shape == (40, 2)
    assert grid[17, 1] == gemm(m[17], 4096.0, k[17], device=SHIPPED["h200"]).seconds


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


def test_the_correction_is_a_sum_of_gaussians_over_the_features() -> None:
    rng = np.random.default_rng(3)
    c = drawn_correction()
    m, n, k = (np.round(2.0 ** rng.uniform(low, 15.0, 200)) for low in (0.0, 5.0, 5.0))
    x = np.log2([np.ceil(m / 128) * np.ceil(n / 128) / 132.0, m, n, k]).T
    far = ((x[:, None, :] - c.centres) / c.scales) ** 2
    expected = np.exp((np.exp(-far.sum(axis=2) / 2.0) * c.weights).sum(axis=1))
    device = with_block(correction=c)
    known = tiles.features(product(operator("gemm", "g", "bf16", {"m": m, "n": n, "k": k})), device)
    np.testing.assert_allclose(correction(device.kernels["gemm_bf16"], known), expected, rtol=1e-12)
    ratio = gemm(m, n, k, device=device).seconds / gemm(m, n, k).seconds
    bound = gemm(m, n, k, device=device).seconds == np.maximum(
        2.0 * m * n * k / 989e12, 2.0 * (m * k + n * k + m * n) / 3.35e12
    )
    assert bound.sum() < 20 and np.ptp(ratio) > 0.05
    np.testing.assert_allclose(ratio[~bound], expected[~bound], rtol=1e-12)


def test_the_correction_applies_near_its_centres_vanishes_far_away_and_stops_at_the_bound() -> None:
    shape, far, wide = (2048.0, 4096.0, 4096.0), (2048.0, 4096.0, 2.0**40), (16.0, 16384.0, 16384.0)
    up = with_block(correction=at(*shape, 0.1))
    assert gemm(*shape, device=up).seconds == pytest.approx(np.exp(0.1) * gemm(*shape).seconds, rel=1e-12)
    assert gemm(*far, device=up).seconds == gemm(*far).seconds
    lowest = gemm(*shape, device=with_block(correction=at(*shape, -9.0))).seconds
    assert lowest == 2.0 * 2048 * 4096 * 4096 / 989e12
    lowest = gemm(*wide, device=with_block(correction=at(*wide, -9.0))).seconds
    assert lowest == 2.0 * (16384 * 16384 + 2 * 16 * 16384) / 3.35e12


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("format", ["bf16", "fp8", "fp8_block"])
def test_shipped_corrections_are_small_smooth_and_fade_out(name: str, format: str) -> None:
    """Within a factor of 1.5; along k no steeper than 0.2 of a logarithm per doubling, in steps down to 16 elements; 1
    where k is far beyond what was measured."""
    rng, device = np.random.default_rng(5), SHIPPED[name]
    m, n = np.floor(2.0 ** rng.uniform(0.0, 15.0, 20_000)), 16.0 * np.ceil(2.0 ** rng.uniform(0.0, 12.0, 20_000))
    k, bare = 16.0 * np.ceil(2.0 ** rng.uniform(1.0, 12.0, 20_000)), uncorrected(device, format)

    def factor(k: Num) -> Num:
        return np.log(gemm(m, n, k, format, device=device).seconds / gemm(m, n, k, format, device=bare).seconds)

    here, next_, far = factor(k), factor(k + 16.0), factor(np.full(20_000, 2.0**45))
    assert 0.05 < np.abs(here).max() < np.log(1.5)
    assert (np.abs(next_ - here) < 0.2 * np.log2(1.0 + 16.0 / k)).all()
    assert np.abs(far).max() < 1e-9


def test_rows_that_are_no_multiple_of_sixteen_bytes_cost_what_the_block_says() -> None:
    """BF16 outputs of 8 columns, operands of 16 bytes: 8 elements of BF16, 16 of FP8."""
    device = with_block(with_block(coefficients={"unaligned": 1.8}), "fp8", coefficients={"unaligned": 1.8})

    def ratio(format: str, n: float, k: float) -> float:
        one, other = (gemm(4096.0, *sides, format, device=device).seconds for sides in ((n, k), (4096.0, 8192.0)))
        return float(one / other)

    for format, n, k in (("bf16", 4095.0, 8192.0), ("bf16", 4096.0, 8188.0), ("fp8", 4096.0, 8184.0)):
        assert ratio(format, n, k) == pytest.approx(1.8, rel=0.05), (format, n, k)
    for format, n, k in (("bf16", 4088.0, 8192.0), ("bf16", 4096.0, 8184.0), ("fp8", 4088.0, 8176.0)):
        assert ratio(format, n, k) == pytest.approx(1.0, rel=0.01), (format, n, k)
    assert gemm(4096.0, 4095.0, 8191.0).seconds <= gemm(4096.0, 4096.0, 8192.0).seconds


def test_a_single_tile_shape_works_in_whole_waves() -> None:
    """132 tiles of 128 x 128 are one wave; a row more is a second one, which costs the same up to the 256th."""
    device = with_block(coefficients={"tile": 128.0, "whole_waves": 1.0})
    loop = [
        float(gemm(m, 132 * 128.0, 8192.0, device=device).limits["math"]) + TUNED["fill_s"]
        for m in (128.0, 129.0, 256.0, 257.0)
    ]
    assert loop[1] == pytest.approx(2.0 * loop[0], rel=1e-9)
    assert loop[2] == pytest.approx(loop[1], rel=1e-9)
    assert loop[3] == pytest.approx(3.0 * loop[0], rel=1e-9)
    idle = with_block(coefficients={"tile": 128.0, "whole_waves": 0.0})
    shared = float(gemm(129.0, 132 * 128.0 + 128.0, 8192.0, device=idle).limits["math"]) + TUNED["fill_s"]
    assert shared == pytest.approx(266.0 / 132.0 * loop[0], rel=1e-9)


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
