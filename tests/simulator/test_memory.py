"""The time of operators that only move bytes: never below what HBM and L2 allow, and linear when large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.hwmodels import device
from sextant.simulator import paths
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.memory import features
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Memory, Num

BLOCK = KernelFit(
    coefficients={"efficiency": 0.88, "write_cost": 1.08, "l2_share": 0.5, "l2_speedup": 2.0, "floor_s": 2.5e-6},
    low=0.9, high=1.15, provenance="fitted",
)  # fmt: skip
BY_ROW = KernelFit(
    coefficients={
        "efficiency": 0.9, "write_cost": 1.0, "floor_s": 2e-6, "cold_s": 1e-6, "cold_share": 0.01, "row_s": 2e-7,
        "row_byte_s": 1e-11, "cold_byte_s": 1e-11, "padded": 0.5, "blocks": 4.0, "sum_s": 1e-8,
    },
    low=0.9, high=1.1, provenance="fitted",
)  # fmt: skip
COPIED = KernelFit(
    coefficients={"efficiency": 0.9, "write_cost": 1.0, "floor_s": 1e-6, "odd": 1.5}, low=0.9, high=1.1,
    provenance="fitted",
)  # fmt: skip
AGAIN = KernelFit(
    coefficients={"efficiency": 0.9, "write_cost": 1.0, "floor_s": 1e-6, "held": 0.5}, low=0.9, high=1.1,
    provenance="fitted",
)  # fmt: skip
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6,
    power_w=700.0, price_usd_per_h=2.0, memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
    kernels={"memory": BLOCK, "memory_rmsnorm": BY_ROW, "memory_memcpy": COPIED, "memory_permute": AGAIN},
)  # fmt: skip
CLUSTER = Cluster(name="one", device=H100, n_devices=1.0, tiers={})
BANDWIDTH = "device.memories.hbm.bandwidth_bytes_per_s"
SIZES = st.floats(1.0, 1e11)

H200 = Cluster(name="one", device=replace(device("h200"), clock_under_load=1.0), n_devices=1.0, tiers={})
#: Shipped blocks of operators, and what their shapes hold besides the bytes.
FITTED = {
    "": (), "add": (), "gelu": (), "swiglu": (), "swiglu_fp8": (), "swiglu_backward": (), "cast": (),
    "cast_transpose": (), "transpose": (), "memcpy": (), "adam": (), "rmsnorm": ("rows", "width"),
    "layernorm": ("rows", "width"), "norm_backward": ("rows", "width"), "rope": ("rows", "width"),
    "permute": ("rows", "width"), "unpermute": ("rows",), "topk": ("rows",), "index": (),
}  # fmt: skip


def time(read: Num, write: Num, cluster: Cluster = CLUSTER, variant: str = "", **dims: Num) -> Estimate:
    shape = {"read_bytes": read, "write_bytes": write, **dims}
    return estimate(operator("memory", "moved", "bf16", shape, variant=variant), cluster)


def tensor(variant: str, rows: Num, width: Num, cluster: Cluster = H200) -> Num:
    """Seconds of BF16 rows read and written."""
    dims = {name: value for name, value in (("rows", rows), ("width", width)) if name in FITTED[variant]}
    return time(2.0 * rows * width, 2.0 * rows * width, cluster, variant, **dims).seconds


@given(SIZES, SIZES)
def test_never_faster_than_hbm_moves_what_the_l2_cannot_hold(read: float, write: float) -> None:
    seconds = time(read, write).seconds
    assert np.isfinite(seconds)
    assert seconds > max(0.0, (read + write - H100.l2_bytes) / 3.35e12)


@given(SIZES, SIZES, st.floats(1.0, 10.0))
def test_more_bytes_never_faster_and_more_bandwidth_never_slower(read: float, write: float, factor: float) -> None:
    seconds = time(read, write).seconds
    assert time(read * factor, write).seconds >= seconds
    assert time(read, write * factor).seconds >= seconds
    assert time(read, write, paths.put(CLUSTER, BANDWIDTH, 3.35e12 * factor)).seconds <= seconds


@given(st.floats(1.0, 1e6), st.floats(1.0, 65536.0), st.floats(1.0, 10.0))
def test_more_or_wider_rows_never_faster(rows: float, width: float, factor: float) -> None:
    def seconds(rows: float, width: float) -> float:
        size = 2.0 * rows * width
        return float(time(size, size, variant="rmsnorm", rows=rows, width=width).seconds)

    slack = 1.0 - 1e-12
    assert seconds(rows * factor, width) >= seconds(rows, width) * slack
    # Whole widths: the padding of a fraction of an element means nothing.
    assert seconds(rows, np.ceil(width * factor)) >= seconds(rows, np.ceil(width)) * slack


@pytest.mark.parametrize("variant", sorted(FITTED))
def test_shipped_blocks_obey_the_laws_with_their_corrections(variant: str) -> None:
    """From bytes to 100 GB: above the bound, more or wider rows never faster, no jump between neighbouring sizes."""
    drawn = np.random.default_rng(7)
    rows = np.floor(2.0 ** drawn.uniform(0.0, 19.0, 20000))
    width = 8.0 * np.floor(2.0 ** drawn.uniform(4.0, 12.0, 20000))
    factor = drawn.uniform(1.0, 8.0, 20000)
    seconds = np.asarray(tensor(variant, rows, width))
    assert np.isfinite(seconds).all()
    assert (seconds >= (4.0 * rows * width - H200.device.l2_bytes) / 4.8e12).all()
    if variant != "memcpy":  # whose odd lengths are slower
        slack = 1.0 - 1e-3
        assert (tensor(variant, np.ceil(rows * factor), width) >= seconds * slack).all()
        assert (tensor(variant, rows, np.ceil(width * factor)) >= seconds * slack).all()
        assert (np.asarray(tensor(variant, rows * 1.001, width)) <= seconds * 1.02).all()


@pytest.mark.parametrize("variant", sorted(FITTED))
def test_far_from_what_was_measured_the_physical_model_stands_alone(variant: str) -> None:
    fit = H200.device.kernels[f"memory_{variant}" if variant else "memory"]
    bare = paths.put(H200, "device.kernels", {"memory": replace(fit, correction=None)})
    assert tensor(variant, 2.0**34, 2.0**15) == pytest.approx(tensor(variant, 2.0**34, 2.0**15, bare), rel=1e-3)


def test_an_array_is_its_scalars() -> None:
    read, write = np.logspace(0, 11, 50), np.logspace(11, 0, 50)
    for cluster, variant in ((CLUSTER, ""), (H200, ""), (H200, "rmsnorm"), (H200, "permute"), (H200, "index")):
        whole = time(read, write, cluster, variant)
        singles = [time(float(r), float(w), cluster, variant) for r, w in zip(read, write, strict=True)]
        assert np.allclose(whole.seconds, [one.seconds for one in singles], rtol=1e-12)
        assert list(whole.bound) == [str(one.bound) for one in singles]


def test_achieved_bandwidth_rises_with_size_to_the_fitted_share() -> None:
    size = np.logspace(9, 12, 20)
    achieved = size / np.asarray(time(size, 0.0).seconds)
    assert np.all(np.diff(achieved) < 0) or np.all(np.diff(achieved) > 0)
    assert achieved[-1] == pytest.approx(0.88 * 3.35e12, rel=1e-3)


def test_tiny_kernels_sit_on_the_floor_and_the_bound_says_so() -> None:
    assert time(128.0, 128.0).seconds == pytest.approx(2.5e-6, rel=1e-3)
    assert str(time(128.0, 128.0).bound) == "launch"
    assert str(time(1e9, 1e9).bound) == "memory"


def test_rows_cost_their_latency_and_follow_one_another_in_a_block() -> None:
    """One row: floor + row. Many narrow rows: rows / blocks x the time of one, as they hide what moves."""
    one = 2e-6 + 2e-7 + 1e-11 * 4.0 * 1024.0 + 1e-8
    assert time(2048.0, 2048.0, variant="rmsnorm", rows=1.0, width=1024.0).seconds == pytest.approx(one, rel=1e-3)
    rows, row_s = 1e6, 2e-7 + 1e-11 * 256.0
    many = time(128.0 * rows, 128.0 * rows, variant="rmsnorm", rows=rows, width=64.0).seconds
    assert many == pytest.approx(rows / (4.0 * 132.0) * row_s, rel=0.05)


def test_padding_to_a_power_of_two_costs_what_the_block_says() -> None:
    known = features({"read_bytes": 10240.0, "write_bytes": 10240.0, "rows": 1.0, "width": 5120.0})
    assert known["log2_padded"] == 13.0
    odd, whole = (time(8192.0, 8192.0, variant="rmsnorm", rows=1.0, width=w).seconds for w in (2560.0, 4096.0))
    # 2,560 elements as 4,096: half of 60% more, on a row of 16 KiB.
    assert odd - whole == pytest.approx(1e-11 * 16384.0 * 0.5 * 0.6, rel=1e-6)


def test_a_driver_copies_whole_pages_faster_up_to_a_quarter_of_a_gibibyte() -> None:
    page, odd = (time(size, size, variant="memcpy").seconds - 1.5e-6 for size in (2.0**24, 2.0**24 + 512.0))
    assert odd / page == pytest.approx(1.5, rel=1e-3)
    long, longer = (time(size, size, variant="memcpy").seconds / size for size in (2.0**28, 2.0**29))
    assert longer / long == pytest.approx(1.5, rel=0.01)


def test_rows_read_again_and_again_come_from_l2_while_it_holds_them() -> None:
    small, large = 20e6, 1e9
    assert time(small, 8.0 * small, variant="permute").seconds == pytest.approx(1.5e-6 + 9.0 * small / 0.9 / 3.35e12)
    missed = 7.0 * large * (1.0 - 0.5 * 50e6 / large)
    assert time(large, 8.0 * large, variant="permute").seconds == pytest.approx(
        1.5e-6 + (9.0 * large + missed) / 0.9 / 3.35e12
    )


def test_a_device_without_coefficients_says_which_are_missing() -> None:
    with pytest.raises(KeyError, match="memory"):
        time(1.0, 1.0, paths.put(CLUSTER, "device.kernels", {}))
