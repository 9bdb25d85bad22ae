"""Pipeline schedules: their order, their closed forms, and the event engine that plays them."""

from collections import Counter

import numpy as np
import pytest

from sextant.simulator import schedule
from sextant.simulator.errors import InputError
from sextant.simulator.pipeline import ChunkSeconds, simulate

CASES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zb1p", 1), ("dualpipe", 1)]


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


@pytest.mark.parametrize(("name", "v"), [c for c in CASES if c[0] != "dualpipe"])
@pytest.mark.parametrize(("n_ranks", "m"), [(2, 4), (4, 16), (8, 32)])
@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (1.0, 1.1, 0.8), (2.0, 2.5, 1.5)])
def test_the_bubble_of_equal_stages_is_the_formula(name, v, n_ranks, m, f, b, w):
    """DeepSeek-V3 report Table 2; every rank idles for exactly the formula's bubble."""
    run = simulate(name, chunks(n_ranks * v, f / v, b / v, w / v), n_ranks, m, virtual_stages=v)
    expected = schedule.bubble_s(name, n_ranks, f, b + w, w, 0.0, v)
    assert run.idle_s == pytest.approx([expected] * n_ranks, rel=1e-9)


@pytest.mark.parametrize(("n_ranks", "m"), [(4, 8), (8, 16), (8, 40), (16, 120)])
@pytest.mark.parametrize("pair", [2.4, 2.7, 3.0])
def test_the_bubble_of_dualpipe_is_the_formula(n_ranks, m, pair):
    """(P/2-1)(F&B+B-3W), where forward, input and weight gradient take equal time: the idle time of the most idle rank.

    Ranks nearer the ends overlap fewer chunks, so that where overlap saves time they work longer and idle less.
    """
    run = simulate("dualpipe", chunks(n_ranks, 1.0, 1.0, 1.0, pair), n_ranks, m)
    expected = schedule.bubble_s("dualpipe", n_ranks, 1.0, 2.0, 1.0, pair)
    assert max(run.idle_s) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.1, 0.8), (1.0, 1.4, 0.5), (1.0, 1.3, 0.7)])
def test_the_bubble_of_dualpipe_is_near_the_formula_otherwise(f, b, w):
    """With a shorter weight gradient the published formula is within a quarter of what its order of chunks gives."""
    run = simulate("dualpipe", chunks(16, f, b, w, 0.9 * (f + b + w)), 16, 120)
    expected = schedule.bubble_s("dualpipe", 16, f, b + w, w, 0.9 * (f + b + w))
    assert max(run.idle_s) == pytest.approx(expected, rel=0.25)


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
        assert total("dualpipe", rank) == n_ranks + 1


def test_one_rank_takes_the_sum_of_its_work():
    """Simulated = analytic where nothing waits."""
    for name in ("gpipe", "1f1b", "zb1p"):
        run = simulate(name, chunks(1, 1.0, 1.5, 0.7), 1, 12)
        assert run.step_s == pytest.approx(12 * 3.2, rel=1e-12)
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
        ("interleaved", 8, 12, 2, "multiples"), ("1f1b", 8, 16, 2, "interleaved"), ("dualpip", 8, 16, 1, "dualpipe"),
    ],
)  # fmt: skip
def test_schedules_that_do_not_exist_say_why(name, n_ranks, m, v, word):
    """One clear error, with what to do."""
    with pytest.raises(InputError, match=word):
        schedule.instructions(name, 0, n_ranks, m, v)
