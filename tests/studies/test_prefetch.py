"""Engram rows from host memory: what a layer waits for, and what stands in which memory."""

import numpy as np
import pytest

from sextant.studies.answer import answer, question

ON_HOST = ["plan.placement.engram=host"]
SCENARIO = """
name: rows
model: {base: engram-27b}
cluster: {base: hgx-h800, n_devices: 1}
load: {phase: decode, batch: 64, context_tokens: 4096}
"""


def columns(*sets):
    """The metrics of the scenario, each of its points."""
    return answer(question(SCENARIO, sets)).columns


def test_tables_move_from_hbm_to_the_host():
    """5.79 B elements of 2 bytes; a device answers for its share of the node's one copy."""
    near, far = columns(), columns(*ON_HOST)
    tables = 2 * 2 * 2_262_400 * 1280
    assert near["hbm_engram_tables_bytes"][0] == tables
    assert near["hbm_bytes"][0] - far["hbm_bytes"][0] == pytest.approx(tables)
    assert far["host_bytes"][0] == pytest.approx(tables / 8)
    assert near["host_bytes"][0] == 0.0


def test_on_demand_every_fetch_is_waited_for():
    """Without prefetch the step is the one with rows at no cost, and all fetches."""
    found = columns(*ON_HOST, "plan.prefetch=none")
    assert found["exposed_fetch_s"][0] == pytest.approx(found["fetch_s"][0])
    assert found["fetch_s"][0] > 0
    assert columns()["fetch_s"][0] == 0.0


def test_ahead_of_time_only_what_does_not_arrive_is_waited_for():
    """Between nothing and all of it, falling as the link gets faster."""
    rates = "axes.cluster.device.memories.host.bandwidth_bytes_per_s=[0.1 GB/s, 1 GB/s, 10 GB/s, 64 GB/s]"
    found = columns(*ON_HOST, "plan.prefetch=tokens", rates)
    exposed, fetch = found["exposed_fetch_s"], found["fetch_s"]
    assert np.all(exposed >= 0) and np.all(exposed <= fetch * (1 + 1e-12))
    assert np.all(np.diff(exposed) <= 1e-15)
    assert exposed[0] > 0


def test_deeper_layers_have_more_time_to_arrive():
    """The same module in front of a later layer waits less."""
    slow = "cluster.device.memories.host.bandwidth_bytes_per_s=0.5 GB/s"
    waits = [
        columns(*ON_HOST, "plan.prefetch=tokens", slow, f"model.engram_layers=[{layer}]")["exposed_fetch_s"][0]
        for layer in (1, 2, 8, 30)
    ]
    assert waits == sorted(waits, reverse=True) and waits[0] > waits[-1]


def test_tables_that_the_host_cannot_hold_are_an_answer():
    """A node of 2 TB holds 125 million rows per table, not a billion."""
    found = answer(question(SCENARIO, [*ON_HOST, "model.engram_rows=1e9"]))
    assert not found.feasible[0]
    assert "host: Engram tables do not fit" in found.limits[0]
