"""A pass with fetches: recurrence against event engine, and the laws of what is exposed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import des
from sextant.simulator.errors import InputError
from sextant.simulator.overlap import Task, finish_times
from sextant.simulator.prefetch import Beside, Fetch, hidden_from, pass_tasks, played


@st.composite
def passes(draw):
    """Layers, fetches of some of them, a way to share the machine, other copies."""
    layers = draw(st.lists(st.floats(0.01, 5), min_size=1, max_size=6))
    at = draw(st.lists(st.integers(0, len(layers) - 1), min_size=1, max_size=3, unique=True))
    fetches = []
    for layer in at:
        link_s = draw(st.floats(0.01, 8))
        fetches.append(
            Fetch(
                layer=layer, link_s=link_s, carried_s=link_s * draw(st.floats(0.05, 1)),
                prepare_s=draw(st.sampled_from([0.0, 0.7, 3.0])), waited=draw(st.sampled_from([1.0, 1.0, 0.8, 0.3])),
            )
        )  # fmt: skip
    beside = draw(st.sampled_from([
        Beside(), Beside(slowdown=0.4), Beside(slowdown=3.0), Beside(ahead=False), Beside(stands=True),
        Beside(slowdown=tuple(0.3 * i for i in range(len(layers)))),
    ]))  # fmt: skip
    return layers, fetches, beside, draw(st.sampled_from([0.0, 0.5, 20.0]))


@settings(max_examples=150, deadline=None)
@given(passes())
def test_the_recurrence_is_the_event_engine(case):
    """Every task of every pass ends when it does on the event engine."""
    tasks = pass_tasks(*case)
    done = finish_times(tasks)
    for span in des.simulate_tasks(tasks):
        assert span.end_s == pytest.approx(done[span.name], rel=1e-9, abs=1e-9), span.name


@settings(max_examples=150, deadline=None)
@given(passes(), st.floats(1.0, 5.0))
def test_laws_of_a_pass(case, factor):
    """A pass is never shorter than its layers; waiting is part of what is exposed; a slower link, more other copies or
    a longer gather never help."""
    layers, fetches, beside, other_s = case
    found = played(*case)
    assert found.seconds >= sum(layers) * (1 - 1e-12)
    assert found.seconds == pytest.approx(sum(layers) + found.exposed_s)
    assert found.waited_s <= found.exposed_s * (1 + 1e-9) + 1e-9
    slower = [replace(f, link_s=f.link_s * factor, carried_s=f.carried_s * factor) for f in fetches]
    longer = [replace(f, prepare_s=f.prepare_s + factor) for f in fetches]
    for harder in (
        played(layers, slower, beside, other_s), played(layers, longer, beside, other_s),
        played(layers, fetches, beside, other_s + factor),
    ):  # fmt: skip
        assert harder.seconds >= found.seconds * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(passes())
def test_a_later_layer_never_waits_longer(case):
    layers, fetches, beside, other_s = case
    waits = [played(layers, [replace(fetches[0], layer=i)], beside, other_s).waited_s for i in range(len(layers))]
    assert all(b <= a * (1 + 1e-9) + 1e-9 for a, b in zip(waits, waits[1:], strict=False))
    if beside.ahead and not beside.stands:
        first = int(hidden_from(layers, fetches[0], beside, other_s))
        hidden = [i + 1 for i, wait in enumerate(waits) if wait <= 0.0]
        assert first == (hidden[0] if hidden else 0)


@pytest.mark.parametrize("beside", [Beside(), Beside(slowdown=0.5), Beside(ahead=False), Beside(stands=True)])
def test_the_first_layer_waits_for_all_of_a_fetch(beside):
    """One layer, nothing to hide behind and nothing else on the link: exposed is the fetch."""
    fetch = Fetch(layer=0, link_s=3.0, carried_s=1.0, prepare_s=2.0)
    found = played([10.0], [fetch], beside)
    assert found.exposed_s == found.waited_s == found.fetch_s == 5.0


def test_on_demand_and_behind_a_full_grid_all_is_exposed():
    fetches = [Fetch(layer=i, link_s=2.0, carried_s=1.0) for i in (1, 3)]
    for beside in (Beside(ahead=False), Beside(stands=True)):
        assert played([5.0] * 4, fetches, beside).exposed_s == 4.0
    assert played([5.0] * 4, fetches, Beside()).exposed_s == 0.0


def test_what_runs_beside_is_slowed_for_as_long_as_rows_are_on_the_link():
    """Three seconds of rows beside compute at half its speed cost it a second and a half."""
    fetch = Fetch(layer=1, link_s=3.0, carried_s=3.0)
    found = played([10.0, 10.0], [fetch], Beside(slowdown=1.0))
    assert found.exposed_s == pytest.approx(1.5) and found.waited_s == 0.0


def test_each_layer_is_slowed_by_its_own_share():
    fetch = Fetch(layer=2, link_s=3.0, carried_s=3.0)
    found = played([1.0, 1.0, 1.0], [fetch], Beside(slowdown=(1.0, 0.0, 5.0)))
    # Two seconds for the first layer, one for the second, and the rows are there.
    assert found.seconds == pytest.approx(4.0)


def test_what_is_left_when_compute_waits_comes_faster():
    """One second hidden of five; the other four take half, and rows behind them come sooner by as much."""
    fetches = [Fetch(layer=i, link_s=5.0, carried_s=1.0, waited=0.5) for i in (1, 2)]
    found = played([1.0, 1.0, 1.0], fetches, Beside())
    assert found.waited_s == pytest.approx(2.0 + 2.0) and found.fetch_s == 5.0
    assert found.seconds == pytest.approx(3.0 + 2.0 + 2.0)


def test_other_copies_share_the_link_fairly():
    """Two flows that both want all of it get half each: the shorter takes twice its time, the longer waits for all of
    the shorter. Rows that need less than half of the link notice nothing."""

    def link_s(carried_s: float, other_s: float) -> float:
        return float(played([1e-9], [Fetch(layer=0, link_s=4.0, carried_s=carried_s)], Beside(), other_s).waited_s)

    assert link_s(4.0, 100.0) == 8.0 and link_s(4.0, 1.0) == 5.0
    assert link_s(2.0, 100.0) == 4.0 and link_s(1.0, 100.0) == 4.0
    # At three quarters of the link: at half of it, three seconds' worth of bytes take six.
    assert link_s(3.0, 100.0) == pytest.approx(6.0)


def test_arrays_of_points_are_the_points():
    link = np.array([0.5, 2.0, 9.0])
    fetch = Fetch(layer=2, link_s=link, carried_s=0.8 * link, prepare_s=0.3 * link)
    together = played([1.0, 2.0, 3.0], [fetch], Beside(slowdown=0.3), np.array([0.0, 1.0, 5.0]))
    for i, other in enumerate((0.0, 1.0, 5.0)):
        one = Fetch(layer=2, link_s=link[i], carried_s=0.8 * link[i], prepare_s=0.3 * link[i])
        assert together.seconds[i] == pytest.approx(played([1.0, 2.0, 3.0], [one], Beside(slowdown=0.3), other).seconds)


def test_a_task_is_slowed_only_beside_others():
    """The recurrence of slowed tasks: before, beside and behind the other stream's work."""
    other = [Task(name="a", stream="link", seconds=2.0), Task(name="b", stream="link", seconds=1.0, after=("wait",))]
    wait = Task(name="wait", stream="host", seconds=5.0)
    work = Task(name="c", stream="compute", seconds=6.0, beside="link", slowdown=1.0)
    # Two seconds beside a do 1, three alone do 3, one beside b does 0.5, and 1.5 are left.
    assert finish_times([other[0], wait, other[1], work])["c"] == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: played([1.0], [Fetch(layer=1, link_s=1.0, carried_s=1.0)], Beside()), "layer 1 of a pass of 1"),
        (lambda: played([1.0], [Fetch(layer=0, link_s=1.0, carried_s=1.0)] * 2, Beside()), "two of one layer"),
        (
            lambda: hidden_from([1.0], Fetch(layer=0, link_s=1.0, carried_s=1.0), Beside(ahead=False)),
            "only what is fetched beside compute can be hidden",
        ),
    ],
)
def test_passes_that_mean_nothing_are_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()
