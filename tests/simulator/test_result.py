"""Results, capacity and cost: infeasible is data with a reason, and no number is lost when parts are joined."""

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator import cost
from sextant.simulator.capacity import RESERVED_BYTES, capacity
from sextant.simulator.result import join, result


def test_columns_are_arrays_of_all_points():
    """Scalars and arrays come out alike, as copies."""
    given = np.array([1.0, 2.0, 3.0])
    found = result(3, {"a": 5.0, "b": given}, {})
    assert found.columns["a"].tolist() == [5.0, 5.0, 5.0]
    found.columns["b"][0] = 9.0
    assert given[0] == 1.0
    assert found.feasible.all()
    assert found.limits == ((), (), ())


def test_every_broken_limit_is_told_for_its_points():
    """In the order of the reasons; a scalar reason holds everywhere."""
    found = result(3, {"a": 1.0}, {"hbm: full": np.array([True, False, True]), "devices: few": np.array([0, 0, 1]) > 0})
    assert found.feasible.tolist() == [False, True, False]
    assert found.limits == (("hbm: full",), (), ("hbm: full", "devices: few"))
    assert result(2, {"a": 1.0}, {"no": True}).limits == (("no",), ("no",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_answer_is_a_reason_and_never_a_nan(bad):
    """Only the point concerned is infeasible; every column is finite."""
    found = result(2, {"a": np.array([1.0, bad]), "b": 2.0}, {})
    assert found.feasible.tolist() == [True, False]
    assert found.limits[1][0].startswith("numeric:")
    assert found.columns["a"].tolist() == [1.0, 0.0]
    assert found.columns["b"].tolist() == [2.0, 2.0]


def test_a_wrong_number_of_points_is_refused():
    """Three values cannot be two points."""
    with pytest.raises(ValueError, match="broadcast"):
        result(2, {"a": np.ones(3)}, {})


def test_join_puts_points_back_in_their_order():
    """Parts of a sweep may come in any order and know different columns; each warning is told once."""
    first = result(2, {"a": np.array([1.0, 2.0])}, {"x": np.array([False, True])}, warnings=["w"])
    second = result(1, {"a": 3.0, "b": 4.0}, {}, warnings=["w", "v"])
    found = join([first, second], [np.array([2, 0]), np.array([1])])
    assert found.columns["a"].tolist() == [2.0, 3.0, 1.0]
    assert found.columns["b"].tolist() == [0.0, 4.0, 0.0]
    assert found.feasible.tolist() == [False, True, True]
    assert found.limits == (("x",), (), ())
    assert found.warnings == ("w", "v")


def test_capacity_is_the_sum_of_its_parts():
    """HBM keeps a reserve, other tiers do not; what is missing is the negative rest."""
    device = hwmodels.device("h800")
    size = device.memories["hbm"].capacity_bytes
    exact = capacity(device, "hbm", {"weights": size - RESERVED_BYTES - 1e9, "cache": 1e9})
    assert exact.fits
    assert exact.free_bytes == 0.0
    over = capacity(device, "hbm", {"weights": np.array([1e9, size])})
    assert over.fits.tolist() == [True, False]
    assert over.free_bytes[1] == -RESERVED_BYTES
    assert sum(over.parts.values())[1] == over.used_bytes[1]
    assert capacity(device, "host", {"table": 1e9}).used_bytes == 1e9


def test_money_and_utilisation():
    """2,048 devices for half an hour are 1,024 hours; work at the peak is an MFU of one."""
    cluster = hwmodels.cluster("h800-2048")
    assert cost.gpu_hours(1800.0, 2048) == 1024.0
    assert cost.usd(1800.0, 2048, cluster) == 1024.0 * cluster.device.price_usd_per_h
    peak = cluster.device.peak_flops_per_s["bf16"]
    assert cost.mfu(2.0, peak * 8 / 2.0, 8, cluster) == pytest.approx(1.0, rel=1e-12)
    assert cost.mfu(2.0, peak, 8, cluster, "fp8") == pytest.approx(
        2.0 * peak / (8 * cluster.device.peak_flops_per_s["fp8"]), rel=1e-12
    )
