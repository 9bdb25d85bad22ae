"""The slowest of many: order statistics, and what chunks wait for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sextant import hwmodels
from sextant.simulator.chunk import LayerTimes, pair_tasks
from sextant.simulator.overlap import Task, makespan_s
from sextant.simulator.spread import Pace, Varying, behind_s, paced, slowest
from sextant.studies.pace import Waits


@pytest.mark.parametrize(("n", "within"), [(2, 0.05), (8, 0.02), (64, 0.02), (2048, 0.02)])
def test_the_expected_largest_of_n_normal_variables(n: int, within: float) -> None:
    drawn = np.random.default_rng(n).standard_normal((20_000_000 // (n * 16), n)).max(axis=1)
    assert float(slowest(float(n))) == pytest.approx(drawn.mean(), rel=within)


def test_one_device_waits_for_nobody() -> None:
    assert float(slowest(1.0)) == 0.0
    pace = Pace(n_devices=1.0, n_exchanging=1.0, clock_spread=0.05, routing_spread=0.2)
    assert float(pace.waits_s([(1.0, Varying(clock_s=1.0, experts_s=1.0))])) == 0.0
    alike = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.0, routing_spread=0.0)
    assert float(alike.waits_s([(1.0, Varying(clock_s=1.0, experts_s=1.0))])) == 0.0


def test_clocks_add_and_tokens_add_in_squares() -> None:
    """A slow chip is slow in every layer; a crowded one is crowded in some."""
    layers = [(4.0, Varying(clock_s=1.0, experts_s=1.0))]
    clocks = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.01, routing_spread=0.0)
    tokens = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.0, routing_spread=0.01)
    both = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.01, routing_spread=0.01)
    assert float(clocks.waits_s(layers)) == pytest.approx(0.01 * 4.0 * slowest(64.0))
    assert float(tokens.waits_s(layers)) == pytest.approx(0.01 * 2.0 * slowest(64.0))
    assert float(both.waits_s(layers)) == pytest.approx(0.01 * np.sqrt(20.0) * slowest(64.0))


def test_a_simulated_group_waits_as_long() -> None:
    """64 devices of unequal clocks and tokens over eight layers: the mean over many draws of the slowest's delay."""
    rng = np.random.default_rng(7)
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.015, routing_spread=0.08)
    layers = [(8.0, Varying(clock_s=20e-3, experts_s=8e-3))]
    clock = 1.0 + 0.015 * rng.standard_normal((4000, 64, 1))
    tokens = 1.0 + 0.08 * rng.standard_normal((4000, 64, 8))
    seconds = (20e-3 * clock + 8e-3 * tokens).sum(axis=2)
    waits = seconds.max(axis=1).mean() - seconds.mean()
    assert float(pace.waits_s(layers)) == pytest.approx(waits, rel=0.03)


@pytest.mark.parametrize(("n_devices", "n_exchanging"), [(128, 64), (64, 8), (2048, 8), (512, 512)])
@pytest.mark.parametrize("routing", [0.3, 1.0, 3.0])
def test_devices_that_exchange_nothing_draw_alike_over_many_passes(
    n_devices: int, n_exchanging: int, routing: float
) -> None:
    """The slowest group's mean over 200 passes, against that of a mean device."""
    rng = np.random.default_rng(5)
    slowest_s = []
    for _ in range(20):
        clock = rng.standard_normal((n_devices // n_exchanging, n_exchanging, 1))
        tokens = routing * rng.standard_normal((n_devices // n_exchanging, n_exchanging, 200))
        slowest_s.append((clock + tokens).max(axis=1).mean(axis=1).max())
    pace = Pace(n_devices=n_devices, n_exchanging=n_exchanging, clock_spread=1.0, routing_spread=routing)
    assert float(pace.waits_s([(1.0, Varying(clock_s=1.0, experts_s=1.0))])) == pytest.approx(
        np.mean(slowest_s), rel=0.07
    )


#: Milliseconds of a layer: large products and half as many messages, as in a pair of DeepSeek-V3.
_LAYER = LayerTimes(
    attention=4.4, dispatch=2.7, mlp=4.3, combine=5.0, end=0.0, attention_b=9.8, dispatch_b=5.0, mlp_b=5.1,
    combine_b=2.7, end_b=0.0, attention_w=2.3, mlp_w=5.0, end_w=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("clock", "routing", "within"), [(0.015, 0.0, 0.03), (0.0, 0.08, 0.05), (0.015, 0.08, 0.05), (0.0, 0.2, 0.15)]
)
def test_a_pair_played_device_by_device_waits_as_long(clock: float, routing: float, within: float) -> None:
    """Every exchange begins when the last of 64 devices has come to it; a device that waits goes on with the other
    chunk. The formula lets devices meet at the end alone: 13% too little where routing is so uneven that nothing is
    left to go on with."""
    chunk, layers = ("layer",) * 4, {"layer": _LAYER}
    tasks = pair_tasks(chunk, chunk, layers)
    waits = _played(tasks, clock, routing) - float(makespan_s(tasks))
    forward = Varying(clock_s=_LAYER.attention + _LAYER.mlp, experts_s=_LAYER.mlp)
    both = _LAYER.mlp_b + _LAYER.mlp_w
    backward = Varying(clock_s=_LAYER.attention_b + _LAYER.attention_w + both, experts_s=both)
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=clock, routing_spread=routing)
    assert float(pace.waits_s([(4.0, forward), (4.0, backward)])) == pytest.approx(waits, rel=within)


@pytest.mark.parametrize(("clock", "routing"), [(0.015, 0.0), (0.0, 0.08), (0.015, 0.08)])
def test_a_chunk_alone_waits_in_every_exchange(clock: float, routing: float) -> None:
    names = ("attention", "dispatch", "mlp", "combine")
    tasks: list[Task] = []
    for i in range(4):
        for name in names:
            stream = "compute" if name in ("attention", "mlp") else "communication"
            after = (tasks[-1].name,) if tasks else ()
            tasks.append(Task(name=f"{name}_f{i}", stream=stream, seconds=getattr(_LAYER, name), after=after))
    waits = _played(tasks, clock, routing) - float(makespan_s(tasks))
    pieces = [Varying(clock_s=_LAYER.attention), Varying(clock_s=_LAYER.mlp, experts_s=_LAYER.mlp)] * 4
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=clock, routing_spread=routing)
    assert sum(float(pace.waits_s([(1.0, piece)])) for piece in pieces) == pytest.approx(waits, rel=0.03)


def test_both_gradients_in_one_chunk_wait_together() -> None:
    """A layer's weight gradients stand between the exchanges of its input gradients, and are of the same tokens."""
    tasks: list[Task] = []
    for i in range(4):
        for name in ("combine_b", "mlp_b", "mlp_w", "dispatch_b", "attention_b", "attention_w"):
            stream = "communication" if name in ("combine_b", "dispatch_b") else "compute"
            after = (tasks[-1].name,) if tasks else ()
            tasks.append(Task(name=f"{name}{i}", stream=stream, seconds=getattr(_LAYER, name), after=after))
    waits = _played(tasks, 0.015, 0.08) - float(makespan_s(tasks))
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.015, routing_spread=0.08)
    varying = {}
    for phase, end in (("backward_input", "b"), ("backward_weight", "w")):
        mlp, attention = getattr(_LAYER, f"mlp_{end}"), getattr(_LAYER, f"attention_{end}")
        varying["layer", "mlp", phase] = Varying(clock_s=mlp, experts_s=mlp)
        varying["layer", "attention", phase] = Varying(clock_s=attention)
    found, counts = Waits(pace, varying), {"layer": 4.0}
    apart = found.alone_s(counts, "backward_input") + found.alone_s(counts, "backward_weight")
    assert float(apart + found.late_s(counts)) == pytest.approx(waits, rel=0.03)
    assert float(apart) < 0.85 * waits


def _played(tasks: list[Task], clock: float, routing: float) -> float:
    """Mean end of ``tasks`` over 300 groups of 64 devices: clocks stay for all of them, tokens are drawn for every
    layer and pass, the same for both gradients."""
    rng = np.random.default_rng(13)
    shape = (300, 64)
    clocks, tokens = 1.0 + clock * rng.standard_normal(shape), {}
    done, free = {}, {}
    for task in tasks:
        start = np.zeros(shape)
        for ready in (free.get(task.stream, 0.0), *(done[name] for name in task.after)):
            start = np.maximum(start, ready)
        if task.stream == "communication":
            start, seconds = np.broadcast_to(start.max(axis=1, keepdims=True), shape), task.seconds
        else:
            kind, layer = task.name[:-1], task.name[-1]
            seconds = task.seconds * clocks
            if kind.startswith("mlp"):
                key = (kind[-1] == "f", layer)
                if key not in tokens:
                    tokens[key] = routing * rng.standard_normal(shape)
                seconds = seconds + task.seconds * tokens[key]
        done[task.name] = free[task.stream] = start + seconds
    return float(np.maximum.reduce(list(done.values())).max(axis=1).mean())


def test_the_pace_of_a_group_is_a_lower_clock() -> None:
    device = hwmodels.device("h800")
    slower = paced(device, 64.0)
    assert slower.clock_under_load == pytest.approx(device.clock_under_load / (1 + device.clock_spread * slowest(64.0)))
    assert paced(device, 1.0).clock_under_load == device.clock_under_load
    even = replace(device, clock_spread=0.0)
    assert paced(even, 64.0) is even


@pytest.mark.parametrize(("routing", "within"), [(0.0, 0.03), (0.05, 0.2), (0.08, 0.2)])
def test_simulated_groups_that_work_for_one_another_wait_as_long(routing: float, within: float) -> None:
    """16 groups of 64 chips whose clocks stay for 300 passes, tokens drawn anew in each: how far the slowest group is
    behind the mean one. With uneven routing the formula is up to a fifth above it."""
    rng = np.random.default_rng(11)
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.015, routing_spread=routing)
    behind = []
    for _ in range(30):
        clock = 8 * 20e-3 * (1.0 + 0.015 * rng.standard_normal((16, 64, 1)))
        tokens = np.sqrt(8) * 8e-3 * routing * rng.standard_normal((16, 64, 300))
        groups = (clock + tokens).max(axis=1).mean(axis=1)
        behind.append(groups.max() - groups.mean())
    lasting = pace.lasting_s([(8.0, Varying(clock_s=20e-3, experts_s=8e-3))])
    assert float(behind_s([1.0] * 16, lasting, 64.0)) == pytest.approx(np.mean(behind), rel=within)


def test_shorter_groups_hide_their_slow_chips() -> None:
    """Against draws of unequal groups: two long ones and six that are shorter by a few deviations, or by many."""
    rng = np.random.default_rng(3)
    for slack in (0.5, 1.5, 30.0):
        seconds = np.array([5.0, 5.0, *[5.0 - slack] * 6])
        drawn = rng.standard_normal((20_000, 8, 64)).max(axis=2)
        expected = (seconds + drawn).max(axis=1).mean() - 5.0 - drawn.mean()
        assert float(behind_s(list(seconds), 1.0, 64.0)) == pytest.approx(expected, rel=0.03)


def test_one_group_is_behind_nobody() -> None:
    layers = [(1.0, Varying(clock_s=1.0, experts_s=1.0))]
    pace = Pace(n_devices=64.0, n_exchanging=64.0, clock_spread=0.05, routing_spread=0.2)
    assert float(behind_s([3.0], pace.lasting_s(layers), 64.0)) == 0.0
    for even in (replace(pace, clock_spread=0.0), replace(pace, clock_spread=0.0, routing_spread=0.0)):
        assert float(behind_s([3.0] * 8, even.lasting_s(layers), 64.0)) == 0.0


def test_points_are_independent() -> None:
    """Arrays of points answer as each point alone."""
    groups, lasting, n = [np.array([1.0, 2.0]), 2.0], np.array([0.1, 0.3]), np.array([8.0, 512.0])
    whole = behind_s(groups, lasting, n)
    for i in range(2):
        alone = behind_s([groups[0][i], 2.0], lasting[i], n[i])
        assert float(np.asarray(whole)[i]) == pytest.approx(float(alone), rel=1e-12)
