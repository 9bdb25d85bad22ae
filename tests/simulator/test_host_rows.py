"""Fetches of host rows in a pass: cold page tables, few programs, what kernels lose beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator import paths
from sextant.simulator.kernels import estimate, gather, host_rows, operator
from sextant.simulator.types import Cluster, Estimate, Op

CLUSTER = replace(hwmodels.cluster("hgx-h200"), n_devices=1.0)
COLD = CLUSTER.device.kernels["gather_host_cold"].coefficients
TABLE = 5.79e9


def fetch(lookups, table_bytes=TABLE, row_bytes=160.0) -> Op:
    shape = {"lookups": lookups, "row_bytes": row_bytes, "table_bytes": table_bytes}
    return operator("gather", "rows", "bf16", shape, variant="host")


def without(name: str) -> Cluster:
    kernels = {key: fit for key, fit in CLUSTER.device.kernels.items() if key != name}
    return replace(CLUSTER, device=replace(CLUSTER.device, kernels=kernels))


def test_a_line_of_the_page_table_is_fetched_once() -> None:
    """Few rows pay for a line each; however many, no more than all lines; beside compute each row pays."""
    n_lines = TABLE / COLD["span_bytes"]
    few, all_ = (float(host_rows.cold_s(fetch(n).shape, CLUSTER.device)) for n in (10.0, 1e9))
    assert few == pytest.approx(10.0 * COLD["line_s"], rel=1e-3)
    assert all_ == pytest.approx(n_lines * COLD["line_s"], rel=1e-9)
    evicted = float(host_rows.cold_s(fetch(1e6).shape, CLUSTER.device, evicted=True))
    assert evicted == pytest.approx(1e6 * COLD["line_s"])
    assert float(host_rows.cold_s(fetch(1e6, table_bytes=1e8).shape, CLUSTER.device)) == 0.0


def test_a_line_is_the_sixteen_entries_that_it_holds() -> None:
    """Nothing told the fit: 16 entries of 8 bytes in 128, each of a page of 4 KiB."""
    assert COLD["span_bytes"] == pytest.approx(16 * 4096, rel=0.02)


def test_cold_is_slower_and_wide_rows_hide_it_behind_the_link() -> None:
    hot, cold = (
        found.seconds for found in (estimate(fetch(65536.0), CLUSTER), host_rows.all_sms(fetch(65536.0), CLUSTER))
    )
    assert 1.2 * hot < cold < 1.5 * hot
    wide = fetch(65536.0, row_bytes=4096.0)
    assert host_rows.all_sms(wide, CLUSTER).seconds == pytest.approx(estimate(wide, CLUSTER).seconds, rel=0.02)


def test_few_programs_are_as_fast_as_their_rounds_until_all_walkers_are_busy() -> None:
    op = fetch(2048.0)
    one, two = (float(host_rows.few_s(op, CLUSTER, 1.0, programs=n)) for n in (4.0, 8.0))
    assert one == pytest.approx(2 * two, rel=0.02)
    whole = float(estimate(op, CLUSTER).seconds)
    assert float(host_rows.few_s(op, CLUSTER, 16.0, programs=64.0)) == pytest.approx(whole, rel=0.25)
    order = [float(host_rows.few_s(op, CLUSTER, 8.0, cold=cold)) for cold in ("no", "first", "always")]
    assert order == sorted(order) and order[0] < order[1]
    assert float(host_rows.beside_s(op, CLUSTER, 8.0)) >= order[2]
    assert float(host_rows.beside_s(op, CLUSTER, 8.0, 0.1)) > order[2]


def test_arrays_equal_scalars() -> None:
    lookups = np.array([16.0, 1024.0, 65536.0])
    rows = gather.tile_rows(160.0, lookups, 132.0)
    assert rows.tolist() == [1.0, 1.0, 16.0]
    together = host_rows.few_s(fetch(lookups), CLUSTER, rows, cold="first")
    for n, row, seconds in zip(lookups, rows, together, strict=True):
        assert float(host_rows.few_s(fetch(float(n)), CLUSTER, float(row), cold="first")) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("lookups", "row_bytes", "rows"),
    [(2048.0, 160.0, 1.0), (4096.0, 160.0, 4.0), (8192.0, 160.0, 8.0), (65536.0, 160.0, 16.0), (65536.0, 1024.0, 4.0)],
)
def test_tiles_are_those_of_the_measured_kernel(lookups: float, row_bytes: float, rows: float) -> None:
    assert float(gather.tile_rows(row_bytes, lookups, 132.0)) == rows


def taking(op: Op, seconds, math: float = 1.0) -> Estimate:
    """An estimate of so many seconds, that share of them on the tensor cores."""
    return replace(estimate(op, CLUSTER), seconds=seconds, limits={"math": math * seconds})


def test_what_an_operator_loses_grows_with_rows_in_flight() -> None:
    """But what a product loses does not: it has no room on an SM, whatever the program there does."""
    shape = {"n_tokens": 4096.0, "hidden": 2560.0, "n_streams": 4.0, "sinkhorn_iters": 20.0}
    op = operator("mhc_pre", "pre", "bf16", shape)
    lost = CLUSTER.device.kernels["beside_fetch"].coefficients
    took = taking(op, 1e-3)
    open_, between, full = (float(host_rows.slowed_s(op, took, CLUSTER.device, n)) for n in (8.0, 96.0, 256.0))
    assert (open_, full) == pytest.approx((1e-3 * lost["mhc_pre_open"], 1e-3 * lost["mhc_pre_full"]))
    assert between == pytest.approx((open_ + full) / 2)
    norm = operator("memory", "norm", "bf16", {"read_bytes": 1e6, "write_bytes": 1e6})
    assert float(host_rows.slowed_s(norm, taking(norm, 1e-3), CLUSTER.device, 128.0)) == lost["rows_s_full"]
    product = operator("gemm", "o_proj", "bf16", {"m": 4096.0, "n": 2560.0, "k": 4096.0})
    for in_flight in (8.0, 256.0):
        slower = host_rows.slowed_s(product, taking(product, 1e-3, 0.5), CLUSTER.device, in_flight)
        assert float(slower) == pytest.approx(0.5e-3 * lost["late"])


def test_an_operator_that_takes_no_time_loses_none() -> None:
    norm = operator("memory", "norm", "bf16", {"read_bytes": 1e6, "write_bytes": 1e6})
    product = operator("gemm", "o_proj", "bf16", {"m": 4096.0, "n": 2560.0, "k": 4096.0})
    for op in (norm, product):
        took = taking(op, np.array([0.0, 1e-6]))
        assert host_rows.slowed_s(op, took, CLUSTER.device, 8.0).tolist()[0] == 0.0


def test_a_fetch_is_slower_beside_kernels_over_rows() -> None:
    factors = CLUSTER.device.kernels["gather_host_few"].coefficients
    none, half, all_ = (float(host_rows.beside_s(fetch(65536.0), CLUSTER, 8.0, share)) for share in (0.0, 0.5, 1.0))
    assert all_ / none == pytest.approx(factors["beside_rows"] / factors["beside"]) and all_ > 1.5 * none
    assert 2.0 / half == pytest.approx(1.0 / none + 1.0 / all_)


def test_a_faster_link_never_slows_a_cold_fetch() -> None:
    """Where link and walks take as long, too: what a link hides of cold walks is not lost twice."""
    rates = np.geomspace(1e8, 1e12, 200)
    faster = paths.put(CLUSTER, "device.memories.host.bandwidth_bytes_per_s", rates)
    for row_bytes in (160.0, 1024.0, 4096.0):
        op = fetch(65536.0, row_bytes=row_bytes)
        for seconds in (host_rows.all_sms(op, faster).seconds, host_rows.beside_s(op, faster, 8.0)):
            assert np.all(np.diff(seconds) <= 1e-15)


@pytest.mark.parametrize("name", host_rows.ASSUMED)
def test_what_nobody_measured_is_assumed_and_wide(name: str) -> None:
    found = host_rows.block(without(name).device, name)
    assert found.provenance == "assumed" and (found.low, found.high) == (0.5, 2.0)
    assert set(found.coefficients) == set(CLUSTER.device.kernels[name].coefficients) - {"event_s"}
    assert float(host_rows.beside_s(fetch(1024.0), without(name), 8.0)) > 0.0
