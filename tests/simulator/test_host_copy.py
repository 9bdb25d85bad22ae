"""Copies between host and device memory by the copy engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.hwmodels import device
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.host_copy import ASSUMED, DIRECTIONS
from sextant.simulator.types import Cluster, Estimate, Num

H200 = Cluster(name="one", device=replace(device("h200"), clock_under_load=1.0), n_devices=1.0, tiers={})
LINK = float(H200.device.memories["host"].bandwidth_bytes_per_s)


def time(direction: str, n_bytes: Num, on: Cluster = H200) -> Estimate:
    return estimate(operator("host_copy", "copy", "bf16", {"bytes": n_bytes}, variant=direction), on)


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(n_bytes=st.floats(1.0, 1e12), factor=st.floats(1.0, 10.0))
def test_laws(direction: str, n_bytes: float, factor: float) -> None:
    """Above the link's bound, more bytes never faster, a faster link never slower, no jump between neighbours."""
    seconds = time(direction, n_bytes).seconds
    assert np.isfinite(seconds)
    assert seconds >= n_bytes / LINK
    assert time(direction, n_bytes * factor).seconds >= seconds * (1.0 - 1e-3)
    assert time(direction, n_bytes * 1.001).seconds <= seconds * 1.01
    faster = paths.put(H200, "device.memories.host.bandwidth_bytes_per_s", LINK * factor)
    assert time(direction, n_bytes, faster).seconds <= seconds * (1.0 + 1e-12)


def test_an_array_is_its_scalars() -> None:
    sizes = np.logspace(1, 11, 40)
    for direction in DIRECTIONS:
        whole = time(direction, sizes)
        singles = [time(direction, float(size)) for size in sizes]
        assert np.allclose(whole.seconds, [float(one.seconds) for one in singles], rtol=1e-12)
        assert list(whole.bound) == [str(one.bound) for one in singles]


def test_small_copies_are_their_start_and_large_ones_the_link() -> None:
    assert str(time("h2d", 64.0).bound) == "launch"
    assert 1e-6 < time("d2h", 64.0).seconds < time("h2d", 64.0).seconds < 4e-6
    assert str(time("d2h", 1e9).bound) == "link"
    assert 1e9 / time("d2h", 1e9).seconds == pytest.approx(55e9, rel=0.03)


def test_a_device_without_measurement_assumes_and_says_so() -> None:
    bare = paths.put(H200, "device.kernels", {})
    found = time("h2d", 1e8, bare)
    assert found.provenance == "assumed"
    assert found.seconds == pytest.approx(2.5e-6 + 1e8 / (0.85 * LINK))
    assert (found.low, found.high) == (found.seconds * ASSUMED.low, found.seconds * ASSUMED.high)
    assert time("h2d", 1e8).provenance == "fitted"


def test_an_unknown_direction_and_an_absent_memory_are_named() -> None:
    with pytest.raises(InputError, match=r"'h2h'.*'h2d'"):
        time("h2h", 1.0)
    alone = {"hbm": H200.device.memories["hbm"]}
    with pytest.raises(InputError, match="no memory tier 'host'"):
        time("h2d", 1.0, paths.put(H200, "device.memories", alone))
