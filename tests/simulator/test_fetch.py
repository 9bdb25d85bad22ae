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
from sextant.simulator.fetch import BESIDE, N_PROGRAMS, QUEUED, ROUND_S, WAYS, fetched, shared
from sextant.simulator.kernels import operator
from sextant.simulator.prefetch import Fetch, played
from sextant.simulator.types import Cluster, Num, Op

H200 = Cluster(name="one", device=device("h200"), n_devices=1.0, tiers={})
MEASURED = FITS.parents[1] / "validate" / "data" / "measured"
RATE = "device.memories.host.bandwidth_bytes_per_s"


def rows(name: str) -> list[dict[str, str]]:
    with (MEASURED / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def gather(lookups: Num, tier: str = "host", table_bytes: Num = 5.8e9) -> Op:
    shape = {"lookups": lookups, "row_bytes": 160.0, "table_bytes": table_bytes}
    return operator("gather", "rows", "bf16", shape, variant=tier)


def alone(way: str, lookups: Num, on: Cluster = H200, tier: str = "host", n_sharing: float = 1.0) -> Num:
    found = fetched(gather(lookups, tier), on, way, n_sharing)
    return found.prepare_s + found.link_s


def exposed(way: str, lookups: float, on: Cluster = H200) -> float:
    """What 20 layers of 0.3 ms wait for rows of the third, or are slowed by them."""
    found = fetched(gather(lookups), on, way)
    fetch = Fetch(layer=2, link_s=found.link_s, carried_s=found.carried_s, prepare_s=found.prepare_s)
    return float(played([3e-4] * 20, [fetch], found.beside).exposed_s)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(lookups=st.floats(16, 1e6), factor=st.floats(1, 10))
def test_laws_of_every_way(way, lookups, factor):
    """More rows never come, nor are hidden, sooner; a faster link never later; bytes are part of the time."""
    found = fetched(gather(lookups), H200, way)
    assert 0.0 < found.carried_s <= found.link_s and found.low <= 1.0 <= found.high
    # A learned factor may bend the law of a gather by a part in 200, and the tail of a difference of two with it.
    assert alone(way, lookups * factor) >= alone(way, lookups) * 0.995
    assert exposed(way, lookups * factor) >= exposed(way, lookups) * 0.995 - 1e-7
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


def test_constants_of_few_programs_are_those_of_the_file():
    """A round from two programs, the link beside compute from eight, what compute loses from four."""
    found = {int(row["programs"]): row for row in rows("h200_prefetch.csv")}
    fetch_s = {n: 1e-6 * float(row["fetch_us"]) for n, row in found.items()}
    lasting_s = {n: 1e-6 * float(row["lasting_us"]) for n, row in found.items()}
    assert pytest.approx(16 * 2 * fetch_s[2] / 65_536, rel=0.01) == ROUND_S
    kernels = {row["case"]: row for row in rows("h200_model_kernels.csv") if row["kernel"] == "_gather"}
    gather_s = 1e-6 * float(kernels["engram-prefill-b1-4096-prefetch-off"]["us"])
    assert pytest.approx(fetch_s[8] / gather_s, rel=0.01) == BESIDE
    passes = {row["case"]: 1e-6 * float(row["lasting_us"]) for row in rows("h200_models.csv")}
    compute_s = passes["engram-prefill-b1-4096-prefetch-off"] - gather_s
    lost_s = lasting_s[4] - compute_s
    assert QUEUED * gather_s / fetch_s[4] == pytest.approx(lost_s / (fetch_s[4] - lost_s), rel=0.05)
    assert min(lasting_s, key=lambda n: lasting_s[n]) <= N_PROGRAMS


def test_eight_programs_lose_what_they_were_seen_to_lose():
    """A judge: nothing of this pass but its fetching kernel's seconds was used."""
    found = fetched(gather(65_536.0), H200, "few_sms")
    passes = {row["case"]: 1e-6 * float(row["lasting_us"]) for row in rows("h200_models.csv")}
    kernels = {row["case"]: row for row in rows("h200_model_kernels.csv") if row["kernel"] == "_gather"}
    gather_s = 1e-6 * float(kernels["engram-prefill-b1-4096-prefetch-off"]["us"])
    lost_s = passes["engram-prefill-b1-4096-prefetch-on"] - passes["engram-prefill-b1-4096-prefetch-off"] + gather_s
    slowed = found.beside.slowdown / (1.0 + found.beside.slowdown)
    # A fifth less than seen, of which the gather itself is predicted 17% short.
    assert found.link_s * slowed == pytest.approx(lost_s, rel=0.2)


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
