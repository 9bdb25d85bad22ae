"""What residual streams (mHC) cost in a training step: every point beside the same plan with one residual.

The plain residual runs the same plan without mHC's recompute, the same layers on each stage: layers balanced anew would
mix what another layout gains into what streams cost. ``time_overhead`` is the step over its step, less one; its
interval moves the kernels of the streams alone to their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator import paths
from sextant.simulator.result import join, result
from sextant.simulator.schedule import stages_of_ranks
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num, Op, Result, Scenario
from sextant.studies import answer as answering
from sextant.studies import played, solve, training
from sextant.studies.chunk_traffic import loaded_chunk_times
from sextant.studies.sends import blocked, send_bytes, waited_s
from sextant.studies.stages import ChunkTimes, Layouts, Stages, layout
from sextant.studies.study import Study
from sextant.workloads.ops import hyperconnection

if TYPE_CHECKING:
    from sextant.studies.report import Answer
    from sextant.studies.scenario import Question

_STREAMS, _RECOMPUTE, _KERNELS = "model.n_streams", "plan.recompute", "plan.hyper_connections"

#: The published group that a point with four fused streams, made again in the backward pass, is beside.
_GROUP = "mhc.training"

#: What the study adds to a step's metrics.
_COLUMNS = (
    "plain_step_time_s", "time_overhead", "time_overhead_low", "time_overhead_high", "streams_s", "remade_s",
    "streams_bytes", "pipeline_bytes", "exposed_pipeline_s",
)  # fmt: skip
#: By how many seconds the kernels of the streams differ at the ends of their intervals.
_ENDS = ("below_s", "above_s")


def answer(asked: Question, progress: Callable[[int], None]) -> Result:
    """Metrics of every point with those of its streams, in the order of the design table."""
    results: list[Result] = []
    order: list[np.ndarray] = []
    done = 0
    # Two streams and more are one structure.
    for part in solve.parts(asked, answering.structural(asked.scenario) - {_STREAMS}):
        results.append(solve.answered(part, evaluate))
        order.append(part.index)
        done += len(part.index)
        progress(done)
    return join(results, order)


def evaluate(scenario: Scenario, n_points: int) -> Result:
    """``answer.evaluate`` of points with any number of streams, and the columns of the study."""
    one = np.broadcast_to(np.asarray(scenario.model.n_streams) <= 1, (n_points,))
    if not one.any() or one.all():
        return _beside_plain(scenario, n_points)
    index = [np.flatnonzero(~one), np.flatnonzero(one)]
    return join([_beside_plain(paths.take(scenario, i), len(i)) for i in index], index)


def plain(scenario: Scenario) -> Scenario:
    """The same scenario with one residual and what recompute is left without streams."""
    kept = tuple(each for each in scenario.plan.recompute if each != "mhc")
    return replace(
        scenario, model=replace(scenario.model, n_streams=1.0),
        plan=replace(scenario.plan, recompute=kept, hyper_connections="fused"),
    )  # fmt: skip


def _beside_plain(scenario: Scenario, n_points: int) -> Result:
    """Points with several streams, or all of them with one."""
    streams = np.ravel(np.asarray(scenario.model.n_streams, dtype=float))
    if streams[0] <= 1:
        scenario = plain(scenario)
    elif np.all(streams == streams[0]):  # one number is no sweep
        scenario = paths.put(scenario, _STREAMS, float(streams[0]))
    found = answering.evaluate(scenario, n_points)
    step = found.columns["step_time_s"]
    if not np.any(step > 0):  # no plan can be made of them
        return replace(found, columns={**found.columns, **dict.fromkeys(_COLUMNS, np.zeros(n_points))})
    if not np.all(step > 0):
        index = [np.flatnonzero(step > 0), np.flatnonzero(step <= 0)]
        return join([_beside_plain(paths.take(scenario, i), len(i)) for i in index], index)
    timed, other = training.timed_step(scenario), np.zeros(n_points)
    for index, laid in _laid(plain(scenario), layout(scenario, timed, n_points), n_points):
        n = len(index) if _swept(laid) else 1
        other[index] = answering.evaluate(paths.take(laid, index), n).columns["step_time_s"]
    own, over = columns(scenario, timed, n_points), step / other - 1.0
    low, high = (over + own.pop(end) / other for end in _ENDS)
    added = {"plain_step_time_s": other, "time_overhead": over, "time_overhead_low": low, "time_overhead_high": high}
    full = result(n_points, {**added, **own}, {})
    return replace(found, columns={**found.columns, **full.columns})


def _laid(scenario: Scenario, stages: Stages | Layouts, n_points: int) -> Iterator[tuple[np.ndarray, Scenario]]:
    """``scenario`` with the layers on the stages that ``stages`` says, for all points that it says the same of."""
    choices = (stages,) if isinstance(stages, Stages) else stages.choices
    which = np.zeros(n_points, dtype=np.intp) if isinstance(stages, Stages) else stages.which
    for i, choice in enumerate(choices):
        held = tuple(float(sum(part.endswith("layer") for part in chunk)) for chunk in choice.chunks)
        yield np.flatnonzero(which == i), replace(scenario, plan=replace(scenario.plan, layers_per_stage=held))


def _swept(scenario: Scenario) -> bool:
    return any(np.ndim(leaf) for leaf in paths.leaves(scenario).values() if isinstance(leaf, np.ndarray))


def columns(scenario: Scenario, timed: TimedStep, n_points: int) -> dict[str, Num]:
    """What streams and messages between stages take of a step on a mean device, per point.

    streams_s, remade_s   seconds of the streams' kernels, and of those that make streams again, norms among them
    below_s, above_s      by how much the former differ at the ends of their intervals
    streams_bytes         HBM bytes of the streams' kernels
    pipeline_bytes        sent to other stages: activations and gradients
    exposed_pipeline_s    the step less that with messages that take no time
    """
    plan = scenario.plan
    passes = scenario.load.batch / (plan.data * plan.micro_batch)
    layers = {part: n / plan.pipeline * passes for part, n in timed.step.layers.items()}
    seconds = _sum(timed, layers, "seconds", is_stream)
    sent = 2.0 * _crossings(scenario) * send_bytes(scenario)
    size: Num = 0.0
    for op in training.sharded_step(scenario).ops:
        if is_stream(op):
            size = size + layers[op.part] * op.count * op.traffic_bytes["hbm"]
    return {
        "streams_s": seconds, "remade_s": _sum(timed, layers, "seconds", lambda op: hyperconnection.is_remade(op.name)),
        "below_s": _sum(timed, layers, "low", is_stream) - seconds,
        "above_s": _sum(timed, layers, "high", is_stream) - seconds,
        "streams_bytes": size, "pipeline_bytes": sent / plan.pipeline * passes,
        "exposed_pipeline_s": exposed_sends_s(scenario, timed, n_points),
    }  # fmt: skip


def exposed_sends_s(scenario: Scenario, timed: TimedStep, n_points: int) -> Num:
    """Seconds that the messages between stages add to the pipeline: it, less one whose messages take no time."""
    plan, alone = scenario.plan, loaded_chunk_times(scenario, timed, layout(scenario, timed, n_points))
    micro_batches = scenario.load.batch / (plan.data * plan.micro_batch)

    def end_s(chunks: ChunkTimes, send_s: Num) -> Num:
        if scenario.engine == "event":
            points = (played.point(plan, chunks, micro_batches, send_s, i) for i in range(n_points))
            return np.array([each.run().step_s for each in points])
        return played.ends_s(plan, chunks, micro_batches, send_s, n_points)

    return end_s(blocked(scenario, alone), waited_s(scenario)) - end_s(alone, 0.0)


def is_stream(op: Op) -> bool:
    """Whether an operator is mHC's; the layer's own norm is not."""
    return "streams_" in op.name and "_norm" not in op.name


def _sum(timed: TimedStep, layers: Mapping[str, Num], end: str, where: Callable[[Op], bool]) -> Num:
    """Seconds of a step on a mean device of the operators that ``where`` accepts."""
    total: Num = 0.0
    for item in timed.ops:
        if where(item.op):
            total = total + layers[item.op.part] * item.op.count * getattr(item.time, end)
    return total


def _crossings(scenario: Scenario) -> float:
    """Boundaries between stages of different ranks that a micro-batch passes."""
    plan = scenario.plan
    ranks = stages_of_ranks(plan.schedule, int(plan.pipeline), int(plan.virtual_stages))
    owner: dict[int, int] = {}
    for rank, stages in enumerate(ranks):
        for stage in stages:
            owner.setdefault(stage, rank)
    if plan.schedule == "dualpipe":  # both ends hold a whole copy; a micro-batch stays in one of them
        return len(ranks) - 1.0
    return float(sum(owner[i] != owner[i + 1] for i in range(len(owner) - 1)))


def judged(found: Answer) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The overhead of the first point with four fused streams that are made again."""
    swept, scenario = found.axis_values(), found.question.scenario
    for i in range(found.n_points):
        n, kernels, recompute = (
            swept[path][i] if path in swept else paths.get(scenario, path) for path in (_STREAMS, _KERNELS, _RECOMPUTE)
        )
        if n == 4 and kernels == "fused" and "mhc" in recompute:
            ends = ("time_overhead", "time_overhead_low", "time_overhead_high")
            value, low, high = (float(found.result.columns[name][i]) for name in ends)
            return {_GROUP: {"time_overhead": (value, low, high)}}
    return {}


def figures(found: Answer) -> dict[str, Any]:
    """Overhead over the number of streams: a plot per machine, a line per way to run them."""
    from sextant.studies.hyperconnections_figure import overhead

    return {"overhead": overhead(found)}


STUDY = Study(
    about="what residual streams cost in a training step, beside the plain residual", answer=answer,
    columns=(
        "step_time_s", "time_overhead", "streams_s", "remade_s", "streams_bytes", "pipeline_bytes",
        "exposed_pipeline_s", "hbm_bytes",
    ),
    figures=figures, judged=judged,
    fitted="kernel efficiencies, to H100 and H200 kernels, fused gradients of streams among them",
)  # fmt: skip
