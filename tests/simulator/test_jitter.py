"""Factors on chunk times: their distribution, their seed, what a group of devices waits for."""

import numpy as np
import pytest

from sextant.simulator import schedule
from sextant.simulator.jitter import Jitter, factors, slow_devices
from sextant.simulator.pipeline import ChunkSeconds, finish

PROGRAMS = schedule.programs("zb1p", 4, 64)
TIMES = ChunkSeconds(forward=[1.0] * 4, backward_input=[1.0] * 4, backward_weight=[1.0] * 4, pair={})


def step(jitter, n_replicas):
    """The step of every replica."""
    return finish(
        "zb1p", TIMES, 4, 64, factors=factors(PROGRAMS, n_replicas, jitter), group=jitter.group
    ).step_s  # fmt: skip


def test_without_jitter_every_factor_is_one():
    """Exactly, in groups too."""
    for jitter in (Jitter(), Jitter(group=4, n_exchanges=3)):
        assert all(np.array_equal(each, np.ones((192, 8))) for each in factors(PROGRAMS, 8, jitter))


@pytest.mark.parametrize("variation", [0.02, 0.1, 0.5])
def test_factors_have_mean_one_and_the_variation(variation):
    """Lognormal: 4 x 192 x 500 numbers."""
    found = np.concatenate(factors(PROGRAMS, 500, Jitter(variation=variation, seed=5)))
    assert found.mean() == pytest.approx(1.0, abs=4 * variation / found.size**0.5)
    assert found.std() == pytest.approx(variation, rel=0.02)
    assert np.log(found).mean() == pytest.approx(-np.log1p(variation**2) / 2, abs=0.002)


def test_the_seed_decides():
    """The same seed, the same bytes; another seed or rank, other numbers; more replicas do not move the stragglers'
    number."""
    once, again, other = (factors(PROGRAMS, 8, Jitter(variation=0.1, seed=s)) for s in (1, 1, 2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0], other[0]) and not np.array_equal(once[0], once[1])


@pytest.mark.parametrize("n", [0, 1, 5, 32, 100])
def test_so_many_devices_are_slow(n):
    """No more than there are; each slows all its instructions and nobody else's."""
    jitter = Jitter(n_stragglers=n, slowdown=1.25, seed=3)
    slow = slow_devices(4, 8, jitter)
    assert np.sum(slow == 1.25) == min(n, 32) and np.sum(slow == 1.0) == 32 - min(n, 32)
    for rank, each in enumerate(factors(PROGRAMS, 8, jitter)):
        assert np.array_equal(each, np.broadcast_to(slow[rank], each.shape))


def test_one_straggler_costs_a_step_its_own_slowness():
    """A pipeline waits for its slow rank in every micro-batch; with groups all their replicas do, others do not."""
    alone = step(Jitter(n_stragglers=1, slowdown=1.2, seed=2), 8)
    quiet = step(Jitter(), 8)
    assert np.sum(alone > quiet * 1.1) == 1 and np.sum(alone == quiet) == 7
    assert alone.max() == pytest.approx(1.2 * quiet[0], rel=0.05)
    grouped = step(Jitter(n_stragglers=1, slowdown=1.2, seed=2, group=4), 8)
    assert np.sum(grouped > quiet * 1.1) == 4 and np.sum(grouped == quiet) == 4


def test_groups_wait_in_every_chunk():
    """The slowest of a group decides each chunk: dearer than waiting once at the end of the step, and the dearer the
    larger the group and the more often it exchanges."""
    free = step(Jitter(variation=0.05, seed=4), 64).max()
    times = [
        step(Jitter(variation=0.05, seed=4, group=g, n_exchanges=n), 64).max() for g, n in ((8, 1), (64, 1), (64, 8))
    ]
    assert free < times[0] < times[1] < times[2]


def test_a_chunk_in_pieces_varies_as_the_publisher_of_the_number_says():
    """Alone in its group of one, a chunk's factor does not depend on how often it exchanges; in a large group it
    approaches the expected maximum of normal numbers: 1 + 2.37 x variation x sqrt(pieces) for 64."""
    one, many = (factors(PROGRAMS, 8, Jitter(variation=0.1, n_exchanges=n)) for n in (1, 8))
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    found = factors(PROGRAMS, 64, Jitter(variation=0.01, group=64, n_exchanges=4))
    chunks = np.concatenate([f[[w.kind == "F" for w in p]] for f, p in zip(found, PROGRAMS, strict=True)])
    assert chunks.mean() == pytest.approx(1 + 2.37 * 0.01 * 2, abs=0.003)


def test_replicas_that_do_not_divide_are_refused():
    """An error of the caller."""
    with pytest.raises(ValueError, match="groups of 3"):
        factors(PROGRAMS, 8, Jitter(group=3))
