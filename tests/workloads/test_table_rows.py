"""Rows of Engram's tables: fetched once for many tokens, cached, in tiers; updated only where they were looked up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator.types import Load, Plan
from sextant.workloads import models, residency
from sextant.workloads.ops import engram, optimizer, table_rows
from sextant.workloads.ops.memory import Place
from sextant.workloads.ops.table_rows import Access, moved_rows

E27 = models.model("engram-27b")
SERVED = Load(phase="decode", batch=256.0, context_tokens=4096.0, zipf_exponent=1.0)
HOST = Plan(placement={"engram": "host"})


def ops(plan: Plan, load: Load = SERVED) -> dict[tuple[str, str], float]:
    """Lookups of every gather of an Engram layer, by name and tier."""
    return {
        (op.name, op.variant): float(op.shape["lookups"] * op.count)
        for op in E27.step(load, plan).ops
        if op.part == "engram" and op.kind == "gather"
    }


def test_by_default_every_lookup_is_fetched():
    assert ops(HOST) == {("engram_gather", "host"): 16.0 * 256}
    assert moved_rows(E27, Access(), 256.0, "host").fetched == {"host": 1.0}


def test_rows_fetched_once_are_spread_to_all_that_asked():
    found = ops(replace(HOST, deduplicate=True))
    share = table_rows.distinct_share(E27, 1.0, 256.0)
    assert 0.5 < share < 1.0
    assert found["engram_gather", "host"] == pytest.approx(share * 16 * 256)
    assert found["engram_spread", "hbm"] == 16 * 256


def test_a_cache_answers_its_share_and_fills_hbm():
    plan = replace(HOST, cache_bytes=1e9)
    rows = moved_rows(E27, Access(exponent=1.0, cache_bytes=1e9), 256.0, "host")
    assert 0.6 < rows.hit_rate < 0.95
    assert rows.fetched["host"] == pytest.approx(1.0 - rows.hit_rate)
    assert ops(plan)["engram_gather", "host"] == pytest.approx((1.0 - rows.hit_rate) * 16 * 256)
    assert residency.table_bytes(E27, plan, "decode", 8.0)["hbm"] == 1e9
    # More cache than rows holds the rows.
    tables = residency.table_bytes(E27, replace(HOST, cache_bytes=1e12), "decode", 8.0)
    assert tables["hbm"] == 8 * tables["host"] == 2 * 2 * 2_262_400 * 1280


def test_tables_on_drives_have_a_cache_on_the_host():
    """Lookups are answered by HBM, by the host, or by a drive."""
    given = Access(exponent=1.0, cache_bytes=1e8, host_cache_bytes=1e9)
    rows = moved_rows(E27, given, 256.0, "nvme")
    assert rows.fetched["host"] + rows.fetched["nvme"] == pytest.approx(1.0 - rows.hit_rate)
    assert rows.fetched["nvme"] == pytest.approx(
        moved_rows(E27, replace(given, cache_bytes=1e9), 256.0, "host").fetched["host"]
    )
    plan = Plan(placement={"engram": "nvme"}, cache_bytes=1e8, host_cache_bytes=1e9)
    assert set(ops(plan)) == {("engram_gather", "nvme"), ("engram_gather", "host"), ("engram_spread", "hbm")}
    sizes = residency.table_bytes(E27, plan, "decode", 8.0)
    assert sizes["host"] == 1e9 / 8 and sizes["nvme"] == 2 * 2 * 2_262_400 * 1280 / 8


def test_a_sweep_over_the_cache_is_its_points():
    sizes = np.array([0.0, 1e7, 1e9])
    together = moved_rows(E27, Access(exponent=0.9, cache_bytes=sizes), 64.0, "host")
    for i, size in enumerate(sizes):
        one = moved_rows(E27, Access(exponent=0.9, cache_bytes=size), 64.0, "host")
        assert together.hit_rate[i] == pytest.approx(one.hit_rate, abs=1e-12)
        assert together.fetched["host"][i] == pytest.approx(one.fetched["host"])


def test_training_exchanges_each_different_row_once():
    """Row numbers, rows and gradients all by the same share; gradients are summed before they are sent."""
    load = Load(phase="training", batch=64.0, context_tokens=4096.0, zipf_exponent=1.0)
    every, once = (
        {op.name: op for op in E27.step(load, Plan(data=64.0, deduplicate=flag)).ops if op.part == "engram"}
        for flag in (False, True)
    )
    share = table_rows.distinct_share(E27, 1.0, 4096.0)
    for name in ("engram_index_exchange", "engram_row_exchange", "engram_gradient_exchange"):
        assert once[name].message_bytes == pytest.approx(share * every[name].message_bytes)
    assert set(once) - set(every) == {"engram_unique", "engram_spread", "engram_row_sum"}


def test_a_sparse_optimizer_updates_the_rows_that_were_looked_up():
    """All rows unless it is sparse; under a law that touches all, as many bytes as a dense one."""
    load = Load(phase="training", batch=1280.0, context_tokens=4096.0, zipf_exponent=1.0)
    sparse, dense = Plan(data=256.0, sparse_optimizer=True), Plan(data=256.0)
    assert optimizer.touched_fraction_of(E27, dense, load) == 1.0
    touched = optimizer.touched_fraction_of(E27, sparse, load)
    assert 0.2 < touched < 0.6

    def moved(plan: Plan, fraction: float) -> float:
        return optimizer.tables(E27, plan, 2.0, fraction).traffic_bytes["hbm"]

    assert moved(sparse, touched) == pytest.approx(touched * moved(dense, 1.0))
    assert moved(sparse, 1.0) == pytest.approx(moved(dense, 1.0))
    # Rows of 5 elements fill no whole sectors.
    narrow = replace(E27, engram_dim=80.0)
    assert optimizer.tables(narrow, sparse, 2.0, 1.0).traffic_bytes["hbm"] > moved(dense, 1.0) / 16


def test_more_lookups_touch_more_rows():
    shares = [table_rows.touched_share(E27, 1.0, n) for n in (1e3, 1e5, 1e7, 1e10)]
    assert shares == sorted(shares) and 0 < shares[0] < 0.001 and shares[-1] == pytest.approx(1.0, abs=0.01)


def test_where_a_cache_has_all_rows_nothing_is_fetched():
    """Points with and without the cache in one sweep: counted 0 and 1 times."""
    sizes = np.array([0.0, 1e12])
    access = Access(exponent=1.0, cache_bytes=sizes)
    place = Place(part="engram", block="engram")
    ops = engram.operators(place, E27, 64.0, "decode", "host", 1.0, access=access)
    (gather,) = (op for op in ops if op.name == "engram_gather")
    assert np.broadcast_to(gather.count, 2).tolist() == [1.0, 0.0]
