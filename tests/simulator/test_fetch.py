"""Ways of fetching rows: their laws, and the few constants that were measured, held to the files."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.hwmodels import FITS, device
from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.fetch import COPY_ENGINE_SLOWDOWN, WAYS, fetched, shared, slowdown
from sextant.simulator.kernels import estimate, host_rows, operator
from sextant.simulator.prefetch import Fetch, played
from sextant.simulator.timed import TimedOp
from sextant.simulator.types import Cluster, Device, Num, Op

H200 = Cluster(name="one", device=device("h200"), n_devices=1.0, tiers={})
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
RATE = "device.memories.host.bandwidth_bytes_per_s"


def rows(name: str) -> list[dict[str, str]]:
    with (MEASURED / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def gather(lookups: Num, tier: str = "host", table_bytes: Num = 5.8e9) -> Op:
    shape = {"lookups": lookups, "row_bytes": 160.0, "table_bytes": table_bytes}
    return operator("gather", "rows", "bf16", shape, variant=tier)


def alone(way: str, lookups: Num, on: Cluster = H200, tier: str = "host", in_turn: float = 0.0) -> Num:
    found = fetched(gather(lookups, tier), on, way, in_turn=in_turn)
    return found.prepare_s + found.waited * found.link_s


def exposed(way: str, lookups: float, on: Cluster = H200, in_turn: float = 0.0) -> float:
    """What 20 layers of 0.3 ms, all products, wait for rows of the third, or are slowed by them."""
    found = fetched(gather(lookups), on, way, in_turn=in_turn)
    product = operator("gemm", "up", "bf16", {"m": 4096.0, "n": 4096.0, "k": 4096.0})
    layer = TimedOp(op=product, time=replace(estimate(product, on), seconds=3e-4))
    beside = replace(found.beside, slowdown=slowdown(found, [layer], 3e-4, on.device))
    fetch = Fetch(
        layer=2, link_s=found.link_s, carried_s=found.carried_s, prepare_s=found.prepare_s, waited=found.waited
    )
    return float(played([3e-4] * 20, [fetch], beside).exposed_s)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(lookups=st.floats(16, 1e6), factor=st.floats(1, 10))
def test_laws_of_every_way(way, lookups, factor):
    """More rows never come, nor are hidden, sooner, where programs take as many in turn; a faster link never later;
    bytes are part of the time."""
    found = fetched(gather(lookups), H200, way)
    assert 0.0 < found.carried_s <= found.link_s and found.low <= 1.0 <= found.high
    # A learned factor may bend the law of a gather by a part in 200, and the tail of a difference of two with it.
    for of in (alone, exposed):
        assert of(way, lookups * factor, in_turn=8.0) >= of(way, lookups, in_turn=8.0) * 0.995 - 1e-7
    faster = paths.put(H200, RATE, 64e9 * factor)
    assert alone(way, lookups, faster) <= alone(way, lookups) * (1 + 1e-9)
    assert exposed(way, lookups, faster) <= exposed(way, lookups) * (1 + 1e-9) + 1e-12


def test_ways_are_different_machines():
    """For a prompt of 4,096 tokens: ahead for free is best; few programs slow what they hide behind; a full grid hides
    nothing and loses what is on demand too."""
    found = {way: exposed(way, 65_536.0) for way in WAYS}
    assert found["tokens"] < found["few_sms"] < found["full_grid"] == pytest.approx(found["none"])
    assert alone("few_sms", 65_536.0) > alone("tokens", 65_536.0) == alone("none", 65_536.0)
    # The CPU gathers faster than the link's address translation, and the copy itself takes nothing.
    assert alone("copy_engine", 65_536.0) < alone("tokens", 65_536.0)


def test_few_programs_pay_in_rounds_and_finish_faster_once_compute_waits():
    """Eight programs of 16 rows; alone they are as fast as kernels alone were, beside compute slower."""
    found = fetched(gather(65_536.0), H200, "few_sms")
    assert found.in_flight == 128.0 and 0.5 < found.waited < 1.0
    measured = next(
        row for row in rows("h200_fetch.csv")
        if (row["programs"], row["in_turn"], row["lookups"], row["call"]) == ("8", "0", "65536", "")
    )  # fmt: skip
    assert found.waited * found.link_s == pytest.approx(1e-6 * float(measured["fetch_cold_us"]), rel=0.1)
    bounded = fetched(gather(65_536.0), H200, "few_sms", in_turn=8.0)
    assert bounded.in_flight == 64.0 and bounded.link_s > found.link_s


def test_tiles_of_the_measured_kernel_grow_with_the_rows():
    """2,048 rows come one by one, 4,096 by fours: in half the time, as measured (505 and 254 us)."""
    assert alone("few_sms", 4096.0) < 0.6 * alone("few_sms", 2048.0)


def test_a_pass_evicts_page_tables_whoever_fetches():
    """On demand, too, rows take longer than by the same kernel again and again; a small table does not."""
    hot = estimate(gather(65_536.0), H200).seconds
    for way in ("none", "tokens", "full_grid"):
        assert 1.2 * hot < alone(way, 65_536.0) < 1.5 * hot
    small = gather(65_536.0, table_bytes=1e8)
    assert fetched(small, H200, "none").link_s == estimate(small, H200).seconds


def test_every_layer_loses_what_its_kernels_lose():
    """Products what their late blocks take, other kernels a time each, messages nothing; of ways without rows in
    flight, all alike."""
    product = operator("gemm", "up", "bf16", {"m": 4096.0, "n": 4096.0, "k": 4096.0}, count=2.0)
    norm = operator("memory", "norm", "bf16", {"read_bytes": 1e6, "write_bytes": 1e6})
    sent = replace(norm, kind="collective")
    ops = [TimedOp(op=op, time=replace(estimate(norm, H200), seconds=1e-4)) for op in (product, norm, sent)]
    lost = H200.device.kernels["beside_fetch"].coefficients
    found = fetched(gather(65_536.0), H200, "few_sms")
    late = host_rows.slowed_s(product, ops[0].time, H200.device, 128.0)
    assert 0.0 < late < 1e-4
    expected = (2.0 * late + lost["rows_s_full"]) / 4e-4
    assert slowdown(found, ops, 4e-4, H200.device) == pytest.approx(expected)
    assert slowdown(fetched(gather(65_536.0), H200, "copy_engine"), ops, 4e-4, H200.device) == COPY_ENGINE_SLOWDOWN


def test_what_siblings_measured_is_taken_over_and_what_nobody_did_is_assumed():
    """Wider each time."""

    def width(of: Device) -> float:
        found = fetched(gather(65_536.0), replace(H200, device=of), "few_sms")
        return found.high / found.low

    own, sibling = H200.device, device("h800")
    bare = replace(own, kernels={})
    assert width(own) < width(sibling) < width(bare)
    assert fetched(gather(65_536.0), replace(H200, device=sibling), "few_sms").provenance == "fitted"
    found = fetched(gather(65_536.0), replace(H200, device=bare), "few_sms")
    assert found.provenance == "assumed" and (found.slowed_low, found.slowed_high) == (0.5, 2.0)


def test_two_gpus_of_one_host_are_as_fast_as_one():
    """As measured: no gather from the host takes 6% longer; the channels and links of a datasheet take nothing away."""
    seen = {(r["dim"], r["lookups"], r["n_active"]): float(r["us"]) for r in rows("h100_x2_host_memory.csv")
            if r["op"] == "gather"}  # fmt: skip
    for (dim, lookups, n_active), us in seen.items():
        if n_active == "2":
            assert us < 1.06 * seen[dim, lookups, "1"]
    channels = replace(
        H200.device.memories["host"], node_bytes_per_s=614.4e9, between_sockets_bytes_per_s=256e9, remote_fraction=0.5
    )
    node = replace(H200.device, memories={**H200.device.memories, "host": channels})
    assert shared(node, 2.0).memories["host"] == channels


def test_a_shared_host_gives_each_an_equal_part():
    """Of its channels, and of what joins its sockets; never more than the device's own link."""
    host = replace(
        H200.device.memories["host"], bandwidth_bytes_per_s=60e9, node_bytes_per_s=240e9,
        between_sockets_bytes_per_s=100e9, remote_fraction=0.25,
    )  # fmt: skip
    node = replace(H200.device, memories={**H200.device.memories, "host": host})
    n = np.array([1.0, 2.0, 4.0, 8.0])
    rates = shared(node, n).memories["host"].bandwidth_bytes_per_s
    assert rates == pytest.approx([60e9, 60e9, 60e9, 30e9])
    far = shared(paths.put(node, "memories.host.remote_fraction", 1.0), n).memories["host"].bandwidth_bytes_per_s
    assert far == pytest.approx([60e9, 50e9, 25e9, 12.5e9])


def test_gathers_by_the_cpus_of_one_host_share_its_memory():
    """Eight move eight times the bytes through the same channels; a faster link makes no faster CPU."""
    slow = paths.put(H200, "device.memories.host.node_bytes_per_s", 100e9)
    prepared = [fetched(gather(65_536.0), slow, "copy_engine", n).prepare_s for n in (1.0, 4.0, 8.0)]
    assert prepared[0] < prepared[1] < prepared[2] == pytest.approx(8 * 65_536 * (192 + 3 * 160) / 100e9)
    for rate in (16e9, 128e9):
        there = fetched(gather(65_536.0), paths.put(H200, RATE, rate), "copy_engine")
        assert there.prepare_s == pytest.approx(fetched(gather(65_536.0), H200, "copy_engine").prepare_s)


@pytest.mark.parametrize("way", WAYS)
def test_rows_on_drives_come_at_the_pace_of_drives(way):
    """A million rows a second, whichever way they are fetched."""
    assert alone(way, 1e5, tier="nvme") >= 0.1
    assert fetched(gather(1e5, "nvme"), H200, way).provenance == "assumed"


def test_a_way_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="unknown way 'few_sm'; did you mean 'few_sms'"):
        fetched(gather(10.0), H200, "few_sm")
