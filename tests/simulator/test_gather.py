"""Rows fetched from a table: bounds of link and rows, tables larger than the address translation reaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.hwmodels import FITS, device
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.gather import ASSUMED, sectors_bytes
from sextant.simulator.types import Cluster, Estimate, KernelFit, Num
from sextant.validate.fit import read_rows
from sextant.validate.fit_gather import FRESH_LOOKUPS, fit_gather, gather_op
from sextant.validate.solver import alone, column, errors, with_fit

H200 = Cluster(name="one", device=replace(device("h200"), clock_under_load=1.0), n_devices=1.0, tiers={})
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
TIERS = ("hbm", "host", "nvme")
GIB = 2.0**30


def time(tier: str, lookups: Num, row_bytes: Num = 160.0, table_bytes: Num = 5.4 * GIB, on=H200) -> Estimate:
    shape = {"lookups": lookups, "row_bytes": row_bytes, "table_bytes": table_bytes}
    return estimate(operator("gather", "gather", "bf16", shape, variant=tier), on)


@pytest.mark.parametrize("tier", TIERS)
@given(lookups=st.floats(1.0, 1e8), row=st.integers(1, 256), table=st.floats(1e6, 1e13), factor=st.floats(1.0, 10.0))
def test_laws(tier, lookups, row, table, factor) -> None:
    """Above the bound of bandwidth and of random accesses; more rows, bytes or table never faster; more rate never
    slower."""
    row_bytes, memory = 32.0 * row, H200.device.memories[tier]
    seconds = time(tier, lookups, row_bytes, table).seconds
    assert np.isfinite(seconds)
    assert seconds > lookups * row_bytes / memory.bandwidth_bytes_per_s
    assert seconds >= lookups / memory.rows_per_s + memory.latency_s
    slack = 1.0 - 1e-12
    assert time(tier, lookups * factor, row_bytes, table).seconds >= seconds * slack
    assert time(tier, lookups, np.ceil(row_bytes * factor), table).seconds >= seconds * slack
    assert time(tier, lookups, row_bytes, table * factor).seconds >= seconds * slack
    faster = paths.put(
        H200, f"device.memories.{tier}.bandwidth_bytes_per_s", float(memory.bandwidth_bytes_per_s) * factor
    )
    assert time(tier, lookups, row_bytes, table, on=faster).seconds <= seconds / slack


def test_an_array_is_its_scalars() -> None:
    lookups, row, table = np.logspace(0, 7, 30), np.linspace(32, 4096, 30).round(), np.logspace(12, 6, 30)
    for tier in TIERS:
        whole = time(tier, lookups, row, table)
        singles = [time(tier, float(a), float(b), float(c)) for a, b, c in zip(lookups, row, table, strict=True)]
        assert np.allclose(whole.seconds, [float(one.seconds) for one in singles], rtol=1e-12)
        assert list(whole.bound) == [str(one.bound) for one in singles]


def test_rows_move_whole_sectors() -> None:
    assert sectors_bytes(160.0, "hbm") == 160.0
    assert sectors_bytes(160.0, "host") == 192.0
    assert sectors_bytes(160.0, "nvme") == 4096.0
    assert np.array_equal(sectors_bytes(np.asarray([1.0, 32.0, 33.0]), "hbm"), [32.0, 32.0, 64.0])
    op = operator("gather", "g", "bf16", {"lookups": 10.0, "row_bytes": 160.0, "table_bytes": GIB}, variant="host")
    assert op.traffic_bytes == {"host": 1920.0, "hbm": 1600.0}


def test_what_bounds_a_fetch_depends_on_row_and_table() -> None:
    """Rows of 160 bytes from a large host table are bound by random access, large rows and small tables by the link."""
    assert str(time("host", 1e5).bound) == "rows"
    assert str(time("host", 1e5, 4096.0).bound) == "link"
    assert str(time("host", 1e5, 160.0, 0.25 * GIB).bound) == "link"
    assert str(time("hbm", 1e5).bound) == "rows"
    assert str(time("hbm", 1e5, 16384.0).bound) == "memory"
    assert str(time("host", 1.0).bound) == "launch"


def test_a_memory_with_few_random_accesses_limits_the_rows() -> None:
    slow = paths.put(H200, "device.memories.hbm.rows_per_s", 1e6)
    assert time("hbm", 1e6, on=slow).seconds == pytest.approx(1.0, rel=1e-3)
    assert 1.0 < time("nvme", 1e6).seconds < 1.1


def test_a_device_without_measurement_assumes_and_says_so() -> None:
    bare = paths.put(H200, "device.kernels", {})
    for tier in TIERS:
        found = time(tier, 1e4, on=bare)
        assert found.provenance == "assumed"
        assert found.high / found.low == pytest.approx(4.0)
        assert ASSUMED[tier].source.startswith("assumed:")
    assert time("host", 1e4).provenance == "fitted"


def test_an_unknown_tier_is_named() -> None:
    with pytest.raises(InputError, match=r"'hosst'.*'host'"):
        time("hosst", 1.0)
    with pytest.raises(InputError, match="no memory tier 'nvme'"):
        memories = {k: v for k, v in H200.device.memories.items() if k != "nvme"}
        time("nvme", 1.0, on=paths.put(H200, "device.memories", memories))


def rows():
    return [row for name in ("h200_gather", "h200_deepseek_v3") for row in read_rows(MEASURED / f"{name}.csv")]


def test_shipped_coefficients_come_from_the_shipped_rows_and_hold_them() -> None:
    for fitted in fit_gather(rows(), H200.device, "rows"):
        shipped = H200.device.kernels[fitted.name].coefficients
        for name, value in fitted.fit.coefficients.items():
            assert shipped[name] == pytest.approx(value, rel=1e-3), (fitted.name, name)
        assert fitted.held_out.mape < {"gather_hbm": 0.10, "gather_host": 0.07}[fitted.name]


def test_rows_of_engrams_width_are_within_a_quarter_when_no_row_of_that_width_was_seen() -> None:
    """160-byte rows at 4,096 and more lookups, tables from an eighth of a GiB to 64 GiB."""
    unseen = [row for row in rows() if row["op"] == "gather" and row["dim"] != "80"]
    for fitted in fit_gather(unseen, H200.device):
        tier = fitted.name.removeprefix("gather_")
        seen = [
            row for row in rows()
            if row["op"] == "gather" and row["dim"] == "80" and row["tier"] == tier
            and float(row["lookups"]) >= FRESH_LOOKUPS
        ]  # fmt: skip
        predicted = estimate(gather_op(seen, tier), alone(with_fit(H200.device, fitted.name, fitted.fit))).seconds
        found = errors(np.asarray(predicted), column(seen, "us") * 1e-6)
        assert found.n_rows >= 8
        assert np.abs(np.asarray(predicted) / column(seen, "us") / 1e-6 - 1).max() < 0.25


def test_known_coefficients_are_found_again() -> None:
    known = H200.device.kernels["gather_host"].coefficients
    made = []
    for tier in ("hbm", "host"):
        for table in (1e8, 1e9, 4e9, 3e10):
            for dim in (32.0, 80.0, 512.0, 2048.0):
                for lookups in (4096.0, 65536.0, 1e6):
                    us = 1e6 * float(time(tier, lookups, 2 * dim, table).seconds)
                    made.append(
                        {
                            "op": "gather",
                            "tier": tier,
                            "rows": table / dim / 2,
                            "dim": dim,
                            "lookups": lookups,
                            "us": us,
                        }
                    )
    _, host = fit_gather(made, H200.device)
    for name in ("efficiency", "miss_s", "reach_bytes", "growth"):
        assert host.fit.coefficients[name] == pytest.approx(known[name], rel=0.03), name


def test_fits_need_both_tiers() -> None:
    with pytest.raises(InputError, match="'host'"):
        fit_gather([row for row in rows() if row["op"] == "gather" and row["tier"] == "hbm"], H200.device)


def test_the_assumed_stand_ins_are_fits() -> None:
    assert all(isinstance(fit, KernelFit) and fit.low < 1 < fit.high for fit in ASSUMED.values())
