"""Layers on stages."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator.partition import balance


def loads(bounds, costs, ranks):
    """Cost of each rank."""
    stages = [sum(costs[a:b]) for a, b in pairwise(bounds)]
    return [sum(stages[s] for s in rank) for rank in ranks]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=6, max_size=30), st.integers(1, 6))
def test_every_layer_lies_on_one_stage(costs, n_stages):
    """Boundaries rise from 0 to the number of layers, no stage is empty, nothing beats the average."""
    ranks = tuple((s,) for s in range(n_stages))
    bounds = balance(tuple(costs), n_stages, ranks)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert all(a < b for a, b in pairwise(bounds))
    assert max(loads(bounds, costs, ranks)) >= sum(costs) / n_stages


def test_equal_layers_are_divided_equally():
    """32 layers on 8 stages are 4 each."""
    bounds = balance((1,) * 32, 8, tuple((s,) for s in range(8)))
    assert [b - a for a, b in pairwise(bounds)] == [4] * 8


def test_dualpipe_balances_pairs_of_stages():
    """A heavy last stage is made up for by a light first one on the same rank."""
    costs = (1,) * 14 + (3,)
    ranks = ((0, 3), (1, 2), (2, 1), (3, 0))
    bounds = balance(costs, 4, ranks)
    assert max(loads(bounds, costs, ranks)) == 9


def test_more_stages_than_layers_is_an_error_of_the_caller():
    """The plan's limits say so before anyone asks."""
    with pytest.raises(ValueError, match="cannot fill"):
        balance((1, 1), 3, ((0,), (1,), (2,)))
