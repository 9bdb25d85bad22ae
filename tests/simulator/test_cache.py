"""Caches under Zipf's law: formulas beside caches played lookup by lookup, and what holds for every cache."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import cache, cache_play, zipf
from sextant.simulator.errors import InputError

#: Formula over played, less one: the most that they may differ.
TOLERANCE = 0.02


@pytest.mark.parametrize(
    ("n_rows", "exponent", "size", "n_lookups"),
    [
        (1_000, 0.6, 50, 200_000), (10_000, 0.8, 1_000, 400_000), (10_000, 1.0, 3_000, 400_000),
        (10_000, 1.3, 20, 200_000), (1_000_000, 0.9, 10_000, 800_000), (1_000_000, 1.1, 50_000, 800_000),
    ],
)  # fmt: skip
def test_lru_by_che_is_lru_played(n_rows, exponent, size, n_lookups):
    """The second half of the lookups, when the cache is full."""
    drawn = cache_play.lookups(n_rows, exponent, n_lookups, seed=1)
    hits = cache_play.lru_hits(drawn, size)[n_lookups // 2 :].mean()
    assert cache.hit_rate(zipf.rows(n_rows, exponent), size, "lru") == pytest.approx(hits, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("n_rows", "exponent", "size", "n_lookups"),
    [
        (1_000, 0.6, 50, 400_000), (10_000, 0.8, 1_000, 800_000), (10_000, 1.3, 20, 400_000),
        (1_000_000, 1.0, 3_000, 1_600_000), (1_000_000, 1.2, 10_000, 1_600_000),
    ],
)  # fmt: skip
def test_lfu_by_popularity_is_lfu_played(n_rows, exponent, size, n_lookups):
    """The second half, when counts tell the popular rows."""
    drawn = cache_play.lookups(n_rows, exponent, n_lookups, seed=2)
    hits = cache_play.lfu_hits(drawn, size, n_rows)[n_lookups // 2 :].mean()
    assert cache.hit_rate(zipf.rows(n_rows, exponent), size, "lfu") == pytest.approx(hits, rel=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.floats(2, 1e8), st.floats(0, 2.5), st.floats(0, 1.2), st.floats(1, 1e4))
def test_laws_of_caches(n_rows, exponent, share, draws):
    """More rows answer no fewer lookups; nothing answers nothing, all rows all; keeping the popular beats the recent;
    what is fetched once is no more than what is fetched every time, nor than the different rows."""
    rows, size = zipf.rows(n_rows, exponent), share * n_rows
    for policy in cache.POLICIES:
        rates = [cache.hit_rate(rows, x, policy) for x in (0.0, 0.5 * size, size, n_rows)]
        assert rates[0] == pytest.approx(0.0, abs=1e-12) and rates[-1] == pytest.approx(1.0)
        assert all(b >= a - 1e-9 for a, b in pairwise(rates))
        once = cache.fetched(rows, draws, size, policy, deduplicated=True)
        every = cache.fetched(rows, draws, size, policy, deduplicated=False)
        assert -1e-9 <= once <= every * (1 + 1e-9) + 1e-9
        assert once <= zipf.distinct(rows, draws) * (1 + 1e-9)
        assert every == pytest.approx(draws * (1.0 - cache.hit_rate(rows, size, policy)), abs=1e-9 * draws)
    assert cache.hit_rate(rows, size, "lfu") >= cache.hit_rate(rows, size, "lru") - 1e-9


def test_a_uniform_law_hits_what_is_held():
    for policy in cache.POLICIES:
        assert cache.hit_rate(zipf.rows(1e6, 0.0), 2.5e5, policy) == pytest.approx(0.25, rel=1e-6)


def test_tiers_share_all_lookups():
    """HBM, host and drives answer everything between them; the host answers what HBM does not."""
    rows = zipf.rows(1e8, 1.0)
    hbm, host, drives = cache.tiers(rows, [1e5, 1e7])
    assert hbm + host + drives == pytest.approx(1.0)
    assert hbm == pytest.approx(cache.hit_rate(rows, 1e5)) and hbm + host == pytest.approx(cache.hit_rate(rows, 1e7))
    assert cache.tiers(rows, [1e7, 1e5])[1] == 0.0


def test_arrays_of_points_are_the_points():
    sizes = np.array([0.0, 10.0, 1e4, 1e6])
    for policy in cache.POLICIES:
        together = cache.hit_rate(zipf.rows(np.full(4, 1e6), 0.9), sizes, policy)
        assert together == pytest.approx([cache.hit_rate(zipf.rows(1e6, 0.9), size, policy) for size in sizes])


def test_a_cache_is_played_the_same_from_the_same_seed():
    drawn = [cache_play.lookups(100, 1.0, 500, seed=7) for _ in range(2)]
    assert np.array_equal(*drawn) and not np.array_equal(drawn[0], cache_play.lookups(100, 1.0, 500, seed=8))
    # The third lookup of row 1 finds it evicted by 2 and 3, the last one still there.
    assert cache_play.lru_hits(np.array([1, 2, 3, 1, 1]), 2).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cache.hit_rate(zipf.rows(10.0, 1.0), 2.0, "lifo"), "unknown 'lifo'"),
        (lambda: cache.hit_rate(zipf.rows(10.0, 1.0), -1.0), "rows cannot be fewer than none, got -1"),
        (lambda: cache_play.lru_hits(np.array([1]), 0), "a cache holds a row at least, got 0"),
        (lambda: cache_play.lfu_hits(np.array([1]), 0, 5), "a cache holds a row at least, got 0"),
    ],
)
def test_caches_that_mean_nothing_are_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()
