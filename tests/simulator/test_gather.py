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
from sextant.validate.fit_gather import fit_gather, gather_op, variant_of
from sextant.validate.residuals import held_out_rows
from sextant.validate.solver import column, errors

H200 = Cluster(name="one", device=replace(device("h200"), clock_under_load=1.0), n_devices=1.0, tiers={})
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
TIERS = ("hbm", "host", "nvme")
GIB = 2.0**30


#: The same without corrections.
PLAIN = paths.put(
    H200, "device.kernels", {name: replace(fit, correction=None) for name, fit in H200.device.kernels.items()}
)


def time(tier: str, lookups: Num, row_bytes: Num = 160.0, table_bytes: Num = 5.4 * GIB, on=H200) -> Estimate:
    shape = {"lookups": lookups, "row_bytes": row_bytes, "table_bytes": table_bytes}
    return estimate(operator("gather", "gather", "bf16", shape, variant=tier), on)


@pytest.mark.parametrize("which", ["corrected", "plain"])
@pytest.mark.parametrize("tier", TIERS)
@given(lookups=st.floats(1.0, 1e7), row=st.integers(1, 256), table=st.floats(1e6, 1e12), factor=st.floats(1.0, 10.0))
def test_laws(tier, which, lookups, row, table, factor) -> None:
    """Above the bound of bandwidth and of random accesses; more rows, bytes or table never faster; more rate never
    slower. A correction, which obeys on a grid, may bend them by a part in 200 (tables up to a terabyte)."""
    on = PLAIN if which == "plain" else H200
    row_bytes, memory = 32.0 * row, on.device.memories[tier]
    seconds = time(tier, lookups, row_bytes, table, on).seconds
    assert np.isfinite(seconds)
    assert seconds >= lookups * row_bytes / memory.bandwidth_bytes_per_s
    assert seconds >= lookups / memory.rows_per_s + memory.latency_s
    slack = 1.0 - (1e-12 if on is PLAIN else 5e-3)
    assert time(tier, lookups * factor, row_bytes, table, on).seconds >= seconds * slack
    wider = row_bytes * factor if on is PLAIN else 32.0 * np.ceil(row * factor)
    assert time(tier, lookups, np.ceil(wider), table, on).seconds >= seconds * slack
    assert time(tier, lookups, row_bytes, table * factor, on).seconds >= seconds * slack
    rate = f"device.memories.{tier}.bandwidth_bytes_per_s"
    faster = paths.put(on, rate, float(memory.bandwidth_bytes_per_s) * factor)
    assert time(tier, lookups, row_bytes, table, on=faster).seconds <= seconds * (1.0 + 1e-12)


def test_an_array_is_its_scalars() -> None:
    lookups, row, table = np.logspace(0, 7, 30), np.linspace(32, 4096, 30).round(), np.logspace(12, 6, 30)
    for tier in (*TIERS, "cpu_copy"):
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
    assert str(time("hbm", 1e5).bound) == "memory"
    assert str(time("hbm", 1e5, 16384.0).bound) == "memory"
    assert str(time("host", 1.0).bound) == "launch"


def test_a_memory_with_few_random_accesses_limits_the_rows() -> None:
    slow = paths.put(H200, "device.memories.hbm.rows_per_s", 1e6)
    assert time("hbm", 1e6, on=slow).seconds == pytest.approx(1.0, rel=1e-3)
    assert 1.0 < time("nvme", 1e6).seconds < 1.1


def test_a_device_without_measurement_assumes_and_says_so() -> None:
    bare = paths.put(H200, "device.kernels", {})
    for tier in (*TIERS, "cpu_copy"):
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


def test_rows_that_are_not_aligned_and_a_few_walks() -> None:
    """Transfer bound: the factor of unaligned rows. As many walks as there are walkers cost four tenths of one each."""
    factor = PLAIN.device.kernels["gather_host"].coefficients["unaligned"]
    aligned, odd = (time("host", 1e6, size, 1e8, PLAIN).seconds for size in (4096.0, 4096.0 - 16.0))
    assert odd / aligned == pytest.approx(factor, rel=0.01)
    c = PLAIN.device.kernels["gather_host"].coefficients
    table = c["reach_bytes"] * 2.0**20
    each = c["miss_s"] * (1.0 - 2.0**-20) * 2.0 ** (20.0 * c["growth"])
    few = c["walkers"] / (each / c["miss_s"])
    launch_s = c["floor_s"] + PLAIN.device.memories["host"].latency_s
    walked = time("host", few, 32.0, table, PLAIN).seconds - launch_s
    assert walked == pytest.approx(few * each * (2.0**0.5 - 1.0), rel=0.05)
    assert time("host", 1e7, 32.0, table, PLAIN).seconds == pytest.approx(1e7 * each, rel=0.05)


def rows(*names: str):
    return [row for name in names for row in read_rows(MEASURED / f"{name}.csv")]


def test_shipped_coefficients_come_from_the_shipped_rows_and_hold_them() -> None:
    for fitted in fit_gather(rows("h200_kernels", "h200_between"), H200.device, "rows"):
        shipped = H200.device.kernels[fitted.name]
        for name, value in fitted.fit.coefficients.items():
            assert shipped.coefficients[name] == pytest.approx(value, rel=1e-3), (fitted.name, name)
        assert (shipped.low, shipped.high) == pytest.approx((fitted.fit.low, fitted.fit.high), rel=1e-3)
        assert fitted.held_out.mape < {"gather_hbm": 0.08, "gather_host": 0.06, "gather_cpu_copy": 0.12}[fitted.name]


def test_rows_of_widths_that_no_fit_saw_are_within_eight_percent() -> None:
    """Rows from HBM and from host memory together."""
    found = []
    for variant in ("hbm", "host"):
        part = [row for row in rows("h200_kernels", "h200_between") if variant_of(row) == variant]
        test = held_out_rows(part)
        seconds = np.asarray(estimate(gather_op(part, variant), H200).seconds)
        found += list(np.abs(seconds / column(part, "us") * 1e6 - 1.0)[test])
    assert len(found) > 70
    assert np.mean(found) < 0.08


def test_host_tables_measured_on_another_day_and_four_times_as_large_are_predicted() -> None:
    """The rows of h200_gather.csv took no part in a fit: tables from an eighth of a GiB to 34 GB, 4,096 lookups and
    more. (Its rows from HBM are of an earlier kernel, one block per row.)"""
    part = [row for row in rows("h200_gather") if variant_of(row) == "host" and float(row["lookups"]) >= 4096.0]
    found = errors(np.asarray(estimate(gather_op(part, "host"), H200).seconds), column(part, "us") * 1e-6)
    assert found.n_rows > 50
    assert found.mape < 0.06
    largest = [row for row in part if float(row["rows"]) * float(row["dim"]) * 2.0 > 16e9]
    found = errors(np.asarray(estimate(gather_op(largest, "host"), H200).seconds), column(largest, "us") * 1e-6)
    assert found.n_rows >= 8
    assert found.mape < 0.04


def test_known_coefficients_are_found_again() -> None:
    known = H200.device.kernels["gather_host"].coefficients
    made = []
    for tier in ("hbm", "host"):
        for table in (1e8, 1e9, 4e9, 3e10):
            for dim in (32.0, 48.0, 80.0, 96.0, 128.0, 256.0, 512.0, 1024.0, 2048.0):
                for lookups in (256.0, 4096.0, 65536.0, 1e6):
                    us = 1e6 * float(time(tier, lookups, 2 * dim, table, PLAIN).seconds)
                    shape = {"rows": table / dim / 2, "dim": f"{dim:.0f}", "lookups": lookups}
                    made.append({"op": "gather", "tier": tier, **shape, "us": us})
    _, host = fit_gather(made, H200.device)
    for name in ("efficiency", "miss_s", "reach_bytes", "growth"):
        assert host.fit.coefficients[name] == pytest.approx(known[name], rel=0.03), name


def test_fits_need_both_tiers() -> None:
    with pytest.raises(InputError, match="'host'"):
        part = [row for row in rows("h200_gather") if variant_of(row) == "hbm"]
        fit_gather(part, H200.device)


def test_the_assumed_stand_ins_are_fits() -> None:
    assert all(isinstance(fit, KernelFit) and fit.low < 1 < fit.high for fit in ASSUMED.values())
