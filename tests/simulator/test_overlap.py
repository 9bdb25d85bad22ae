"""Overlap as a recurrence: against the event engine, against its bounds, on arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import des
from sextant.simulator.chunk import LayerTimes, pair_exposed_s, pair_s, pair_tasks
from sextant.simulator.overlap import Task, busy_s, finish_times, makespan_s


@st.composite
def task_lists(draw):
    """Tasks on up to three streams, each waiting for some that were issued before."""
    n = draw(st.integers(1, 14))
    tasks = []
    for i in range(n):
        before = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        tasks.append(
            Task(
                name=str(i), stream=draw(st.sampled_from("abc")), seconds=draw(st.floats(0, 10)),
                after=tuple(map(str, before)),
            )
        )  # fmt: skip
    return tasks


@settings(max_examples=60, deadline=None)
@given(task_lists())
def test_the_recurrence_is_the_event_engine(tasks):
    """Simulated = analytic for any tasks, to the last bit of rounding."""
    done = finish_times(tasks)
    for span in des.simulate_tasks(tasks):
        assert span.end_s == pytest.approx(done[span.name], rel=1e-12, abs=1e-12)
    assert des.makespan_s(des.simulate_tasks(tasks)) == pytest.approx(makespan_s(tasks), rel=1e-12, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(task_lists())
def test_the_makespan_lies_between_its_bounds(tasks):
    """No shorter than the busiest stream, no longer than everything one after the other."""
    busiest = max(busy_s(tasks, stream) for stream in "abc")
    assert busiest - 1e-9 <= makespan_s(tasks) <= sum(task.seconds for task in tasks) + 1e-9


def test_arrays_are_scalars_side_by_side():
    """One call for many points."""
    seconds = np.array([1.0, 5.0, 0.0])

    def tasks(x):
        return [
            Task(name="send", stream="link", seconds=2.0),
            Task(name="early", stream="sm", seconds=x),
            Task(name="late", stream="sm", seconds=1.0, after=("send",)),
        ]

    np.testing.assert_array_equal(makespan_s(tasks(seconds)), [makespan_s(tasks(float(x))) for x in seconds])


def test_a_task_that_waits_for_a_later_one_is_refused():
    """Issue order is the order of the list."""
    with pytest.raises(KeyError):
        finish_times([Task(name="a", stream="s", seconds=1.0, after=("b",)), Task(name="b", stream="t", seconds=1.0)])


def layer(**given_s):
    """A layer of one second per piece, but for what is given."""
    names = LayerTimes.__dataclass_fields__
    return LayerTimes(**{**dict.fromkeys(names, 1.0), "end": 0.0, "end_b": 0.0, "end_w": 0.0, **given_s})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=4, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_a_pair_of_chunks_lies_between_its_bounds(messages, n_f, n_b):
    """Compute alone is the least, everything in series the most that an overlapped pair can take."""
    dispatch, combine, dispatch_b, combine_b = messages
    layers = {"x": layer(dispatch=dispatch, combine=combine, dispatch_b=dispatch_b, combine_b=combine_b)}
    forward, backward = ("x",) * n_f, ("x",) * n_b
    tasks = pair_tasks(forward, backward, layers)
    compute, link = busy_s(tasks, "compute"), busy_s(tasks, "communication")
    assert compute == pytest.approx(2.0 * n_f + 4.0 * n_b)
    assert max(compute, link) - 1e-9 <= pair_s(forward, backward, layers) <= compute + link + 1e-9
    assert pair_exposed_s(forward, backward, layers) == pytest.approx(pair_s(forward, backward, layers) - compute)


def test_free_messages_leave_nothing_exposed():
    """With nothing to wait for a pair takes the time of its compute."""
    layers = {"x": layer(dispatch=0.0, combine=0.0, dispatch_b=0.0, combine_b=0.0)}
    assert pair_exposed_s(("x",) * 4, ("x",) * 3, layers) == pytest.approx(0.0, abs=1e-12)


def test_long_messages_are_exposed():
    """Messages longer than all compute decide the time of a pair."""
    layers = {"x": layer(dispatch=50.0, combine=50.0, dispatch_b=50.0, combine_b=50.0)}
    assert pair_s(("x",), ("x",), layers) >= 200.0
