"""How much the most loaded GPU and node get: beside other draws, and copies and packing beside all there could be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator.kernels.imbalance import (
    exponent,
    pack,
    packed,
    packed_power_law,
    power_law,
    power_law_loads,
    replicate,
)
from sextant.simulator.kernels.routing import crowded

loads = st.lists(st.floats(0.01, 100.0), min_size=8, max_size=8)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.2])
def test_the_hottest_gpu_is_the_mean_of_drawn_loads(power: float) -> None:
    """256 experts on 32 GPUs, 131,072 tokens: the largest of 32 sums of 8 shares, by rejection and other draws."""
    rng, (low, high), n = np.random.default_rng(1), (1.0, 0.8 * 131072), 3000 * 256
    shares = np.zeros(0)
    while len(shares) < n:  # a logarithmic proposal, kept with a probability that makes density x^-power of it
        x = low * (high / low) ** rng.random(4 * n)
        weight = (x / high) ** (1 - power) if power < 1 else (x / low) ** (1 - power)
        shares = np.concatenate([shares, x[rng.random(len(x)) < weight]])
    shares = shares[:n].reshape(3000, 256)
    shares = np.minimum(shares / shares.sum(axis=1, keepdims=True), 1 / 8)
    most = 32 * shares.reshape(3000, 32, 8).sum(axis=2).max(axis=1)
    pairs, hit = power_law(power, 256.0, 32.0, 131072.0, 8 * 131072.0)
    assert pairs * 32 / (8 * 131072) == pytest.approx(most.mean(), abs=4 * np.std(most) / np.sqrt(200))
    assert 1 <= hit <= 8


def test_quantiles_have_the_law_s_moments() -> None:
    found = power_law_loads(0.5, 4096, 1e6, 8e6)
    assert found.mean() == pytest.approx(1.0)
    assert np.all(np.diff(found) <= 0)
    # Density x^-0.5 from nearly 0 to h: mean h/3, square h^2/5.
    assert np.mean(found**2) == pytest.approx(9 / 5, rel=0.01)
    assert power_law_loads(3.0, 64, 100.0, 800.0).max() <= 64 / 8


@given(loads, st.integers(0, 8))
def test_every_expert_keeps_a_copy_and_all_of_its_load(given_loads: list[float], more: int) -> None:
    owner, share = replicate(given_loads, 8 + more)
    assert len(owner) == 8 + more
    assert np.bincount(owner, weights=share, minlength=8) == pytest.approx(given_loads)
    assert share.max() == pytest.approx(least_maximum(given_loads, more))


def least_maximum(given_loads: list[float], more: int) -> float:
    """The least that the largest load per copy can be: no count of copies below it suffices."""
    candidates = sorted({load / n for load in given_loads for n in range(1, more + 2)})
    return next(c for c in candidates if sum(np.ceil(load / c - 1e-9) for load in given_loads) <= 8 + more)


@settings(max_examples=30)
@given(loads)
def test_packing_is_within_a_third_of_the_best(given_loads: list[float]) -> None:
    """8 experts on 4 GPUs, two each: the best of all 105 pairings is not much better than greedy packing."""
    bins = pack(given_loads, 4)
    assert sorted(np.bincount(bins)) == [2, 2, 2, 2]
    greedy = np.bincount(bins, weights=given_loads).max()
    best = min(
        max(given_loads[a] + given_loads[b] for a, b in zip(order[::2], order[1::2], strict=True))
        for order in itertools.permutations(range(8))
        if all(order[i] < order[i + 1] for i in (0, 2, 4, 6)) and list(order[::2]) == sorted(order[::2])
    )
    assert best <= greedy + 1e-9
    assert greedy <= best * 4 / 3 + 1e-9


def test_experts_stay_in_order_without_copies() -> None:
    """16 experts on 8 GPUs of 2 nodes, two on each GPU; with copies a balancer may move them."""
    counts = tuple(float(i) for i in range(1, 17))
    gpu, node = packed(counts, 16, 2, 8, 1)
    assert gpu == pytest.approx((15 + 16) / 17)
    assert node == pytest.approx(100 / 68)
    moved_gpu, moved_node = packed(counts, 24, 2, 8, 4)
    assert 1.0 <= moved_gpu < gpu and 1.0 <= moved_node < node
    assert packed((1.0,) * 16, 24, 2, 8, 4)[0] == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize(("n_gpus", "redundant"), [(32, 32), (144, 32), (320, 64)])
def test_redundant_experts_even_out_a_power_law(n_gpus: int, redundant: int) -> None:
    """DeepSeek-V3's deployments; more copies never load the hottest GPU more, by more than packing's grain."""
    tokens = 128.0 * n_gpus
    args = (0.8, 256, tokens, 8 * tokens)
    found = [packed_power_law(*args, 256 + n, n_gpus // 8, n_gpus, 8)[0] for n in (redundant, 2 * redundant)]
    bare = float(power_law(0.8, 256.0, float(min(n_gpus, 256)), tokens, 8 * tokens)[0]) * min(n_gpus, 256) / 8 / tokens
    assert found[1] <= found[0] * 1.02
    assert found[0] < bare


def test_exponents_are_read_and_others_refused() -> None:
    assert exponent("balanced") is None
    assert exponent("power_law_1.2") == 1.2
    for wrong in ("zipf", "power_law_x", "power_law_-1", "law_1"):
        with pytest.raises(ValueError, match="unknown"):
            exponent(wrong)


def test_a_crowded_bin_gets_a_token_once() -> None:
    assert crowded(6.8, 32.0, 1.0) == 6.8
    assert 6.8 < crowded(6.8, 32.0, 2.0) < 13.6
    assert crowded(6.8, 32.0, 1e9) == pytest.approx(32.0)
