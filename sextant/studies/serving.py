"""Prefill, decode, image understanding: one engine step of a data-parallel rank, with two-batch overlap, Engram rows
fetched ahead, memory and throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sextant.simulator import cost, des
from sextant.simulator.capacity import Capacity, capacity
from sextant.simulator.chunk import LayerTimes, layer_times
from sextant.simulator.evaluate import interval, provenance_shares, time_ops
from sextant.simulator.overlap import Task, makespan_s
from sextant.simulator.result import result
from sextant.simulator.spread import paced
from sextant.simulator.timed import TimedStep, is_compute, is_message
from sextant.simulator.types import Flag, Num, Op, Plan, Result, Scenario
from sextant.studies import fetches
from sextant.studies.breakdown import breakdown
from sextant.studies.fetches import node_size
from sextant.studies.limits import plan_limits
from sextant.workloads import parameters, residency
from sextant.workloads.shard import shard
from sextant.workloads.transformer import image_pixels, image_rows, sequence_tokens

#: Layers simulated before the two-batch pattern repeats; the rest of the layers adds the period.
_WARM_UP = 4


def evaluate_serving(scenario: Scenario, n_points: int) -> Result:
    """Metrics of a prefill, decode or image_understanding scenario, each of shape (n_points,).

    Decode yields one token per request and step, the others consume all prompt tokens in one step. With
    ``plan.overlap: two_batch`` the batch runs as two halves, each computing while the other one communicates.
    """
    model, plan, load, cluster = scenario.model, scenario.plan, scenario.load, scenario.cluster
    timed, layers = timed_pass(scenario)
    halves = 2.0 if plan.overlap == "two_batch" else 1.0
    step_s = _step_s(timed, layers, plan.overlap == "two_batch", scenario.engine == "event", n_points)
    fetch = fetches.played(scenario, timed, step_s / halves)
    fetch_s, stalled_s = halves * fetch.fetch_s, halves * fetch.exposed_s
    step_s = step_s + stalled_s
    low, high = interval(timed, layers)
    used = _used(plan)
    tokens = load.batch * (1.0 if load.phase == "decode" else sequence_tokens(model, load))
    rate = tokens * plan.data / step_s
    memory = memory_use(scenario)
    columns: dict[str, Num] = {
        ("tpot_s" if load.phase == "decode" else "ttft_s"): step_s,
        "step_time_s": step_s, "step_time_low_s": step_s * low, "step_time_high_s": step_s * high,
        "tokens_per_s": rate, "tokens_per_s_per_device": rate / used,
        "compute_s": halves * _sum(timed, layers, is_compute),
        "communication_s": halves * _sum(timed, layers, is_message),
        "kv_bytes_per_token": parameters.kv_bytes_per_token(model),
        **_image_columns(scenario, timed, rate / tokens),
        "usd_per_million_tokens": cost.usd(1e6 / rate, used, cluster),
        "hbm_bytes": memory.used_bytes, "hbm_free_bytes": memory.free_bytes,
        **{f"hbm_{part}_bytes": size for part, size in memory.parts.items()},
    }  # fmt: skip
    if "engram" in layers:
        columns.update({"fetch_s": fetch_s, "exposed_fetch_s": stalled_s, **fetches.row_columns(scenario)})
        columns["host_bytes"] = _far(scenario, "host").used_bytes
    exposed = step_s - stalled_s - columns["compute_s"]
    # What rounding leaves of a step without messages is none.
    columns["exposed_comm_s"] = np.where(exposed > 1e-9 * step_s, exposed, 0.0)
    reasons: Mapping[str, Flag] = {
        **plan_limits(scenario),
        "hbm: weights, cache and activations do not fit": ~memory.fits,
        "host: Engram tables do not fit": ~_far(scenario, "host").fits,
        "nvme: Engram tables do not fit": ~_far(scenario, "nvme").fits,
    }
    return result(
        n_points, columns, reasons, provenance=provenance_shares(timed, layers),
        breakdown=breakdown(timed, layers, halves, step_s), warnings=_warnings(scenario),
    )  # fmt: skip


def memory_use(scenario: Scenario) -> Capacity:
    """HBM of one device while serving: weights, key-value cache, and the working set of one layer."""
    model, plan, load = scenario.model, scenario.plan, scenario.load
    counts = parameters.layer_counts(model)
    sizes = residency.weight_bytes(model, plan)
    weights: Num = sum((n * sizes[part] for part, n in counts.items() if part != "mtp"), 0.0) / plan.pipeline
    tokens = load.batch * (1.0 if load.phase == "decode" else sequence_tokens(model, load))
    if load.phase == "image_generation":
        tokens = image_rows(load) * (load.context_tokens + model.generation.n_tokens)
    working = residency.working_bytes(model, plan, tokens)
    if load.phase == "image_understanding":
        working = np.maximum(
            working, model.vision.working_bytes(load.batch * load.n_images, *image_pixels(model, load))
        )
    if load.phase == "image_generation":
        working = np.maximum(working, model.generation.working_bytes(load.batch))
    parts = {"weights": weights, "kv_cache": residency.cache_bytes(model, plan, load), "activations": working}
    if "engram" in counts:
        parts["engram_tables"] = residency.table_bytes(model, plan, load.phase, node_size(scenario))["hbm"]
    return capacity(scenario.cluster.device, "hbm", parts)


def _far(scenario: Scenario, tier: str) -> Capacity:
    """Memory of the host, or its drives, that one device accounts for: its share of the node's copy of the tables."""
    tables = residency.table_bytes(scenario.model, scenario.plan, scenario.load.phase, node_size(scenario))
    return capacity(scenario.cluster.device, tier, {"engram_tables": tables[tier]})


def _image_columns(scenario: Scenario, timed: TimedStep, passes_per_s: Num) -> dict[str, Num]:
    """What image understanding tells beside text: visual tokens, seconds in the encoder, images per second."""
    model, load = scenario.model, scenario.load
    if load.phase != "image_understanding":
        return {}
    images = load.n_images * passes_per_s * load.batch
    return {
        "image_tokens": model.vision.n_tokens(*image_pixels(model, load)),
        "vision_s": sum((t.seconds for t in timed.ops if t.op.part == "vision"), 0.0),
        "images_per_s": images,
        "images_per_s_per_device": images / _used(scenario.plan),
    }


def _used(plan: Plan) -> Num:
    return plan.tensor * plan.context * plan.pipeline * plan.data


def timed_pass(scenario: Scenario) -> tuple[TimedStep, Mapping[str, Num]]:
    """Operators of one pass of a data-parallel rank, or of one of its halves, and how often each part occurs."""
    model, plan, load, cluster = scenario.model, scenario.plan, scenario.load, fetches.sharing(scenario)
    # Devices that exchange in every layer go at the pace of the slowest of them.
    cluster = replace(cluster, device=paced(cluster.device, np.maximum(plan.tensor, plan.expert)))
    if plan.overlap == "two_batch":
        load = replace(load, batch=load.batch / 2.0)
    step = shard(model.step(load, plan, node_size(scenario)), model, plan, node_size(scenario))
    return time_ops(step, cluster, n_comm_sms=plan.n_comm_sms), step.layers


def _step_s(timed: TimedStep, layers: Mapping[str, Num], paired: bool, event: bool, n_points: int) -> Num:
    """Seconds of all layers in sequence; pairs of half batches where ``paired``."""
    table = timed.table()
    halves = 2.0 if paired else 1.0
    total: Num = 0.0
    for part, count in layers.items():
        times = layer_times(table, part)
        if paired and part == "moe_layer":
            total = total + _paired_s(times, int(count), event, n_points)
        else:
            total = total + halves * count * times.forward_s
    return total


def _paired_s(times: LayerTimes, n_layers: int, event: bool, n_points: int) -> Num:
    """Seconds of ``n_layers`` equal layers that two half batches go through together."""
    if event:
        return np.array([des.makespan_s(des.simulate_tasks(_two_batch(times, n_layers, i))) for i in range(n_points)])
    if n_layers <= _WARM_UP:
        return makespan_s(_two_batch(times, n_layers))
    warm, longer = makespan_s(_two_batch(times, _WARM_UP - 1)), makespan_s(_two_batch(times, _WARM_UP))
    return longer + (n_layers - _WARM_UP) * (longer - warm)


def _two_batch(times: LayerTimes, n_layers: int, point: int | None = None) -> list[Task]:
    """Attention of both halves, then both feed-forwards, each half's messages behind the other half's compute."""
    tasks: list[Task] = []
    a, d, f, c = (_at(x, point) for x in (times.attention, times.dispatch, times.mlp, times.combine))
    for i in range(n_layers):
        for half in "xy":
            before = (f"combine{half}{i - 1}",) if i else ()
            tasks.append(Task(name=f"attention{half}{i}", stream="compute", seconds=a, after=before))
            after = (f"attention{half}{i}",)
            tasks.append(Task(name=f"dispatch{half}{i}", stream="communication", seconds=d, after=after))
        for half in "xy":
            after = (f"dispatch{half}{i}",)
            tasks.append(Task(name=f"mlp{half}{i}", stream="compute", seconds=f, after=after))
            after = (f"mlp{half}{i}",)
            tasks.append(Task(name=f"combine{half}{i}", stream="communication", seconds=c, after=after))
    return tasks


def _at(value: Num, point: int | None) -> Num:
    return value if point is None or np.ndim(value) == 0 else np.asarray(value)[point]


def _sum(timed: TimedStep, layers: Mapping[str, Num], wanted: Callable[[Op], bool]) -> Num:
    """Seconds of one half's operators that are ``wanted``; messages of tensor parallelism count where they stand."""
    chosen = (t for t in timed.ops if wanted(t.op))
    return sum((t.seconds * layers.get(t.op.part, 1.0) for t in chosen), 0.0)


def _warnings(scenario: Scenario) -> list[str]:
    notes = ["host work between engine steps (scheduling, sampling) is not modelled: graph replay is assumed"]
    notes += fetches.warnings(scenario)
    if getattr(scenario.model, "num_nextn_predict_layers", 0.0) and scenario.load.phase == "decode":
        notes.append("multi-token prediction is not used for speculation: one token per request and step")
    return notes
