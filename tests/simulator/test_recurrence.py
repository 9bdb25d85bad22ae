"""The recurrence and the event engine are two ways to the same times."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sextant.simulator import recurrence, schedule
from sextant.simulator.jitter import Jitter, factors
from sextant.simulator.pipeline import ChunkSeconds, finish, recorded, simulate
from tests.simulator.test_pipeline import CASES, uneven

N_RANKS, M = 4, 8


@pytest.mark.parametrize(("name", "v"), CASES)
@settings(max_examples=8)
@given(st.data())
def test_the_event_engine_and_the_recurrence_agree(name, v, data):
    """Uneven stages, messages that do not queue: every start and every end, to 1e-9."""
    times = data.draw(uneven(schedule.n_stages(name, N_RANKS, v)))
    send = data.draw(st.floats(0.0, 0.5))
    run = simulate(name, times, N_RANKS, M, virtual_stages=v, send_s=send, queue=False)
    found = finish(name, times, N_RANKS, M, virtual_stages=v, send_s=send, record=True)
    assert found.step_s == pytest.approx(run.step_s, rel=1e-9, abs=1e-9)
    assert found.idle_s == pytest.approx(run.idle_s, rel=1e-9, abs=1e-9)
    assert sum(found.starts_s, ()) == pytest.approx([s.start_s for s in run.spans], rel=1e-9, abs=1e-9)
    told = recorded(name, times, N_RANKS, M, found, virtual_stages=v)
    assert [(s.name, s.track, s.kind) for s in told.spans] == [(s.name, s.track, s.kind) for s in run.spans]
    queued = simulate(name, times, N_RANKS, M, virtual_stages=v, send_s=send)
    assert queued.step_s >= found.step_s * (1 - 1e-9) - 1e-9


def with_leads(times, share, n_stages):
    """Messages leave before the end of their instruction by a share of it, gradients by twice as much."""
    alone = {("BW", -1, b): times.backward_input[b] + times.backward_weight[b] for b in range(n_stages)}
    pairs = {("FB", *key): seconds for key, seconds in times.pair.items()}
    leads = {key: (share * s, 2 * share * s) for key, s in {**alone, **pairs}.items()}
    return replace(times, leads=leads)


@pytest.mark.parametrize(("name", "v"), CASES)
@settings(max_examples=8)
@given(st.data())
def test_both_engines_let_messages_leave_early(name, v, data):
    """The same ends on both; never later than messages that wait for the end, never earlier than free ones."""
    n_stages = schedule.n_stages(name, N_RANKS, v)
    times = data.draw(uneven(n_stages))
    send, share = data.draw(st.floats(0.0, 0.5)), data.draw(st.floats(0.0, 0.6))
    early = with_leads(times, share, n_stages)
    found = finish(name, early, N_RANKS, M, virtual_stages=v, send_s=send, record=True)
    run = simulate(name, early, N_RANKS, M, virtual_stages=v, send_s=send, queue=False)
    assert sum(found.starts_s, ()) == pytest.approx([s.start_s for s in run.spans], rel=1e-9, abs=1e-9)
    assert found.step_s <= finish(name, times, N_RANKS, M, virtual_stages=v, send_s=send).step_s + 1e-9
    assert found.step_s >= finish(name, early, N_RANKS, M, virtual_stages=v).step_s - 1e-9
    queued = simulate(name, early, N_RANKS, M, virtual_stages=v, send_s=send)
    assert queued.step_s >= found.step_s * (1 - 1e-9) - 1e-9


def test_a_message_that_leaves_early_enough_hides():
    """DualPipe's steady state waits for most messages that leave at the end, for none that has come by then."""
    n = 4
    equal = ChunkSeconds(
        forward=[1.0] * n, backward_input=[1.0] * n, backward_weight=[1.0] * n,
        pair={(f, b): 3.0 for f in range(n) for b in range(n)},
    )  # fmt: skip
    leads = {("FB", f, b): (0.5, 0.5) for f in range(n) for b in range(n)}

    def per_pair(times):
        ends = [finish("dualpipe", times, n, m, send_s=0.5).step_s for m in (20, 40)]
        return (ends[1] - ends[0]) / 20

    assert 3.25 < per_pair(equal) <= 3.5
    assert per_pair(replace(equal, leads=leads)) == pytest.approx(3.0)


@pytest.mark.parametrize(("name", "v"), [case for case in CASES if case[0] != "zbv"])
def test_points_at_once_are_points_one_by_one(name, v):
    """Arrays of chunk times give what each point gives, to the last bit."""
    random, n, n_stages = np.random.default_rng(3), 5, schedule.n_stages(name, N_RANKS, v)
    rows = random.uniform(0.5, 1.5, (3, n_stages, n))
    pair = {(i, j): random.uniform(2.0, 3.0, n) for i in range(n_stages) for j in range(n_stages)}

    def times(at):
        f, b, w = ([row[at] for row in rows[k]] for k in range(3))
        return ChunkSeconds(
            forward=f, backward_input=b, backward_weight=w, pair={key: x[at] for key, x in pair.items()}
        )

    together = finish(name, times(slice(None)), N_RANKS, M, virtual_stages=v, send_s=np.full(n, 0.1))
    for i in range(n):
        alone = finish(name, times(i), N_RANKS, M, virtual_stages=v, send_s=0.1)
        assert np.asarray(together.step_s)[i] == alone.step_s
        assert [np.asarray(idle)[i] for idle in together.idle_s] == list(alone.idle_s)


@pytest.mark.parametrize(("name", "v"), CASES)
def test_replicas_at_once_are_replicas_one_by_one(name, v):
    """With jitter and a straggler: the event engine, given a replica's factors, ends when the recurrence says."""
    n_stages = schedule.n_stages(name, N_RANKS, v)
    times = ChunkSeconds(
        forward=[1.0] * n_stages, backward_input=[1.2] * n_stages, backward_weight=[0.7] * n_stages,
        pair={(i, j): 2.5 for i in range(n_stages) for j in range(n_stages)},
    )  # fmt: skip
    programs = schedule.programs(name, N_RANKS, M, v, times.ratio())
    noise = factors(programs, 6, Jitter(variation=0.2, n_stragglers=3, slowdown=1.5, seed=7))
    found = finish(name, times, N_RANKS, M, virtual_stages=v, send_s=0.1, factors=noise)
    runs = [
        simulate(
            name, times, N_RANKS, M, virtual_stages=v, send_s=0.1, queue=False, factors=[rank[:, i] for rank in noise]
        ).step_s
        for i in range(6)
    ]
    assert found.step_s == pytest.approx(runs, rel=1e-9)
    assert len(set(runs)) == 6


def test_lists_that_wait_for_each_other_name_rank_and_instruction(monkeypatch):
    """As on the event engine, it is an error of ours."""
    work = schedule.Work
    wrong = (work("F", f=0, f_stage=0), work("BW", b=0, b_stage=0)), (work("BW", b=0, b_stage=1), work("F", 0, 1))
    monkeypatch.setattr("sextant.simulator.schedule.programs", lambda *_: wrong)
    times = ChunkSeconds(forward=[1.0] * 2, backward_input=[1.0] * 2, backward_weight=[1.0] * 2, pair={})
    recurrence._order.cache_clear()
    with pytest.raises(AssertionError, match=r"rank 0 waits for ever before Work\(kind='BW'"):
        finish("gpipe", times, 2, 1)
    recurrence._order.cache_clear()


def barriers(name, times, noise, group):
    """Ends of all replicas on an event engine with a barrier before every chunk that exchanges tokens."""
    import simpy

    env = simpy.Environment()
    programs = schedule.programs(name, N_RANKS, M)
    n_stages, n_replicas = schedule.n_stages(name, N_RANKS), noise[0].shape[1]
    done = {
        (key, i): env.event() for p in programs for w in p for key in w.outputs for i in range(n_replicas)
    }  # fmt: skip
    came, gates, ends = {}, {}, {}

    def run(rank, i):
        for k, work in enumerate(programs[rank]):
            for key in work.inputs(n_stages):
                yield done[key, i]
            if work.kind != "W":
                gate = rank, k, i // group
                came[gate] = came.get(gate, 0) + 1
                event = gates.setdefault(gate, env.event())
                if came[gate] == group:
                    event.succeed()
                yield event
            yield env.timeout(times.of(work) * noise[rank][k, i])
            for key in work.outputs:
                done[key, i].succeed()
        ends[rank, i] = env.now

    for rank in range(N_RANKS):
        for i in range(n_replicas):
            env.process(run(rank, i))
    env.run()
    return [max(ends[rank, i] for rank in range(N_RANKS)) for i in range(n_replicas)]


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "dualpipe"])
def test_groups_start_together_as_with_barriers(name):
    """Coupled replicas: the same ends as processes that meet at a barrier before each chunk but weight gradients."""
    times = ChunkSeconds(
        forward=[1.0] * 4, backward_input=[1.2] * 4, backward_weight=[0.7] * 4,
        pair={(i, 3 - i): 2.5 for i in range(4)},
    )  # fmt: skip
    programs = schedule.programs(name, N_RANKS, M)
    noise = factors(programs, 6, Jitter(variation=0.2, group=3, n_exchanges=2, seed=1))
    found = finish(name, times, N_RANKS, M, factors=noise, group=3)
    assert found.step_s == pytest.approx(barriers(name, times, noise, 3), rel=1e-9)
    assert np.all(found.step_s >= finish(name, times, N_RANKS, M, factors=noise).step_s)
