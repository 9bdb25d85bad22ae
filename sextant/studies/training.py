"""One training step: layers on pipeline stages, chunk times, the schedule, the optimizer, memory, money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sextant.simulator import cost, paths, pipeline, schedule
from sextant.simulator.capacity import Capacity, capacity
from sextant.simulator.evaluate import TimedStep, in_line_s, interval, provenance_shares, time_ops
from sextant.simulator.result import join, result
from sextant.simulator.types import Flag, Num, Plan, Result, Scenario
from sextant.studies.breakdown import breakdown
from sextant.studies.limits import plan_limits
from sextant.studies.sends import blocked, waited_s
from sextant.studies.stages import ChunkTimes, Stages, chunk_times, layouts
from sextant.workloads import parameters, residency
from sextant.workloads.ops.optimizer import optimizer_step
from sextant.workloads.shard import shard


def evaluate_training(scenario: Scenario, n_points: int) -> Result:
    """Metrics of one optimizer step, each of shape (n_points,). Numeric fields may be arrays, the pipeline may not.

    Points whose layers are best laid out in different ways are evaluated apart; those whose schedule does not exist
    are not evaluated: their metrics are 0, and their limits say why.
    """
    impossible = _schedule_limits(scenario)
    bad = np.broadcast_to(np.any(np.broadcast_arrays(*impossible.values()), axis=0), (n_points,))
    if bad.all():
        return result(n_points, {"step_time_s": 0.0}, {**plan_limits(scenario), **impossible})
    if bad.any():
        index = [np.flatnonzero(~bad), np.flatnonzero(bad)]
        return join([evaluate_training(paths.take(scenario, i), len(i)) for i in index], index)
    timed = _timed(scenario)
    found = list(layouts(scenario, timed, n_points))
    if len(found) == 1:
        return _evaluate(scenario, timed, found[0][1], n_points)
    parts = [(index, paths.take(scenario, index), stages) for index, stages in found]
    results = [_evaluate(part, paths.take(timed, index), stages, len(index)) for index, part, stages in parts]
    return join(results, [index for index, _, _ in parts])


def pipeline_run(scenario: Scenario) -> pipeline.PipelineRun:
    """What every rank of the pipeline does and when, of a training scenario of one point, by the event engine."""
    plan, load, timed = scenario.plan, scenario.load, _timed(scenario)
    ((_, stages),) = layouts(scenario, timed, 1)
    chunks = blocked(scenario, chunk_times(scenario, timed, stages))
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    return _run(plan, chunks, _pick(micro_batches, 0), _pick(waited_s(scenario), 0), 0)


def _timed(scenario: Scenario) -> TimedStep:
    node_size = next(iter(scenario.cluster.tiers.values())).n_devices
    step = shard(scenario.model.step(scenario.load, scenario.plan), scenario.model, scenario.plan, node_size)
    return time_ops(step, scenario.cluster, n_comm_sms=scenario.plan.n_comm_sms)


def _evaluate(scenario: Scenario, timed: TimedStep, stages: Stages, n_points: int) -> Result:
    plan, load, layers = scenario.plan, scenario.load, timed.step.layers
    node_size = next(iter(scenario.cluster.tiers.values())).n_devices
    chunks = blocked(scenario, chunk_times(scenario, timed, stages))
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    run = _pipeline(scenario, stages, chunks, micro_batches, n_points)
    run["exposed_comm_s"] = run["exposed_comm_s"] + micro_batches * in_line_s(timed, stages.layers(0))
    optimizer = _optimizer(scenario, stages, node_size)
    optimizer_s: Num = np.max(np.stack(np.broadcast_arrays(*(t.seconds() for t in optimizer))), axis=0)
    step_s = run["pipeline_s"] + optimizer_s
    low, high = interval(timed, layers)
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    memory = memory_use(scenario, stages)
    columns = {
        "step_time_s": step_s, "step_time_low_s": step_s * low, "step_time_high_s": step_s * high,
        **{name: value for name, value in run.items() if name != "pipeline_s"},
        "optimizer_s": optimizer_s, **_rates(scenario, step_s, used), "hbm_bytes": memory.used_bytes,
        "hbm_free_bytes": memory.free_bytes, **{f"hbm_{p}_bytes": b for p, b in memory.parts.items()},
    }  # fmt: skip
    reasons: Mapping[str, Flag] = {
        **plan_limits(scenario),
        "hbm: weights, optimizer state and activations do not fit": ~memory.fits,
    }  # fmt: skip
    average = {part: n / plan.pipeline for part, n in layers.items()}
    return result(
        n_points, columns, reasons, provenance=provenance_shares(timed, layers),
        breakdown=breakdown(timed, average, micro_batches, step_s), warnings=_warnings(scenario),
    )  # fmt: skip


def _pipeline(
    scenario: Scenario, stages: Stages, chunks: ChunkTimes, micro_batches: Num, n_points: int
) -> dict[str, Num]:
    """Seconds of the pipeline and of its parts as rank 0 spends them; the event engine goes point by point."""
    plan = scenario.plan
    send_s = waited_s(scenario)
    if scenario.engine == "event":
        runs = [_simulated(plan, chunks, _pick(micro_batches, i), _pick(send_s, i), i) for i in range(n_points)]
        return {name: np.array([run[name] for run in runs]) for name in runs[0]}
    return _formulas(plan, chunks, stages, micro_batches, send_s)


def _formulas(plan: Plan, chunks: ChunkTimes, stages: Stages, micro_batches: Num, send_s: Num) -> dict[str, Num]:
    """The busiest rank's work plus the schedule's bubble at the mean chunk times of all stages.

    Beside the event engine: 0.3% too fast on the published DualPipe step, 1.4% on the same plan with 1F1B, whose steady
    state waits for messages between stages.
    """
    n_ranks, virtual = int(plan.pipeline), int(plan.virtual_stages)
    ranks = [schedule.counts(plan.schedule, rank, n_ranks, micro_batches, virtual) for rank in range(len(stages.ranks))]
    parts = [_by_kind(counted, chunks) for counted in ranks]
    work = [sum(kinds.values(), 0.0) for kinds in parts]
    busiest = np.max(np.stack(np.broadcast_arrays(*work)), axis=0)
    forward, inputs, weights = (_mean(x) for x in (chunks.forward, chunks.backward_input, chunks.backward_weight))
    full = virtual * (inputs + weights)
    pairs = _mean(list(chunks.pair.values())) if chunks.pair else 0.0
    bubble = schedule.bubble_s(plan.schedule, n_ranks, virtual * forward, full, virtual * weights, pairs, virtual)
    # Filling the pipeline passes every boundary once in each direction.
    bubble = bubble + 2.0 * (n_ranks - 1.0) * send_s
    exposed = _exposed(ranks[0], chunks)
    return _parts(parts[0], busiest + bubble, exposed)


def _simulated(plan: Plan, chunks: ChunkTimes, micro_batches: Num, send_s: Num, point: int) -> dict[str, Num]:
    run = _run(plan, chunks, micro_batches, send_s, point)
    counted = schedule.counts(plan.schedule, 0, int(plan.pipeline), micro_batches, int(plan.virtual_stages))
    return _parts(dict(run.busy_s[0]), run.step_s, _pick(_exposed(counted, chunks), point))


def _run(plan: Plan, chunks: ChunkTimes, micro_batches: Num, send_s: Num, point: int) -> pipeline.PipelineRun:
    n_ranks, virtual = int(plan.pipeline), int(plan.virtual_stages)
    seconds = pipeline.ChunkSeconds(
        forward=[_pick(x, point) for x in chunks.forward],
        backward_input=[_pick(x, point) for x in chunks.backward_input],
        backward_weight=[_pick(x, point) for x in chunks.backward_weight],
        pair={key: _pick(x, point) for key, x in chunks.pair.items()},
    )
    return pipeline.simulate(
        plan.schedule, seconds, n_ranks, round(float(micro_batches)), virtual_stages=virtual, send_s=float(send_s)
    )


def _by_kind(counted: Mapping[tuple[str, int, int], Num], chunks: ChunkTimes) -> dict[str, Num]:
    """Seconds of a rank by instruction kind."""
    seconds: dict[str, Num] = {}
    for (kind, f, b), n in counted.items():
        seconds[kind] = seconds.get(kind, 0.0) + n * chunks.of(kind, f, b)
    return seconds


def _parts(kinds: Mapping[str, Num], pipeline_s: Num, exposed_s: Num) -> dict[str, Num]:
    """The rows of the published table for rank 0: what is forward alone, backward alone, overlapped, idle."""
    named = {
        "forward_s": kinds.get("F", 0.0), "backward_input_s": kinds.get("B", 0.0) + kinds.get("BW", 0.0),
        "backward_weight_s": kinds.get("W", 0.0), "forward_backward_s": kinds.get("FB", 0.0),
    }  # fmt: skip
    bubble = pipeline_s - sum(named.values(), 0.0)
    return {"pipeline_s": pipeline_s, **named, "bubble_s": bubble, "exposed_comm_s": exposed_s}


def _exposed(counted: Mapping[tuple[str, int, int], Num], chunks: ChunkTimes) -> Num:
    """Seconds of rank 0 in which messages run and nothing computes, inside its chunks."""
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


def _pick(value: Num, point: int) -> float:
    array = np.asarray(value)
    return float(array if array.ndim == 0 else array[point])


def _optimizer(scenario: Scenario, stages: Stages, node_size: Num) -> list[TimedStep]:
    """The optimizer of every distinct rank."""
    plan, model = scenario.plan, scenario.model
    layers = [stages.layers(rank) for rank in range(len(stages.ranks))]
    unique = {tuple(sorted(each.items())): each for each in layers}
    return [time_ops(optimizer_step(model, plan, each, node_size), scenario.cluster) for each in unique.values()]


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


def memory_use(scenario: Scenario, stages: Stages) -> Capacity:
    """HBM of the fullest rank: state of its layers, and the activations of the micro-batches it has in flight."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    state = residency.state_bytes(model, plan)
    kept = residency.activation_bytes(model, plan, load)
    layers = parameters.layer_counts(model)
    tables = residency.table_bytes(model, plan, load.phase, 1.0)
    uses: list[dict[str, Num]] = []
    for rank, held in enumerate(stages.ranks):
        parts: dict[str, Num] = {}
        for part, n in stages.layers(rank).items():
            for name, size in state[part].items():
                parts[name] = parts.get(name, 0.0) + n * size
        if "engram" in layers:
            parts["engram_tables"] = tables["hbm"]
        live = schedule.in_flight(plan.schedule, rank, int(plan.pipeline), micro_batches, int(plan.virtual_stages))
        parts["activations"] = sum(
            (live[i] * kept[part] for i, stage in enumerate(held) for part in stages.chunks[stage]), 0.0
        )
        uses.append(parts)
    totals = np.stack(np.broadcast_arrays(*(sum(parts.values(), 0.0) for parts in uses)))
    fullest = np.argmax(totals, axis=0)
    worst = {name: _choose([parts[name] for parts in uses], fullest) for name in uses[0]}
    return capacity(scenario.cluster.device, "hbm", worst)


def _choose(values: list[Num], index: np.ndarray) -> Num:
    stack = np.stack(np.broadcast_arrays(*values, np.zeros(index.shape))[:-1])
    return np.take_along_axis(stack, index[None, ...], axis=0)[0] if index.ndim else stack[int(index)]


def _warnings(scenario: Scenario) -> list[str]:
    notes = ["the interval moves every operator to its own end at once, and says nothing of jitter and stragglers"]
    if not scenario.plan.layers_per_stage and scenario.plan.pipeline > 1:
        notes.append("the layers of each stage are not published: balanced over the ranks by predicted time")
    return notes


def _schedule_limits(scenario: Scenario) -> dict[str, Flag]:
    """Where a schedule does not exist, by the reason."""
    plan = scenario.plan
    micro_batches = scenario.load.batch / (plan.data * plan.micro_batch)
    units = parameters.layer_counts(scenario.model)
    n_layers = sum(n for part, n in units.items() if part.endswith("layer"))
    limits: dict[str, Flag] = {
        "divisibility: sequences by data x micro_batch": np.abs(micro_batches - np.round(micro_batches)) > 1e-9,
        "divisibility: fewer layers than pipeline stages": plan.pipeline * plan.virtual_stages > n_layers + 1,
    }
    if plan.schedule == "interleaved":
        limits["schedule: interleaved needs micro-batches in multiples of the pipeline degree"] = (
            np.mod(micro_batches, plan.pipeline) > 0
        )
    else:
        limits["schedule: only interleaved has more than one virtual stage"] = plan.virtual_stages > 1
    if plan.schedule == "dualpipe":
        limits["schedule: DualPipe needs an even pipeline degree"] = np.mod(plan.pipeline, 2) > 0
        limits["schedule: DualPipe needs an even number of micro-batches, at least twice the stages"] = (
            np.mod(micro_batches, 2) > 0
        ) | (micro_batches < 2 * plan.pipeline)
    return limits
