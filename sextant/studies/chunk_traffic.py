"""What moves beside a pipeline's chunks: gradients and weights that ZeRO 2 and 3 shard, activations kept on the host.

Each rides its own stream and starts a chunk ahead, so that a chunk takes no longer than what must move while it runs,
unless its own work does; nothing hides the first to arrive and the last to leave (``ends_s``). Messages share the
network with the exchange of experts and follow it; copies to the host have a link of their own, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.evaluate import seconds_of
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Cluster, Num, Op, Scenario, Step
from sextant.studies.early_sends import early
from sextant.studies.stages import ChunkTimes, Layouts, Stages, chunk_times
from sextant.workloads import residency
from sextant.workloads.ops.optimizer import chunk_messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Seconds per stage of what must move while a chunk runs: gathers, reductions, copies out to the host and back."""

    forward: list[Num]
    backward_input: list[Num]
    backward_weight: list[Num]
    out: list[Num]
    back: list[Num]


def loaded_chunk_times(scenario: Scenario, timed: TimedStep, stages: Stages | Layouts) -> ChunkTimes:
    """``stages.chunk_times`` with what moves beside the chunks; the same where nothing does."""
    kept = residency.activation_bytes(scenario.model, scenario.plan, scenario.load)
    return loaded(scenario, timed, stages, moved(scenario, stages, kept))


def loaded(scenario: Scenario, timed: TimedStep, stages: Stages | Layouts, moves: Moved | None) -> ChunkTimes:
    """``stages.chunk_times`` beside ``moves``."""
    times = early(scenario, timed, stages, chunk_times(scenario, timed, stages))
    return times if moves is None else beside(times, moves)


def moved(scenario: Scenario, stages: Stages | Layouts, kept: Mapping[str, Num]) -> Moved | None:
    """Seconds of the messages and copies of one micro-batch, which keeps so many bytes of each part, for every stage;
    None where nothing moves."""
    if np.all(np.asarray(scenario.plan.zero_stage) < 2) and scenario.plan.placement.get("activations", "hbm") != "host":
        return None
    plan, cluster = scenario.plan, scenario.cluster
    node_size = next(iter(cluster.tiers.values())).n_devices
    held = [stages.counts(i) for i in range(stages.n_stages)]
    # All stages, a row each, are one evaluation: they hold other numbers of the same layers.
    layers = {part: _rows([counts.get(part, 0.0) for counts in held]) for counts in held for part in counts}
    messages = chunk_messages(scenario.model, plan, layers, node_size)
    phases = {phase: _by_row(_seconds(ops, cluster), len(held)) for phase, ops in messages.items()}
    out, back = ([_copy_s(scenario, counts, kept, way) for counts in held] for way in ("d2h", "h2d"))
    return Moved(**phases, out=out, back=back)


def ends_s(moves: Moved | None, stages: Stages | Layouts) -> Num:
    """Seconds of a step in which a rank waits for the weights of its first chunk, and then for the reduction of its
    last gradients, which no chunk hides: of the rank that waits longest."""
    if moves is None:
        return 0.0
    waits = [
        _longest(*(moves.forward[i] for i in held)) + _longest(*(moves.backward_weight[i] for i in held))
        for held in stages.ranks
    ]
    return _longest(*waits)


def beside(times: ChunkTimes, moves: Moved) -> ChunkTimes:
    """``times`` with chunks that last no shorter than what moves beside them; the difference is exposed."""
    own_f, own_b = times.forward_messages, times.backward_messages
    zipped = zip(times.forward, own_f, moves.forward, moves.out, strict=True)
    forward = [_longest(t, own + sent, out) for t, own, sent, out in zipped]
    zipped = zip(times.backward_input, own_b, moves.backward_input, moves.back, strict=True)
    inputs = [_longest(t, own + sent, back) for t, own, sent, back in zipped]
    # A reduction starts with a layer's weight gradient and ends when the network has carried all before it.
    zipped = zip(times.backward_weight, own_b, moves.backward_input, moves.backward_weight, inputs, strict=True)
    weights = [_longest(t, own + sent + summed - before) for t, own, sent, summed, before in zipped]
    pair: dict[tuple[int, int], Num] = {}
    for (f, b), seconds in times.pair.items():
        messages = own_f[f] + own_b[b] + moves.forward[f] + moves.backward_input[b] + moves.backward_weight[b]
        pair[f, b] = _longest(seconds, messages, moves.out[f], moves.back[b])
    waited = [a - b for a, b in zip(forward, times.forward, strict=True)]
    held_back = [
        i + w - a - b
        for i, w, a, b in zip(inputs, weights, times.backward_input, times.backward_weight, strict=True)
    ]  # fmt: skip
    return replace(
        times, forward=forward, backward_input=inputs, backward_weight=weights, pair=pair,
        pair_exposed={key: times.pair_exposed[key] + pair[key] - times.pair[key] for key in pair},
        forward_messages=[m + w for m, w in zip(own_f, waited, strict=True)],
        backward_messages=[m + w for m, w in zip(own_b, held_back, strict=True)],
    )  # fmt: skip


def _rows(values: Sequence[Num]) -> Num:
    """A row per value, with a column per point."""
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(value) for value in values)))


def _seconds(ops: Sequence[Op], cluster: Cluster) -> Num:
    return seconds_of(Step(phase="training", ops=tuple(ops), n_tokens=0.0, layers={}), cluster) if ops else 0.0


def _by_row(seconds: Num, n_rows: int) -> list[Num]:
    """The seconds of every row: one number, or one per point."""
    if np.ndim(seconds) < 2:
        return n_rows * [seconds]
    return [row if len(row) > 1 else row[0] for row in np.asarray(seconds)]


def _copy_s(scenario: Scenario, counts: Mapping[str, Num], kept: Mapping[str, Num], direction: str) -> Num:
    """Seconds in which a chunk's kept activations go to the host, or come back; 0 where they stay."""
    if scenario.plan.placement.get("activations", "hbm") != "host":
        return 0.0
    size = sum((n * kept[part] for part, n in counts.items()), 0.0)
    return estimate(
        operator("host_copy", "activations", "bf16", {"bytes": size}, variant=direction), scenario.cluster
    ).seconds


def _longest(*seconds: Num) -> Num:
    longest = seconds[0]
    for other in seconds[1:]:
        longest = np.maximum(longest, other)
    return longest
