"""One training step: layers on pipeline stages, chunk times, the schedule, the optimizer, memory, money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import cost, paths, pipeline, schedule
from sextant.simulator.evaluate import in_line_s, interval, provenance_shares, seconds_of, time_ops, time_steps
from sextant.simulator.points import Values, distinct_points
from sextant.simulator.result import join, result
from sextant.simulator.spread import behind_s
from sextant.simulator.timed import TimedStep
from sextant.simulator.trace import Counter
from sextant.simulator.types import Flag, Num, Plan, Result, Scenario, Step
from sextant.studies import goodput, played
from sextant.studies.breakdown import breakdown
from sextant.studies.chunk_traffic import ends_s, loaded, loaded_chunk_times, moved
from sextant.studies.limits import plan_limits, schedule_limits
from sextant.studies.memory import RankMemory, StepBytes, memory_use, rank_memories, step_bytes, timelines
from sextant.studies.pace import lasting_s, pace_of
from sextant.studies.played import pick
from sextant.studies.sends import blocked, send_bytes, waited_s
from sextant.studies.stages import ChunkTimes, Layouts, Stages, layout, with_beside
from sextant.workloads import parameters, residency
from sextant.workloads.ops.optimizer import optimizer_step, touched_fraction_of
from sextant.workloads.shard import shard

#: How often a rank executes each instruction: kind, forward stage, backward stage.
Counts = Mapping[tuple[str, int, int], Num]


def evaluate_training(scenario: Scenario, n_points: int) -> Result:
    """Metrics of one optimizer step, each of shape (n_points,). Numeric fields may be arrays, the pipeline may not.

    Points whose schedule does not exist are not evaluated: their metrics are 0, and their limits say why.
    """
    impossible = schedule_limits(scenario)
    bad = np.broadcast_to(np.any(np.broadcast_arrays(*impossible.values()), axis=0), (n_points,))
    if bad.all():
        return result(n_points, {"step_time_s": 0.0}, {**plan_limits(scenario), **impossible})
    if bad.any():
        index = [np.flatnonzero(~bad), np.flatnonzero(bad)]
        return join([evaluate_training(paths.take(scenario, i), len(i)) for i in index], index)
    few, at = _fewer(scenario)
    step = sharded_step(few)
    held = step_bytes(few, step)
    if at is not None:
        step, held = replace(step, layers=paths.take(step.layers, at)), held.take(at)
    return evaluate_timed(scenario, timed_step(scenario, step, at), n_points, held=held)


def _fewer(scenario: Scenario) -> tuple[Scenario, NDArray[np.intp] | None]:
    """The scenario at points that differ in more than what runs its operators, and for each point which of these has
    its operators; itself and None where there are not fewer."""
    tiers = scenario.cluster.tiers
    node_size = next(iter(tiers.values())).n_devices
    points = distinct_points((), (scenario.model, scenario.plan, scenario.load, node_size), Values())
    if points is None:
        return scenario, None
    model, plan, load = (points.of_record(each) for each in (scenario.model, scenario.plan, scenario.load))
    cluster = replace(scenario.cluster, tiers=points.of_record(tiers))
    return replace(scenario, model=model, plan=plan, load=load, cluster=cluster), points.which


def pipeline_run(scenario: Scenario) -> pipeline.PipelineRun:
    """What every rank of the pipeline does and when, of a training scenario of one point, by the event engine."""
    plan, load, timed = scenario.plan, scenario.load, timed_step(scenario)
    stages = layout(scenario, timed, 1)
    chunks = blocked(scenario, loaded_chunk_times(scenario, timed, stages))
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    each = played.point(plan, chunks, micro_batches, waited_s(scenario), 0)
    return played.slowest_replica(scenario, stages, each) if scenario.cluster.varies else each.run()


def pipeline_counters(scenario: Scenario, run: pipeline.PipelineRun) -> list[Counter]:
    """Bytes of activations on every rank and of messages between them during ``run``, which ``pipeline_run`` made."""
    plan, load, timed = scenario.plan, scenario.load, timed_step(scenario)
    stages = layout(scenario, timed, 1)
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    each = played.point(plan, loaded_chunk_times(scenario, timed, stages), micro_batches, waited_s(scenario), 0)
    kept = residency.activation_bytes(scenario.model, plan, load)
    held = [pick(sum((kept[part] for part in chunk), 0.0), 0) for chunk in stages.at(0).chunks]
    return played.counters(each, run, held, pick(send_bytes(scenario), 0))


def memory_by_rank(scenario: Scenario) -> list[RankMemory]:
    """Memory of every rank of a training scenario of one point, by part."""
    timed = timed_step(scenario)
    stages = layout(scenario, timed, 1).at(0)
    return rank_memories(scenario, stages, step_bytes(scenario, sharded_step(scenario)))


def memory_over_time(scenario: Scenario) -> list[list[tuple[float, float, float]]]:
    """Per rank ``(start_s, end_s, bytes)`` of the HBM in use at every instruction of a training scenario, one point."""
    timed = timed_step(scenario)
    stages = layout(scenario, timed, 1).at(0)
    return timelines(scenario, stages, step_bytes(scenario, sharded_step(scenario)), pipeline_run(scenario))


def parts_by_rank(scenario: Scenario, pipeline_s: float) -> list[dict[str, Num]]:
    """What every rank does of a pipeline's ``pipeline_s`` seconds without jitter, a training scenario of one point: the
    columns of a result whose means over the ranks it shows."""
    plan, load, timed = scenario.plan, scenario.load, timed_step(scenario)
    stages = layout(scenario, timed, 1)
    chunks = blocked(scenario, loaded_chunk_times(scenario, timed, stages))
    counts = _counts(plan, stages, load.batch / (plan.data * plan.micro_batch))
    return [_parts(_by_kind(counted, chunks), pipeline_s, 0.0) for counted in counts]


def timed_step(
    scenario: Scenario, step: Step | None = None, at: NDArray[np.intp] | None = None
) -> TimedStep:  # fmt: skip
    """Every operator of a micro-batch with its time; ``step`` has them (``sharded_step``) where they are known, ``at``
    says for each point which of the step's it is where these are fewer.

    It depends on the schedule only by what the plan overlaps.
    """
    step = step or sharded_step(scenario)
    timed = time_ops(step, scenario.cluster, n_comm_sms=scenario.plan.n_comm_sms, at=at)
    return with_beside(scenario, timed, at)


def timed_steps(scenario: Scenario, steps: Sequence[Step]) -> list[TimedStep]:
    """``timed_step`` of plans that differ in what they make again; ``steps`` have their operators."""
    found = time_steps(steps, scenario.cluster, n_comm_sms=scenario.plan.n_comm_sms)
    return [with_beside(scenario, timed) for timed in found]


def sharded_step(scenario: Scenario) -> Step:
    """Every operator of a micro-batch as one device runs it."""
    node_size = next(iter(scenario.cluster.tiers.values())).n_devices
    model, plan = scenario.model, scenario.plan
    return shard(model.step(scenario.load, plan, node_size), model, plan, node_size)


def evaluate_timed(
    scenario: Scenario, timed: TimedStep, n_points: int, *, held: StepBytes, detail: bool = True
) -> Result:
    """``evaluate_training`` of points whose schedule exists and whose operators are timed already.

    ``held`` is what a micro-batch keeps (``memory.step_bytes``); all that depends on ``plan.recompute`` is in it and
    in ``timed``. ``detail`` adds the operators of the first point and the shares of provenance.
    """
    plan, load, layers = scenario.plan, scenario.load, timed.step.layers
    stages = layout(scenario, timed, n_points)
    node_size = next(iter(scenario.cluster.tiers.values())).n_devices
    moves = moved(scenario, stages, held.kept)
    chunks = blocked(scenario, loaded(scenario, timed, stages, moves))
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    counts = _counts(plan, stages, micro_batches)
    work = [_by_kind(counted, chunks) for counted in counts]
    run = _pipeline(scenario, counts, chunks, work, n_points)
    if scenario.cluster.varies:
        points = [played.point(plan, chunks, micro_batches, waited_s(scenario), i) for i in range(n_points)]
        run["jitter_s"] = played.jitter_s(scenario, stages, points)
        run["pipeline_s"] = run["pipeline_s"] + run["jitter_s"]
    late_s = behind_s(
        [sum(each.values(), 0.0) for each in work], lasting_s(scenario, timed), pace_of(scenario).n_devices
    )
    run["pipeline_s"], run["bubble_s"] = run["pipeline_s"] + late_s, run["bubble_s"] + late_s
    run["exposed_comm_s"] = run["exposed_comm_s"] + micro_batches * in_line_s(timed, stages.layers(0))
    optimizer_s = np.max(_optimizer_s(scenario, stages, node_size), axis=0) + ends_s(moves, stages)
    step_s = run["pipeline_s"] + optimizer_s
    low, high = interval(timed, layers)
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    memory, rates = memory_use(scenario, stages, held), _rates(scenario, step_s, used)
    columns = {
        "step_time_s": step_s, "step_time_low_s": step_s * low, "step_time_high_s": step_s * high,
        **{name: value for name, value in run.items() if name != "pipeline_s"},
        "optimizer_s": optimizer_s, **rates, **goodput.columns(scenario, stages, rates),
        "hbm_bytes": memory.hbm.used_bytes, "hbm_free_bytes": memory.hbm.free_bytes,
        **{f"hbm_{p}_bytes": b for p, b in memory.hbm.parts.items()},
        "fullest_rank": memory.rank, **({"host_bytes": memory.host.used_bytes} if memory.host.parts else {}),
    }  # fmt: skip
    reasons: Mapping[str, Flag] = {
        **plan_limits(scenario),
        "hbm: weights, optimizer state and activations do not fit": ~memory.hbm.fits,
        "host: what plan.placement puts there does not fit": ~memory.host.fits,
    }  # fmt: skip
    average = {part: n / plan.pipeline for part, n in layers.items()}
    return result(
        n_points, columns, reasons, provenance=provenance_shares(timed, layers) if detail else {},
        breakdown=breakdown(timed, average, micro_batches, step_s) if detail else {}, warnings=_warnings(scenario),
    )  # fmt: skip


def _pipeline(
    scenario: Scenario, counts: Sequence[Counts], chunks: ChunkTimes, work: Sequence[Mapping[str, Num]], n_points: int
) -> dict[str, Num]:
    """Seconds of the pipeline and of its parts, as its ranks spend them on average; the event engine goes point by
    point."""
    plan, send_s = scenario.plan, waited_s(scenario)
    micro_batches = scenario.load.batch / (plan.data * plan.micro_batch)
    if scenario.engine == "event":
        runs = [_simulated(plan, chunks, micro_batches, send_s, i) for i in range(n_points)]
        return {name: np.array([run[name] for run in runs]) for name in runs[0]}
    if plan.schedule in schedule.VEES or plan.early_sends:
        # The mean over many short stages says too little; ZB-V has no closed form where F, B and W differ. Nor do
        # messages that leave early.
        exposed = _mean([_exposed(counted, chunks) for counted in counts])
        return _parts(_average(work), played.ends_s(plan, chunks, micro_batches, send_s, n_points), exposed)
    return _formulas(plan, counts, chunks, work, send_s)


def _formulas(
    plan: Plan, counts: Sequence[Counts], chunks: ChunkTimes, work: Sequence[Mapping[str, Num]], send_s: Num
) -> dict[str, Num]:
    """The busiest rank's work plus the schedule's bubble at the mean chunk times of all stages.

    Beside the event engine: 0.3% too fast on the published DualPipe step, 1.4% on the same plan with 1F1B, whose steady
    state waits for messages between stages.
    """
    n_ranks, virtual = int(plan.pipeline), int(plan.virtual_stages)
    busiest = np.max(np.stack(np.broadcast_arrays(*(sum(each.values(), 0.0) for each in work))), axis=0)
    forward, inputs, weights = (_mean(x) for x in (chunks.forward, chunks.backward_input, chunks.backward_weight))
    full = virtual * (inputs + weights + _mean(chunks.backward_late))
    pairs = _mean(list(chunks.pair.values())) if chunks.pair else 0.0
    bubble = schedule.bubble_s(plan.schedule, n_ranks, virtual * forward, full, virtual * weights, pairs, virtual)
    # Filling the pipeline passes every boundary once in each direction.
    bubble = bubble + 2.0 * (n_ranks - 1.0) * send_s
    exposed = _mean([_exposed(counted, chunks) for counted in counts])
    return _parts(_average(work), busiest + bubble, exposed)


def _average(work: Sequence[Mapping[str, Num]]) -> dict[str, Num]:
    """Seconds by instruction kind, means over the ranks."""
    names = dict.fromkeys(kind for kinds in work for kind in kinds)
    return {name: _mean([kinds.get(name, 0.0) for kinds in work]) for name in names}


def _counts(plan: Plan, stages: Stages | Layouts, micro_batches: Num) -> list[Counts]:
    """How often every rank executes each instruction."""
    n_ranks, virtual = int(plan.pipeline), int(plan.virtual_stages)
    return [schedule.counts(plan.schedule, rank, n_ranks, micro_batches, virtual) for rank in range(len(stages.ranks))]


def _simulated(plan: Plan, chunks: ChunkTimes, micro_batches: Num, send_s: Num, point: int) -> dict[str, Num]:
    run = played.point(plan, chunks, micro_batches, send_s, point).run()
    n_ranks, virtual = int(plan.pipeline), int(plan.virtual_stages)
    exposed = [
        pick(_exposed(schedule.counts(plan.schedule, rank, n_ranks, micro_batches, virtual), chunks), point)
        for rank in range(n_ranks)
    ]
    average = {kind: float(_mean([busy.get(kind, 0.0) for busy in run.busy_s])) for kind in schedule.KINDS}
    return _parts(average, run.step_s, float(_mean(exposed)))


def _by_kind(counted: Counts, chunks: ChunkTimes) -> dict[str, Num]:
    """Seconds of a rank by instruction kind."""
    seconds: dict[str, Num] = {}
    for (kind, f, b), n in counted.items():
        seconds[kind] = seconds.get(kind, 0.0) + n * chunks.of(kind, f, b)
    return seconds


def _parts(kinds: Mapping[str, Num], pipeline_s: Num, exposed_s: Num) -> dict[str, Num]:
    """The rows of the published table: what is forward alone, backward alone, overlapped, idle.

    Means over the ranks of the pipeline: the bubble is what an average GPU idles. The parts add up to the step."""
    named = {
        "forward_s": kinds.get("F", 0.0), "backward_input_s": kinds.get("B", 0.0) + kinds.get("BW", 0.0),
        "backward_weight_s": kinds.get("W", 0.0), "forward_backward_s": kinds.get("FB", 0.0),
    }  # fmt: skip
    bubble = pipeline_s - sum(named.values(), 0.0)
    return {"pipeline_s": pipeline_s, **named, "bubble_s": bubble, "exposed_comm_s": exposed_s}


def _exposed(counted: Counts, chunks: ChunkTimes) -> Num:
    """Seconds of a rank in which messages run and nothing computes, inside its chunks."""
    total: Num = 0.0
    for (kind, f, b), n in counted.items():
        if kind == "FB":
            total = total + n * chunks.pair_exposed[f, b]
        elif kind == "F":
            total = total + n * chunks.forward_messages[f]
        elif kind in ("B", "BW"):
            total = total + n * chunks.backward_messages[b]
    return total


def _mean(values: Sequence[Num]) -> Num:
    return sum(values, 0.0) / len(values)


def _optimizer_s(scenario: Scenario, stages: Stages | Layouts, node_size: Num) -> Num:
    """Seconds of the optimizer on every distinct rank: a row each, of one column or one per point."""
    plan, model = scenario.plan, scenario.model
    held = [stages.layers(rank) for rank in range(len(stages.ranks))]
    unique = {tuple((part, np.asarray(n).tobytes()) for part, n in sorted(each.items())): each for each in held}
    columns: dict[str, Num] = {}
    for part in dict.fromkeys(part for each in held for part in each):
        rows = np.broadcast_arrays(*(each.get(part, 0.0) for each in unique.values()))
        columns[part] = np.stack([np.atleast_1d(row) for row in rows])
    step = optimizer_step(model, plan, columns, node_size, touched_fraction_of(model, plan, scenario.load))
    return seconds_of(step, scenario.cluster)


def _rates(scenario: Scenario, step_s: Num, used: Num) -> dict[str, Num]:
    """What a step time means: tokens, utilisation, GPU hours, money."""
    model, load, cluster = scenario.model, scenario.load, scenario.cluster
    tokens = load.batch * load.context_tokens
    rate = tokens / step_s
    causal = parameters.training_flops_per_token(model, load.context_tokens)
    full = parameters.training_flops_per_token(model, load.context_tokens, causal=False)
    per_trillion = 1e12 / tokens * step_s
    return {
        "tokens_per_s": rate, "tokens_per_s_per_device": rate / used, "tokens_per_day": rate * cost.SECONDS_PER_DAY,
        "mfu_causal": cost.mfu(causal, rate, used, cluster), "mfu_noncausal": cost.mfu(full, rate, used, cluster),
        "gpu_hours_per_trillion_tokens": cost.gpu_hours(per_trillion, used),
        "usd_per_trillion_tokens": cost.usd(per_trillion, used, cluster),
        "usd_per_million_tokens": cost.usd(per_trillion, used, cluster) / 1e6,
    }  # fmt: skip


def _warnings(scenario: Scenario) -> list[str]:
    notes = ["the interval moves every operator to its own end at once, and says nothing of jitter and stragglers"]
    if scenario.cluster.varies:
        notes.append(f"jitter_s is one draw, of seed {scenario.seed}; chunks vary independently of each other")
    if not scenario.plan.layers_per_stage and scenario.plan.pipeline > 1:
        notes.append("the layers of each stage are not published: balanced over the ranks by predicted time")
    return notes
