"""The pipeline on the event engine: nothing starts too early, nothing later than it must."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import pipeline, schedule
from sextant.simulator.pipeline import ChunkSeconds, simulate

CASES = [
    ("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb1p", 1), ("zbv", 1), ("dualpipe", 1), ("dualpipev", 1),
]  # fmt: skip
KINDS = {"F", "B", "W", "BW", "FB"}


@st.composite
def uneven(draw, n_stages):
    """Stages of unequal length, some of them free."""
    seconds = st.lists(st.floats(0.0, 3.0), min_size=n_stages, max_size=n_stages)
    forward, inputs, weights = draw(seconds), draw(seconds), draw(seconds)
    share = draw(st.floats(0.5, 1.0))
    pair = {(i, j): share * (forward[i] + inputs[j] + weights[j]) for i in range(n_stages) for j in range(n_stages)}
    return ChunkSeconds(forward=forward, backward_input=inputs, backward_weight=weights, pair=pair)


def by_rank(run, programs):
    """(work, span) of every rank, in the order of its program."""
    spans = iter(run.spans)
    return [[(work, next(spans)) for work in program] for program in programs]


def ready(works):
    """When each rank has finished what: {(direction, micro-batch, stage): (end, rank)}."""
    ends = {}
    for rank, pairs in enumerate(works):
        for work, span in pairs:
            if work.f >= 0:
                ends["F", work.f, work.f_stage] = span.end_s, rank
            if work.kind in ("B", "BW", "FB"):
                ends["B", work.b, work.b_stage] = span.end_s, rank
    return ends


def needed(work, n_stages):
    """What an instruction waits for."""
    if work.f >= 0 and work.f_stage > 0:
        yield "F", work.f, work.f_stage - 1
    if work.kind in ("B", "BW", "FB"):
        yield ("B", work.b, work.b_stage + 1) if work.b_stage < n_stages - 1 else ("F", work.b, work.b_stage)


@pytest.mark.parametrize(("name", "v"), CASES)
@settings(max_examples=8)
@given(st.data())
def test_every_instruction_starts_when_it_can(name, v, data):
    """Start = the later of the rank's last end and of what is needed, with the message's time between two ranks."""
    n_ranks, m, send = 4, 8, data.draw(st.sampled_from([0.0, 0.3]))
    n_stages = schedule.n_stages(name, n_ranks, v)
    times = data.draw(uneven(n_stages))
    run = simulate(name, times, n_ranks, m, virtual_stages=v, send_s=send, queue=False)
    programs = schedule.programs(name, n_ranks, m, v, times.ratio())
    works = by_rank(run, programs)
    ends = ready(works)
    for rank, pairs in enumerate(works):
        free = 0.0
        for work, span in pairs:
            waits = [ends[key] for key in needed(work, n_stages)]
            arrivals = [end + (0.0 if owner == rank else send) for end, owner in waits]
            assert span.start_s == pytest.approx(max([free, *arrivals]), abs=1e-9)
            assert span.end_s - span.start_s == pytest.approx(times.of(work), abs=1e-9)
            assert (span.track, span.kind) == (f"rank {rank:02d}", work.kind)
            free = span.end_s
    assert run.step_s == max(span.end_s for span in run.spans)


@pytest.mark.parametrize(("name", "v"), CASES)
@settings(max_examples=6)
@given(st.data())
def test_work_and_waiting_fill_the_step(name, v, data):
    """Every rank's seconds by kind and its idle time are the step; all work is done, and takes its time."""
    n_ranks, m = 4, 8
    times = data.draw(uneven(schedule.n_stages(name, n_ranks, v)))
    run = simulate(name, times, n_ranks, m, virtual_stages=v)
    for rank in range(n_ranks):
        counted = schedule.counts(name, rank, n_ranks, m, v)
        work = sum(n * times.of(schedule.Work(kind, 0, f, 0, b)) for (kind, f, b), n in counted.items())
        assert set(run.busy_s[rank]) == KINDS
        assert sum(run.busy_s[rank].values()) == pytest.approx(work, abs=1e-9)
        assert run.idle_s[rank] + work == pytest.approx(run.step_s, abs=1e-9)
        assert run.idle_s[rank] >= -1e-9


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "interleaved"])
def test_one_rank_waits_for_nothing(name):
    """Whatever the messages cost: there is nobody to send to."""
    times = ChunkSeconds(forward=[0.7], backward_input=[1.1], backward_weight=[0.4], pair={})
    run = simulate(name, times, 1, 9, send_s=5.0)
    assert run.step_s == pytest.approx(9 * 2.2, rel=1e-12)


def test_a_micro_batch_crosses_every_boundary_twice():
    """One micro-batch on a chain: the chunks in series and the messages between them."""
    times = ChunkSeconds(forward=[1.0, 2.0, 3.0], backward_input=[0.5] * 3, backward_weight=[0.25] * 3, pair={})
    assert simulate("1f1b", times, 3, 1, send_s=0.1).step_s == pytest.approx(6.0 + 3 * 0.75 + 4 * 0.1, rel=1e-12)


def test_messages_between_stages_of_one_rank_are_free():
    """Interleaved chunks pass from rank to rank, and DualPipe turns round inside the last rank's own pair."""
    times = ChunkSeconds(
        forward=[1.0] * 2, backward_input=[1.0] * 2, backward_weight=[1.0] * 2,
        pair={(0, 1): 3.0, (1, 0): 3.0},
    )  # fmt: skip
    slow = simulate("interleaved", times, 1, 4, virtual_stages=2, send_s=9.0)
    assert slow.step_s == simulate("interleaved", times, 1, 4, virtual_stages=2).step_s
    assert simulate("dualpipe", times, 2, 4, send_s=9.0).step_s > simulate("dualpipe", times, 2, 4).step_s


@pytest.mark.parametrize(("name", "v"), CASES)
def test_the_same_step_is_the_same_bytes(name, v):
    """Ranks that become free at one moment go on in one order."""
    times = ChunkSeconds(
        forward=[1.0] * 8, backward_input=[1.0] * 8, backward_weight=[1.0] * 8,
        pair={(i, j): 3.0 for i in range(8) for j in range(8)},
    )  # fmt: skip
    once, again = (repr(simulate(name, times, 4, 8, virtual_stages=v, send_s=0.1)) for _ in range(2))
    assert once == again


def test_lists_that_wait_for_each_other_name_rank_and_instruction(monkeypatch):
    """The engine runs out of events; that is an error of ours, told at once."""
    wrong = {0: (schedule.Work("F", f=0, f_stage=0), schedule.Work("BW", b=0, b_stage=0)),
             1: (schedule.Work("BW", b=0, b_stage=1), schedule.Work("F", f=0, f_stage=1))}  # fmt: skip
    monkeypatch.setattr("sextant.simulator.pipeline.programs", lambda *_: (wrong[0], wrong[1]))
    times = ChunkSeconds(forward=[1.0] * 2, backward_input=[1.0] * 2, backward_weight=[1.0] * 2, pair={})
    pipeline._prepared.cache_clear()
    with pytest.raises(AssertionError, match=r"rank 0 waits for ever before Work\(kind='BW'"):
        simulate("gpipe", times, 2, 1)
    pipeline._prepared.cache_clear()


@pytest.mark.parametrize(("name", "v"), CASES)
@settings(max_examples=6)
@given(st.data())
def test_ports_carry_one_message_at_a_time(name, v, data):
    """Every output that another rank needs is one message of ``send_s``; none of one sender or one receiver overlap,
    and each leaves as soon as both ports are free of those that came before it."""
    n_ranks, m, send = 4, 8, data.draw(st.sampled_from([0.05, 1.0]))
    n_stages = schedule.n_stages(name, n_ranks, v)
    times = data.draw(uneven(n_stages))
    run = simulate(name, times, n_ranks, m, virtual_stages=v, send_s=send)
    programs = schedule.programs(name, n_ranks, m, v, times.ratio())
    owner = {key: rank for rank, program in enumerate(programs) for work in program for key in work.outputs}
    crossing = [
        (f"{key[0]}{key[1]} to rank {rank:02d}", f"rank {owner[key]:02d}")
        for rank, program in enumerate(programs) for work in program for key in work.inputs(n_stages)
        if owner[key] != rank
    ]  # fmt: skip
    assert sorted((s.name, s.track) for s in run.messages) == sorted(crossing)
    for port in (lambda s: s.track, lambda s: s.name.partition(" to ")[2]):
        for rank in range(n_ranks):
            mine = [s for s in run.messages if port(s) == f"rank {rank:02d}"]
            assert all(a.end_s <= b.start_s + 1e-9 for a, b in zip(mine, mine[1:], strict=False))
    assert all(s.end_s - s.start_s == pytest.approx(send, rel=1e-9) for s in run.messages)


@pytest.mark.parametrize(("name", "v"), CASES)
def test_queues_only_delay(name, v):
    """No earlier with ports that serve one message at a time; the same where messages are free."""
    n_stages = schedule.n_stages(name, 4, v)
    times = ChunkSeconds(
        forward=[1.0] * n_stages, backward_input=[1.1] * n_stages, backward_weight=[0.8] * n_stages,
        pair={(i, j): 2.5 for i in range(n_stages) for j in range(n_stages)},
    )  # fmt: skip
    for send, same in ((0.0, True), (0.2, False)):
        queued, free = (
            simulate(name, times, 4, 8, virtual_stages=v, send_s=send, queue=q).step_s for q in (True, False)
        )
        assert queued >= free - 1e-9
        assert queued == free or not same


def test_two_messages_to_one_neighbour_queue():
    """A pair of DualPipe makes activations and gradients for the same neighbour: the second message waits for the
    first, the steady state of 40 pairs per rank feels it."""
    times = ChunkSeconds(
        forward=[1.0] * 4, backward_input=[1.0] * 4, backward_weight=[0.5] * 4,
        pair={(i, 3 - i): 2.0 for i in range(4)},
    )  # fmt: skip
    run = simulate("dualpipe", times, 4, 40, send_s=0.1)
    sent = [s for s in run.messages if s.track == "rank 01"]
    waited = [b for a, b in zip(sent, sent[1:], strict=False) if a.end_s == pytest.approx(b.start_s, abs=1e-12)]
    assert len(waited) > 20
    assert run.step_s > simulate("dualpipe", times, 4, 40, send_s=0.1, queue=False).step_s
