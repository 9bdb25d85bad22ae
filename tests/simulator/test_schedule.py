"""Pipeline schedules: their order, their closed forms, and the event engine that plays them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import schedule
from sextant.simulator.errors import InputError
from sextant.simulator.pipeline import ChunkSeconds, simulate

CASES = [
    ("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zb1p", 1), ("zbv", 1), ("dualpipe", 1),
    ("dualpipev", 1),
]  # fmt: skip
#: The expressions of the publication (data/published/training.yaml), with F, B full, W and the pair of one stage.
TABLE = {
    "1f1b": lambda p, f, b, w, fb: (p - 1) * (f + b),
    "zb1p": lambda p, f, b, w, fb: (p - 1) * (f + b - 2 * w),
    "dualpipe": lambda p, f, b, w, fb: (p / 2 - 1) * (fb + b - 3 * w),
    "dualpipev": lambda p, f, b, w, fb: (p / 2 - 1) * (fb + b - 3 * w),
}


def chunks(n_stages, forward, backward_input, weight, pair=0.0):
    """Equal stages."""
    return ChunkSeconds(
        forward=[forward] * n_stages, backward_input=[backward_input] * n_stages, backward_weight=[weight] * n_stages,
        pair={(i, j): pair for i in range(n_stages) for j in range(n_stages)},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "v"), CASES)
@pytest.mark.parametrize(("n_ranks", "m"), [(2, 8), (4, 8), (8, 24), (16, 32)])
def test_every_chunk_is_worked_on_once(name, v, n_ranks, m):
    """Forward, input gradient and weight gradient of every micro-batch on every stage: once, in that order."""
    stages = {s for held in schedule.stages_of_ranks(name, n_ranks, v) for s in held}
    forward, inputs, weights = Counter(), Counter(), Counter()
    for rank in range(n_ranks):
        held = schedule.stages_of_ranks(name, n_ranks, v)[rank]
        for work in schedule.instructions(name, rank, n_ranks, m, v):
            if work.f >= 0:
                assert work.f_stage in held
                forward[work.f, work.f_stage] += 1
            if work.kind in ("B", "BW", "FB"):
                assert forward[work.b, work.b_stage] == 1, "backward before forward"
                inputs[work.b, work.b_stage] += 1
            if work.kind in ("W", "BW", "FB"):
                assert inputs[work.b, work.b_stage] == 1, "weight gradient before input gradient"
                weights[work.b, work.b_stage] += 1
    everything = {(i, s): 1 for i in range(m) for s in stages}
    assert forward == inputs == weights == everything


@pytest.mark.parametrize("name", list(TABLE))
@pytest.mark.parametrize(("n_stages", "m"), [(2, 4), (4, 8), (8, 16), (8, 40), (16, 120)])
@pytest.mark.parametrize(("f", "w", "pair"), [(1.0, 1.0, 2.4), (1.0, 1.0, 3.0), (2.0, 1.2, 4.6), (1.0, 0.2, 2.2)])
def test_the_published_table_is_what_the_event_engine_plays(name, n_stages, m, f, w, pair):
    """DeepSeek-V3 report Table 2 and the table of the DualPipe repository: bubble and activations, in the setting in
    which they count: forward and input gradient take equal time, W no longer than either, messages are free."""
    n_ranks = n_stages // 2 if name == "dualpipev" else n_stages
    run = simulate(name, chunks(n_stages, f, f, w, pair), n_ranks, m)
    assert max(run.idle_s) == pytest.approx(TABLE[name](n_stages, f, f + w, w, pair), rel=1e-9, abs=1e-9)
    most = max(sum(schedule.in_flight(name, rank, n_ranks, m)) for rank in range(n_ranks))
    assert most == n_stages + (name in schedule.OVERLAPPING)


def test_the_table_is_the_published_one():
    """The expressions above are those of the catalogue of published figures, character by character."""
    import inspect
    import re

    import yaml

    import sextant.validate

    data = Path(sextant.validate.__file__).parent / "data" / "published" / "training.yaml"
    published = yaml.safe_load(data.read_text(encoding="utf-8"))["pipeline"]["formulas"]
    for name in TABLE:
        line = next(x for x in inspect.getsource(inspect.getmodule(chunks)).splitlines() if f'"{name}": lambda' in x)
        mine = re.sub(r"\s", "", line.partition("fb: ")[2].rstrip(","))
        theirs = published[f"bubble_{name}"].replace("F&B", "fb").replace("PP", "p").lower()
        assert mine == re.sub(r"(?<=\))(?=\()", "*", theirs).replace("2w", "2*w").replace("3w", "3*w")


@pytest.mark.parametrize(("name", "v"), [c for c in CASES if c[0] not in ("dualpipe", "dualpipev", "zbv")])
@pytest.mark.parametrize(("n_ranks", "m"), [(2, 4), (4, 16), (8, 32)])
@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (1.0, 1.1, 0.8), (2.0, 2.5, 1.5)])
def test_the_bubble_of_equal_stages_is_the_formula(name, v, n_ranks, m, f, b, w):
    """DeepSeek-V3 report Table 2; every rank idles for exactly the formula's bubble."""
    run = simulate(name, chunks(n_ranks * v, f / v, b / v, w / v), n_ranks, m, virtual_stages=v)
    expected = schedule.bubble_s(name, n_ranks, f, b + w, w, 0.0, v)
    assert run.idle_s == pytest.approx([expected] * n_ranks, rel=1e-9)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 7), *[st.floats(0.1, 3.0)] * 3)
def test_the_bubble_is_exact_for_any_chunk_times(n_ranks, more, f, b, w):
    """GPipe and 1F1B for any number of micro-batches, ZB1P from as many as there are ranks, however long W is."""
    for name, m in (("gpipe", 1 + more), ("1f1b", 1 + more), ("zb1p", n_ranks + more)):
        run = simulate(name, chunks(n_ranks, f, b, w), n_ranks, m)
        expected = schedule.bubble_s(name, n_ranks, f, b + w, w)
        assert run.idle_s == pytest.approx([expected] * n_ranks, rel=1e-9, abs=1e-9)


def test_long_weight_gradients_never_make_a_bubble_negative():
    """The published ZB1P term alone would be -7 here; ranks idle for a forward chunk per rank before them."""
    assert schedule.bubble_s("zb1p", 8, 1.0, 4.0, 3.0) == 7.0
    np.testing.assert_array_equal(schedule.bubble_s("zb1p", 8, 1.0, np.array([2.0, 4.0]), np.array([1.0, 3.0])), 7.0)


@pytest.mark.parametrize(("n_ranks", "m"), [(2, 4), (4, 8), (8, 16), (8, 40), (16, 120)])
@pytest.mark.parametrize(("w", "pair"), [(1.0, 2.4), (1.0, 3.0), (0.6, 2.3), (0.2, 1.2)])
def test_the_bubble_of_dualpipe_is_the_published_formula(n_ranks, m, w, pair):
    """(P/2-1)(F&B+B-3W) on the most idle rank, where forward and input gradient take equal time."""
    run = simulate("dualpipe", chunks(n_ranks, 1.0, 1.0, w, pair), n_ranks, m)
    expected = schedule.bubble_s("dualpipe", n_ranks, 1.0, 1.0 + w, w, pair)
    assert max(run.idle_s) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@st.composite
def dualpipe_chunks(draw):
    """F, input gradient, W no longer than either, and a pair between its longer half and both halves."""
    f, b = draw(st.floats(0.2, 2.0)), draw(st.floats(0.2, 4.0))
    w = draw(st.floats(0.01, 1.0)) * min(f, b)
    least = max(f, b + w)
    return f, b, w, least + draw(st.floats(0.0, 1.0)) * (f + b + w - least)


@settings(max_examples=60)
@given(st.sampled_from(schedule.OVERLAPPING), st.integers(1, 5), st.integers(0, 6), dualpipe_chunks())
def test_every_rank_of_dualpipe_idles_exactly_as_stated(name, half, more, times):
    """The expression in the docstring of ``bubble_s``, rank by rank; how far the published one is from it."""
    f, b, w, pair = times
    n_stages, n_ranks = 2 * half, half if name == "dualpipev" else 2 * half
    n_micro_batches = 2 * half + more if name == "dualpipev" else 2 * (n_stages + more)
    run = simulate(name, chunks(n_stages, f, b, w, pair), n_ranks, n_micro_batches)
    most = (half - 1) * (pair - 2 * w) + max((half - 1) * f, (half - 1) * b - f)
    less = [max(half - 2 - min(r, n_stages - 1 - r), 0) * (f + b + w - pair) for r in range(n_ranks)]
    assert run.idle_s == pytest.approx([most - x for x in less], rel=1e-9, abs=1e-9)
    published = schedule.bubble_s(name, n_ranks, f, b + w, w, pair)
    apart = min(f, (half - 1) * (b - f)) if b > f else (half - 1) * (b - f)
    assert published - most == pytest.approx(apart, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 8, 12, 16])
@pytest.mark.parametrize("turns", [2, 3, 5])
def test_a_vee_of_equal_chunks_has_no_bubble_but_the_first_wait(n_ranks, turns):
    """ZB-V with F = B = W: the last rank works without a break once it has its first chunk, for which it waits (P-1)F;
    no step can be shorter. All ranks hold as much as 1F1B's first one."""
    m = turns * n_ranks
    run = simulate("zbv", chunks(2 * n_ranks, 1.0, 1.0, 1.0), n_ranks, m)
    assert run.step_s == pytest.approx(n_ranks - 1 + 6 * m, rel=1e-12)
    assert run.idle_s == pytest.approx([schedule.bubble_s("zbv", n_ranks, 1.0, 2.0, 1.0)] * n_ranks, abs=1e-9)
    last = [span for span in run.spans if span.track == f"rank {n_ranks - 1:02d}"]
    assert last[-1].end_s - last[0].start_s == pytest.approx(6 * m, rel=1e-12)
    assert [sum(schedule.in_flight("zbv", rank, n_ranks, m)) for rank in range(n_ranks)] == [2 * n_ranks] * n_ranks


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(0, 9), *[st.floats(0.1, 3.0)] * 2, st.floats(0.25, 2.0))
def test_a_vee_is_made_for_its_chunk_times(n_ranks, more, f, b, share):
    """Whatever the chunks take: within the memory of 1F1B's first rank; no longer than 1F1B over chunks twice as long,
    if there are weight gradients to fill gaps with. The least it could be is the formula."""
    m, w = 2 * n_ranks + more, share * max(f, b)
    vee = simulate("zbv", chunks(2 * n_ranks, f, b, w), n_ranks, m)
    line = simulate("1f1b", chunks(n_ranks, 2 * f, 2 * b, 2 * w), n_ranks, m)
    assert vee.step_s <= line.step_s * (1 + 1e-9) + 1e-9
    least = schedule.bubble_s("zbv", n_ranks, f, b + w, w)
    assert min(vee.idle_s) >= least * (1 - 1e-9) - 1e-9
    for program in schedule.programs("zbv", n_ranks, m, 1, chunks(2 * n_ranks, f, b, w).ratio()):
        held = np.cumsum([(work.f >= 0) - (work.kind == "W") for work in program])
        assert max(held) <= 2 * n_ranks


@pytest.mark.parametrize(("name", "v"), CASES)
def test_counts_equal_the_lists(name, v):
    """The closed form of how often a rank does what, for many numbers of micro-batches at once."""
    n_ranks = 8
    micro_batches = np.array([16.0, 24.0, 32.0, 64.0, 120.0])
    for rank in range(n_ranks):
        counted = schedule.counts(name, rank, n_ranks, micro_batches, v)
        for i, m in enumerate(micro_batches):
            works = schedule.instructions(name, rank, n_ranks, int(m), v)
            exact = Counter((w.kind, w.f_stage, w.b_stage) for w in works)
            assert {key: n[i] for key, n in counted.items() if n[i]} == exact


def test_activations_in_flight():
    """GPipe holds every micro-batch, 1F1B one per rank still to come, DualPipe one more than there are ranks."""
    n_ranks, m = 8, 32

    def total(name, rank):
        return sum(schedule.in_flight(name, rank, n_ranks, m))

    for rank in range(n_ranks):
        assert total("gpipe", rank) == m
        assert total("1f1b", rank) == n_ranks - rank
        assert total("zb1p", rank) == n_ranks
        assert total("zbv", rank) == 2 * n_ranks, "chunks of half a rank's layers"
        assert total("dualpipe", rank) == n_ranks + 1
        assert total("dualpipev", rank) == 2 * n_ranks + 1, "of twice as many stages"


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "zbv"])
def test_counts_hold_for_few_micro_batches_too(name):
    """Even where there are fewer micro-batches than ranks."""
    for rank in range(5):
        for m in range(1, 12):
            exact = Counter((w.kind, w.f_stage, w.b_stage) for w in schedule.instructions(name, rank, 5, m))
            assert {key: n for key, n in schedule.counts(name, rank, 5, m).items() if n} == exact


@pytest.mark.parametrize(("name", "v"), CASES)
def test_activations_in_flight_are_those_of_the_lists(name, v):
    """Counted along the instructions, at the moment when the rank holds most; arrays at once."""
    n_ranks = 4
    sizes = {"interleaved": [4, 8, 20], "dualpipe": [8, 10, 24], "dualpipev": [8, 9, 24]}.get(name, [1, 2, 3, 4, 5, 11])
    for rank in range(n_ranks):
        swept = schedule.in_flight(name, rank, n_ranks, np.array(sizes, dtype=float), v)
        for i, m in enumerate(sizes):
            live, most = Counter(), 0
            for work in schedule.instructions(name, rank, n_ranks, m, v):
                live["now"] += work.f >= 0
                most = max(most, live["now"])
                live["now"] -= work.kind in ("BW", "W", "FB")
            assert live["now"] == 0
            assert sum(schedule.in_flight(name, rank, n_ranks, m, v)) == most
            assert sum(np.broadcast_to(held, len(sizes))[i] for held in swept) == most


def test_one_rank_takes_the_sum_of_its_work():
    """Simulated = analytic where nothing waits."""
    for name in ("gpipe", "1f1b", "zb1p", "zbv"):
        run = simulate(name, chunks(2, 1.0, 1.5, 0.7), 1, 12)
        assert run.step_s == pytest.approx(12 * 3.2 * (2 if name == "zbv" else 1), rel=1e-12)
        assert run.idle_s[0] == pytest.approx(0.0, abs=1e-12)


def test_spans_respect_what_they_wait_for():
    """A stage starts a micro-batch only after the stage before it and the message between them."""
    send = 0.25
    run = simulate("1f1b", chunks(4, 1.0, 1.0, 1.0), 4, 8, send_s=send)
    ends = {(s.track, s.name): s.end_s for s in run.spans}
    starts = {(s.track, s.name): s.start_s for s in run.spans}
    for i in range(8):
        for rank in range(1, 4):
            assert starts[f"rank {rank:02d}", f"F{i}"] >= ends[f"rank {rank - 1:02d}", f"F{i}"] + send - 1e-9
            assert starts[f"rank {rank - 1:02d}", f"B{i}"] >= ends[f"rank {rank:02d}", f"B{i}"] + send - 1e-9


def test_messages_and_uneven_stages_never_help():
    """Slower messages or one slower stage make the step no shorter."""
    even = simulate("dualpipe", chunks(8, 1.0, 1.0, 1.0, 2.7), 8, 32).step_s
    assert simulate("dualpipe", chunks(8, 1.0, 1.0, 1.0, 2.7), 8, 32, send_s=0.1).step_s >= even
    slow = chunks(8, 1.0, 1.0, 1.0, 2.7)
    slow = ChunkSeconds(
        forward=[1.0] * 7 + [1.5], backward_input=slow.backward_input, backward_weight=slow.backward_weight,
        pair={(i, j): 2.7 + (0.5 if i == 7 else 0.0) for i in range(8) for j in range(8)},
    )  # fmt: skip
    assert simulate("dualpipe", slow, 8, 32).step_s > even


@pytest.mark.parametrize(
    ("name", "n_ranks", "m", "v", "word"),
    [
        ("dualpipe", 7, 20, 1, "even"), ("dualpipe", 8, 15, 1, "even"), ("dualpipe", 8, 14, 1, "twice as many"),
        ("dualpipev", 8, 15, 1, "twice as many"), ("zbv", 8, 16, 2, "interleaved"), ("zbv", 8, 0, 1, "at least one"),
        ("interleaved", 8, 12, 2, "multiples"), ("1f1b", 8, 16, 2, "interleaved"), ("dualpip", 8, 16, 1, "dualpipe"),
    ],
)  # fmt: skip
def test_schedules_that_do_not_exist_say_why(name, n_ranks, m, v, word):
    """One clear error, with what to do."""
    with pytest.raises(InputError, match=word):
        schedule.instructions(name, 0, n_ranks, m, v)
