"""A ring played step by step meets its closed form, on both engines, and shows what a slow link costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator import des, overlap
from sextant.simulator.kernels.algorithms import plan
from sextant.simulator.ring import TURNS, ring_s, ring_tasks

kinds = st.sampled_from(sorted(TURNS))
ranks = st.integers(2, 9)
latencies, rates = st.floats(0.0, 1e-5), st.floats(1e9, 1e12)


@given(kinds, ranks, st.floats(1.0, 1e9), latencies, rates)
def test_equal_links_give_the_closed_form(variant: str, n: int, size: float, latency: float, rate: float) -> None:
    tasks = ring_tasks(variant, size, [latency] * n, [rate] * n)
    closed = ring_s(variant, size, n, latency, rate)
    assert des.makespan_s(des.simulate_tasks(tasks)) == pytest.approx(closed, rel=1e-9)
    assert overlap.makespan_s(tasks) == pytest.approx(closed, rel=1e-9)


@given(kinds, st.lists(st.tuples(latencies, rates), min_size=2, max_size=8), st.floats(1.0, 1e9))
def test_engines_agree_where_links_differ(variant: str, links: list[tuple[float, float]], size: float) -> None:
    """And lie between a ring of the fastest link and a ring of the slowest."""
    tasks = ring_tasks(variant, size, [a for a, _ in links], [b for _, b in links])
    played, n = des.makespan_s(des.simulate_tasks(tasks)), len(links)
    assert played == pytest.approx(float(overlap.makespan_s(tasks)), rel=1e-9)
    parts = [a + size / n / b for a, b in links]
    steps = TURNS[variant] * (n - 1)
    assert steps * min(parts) <= played * (1 + 1e-9)
    assert steps * max(parts) >= played * (1 - 1e-9)


def test_one_slow_link_holds_up_every_part() -> None:
    """7 of 8 links at 450 GB/s, one at 50: every part crosses it, so the ring is nearly as slow as eight such links."""
    rates = [450e9] * 7 + [50e9]
    one = float(overlap.makespan_s(ring_tasks("all_gather", 1e9, [0.0] * 8, rates)))
    assert 0.85 < one / ring_s("all_gather", 1e9, 8, 0.0, 50e9) <= 1


def test_arrays_are_their_points_and_bytes_are_those_of_the_plan() -> None:
    sizes = np.array([1e3, 1e6, 1e9])
    whole = overlap.makespan_s(ring_tasks("all_reduce", sizes, [1e-6] * 4, [450e9] * 4))
    singles = [float(overlap.makespan_s(ring_tasks("all_reduce", float(s), [1e-6] * 4, [450e9] * 4))) for s in sizes]
    assert np.array_equal(whole, singles)
    moved = plan({"n_gpus": 4.0, "n_gpus_per_node": 8.0, "message_bytes": 1e9}, "all_reduce", "ring")
    assert ring_s("all_reduce", 1e9, 4, 0.0, 450e9) == pytest.approx(float(moved.inner_bytes) / 450e9)
    assert ring_s("all_reduce", 0.0, 4, 1.0, 1.0) == moved.inner_steps
