"""Continuous batching replayed: what an engine computes, and what its uneven programs cost."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.simulator.serving import Engine, replay, uneven


def drawn(seed, n=64, longest=1024):
    prompts, outputs = np.random.default_rng(seed).integers(100, longest + 1, (2, n))
    return prompts, outputs


def test_one_request_is_a_prefill_and_a_token_per_step():
    run = replay(np.array([300]), np.array([4]), Engine(n_blocks=8))
    assert run.prefill.tolist() == [True, False, False, False]
    assert run.n_tokens.tolist() == [300, 1, 1, 1]
    assert run.n_seen.tolist() == [300, 301, 302, 303]
    assert run.n_pairs.tolist() == [300 * 301 / 2, 301, 302, 303]
    assert run.n_blocks.tolist() == [2, 2, 2, 2] and not run.n_preempted.any()


def test_a_full_block_is_followed_by_another():
    run = replay(np.array([256]), np.array([3]), Engine(n_blocks=8))
    assert run.n_blocks.tolist() == [1, 2, 2]


def test_prompts_fill_a_batch_in_their_order():
    run = replay(np.array([1000] * 20), np.array([2] * 20), Engine(n_blocks=1000, max_batched_tokens=8192))
    assert run.prefill.tolist() == [True, True, True, False]
    assert run.n_sequences.tolist() == [8, 8, 4, 20]
    few = replay(np.array([1000] * 20), np.array([2] * 20), Engine(n_blocks=1000, max_sequences=6))
    assert few.n_sequences[few.prefill].tolist() == [6, 6, 6, 2]
    assert few.n_sequences[~few.prefill].tolist() == [6, 6, 6, 2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_blocks=st.integers(12, 400), n=st.integers(1, 48))
def test_every_token_is_made_once_and_the_cache_never_overflows(seed, n_blocks, n):
    prompts, outputs = drawn(seed, n)
    run = replay(prompts, outputs, Engine(n_blocks=n_blocks))
    assert run.n_sequences.sum() == outputs.sum()
    assert run.n_blocks.max() <= n_blocks and run.n_blocks.min() > 0
    assert run.n_tokens[run.prefill].max() <= 16384
    # What is computed twice, is computed because something was preempted.
    again = run.n_tokens[run.prefill].sum() - prompts.sum()
    assert again >= 0 and (again > 0) == bool(run.n_preempted.sum() > 0)
    assert np.all(run.longest * run.n_sequences >= run.n_seen)
    assert np.all(run.n_squared * run.n_sequences >= run.n_seen**2)


def test_those_that_came_last_give_way_and_find_their_full_blocks_again():
    # Two requests of two blocks each in a cache of four: both need a fifth at the same step.
    run = replay(np.array([510, 510]), np.array([8, 8]), Engine(n_blocks=4))
    assert run.n_preempted.tolist().count(1) == 1 and run.n_preempted.sum() == 1
    preempted = int(np.flatnonzero(run.n_preempted)[0])
    assert run.n_sequences[preempted - 1 : preempted + 1].tolist() == [2, 1]
    back = int(np.flatnonzero(run.prefill)[-1])
    # It had 513 tokens; the first of its blocks was not used by anyone else, the second one was.
    assert run.n_seen[back] == 513 and run.n_tokens[back] == 513 - 256
    assert run.n_pairs[back] == sum(range(257, 514))


def test_equal_lengths_replay_alike():
    prompts, outputs = drawn(3)
    first, second = (replay(prompts, outputs, Engine(n_blocks=100)) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in first.__slots__)


@pytest.mark.parametrize(
    ("prompts", "outputs", "n_blocks"), [([0], [5], 9), ([5], [0], 9), ([600], [400], 3), ([17000], [5], 900)]
)
def test_what_no_engine_can_serve_is_told(prompts, outputs, n_blocks):
    with pytest.raises(InputError, match="requests: "):
        replay(np.array(prompts), np.array(outputs), Engine(n_blocks=n_blocks))


def listed_s(lengths, n_programs, n_sms):
    """When the last program ends, each taken up in order by whatever is free first."""
    free = [0.0] * n_sms
    for length in np.tile(lengths, n_programs):
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def test_uneven_programs_end_as_late_as_when_they_are_listed():
    prompts, outputs = drawn(0, n=512)
    run = replay(prompts, outputs, Engine(n_blocks=5000))
    longer, decodes = uneven(run, 8, 132), np.flatnonzero(~run.prefill)
    for made in (1, 150, 300, 450, 600, 700, 800, 900, 950, 990, 1004, 1012, 1020):
        lengths, i = (prompts + made)[outputs > made], decodes[made - 1]
        assert lengths.sum() == run.n_seen[i]
        real = listed_s(lengths, 8, 132) / max(8 * lengths.sum() / 132, lengths.mean())
        assert longer[i] == pytest.approx(real, rel=0.01 if len(lengths) > 100 else 0.11)


def test_programs_of_one_length_end_together_up_to_a_wave():
    same = replay(np.array([500] * 33), np.array([3] * 33), Engine(n_blocks=500))
    longer = uneven(same, 8, 132)
    assert np.all(longer >= 1.0) and np.all(longer < 1.0 + 132 / (33 * 8))
