"""The time of operators that only move bytes: never below what HBM and L2 allow, and linear when large."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator import paths
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.types import Cluster, Device, Estimate, KernelFit, Memory, Num

BLOCK = KernelFit(
    coefficients={"efficiency": 0.88, "write_cost": 1.08, "l2_share": 0.5, "l2_speedup": 2.0, "floor_s": 2.5e-6},
    low=0.9, high=1.15, provenance="fitted",
)  # fmt: skip
H100 = Device(
    name="h100", peak_flops_per_s={"bf16": 989e12, "fp8": 1978e12}, n_sms=132.0, l2_bytes=50e6, launch_s=1.5e-6,
    power_w=700.0, price_usd_per_h=2.0, kernels={"memory": BLOCK},
    memories={"hbm": Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=3.35e12)},
)  # fmt: skip
CLUSTER = Cluster(name="one", device=H100, n_devices=1.0, tiers={})
BANDWIDTH = "device.memories.hbm.bandwidth_bytes_per_s"
SIZES = st.floats(1.0, 1e11)


def time(read: Num, write: Num, cluster: Cluster = CLUSTER) -> Estimate:
    return estimate(operator("memory", "moved", "bf16", {"read_bytes": read, "write_bytes": write}), cluster)


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


def test_an_array_is_its_scalars() -> None:
    read, write = np.logspace(0, 11, 50), np.logspace(11, 0, 50)
    whole = time(read, write)
    singles = [time(float(r), float(w)) for r, w in zip(read, write, strict=True)]
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


def test_a_device_without_coefficients_says_which_are_missing() -> None:
    with pytest.raises(KeyError, match="memory"):
        time(1.0, 1.0, paths.put(CLUSTER, "device.kernels", {}))
