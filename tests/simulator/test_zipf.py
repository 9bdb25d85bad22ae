"""Zipf's law: sums over ranges of rank against sums over rows, different rows, the exponent found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import cache_play, zipf
from sextant.simulator.errors import InputError


def one_by_one(n_rows: int, exponent: float) -> np.ndarray:
    weights = np.arange(1.0, n_rows + 1.0) ** -exponent
    return weights / weights.sum()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.0000000001, 1.7, 3.0])
@pytest.mark.parametrize("n_rows", [1, 40, 64, 65, 300_000])
def test_ranges_of_rank_are_the_rows(n_rows, exponent):
    """Count, probability and different rows, beside the sum over every row."""
    found, exact = zipf.rows(n_rows, exponent), one_by_one(n_rows, exponent)
    assert found.count.sum() == pytest.approx(n_rows)
    assert found.total(lambda p: p) == pytest.approx(1.0)
    for draws in (1.0, 37.0, 1e4, 1e7):
        expected = -np.expm1(draws * np.log1p(-np.minimum(exact, 1 - 1e-16))).sum()
        assert zipf.distinct(found, draws) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 1e8), st.floats(0, 3), st.floats(1, 1e8), st.floats(1, 100))
def test_different_rows_are_a_share_that_falls(n_rows, exponent, draws, factor):
    """In (0, 1], never more than the rows that there are, less the more is drawn and the steeper the law."""
    found = zipf.rows(n_rows, exponent)
    share = zipf.distinct_share(found, draws)
    assert 0.0 < share <= 1.0
    assert share * draws <= n_rows * (1 + 1e-9)
    assert zipf.distinct_share(found, draws * factor) <= share * (1 + 1e-9)
    assert zipf.distinct_share(zipf.rows(n_rows, exponent + 0.5), draws) <= share * (1 + 1e-6)


def test_arrays_of_points_are_the_points():
    n_rows, exponents, draws = np.array([10.0, 1e4, 1e8]), np.array([0.3, 1.0, 1.4]), np.array([5.0, 1e3, 1e6])
    together = zipf.distinct_share(zipf.rows(n_rows, exponents), draws)
    alone = [zipf.distinct_share(zipf.rows(n, s), m) for n, s, m in zip(n_rows, exponents, draws, strict=True)]
    assert together == pytest.approx(alone)


def test_different_rows_of_drawn_lookups():
    """One batch of a million lookups has as many different rows as expected, to a part in 200."""
    drawn = cache_play.lookups(100_000, 1.1, 1_000_000, seed=3)
    assert len(np.unique(drawn)) == pytest.approx(zipf.distinct(zipf.rows(1e5, 1.1), 1e6), rel=5e-3)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.6])
def test_the_exponent_is_found_again(exponent):
    """From the law itself, in any order; from 800,000 lookups, whose chance ranks look steeper where all rows are
    nearly alike."""
    exact = one_by_one(2000, exponent)
    shuffled = exact[np.random.default_rng(0).permutation(2000)]
    assert zipf.likeliest_exponent(shuffled) == pytest.approx(exponent, abs=1e-6)
    counts = np.bincount(cache_play.lookups(2000, exponent, 800_000, seed=5), minlength=2000)
    assert zipf.likeliest_exponent(counts) == pytest.approx(exponent, abs=0.01 if exponent else 0.05)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: zipf.rows(0.0, 1.0), "a table needs a row, got 0"),
        (lambda: zipf.rows(10.0, -1.0), "popularity falls with the rank, got -1; give 0 or more"),
        (lambda: zipf.distinct_share(zipf.rows(10.0, 1.0), 0.0), "a share of no lookups means nothing, got 0; give 1"),
        (lambda: zipf.likeliest_exponent(np.array([3.0])), "two rows at least"),
        (lambda: zipf.likeliest_exponent(np.zeros(9)), "how often each row was looked up"),
    ],
)
def test_laws_that_mean_nothing_are_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()
