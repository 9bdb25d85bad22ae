"""The slowest of many: order statistics, and what chunks wait for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.spread import Pace, Varying, behind_s, paced, slowest


@pytest.mark.parametrize(("n", "within"), [(2, 0.05), (8, 0.02), (64, 0.02), (2048, 0.02)])
def test_the_expected_largest_of_n_normal_variables(n: int, within: float) -> None:
    drawn = np.random.default_rng(n).standard_normal((20_000_000 // (n * 16), n)).max(axis=1)
    assert float(slowest(float(n))) == pytest.approx(drawn.mean(), rel=within)


def test_one_device_waits_for_nobody() -> None:
    assert float(slowest(1.0)) == 0.0
    pace = Pace(n_devices=1.0, clock_spread=0.05, routing_spread=0.2)
    assert float(pace.waits_s([Varying(clock_s=1.0, experts_s=1.0)])) == 0.0
    alike = Pace(n_devices=64.0, clock_spread=0.0, routing_spread=0.0)
    assert float(alike.waits_s([Varying(clock_s=1.0, experts_s=1.0)])) == 0.0


def test_clocks_add_and_tokens_add_in_squares() -> None:
    """A slow chip is slow in every layer; a crowded one is crowded in some."""
    layers = [Varying(clock_s=1.0, experts_s=1.0)] * 4
    clocks = Pace(n_devices=64.0, clock_spread=0.01, routing_spread=0.0)
    tokens = Pace(n_devices=64.0, clock_spread=0.0, routing_spread=0.01)
    both = Pace(n_devices=64.0, clock_spread=0.01, routing_spread=0.01)
    assert float(clocks.waits_s(layers)) == pytest.approx(0.01 * 4.0 * slowest(64.0))
    assert float(tokens.waits_s(layers)) == pytest.approx(0.01 * 2.0 * slowest(64.0))
    assert float(both.waits_s(layers)) == pytest.approx(0.01 * np.sqrt(20.0) * slowest(64.0))


def test_a_simulated_group_waits_as_long() -> None:
    """64 devices of unequal clocks and tokens over eight layers: the mean over many draws of the slowest's delay."""
    rng = np.random.default_rng(7)
    pace = Pace(n_devices=64.0, clock_spread=0.015, routing_spread=0.08)
    layers = [Varying(clock_s=20e-3, experts_s=8e-3)] * 8
    clock = 1.0 + 0.015 * rng.standard_normal((4000, 64, 1))
    tokens = 1.0 + 0.08 * rng.standard_normal((4000, 64, 8))
    seconds = (20e-3 * clock + 8e-3 * tokens).sum(axis=2)
    waits = seconds.max(axis=1).mean() - seconds.mean()
    assert float(pace.waits_s(layers)) == pytest.approx(waits, rel=0.03)


def test_the_pace_of_a_group_is_a_lower_clock() -> None:
    device = hwmodels.device("h800")
    slower = paced(device, 64.0)
    assert slower.clock_under_load == pytest.approx(device.clock_under_load / (1 + device.clock_spread * slowest(64.0)))
    assert paced(device, 1.0).clock_under_load == device.clock_under_load
    even = replace(device, clock_spread=0.0)
    assert paced(even, 64.0) is even


@pytest.mark.parametrize(("routing", "within"), [(0.0, 0.03), (0.05, 0.2), (0.08, 0.2)])
def test_simulated_groups_that_work_for_one_another_wait_as_long(routing: float, within: float) -> None:
    """16 groups of 64 chips whose clocks stay for 300 passes, tokens drawn anew in each: how far the slowest group is
    behind the mean one. With uneven routing the formula is up to a fifth above it."""
    rng = np.random.default_rng(11)
    pace = Pace(n_devices=64.0, clock_spread=0.015, routing_spread=routing)
    behind = []
    for _ in range(30):
        clock = 8 * 20e-3 * (1.0 + 0.015 * rng.standard_normal((16, 64, 1)))
        tokens = np.sqrt(8) * 8e-3 * routing * rng.standard_normal((16, 64, 300))
        groups = (clock + tokens).max(axis=1).mean(axis=1)
        behind.append(groups.max() - groups.mean())
    lasting = pace.lasting_s([(8.0, Varying(clock_s=20e-3, experts_s=8e-3))])
    assert float(behind_s([1.0] * 16, lasting, 64.0)) == pytest.approx(np.mean(behind), rel=within)


def test_shorter_groups_hide_their_slow_chips() -> None:
    """Against draws of unequal groups: two long ones and six that are shorter by a few deviations, or by many."""
    rng = np.random.default_rng(3)
    for slack in (0.5, 1.5, 30.0):
        seconds = np.array([5.0, 5.0, *[5.0 - slack] * 6])
        drawn = rng.standard_normal((20_000, 8, 64)).max(axis=2)
        expected = (seconds + drawn).max(axis=1).mean() - 5.0 - drawn.mean()
        assert float(behind_s(list(seconds), 1.0, 64.0)) == pytest.approx(expected, rel=0.03)


def test_one_group_is_behind_nobody() -> None:
    layers = [(1.0, Varying(clock_s=1.0, experts_s=1.0))]
    pace = Pace(n_devices=64.0, clock_spread=0.05, routing_spread=0.2)
    assert float(behind_s([3.0], pace.lasting_s(layers), 64.0)) == 0.0
    for even in (replace(pace, clock_spread=0.0), replace(pace, clock_spread=0.0, routing_spread=0.0)):
        assert float(behind_s([3.0] * 8, even.lasting_s(layers), 64.0)) == 0.0


def test_points_are_independent() -> None:
    """Arrays of points answer as each point alone."""
    groups, lasting, n = [np.array([1.0, 2.0]), 2.0], np.array([0.1, 0.3]), np.array([8.0, 512.0])
    whole = behind_s(groups, lasting, n)
    for i in range(2):
        alone = behind_s([groups[0][i], 2.0], lasting[i], n[i])
        assert float(np.asarray(whole)[i]) == pytest.approx(float(alone), rel=1e-12)
