"""One training step: layers on pipeline stages, chunk times, the schedule, the optimizer, memory, money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator import cost, pipeline, schedule
from sextant.simulator.capacity import Capacity, capacity
from sextant.simulator.chunk import LayerTimes, alone_s, layer_times, pair_exposed_s, pair_s
from sextant.simulator.evaluate import TimedStep, provenance_shares, time_ops
from sextant.simulator.partition import balance
from sextant.simulator.result import result
from sextant.simulator.types import Num, Result, Scenario
from sextant.studies.breakdown import breakdown
from sextant.studies.limits import plan_limits
from sextant.workloads import parameters, residency
from sextant.workloads.ops.optimizer import optimizer_step
from sextant.workloads.shard import shard

#: A cost of layers for the partition: FLOPs, where BF16 counts twice FP8 (it runs at half the peak).
_RELATIVE_COST = {"fp8_block": 1.0, "fp8": 1.0}

Chunk = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The layers of every pipeline stage, and which stages each rank holds."""

    chunks: tuple[Chunk, ...]
    ranks: tuple[tuple[int, ...], ...]

    def layers(self, rank: int) -> dict[str, float]:
        """How many layers of each part the rank holds."""
        parts = [part for stage in self.ranks[rank] for part in self.chunks[stage]]
        return {part: float(parts.count(part)) for part in dict.fromkeys(parts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTimes:
    """Seconds of every stage's chunk: alone (F, B, W) and of the pairs that the schedule overlaps."""

    forward: list[Num]
    backward_input: list[Num]
    backward_weight: list[Num]
    pair: dict[tuple[int, int], Num]
    pair_exposed: dict[tuple[int, int], Num]


def evaluate_training(scenario: Scenario, n_points: int) -> Result:
    """Metrics of one optimizer step, each of shape (n_points,). Numeric fields may be arrays, the pipeline may not."""
    model, plan, load, cluster = scenario.model, scenario.plan, scenario.load, scenario.cluster
    node_size = next(iter(cluster.tiers.values())).n_devices
    step = shard(model.step(load, plan), model, plan, node_size)
    timed = time_ops(step, cluster)
    stages = partition(scenario, timed)
    chunks = chunk_times(scenario, timed, stages)
    micro_batches = load.batch / (plan.data * plan.micro_batch)
    run = _run(scenario, stages, chunks, micro_batches, n_points)
    optimizer = _optimizer(scenario, stages, node_size)
    optimizer_s: Num = np.max(np.stack(np.broadcast_arrays(*(t.seconds() for t in optimizer))), axis=0)
    step_s = run["pipeline_s"] + optimizer_s
    low, high = _interval(timed, step.layers)
    used = plan.tensor * plan.context * plan.pipeline * plan.data
    memory = memory_use(scenario, stages)
    columns = {
        "step_time_s": step_s, "step_time_low_s": step_s * low, "step_time_high_s": step_s * high,
        **{name: value for name, value in run.items() if name != "pipeline_s"},
        "optimizer_s": optimizer_s, **_rates(scenario, step_s, used), "hbm_bytes": memory.used_bytes,
        "hbm_free_bytes": memory.free_bytes, **{f"hbm_{p}_bytes": b for p, b in memory.parts.items()},
    }  # fmt: skip
    reasons: Mapping[str, Num] = {
        **plan_limits(scenario), **_schedule_limits(scenario, micro_batches),
        "hbm: weights, optimizer state and activations do not fit": ~memory.fits,
    }  # fmt: skip
    busiest = {part: n / plan.pipeline for part, n in step.layers.items()}
    return result(
        n_points, columns, reasons, provenance=provenance_shares(timed, step.layers),
        breakdown=breakdown(timed, busiest, micro_batches, step_s), warnings=_warnings(scenario),
    )  # fmt: skip


def partition(scenario: Scenario, timed: TimedStep) -> Stages:
    """Layers on stages: as ``plan.layers_per_stage`` says, or balanced by FLOPs over the ranks.

    The embedding stays with the first layer, the head with MTP modules and the last stage, whose weights they share.
    """
    plan, counts = scenario.plan, timed.step.layers
    n_stages = int(plan.pipeline * plan.virtual_stages)
    units: list[Chunk] = [(part,) for part in counts for _ in range(int(counts[part])) if part.endswith("layer")]
    if "embedding" in counts:
        units[0] = ("embedding", *units[0])
    tail = tuple(part for part in ("mtp", "head") for _ in range(int(counts.get(part, 0))))
    units.append(tail)
    if len(units) < n_stages:
        n_stages = len(units)
    ranks = schedule.stages_of_ranks(plan.schedule, int(plan.pipeline), int(plan.virtual_stages))
    if plan.layers_per_stage:
        cuts = np.cumsum([0, *plan.layers_per_stage]).astype(int)
        runs = [units[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        runs[-1] = runs[-1] + [tail]
    else:
        weights = _part_costs(timed)
        costs = tuple(sum(weights.get(part, 0.0) for part in unit) for unit in units)
        top = max(costs)
        bounds = balance(tuple(round(c / top, 6) for c in costs), n_stages, ranks)
        runs = [units[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return Stages(chunks=tuple(tuple(p for unit in run for p in unit) for run in runs), ranks=ranks)


def _part_costs(timed: TimedStep) -> dict[str, float]:
    costs: dict[str, float] = {}
    for item in timed.ops:
        weight = _RELATIVE_COST.get(item.op.format, 2.0)
        flops = float(np.mean(np.asarray(item.op.flops * item.op.count)))
        costs[item.op.part] = costs.get(item.op.part, 0.0) + weight * flops
    return costs


def chunk_times(scenario: Scenario, timed: TimedStep, stages: Stages) -> ChunkTimes:
    """Times of every chunk alone, on all SMs, and of overlapped pairs, on the SMs that communication leaves."""
    plan = scenario.plan
    alone = {part: layer_times(timed.table(), part) for part in timed.step.layers}
    overlapped = plan.overlap == "forward_backward"
    beside = alone
    if overlapped and np.any(np.asarray(plan.n_comm_sms) > 0):
        table = time_ops(timed.step, scenario.cluster, n_comm_sms=plan.n_comm_sms).table()
        beside = {part: layer_times(table, part) for part in timed.step.layers}
    times = ChunkTimes(
        forward=[alone_s(c, alone, "forward_s") for c in stages.chunks],
        backward_input=[alone_s(c, alone, "backward_input_s") for c in stages.chunks],
        backward_weight=[alone_s(c, alone, "backward_weight_s") for c in stages.chunks],
        pair={}, pair_exposed={},
    )  # fmt: skip
    if plan.schedule == "dualpipe":
        for rank in stages.ranks:
            for f, b in ((rank[0], rank[-1]), (rank[-1], rank[0])):
                times.pair[f, b], times.pair_exposed[f, b] = _pair(stages, beside, times, f, b, overlapped)
    return times


def _pair(
    stages: Stages, beside: Mapping[str, LayerTimes], times: ChunkTimes, f: int, b: int, overlapped: bool
) -> tuple[Num, Num]:
    if not overlapped:
        return times.forward[f] + times.backward_input[b] + times.backward_weight[b], 0.0
    forward, backward = stages.chunks[f], stages.chunks[b]
    return pair_s(forward, backward, beside), pair_exposed_s(forward, backward, beside)


def _optimizer(scenario: Scenario, stages: Stages, node_size: Num) -> list[TimedStep]:
    """The optimizer of every distinct rank."""
    plan, model = scenario.plan, scenario.model
    layers = [stages.layers(rank) for rank in range(len(stages.ranks))]
    unique = {tuple(sorted(each.items())): each for each in layers}
    return [time_ops(optimizer_step(model, plan, each, node_size), scenario.cluster) for each in unique.values()]


def _interval(timed: TimedStep, layers: Mapping[str, Num]) -> tuple[Num, Num]:
    """The 90% interval of the step as factors: every operator at its own low or high end at once (fully correlated)."""
    sums = {end: 0.0 for end in ("seconds", "low", "high")}
    for item in timed.ops:
        weight = layers.get(item.op.part, 1.0) * item.op.count
        sums = {end: total + weight * getattr(item.time, end) for end, total in sums.items()}
    return sums["low"] / sums["seconds"], sums["high"] / sums["seconds"]


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
    state = residency.state_bytes(model, plan)
    kept = residency.activation_bytes(model, plan, load)
    uses: list[dict[str, Num]] = []
    for rank, held in enumerate(stages.ranks):
        parts: dict[str, Num] = {}
        for part, n in stages.layers(rank).items():
            for name, size in state[part].items():
                parts[name] = parts.get(name, 0.0) + n * size
        live = schedule.in_flight(plan.schedule, rank, int(plan.pipeline), int(plan.virtual_stages))
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
        notes.append("the layers of each stage are not published: balanced by FLOPs over the ranks")
    return notes


def _schedule_limits(scenario: Scenario, micro_batches: Num) -> dict[str, Num]:
    plan = scenario.plan
    units = parameters.layer_counts(scenario.model)
    n_layers = sum(n for part, n in units.items() if part.endswith("layer"))
    limits: dict[str, Num] = {
        "divisibility: sequences by data x micro_batch": np.abs(micro_batches - np.round(micro_batches)) > 1e-9,
        "divisibility: fewer layers than pipeline stages": plan.pipeline * plan.virtual_stages > n_layers + 1,
    }
    if plan.schedule == "dualpipe":
        limits["schedule: DualPipe needs an even pipeline degree"] = np.mod(plan.pipeline, 2) > 0
        limits["schedule: DualPipe needs an even number of micro-batches, at least twice the stages"] = (
            np.mod(micro_batches, 2) > 0
        ) | (micro_batches < 2 * plan.pipeline)
    return limits
