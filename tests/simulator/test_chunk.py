"""Chunks: no second of a layer is lost or counted twice on the way from operators to streams."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator.chunk import LayerTimes, alone_s, layer_times, pair_exposed_s, pair_s, pair_tasks
from sextant.simulator.overlap import busy_s, finish_times

FIELDS = tuple(LayerTimes.__dataclass_fields__)
MESSAGES = ("dispatch", "combine", "dispatch_b", "combine_b")


@st.composite
def layers(draw):
    """Two kinds of layer with any times."""
    times = st.lists(st.floats(0.0, 4.0), min_size=len(FIELDS), max_size=len(FIELDS))
    return {name: LayerTimes(**dict(zip(FIELDS, draw(times), strict=True))) for name in "xy"}


chunks = st.lists(st.sampled_from("xy"), min_size=1, max_size=5).map(tuple)


def test_layer_times_takes_every_entry_of_a_layer_once():
    """Distinct powers of two: a sum shows which entries went into it."""
    keys = [
        ("attention", "forward", "compute"), ("dispatch", "forward", "communication"), ("mlp", "forward", "compute"),
        ("combine", "forward", "communication"), ("head", "forward", "compute"), ("embedding", "forward", "compute"),
        ("attention", "backward_input", "compute"), ("mlp", "backward_input", "compute"),
        ("dispatch_backward", "backward_input", "communication"),
        ("combine_backward", "backward_input", "communication"), ("head", "backward_input", "compute"),
        ("attention", "backward_weight", "compute"), ("mlp", "backward_weight", "compute"),
        ("embedding", "backward_weight", "compute"),
    ]  # fmt: skip
    table = {("layer", *key): 2.0**i for i, key in enumerate(keys)}
    table["other", "attention", "forward", "compute"] = 1e9
    times = layer_times(table, "layer")
    assert times.forward_s == 2.0**6 - 1
    assert times.backward_input_s == 2.0**11 - 2.0**6
    assert times.backward_weight_s == 2.0**14 - 2.0**11
    assert times.forward_messages_s == 2.0**1 + 2.0**3
    assert times.backward_messages_s == 2.0**8 + 2.0**9


def test_a_part_without_operators_takes_no_time():
    """An embedding has no attention."""
    assert layer_times({}, "layer").forward_s == 0.0


@settings(max_examples=40)
@given(layers(), chunks, chunks)
def test_a_pair_does_all_the_work_of_its_halves(times, forward, backward):
    """Chunks of any length: each stream carries exactly what both chunks alone would put on it."""
    tasks = pair_tasks(forward, backward, times)
    assert len({task.name for task in tasks}) == len(tasks)
    messages = sum(times[p].forward_messages_s for p in forward) + sum(times[p].backward_messages_s for p in backward)
    serial = alone_s(Counter(forward), times, "forward_s")
    serial += alone_s(Counter(backward), times, "backward_input_s") + alone_s(
        Counter(backward), times, "backward_weight_s"
    )
    assert busy_s(tasks, "communication") == pytest.approx(messages, abs=1e-9)
    assert busy_s(tasks, "compute") == pytest.approx(serial - messages, abs=1e-9)
    together = pair_s(forward, backward, times)
    assert max(messages, serial - messages) - 1e-9 <= together <= serial + 1e-9
    assert -1e-9 <= pair_exposed_s(forward, backward, times) <= messages + 1e-9


@settings(max_examples=30)
@given(layers(), chunks, chunks)
def test_each_half_of_a_pair_runs_in_its_own_order(times, forward, backward):
    """Attention, dispatch, experts, combine; backwards in reverse; layer after layer."""
    done = finish_times(pair_tasks(forward, backward, times))
    order_f = [f"{piece}_f{i}" for i in range(len(forward)) for piece in ("attention", "dispatch", "mlp", "combine")]
    order_b = [
        f"{piece}_b{i}" for i in range(len(backward)) for piece in ("end", "combine", "mlp", "dispatch", "attention")
    ]
    for order in (order_f, order_b):
        ends = [done[name] for name in order]
        assert ends == sorted(ends)


@settings(max_examples=20)
@given(layers(), layers(), chunks, chunks)
def test_arrays_are_scalars_side_by_side(first, second, forward, backward):
    """A pair of many points at once."""
    both = {
        name: LayerTimes(**{f: np.array([getattr(t[name], f) for t in (first, second)]) for f in FIELDS})
        for name in "xy"
    }
    for measure in (pair_s, pair_exposed_s):
        swept = measure(forward, backward, both)
        np.testing.assert_array_equal(swept, [measure(forward, backward, times) for times in (first, second)])


@settings(max_examples=20)
@given(layers(), chunks, chunks, st.sampled_from(FIELDS))
def test_a_slower_piece_never_helps(times, forward, backward, field):
    """Max-plus: the time of a pair rises with the time of anything in it."""
    slower = {**times, "x": LayerTimes(**{f: getattr(times["x"], f) + (f == field) for f in FIELDS})}
    assert pair_s(forward, backward, slower) >= pair_s(forward, backward, times)
