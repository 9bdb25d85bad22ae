"""Timing statistics on a clock under the test's control."""

from __future__ import annotations

import itertools

import pytest

from sextant.validate import timer


class FakeClock:
    """Seconds that pass only when a call spends them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def spending(clock: FakeClock, durations_us) -> timer.Call:
    """A call that takes the next of the durations each time."""
    remaining = iter(durations_us)

    def call() -> None:
        clock.now_s += next(remaining) * 1e-6

    return call


def test_median_and_percentiles_are_those_of_the_calls():
    """The first sample warms up and is dropped; of 1..11 us the median is 6, the percentiles 2 and 10."""
    clock = FakeClock()
    call = spending(clock, [5000.0, *range(1, 12)])
    timing = timer.repeat(timer.HostSampler(calls=[call], clock=clock), budget_us=0.0, min_repeats=11, max_repeats=50)
    assert timing.n_repeats == 11
    assert (timing.us, timing.us_p10, timing.us_p90) == pytest.approx((6.0, 2.0, 10.0))
    assert timing.timing == "host"


def test_one_slow_call_does_not_move_the_median():
    clock = FakeClock()
    call = spending(clock, [10.0, 10.0, 10.0, 10.0, 10.0, 9000.0])
    timing = timer.repeat(timer.HostSampler(calls=[call], clock=clock), budget_us=50.0, min_repeats=5, max_repeats=5)
    assert timing.us == pytest.approx(10.0)
    assert timing.us_p90 > 1000.0


@pytest.mark.parametrize(("call_us", "expected"), [(1.0, 50), (96.0, 11), (1e6, 7)])
def test_repeats_fill_the_budget_within_bounds(call_us: float, expected: int):
    clock = FakeClock()
    sampler = timer.HostSampler(calls=[spending(clock, itertools.repeat(call_us))], clock=clock)
    timing = timer.repeat(sampler, budget_us=1000.0, min_repeats=7, max_repeats=50)
    assert timing.n_repeats == expected
    assert timing.us == pytest.approx(call_us)


def test_calls_rotate_over_the_input_sets():
    clock = FakeClock()
    seen: list[int] = []

    def of_set(i: int) -> timer.Call:
        def call() -> None:
            seen.append(i)
            clock.now_s += 1e-6

        return call

    timer.HostSampler(calls=[of_set(0), of_set(1), of_set(2)], clock=clock)(6)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_sample_of_many_calls_counts_against_the_budget():
    """A graph of 100 calls of 1 us spends 100 us of the budget per sample."""

    class Graph:
        n_calls, label, sm_clock_mhz = 100, "graph:1x100", 1980.0

        def __call__(self, n_samples: int, /) -> list[float]:
            return [1.0] * n_samples

    timing = timer.repeat(Graph(), budget_us=2000.0, min_repeats=3, max_repeats=50)
    assert timing.n_repeats == 20
    assert (timing.us, timing.timing, timing.sm_clock_mhz) == (1.0, "graph:1x100", 1980.0)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [1.0, 0.0], [float("inf")]])
def test_impossible_samples_are_refused(samples: list[float]):
    with pytest.raises(ValueError, match="timing: samples must be positive"):
        timer.summarise(samples, timing="host")
