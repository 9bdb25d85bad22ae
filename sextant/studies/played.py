"""One design point of a training pipeline as it is played: on the event engine, as a recurrence, with jitter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import jitter, pipeline, schedule
from sextant.simulator.schedule import Work
from sextant.simulator.trace import Counter
from sextant.simulator.types import Num, Plan, Scenario
from sextant.studies.stages import ChunkTimes, Layouts, Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A pipeline of one design point: its schedule, its chunk times, what a message takes. Plain numbers."""

    schedule: str
    n_ranks: int
    virtual_stages: int
    n_micro_batches: int
    seconds: pipeline.ChunkSeconds
    send_s: float

    def run(self) -> pipeline.PipelineRun:
        """On the event engine."""
        return pipeline.simulate(
            self.schedule, self.seconds, self.n_ranks, self.n_micro_batches, virtual_stages=self.virtual_stages,
            send_s=self.send_s,
        )  # fmt: skip

    def finish(
        self, factors: Sequence[NDArray[np.float64]] = (), group: int = 1, record: bool = False
    ) -> pipeline.Finish:
        """As a recurrence, for all replicas that ``factors`` are of."""
        return pipeline.finish(
            self.schedule, self.seconds, self.n_ranks, self.n_micro_batches, virtual_stages=self.virtual_stages,
            send_s=self.send_s, factors=factors, group=group, record=record,
        )  # fmt: skip

    def programs(self) -> tuple[tuple[Work, ...], ...]:
        """What every rank executes."""
        return schedule.programs(
            self.schedule, self.n_ranks, self.n_micro_batches, self.virtual_stages, self.seconds.ratio()
        )


def point(plan: Plan, chunks: ChunkTimes, micro_batches: Num, send_s: Num, i: int) -> Point:
    """Design point ``i`` of arrays of shape (n_points,), or of numbers."""
    return Point(
        schedule=plan.schedule, n_ranks=int(plan.pipeline), virtual_stages=int(plan.virtual_stages),
        n_micro_batches=round(pick(micro_batches, i)), send_s=pick(send_s, i),
        seconds=pipeline.ChunkSeconds(
            forward=[pick(x, i) for x in chunks.forward],
            backward_input=[pick(x, i) for x in chunks.backward_input],
            backward_weight=[pick(x, i) for x in chunks.backward_weight],
            backward_late=[pick(x, i) for x in chunks.backward_late],
            pair={key: pick(x, i) for key, x in chunks.pair.items()},
            leads={key: (pick(f, i), pick(b, i)) for key, (f, b) in chunks.leads.items()},
        ),
    )  # fmt: skip


def ends_s(plan: Plan, chunks: ChunkTimes, micro_batches: Num, send_s: Num, n_points: int) -> NDArray[np.float64]:
    """When each point's pipeline ends, shape (n_points,), from the recurrence: messages do not queue.

    Points with equally many micro-batches are played at once, except by ZB-V, whose order depends on the chunk times.
    """
    found = np.empty(n_points)
    if plan.schedule == "zbv":
        points = (point(plan, chunks, micro_batches, send_s, i) for i in range(n_points))
        found[:] = [float(each.finish().step_s) for each in points]
        return found
    sizes = np.broadcast_to(np.round(micro_batches), (n_points,))
    for m in np.unique(sizes):
        at = np.flatnonzero(sizes == m)
        seconds = pipeline.ChunkSeconds(
            forward=[_take(x, at) for x in chunks.forward],
            backward_input=[_take(x, at) for x in chunks.backward_input],
            backward_weight=[_take(x, at) for x in chunks.backward_weight],
            backward_late=[_take(x, at) for x in chunks.backward_late],
            pair={key: _take(x, at) for key, x in chunks.pair.items()},
            leads={key: (_take(f, at), _take(b, at)) for key, (f, b) in chunks.leads.items()},
        )
        found[at] = pipeline.finish(
            plan.schedule, seconds, int(plan.pipeline), int(m), virtual_stages=int(plan.virtual_stages),
            send_s=_take(send_s, at),
        ).step_s  # fmt: skip
    return found


def _take(value: Num, at: NDArray[np.intp]) -> Num:
    return value if np.ndim(value) == 0 else np.asarray(value)[at]


def pick(value: Num, i: int) -> float:
    """Element ``i`` of an array of points, or the number that holds for all."""
    array = np.asarray(value)
    return float(array if array.ndim == 0 else array[i])


def jitter_s(scenario: Scenario, stages: Stages | Layouts, points: Sequence[Point]) -> NDArray[np.float64]:
    """Seconds that jitter and stragglers add to each point's pipeline, shape (n_points,).

    The step ends when the last replica ends. How much later that is than without them, both from the recurrence.
    """
    found = np.zeros(len(points))
    for i, each in enumerate(points):
        noise = _jitter(scenario, stages, i)
        if noise.variation or noise.n_stragglers:
            factors = jitter.factors(each.programs(), _n_members(scenario.plan, noise.group, i), noise)
            found[i] = np.max(each.finish(factors, noise.group).step_s) - float(each.finish().step_s)
    return found


def slowest_replica(scenario: Scenario, stages: Stages | Layouts, each: Point) -> pipeline.PipelineRun:
    """What the replica that ends last does, of a scenario of one point with jitter or stragglers."""
    noise = _jitter(scenario, stages, 0)
    factors = jitter.factors(each.programs(), _n_members(scenario.plan, noise.group, 0), noise)
    times = each.finish(factors, noise.group, record=True)
    return pipeline.recorded(
        each.schedule, each.seconds, each.n_ranks, each.n_micro_batches, times, int(np.argmax(times.step_s)),
        virtual_stages=each.virtual_stages,
    )  # fmt: skip


def _jitter(scenario: Scenario, stages: Stages | Layouts, i: int) -> jitter.Jitter:
    """Devices of a stage that exchange tokens are those of an expert group, or of a tensor group if that is larger.

    An expert group exchanges twice per layer of experts, a tensor group twice per layer.
    """
    plan, cluster = scenario.plan, scenario.cluster
    expert, tensor = round(pick(plan.expert, i)), round(pick(plan.tensor * plan.context, i))
    parts = [part for chunk in stages.at(i).chunks for part in chunk]
    exchanging = [part for part in parts if part == "moe_layer" or (tensor > 1 and part.endswith("layer"))]
    return jitter.Jitter(
        variation=pick(cluster.jitter, i), n_stragglers=round(pick(cluster.stragglers, i)),
        slowdown=pick(cluster.straggler_slowdown, i), group=max(expert, tensor),
        n_exchanges=max(1, round(2.0 * len(exchanging) / stages.n_stages)), seed=scenario.seed,
    )  # fmt: skip


def _n_members(plan: Plan, group: int, i: int) -> int:
    """Devices of one stage; a plan whose groups do not divide them is infeasible, and counted with a whole group."""
    n = round(pick(plan.tensor * plan.context * plan.data, i))
    return max(1, -(-n // group)) * group


def counters(
    each: Point, run: pipeline.PipelineRun, stage_bytes: Sequence[float], message_bytes: float
) -> list[Counter]:
    """Activations that every rank holds, and bytes of its messages on their way, as they change along ``run``.

    ``stage_bytes``: activations of one micro-batch on each stage, held from forward to the end of the weight gradient.
    """
    spans = iter(run.spans)
    found: list[Counter] = []
    for rank, program in enumerate(each.programs()):
        steps: list[tuple[float, float]] = []
        for work in program:
            span = next(spans)
            if work.f >= 0:
                steps.append((span.start_s, stage_bytes[work.f_stage]))
            if work.kind in ("BW", "W", "FB"):
                steps.append((span.end_s, -stage_bytes[work.b_stage]))
        found.append(_counter("activations", f"rank {rank:02d}", steps))
    sent: Mapping[str, list[tuple[float, float]]] = {counter.track: [] for counter in found}
    for span in run.messages:
        sent[span.track] += [(span.start_s, message_bytes), (span.end_s, -message_bytes)]
    return found + [_counter("messages in flight", track, steps) for track, steps in sent.items() if steps]


def _counter(name: str, track: str, steps: list[tuple[float, float]]) -> Counter:
    """The running sum of ``steps``, one value per moment."""
    values: dict[float, float] = {0.0: 0.0}
    total = 0.0
    for at, change in sorted(steps, key=lambda step: step[0]):
        total += change
        values[at] = max(total, 0.0)
    return Counter(name=name, track=track, times_s=tuple(values), values=tuple(values.values()), unit="bytes")
