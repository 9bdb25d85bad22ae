"""An offline batch of requests on one GPU: the schedule of an engine replayed, then all its iterations timed at once.

The engine is nano-vLLM's with its defaults (GeeeekExplorer/nano-vllm: config.py, scheduler.py, model_runner.py):
prompts run layer by layer, each launched by the host; decode steps are captured for some batch sizes and padded to the
next; every iteration waits for its sampled tokens, so the host's work between two of them is not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.capacity import CONTEXT_BYTES
from sextant.simulator.errors import InputError
from sextant.simulator.evaluate import interval, time_ops
from sextant.simulator.serving import Engine, Iterations, host_work_s, replay, uneven
from sextant.simulator.timed import TimedStep, is_compute
from sextant.simulator.types import Num, Op, Scenario
from sextant.studies import fetches, serving
from sextant.workloads import parameters, residency
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.shard import shard
from sextant.workloads.transformer import build, shape_of

#: Share of the memory that weights, working set and cache may fill together.
MEMORY_SHARE = 0.9
#: The shortest prompt and output; the longest is ``load.context_tokens``.
SHORTEST_TOKENS = 100
#: Factors on the measured seconds of host work: the authors' processor is not known, nor which one was measured.
#: Assumed, no publication: half and twice.
HOST_LOW, HOST_HIGH = 0.5, 2.0
#: Captured batches: powers of two up to the first number, then its multiples.
_CAPTURED, _STRIDE = 8.0, 16.0
#: The library of the engine's attention kernels; where it has no block, what a tuned engine would call (decision 11).
LIBRARY = "flash"

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Seconds of every iteration, shapes (n_iterations,), and which of several batches of requests it is of.

    ``compute_s`` is the GPU's work, ``launch_s`` what an iteration without a graph waits for launches beyond that,
    ``fetch_s`` the fetch of Engram rows, ``stalled_s`` what of it nothing hides, ``host_s`` the host's work while the
    GPU waits. ``low_s`` and ``high_s`` are the 90% interval of their sum, everything at its own end at once;
    ``engram_s`` is what of the sum Engram's operators and their fetches take, with an interval of its own. ``text_s``,
    shape (n_batches,), is what the host takes at the end to make text of all tokens, with its interval.
    """

    iterations: Iterations
    batch_of: NDArray[np.int64]
    n_output_tokens: NDArray[np.int64]
    text_s: Array
    text_low_s: Array
    text_high_s: Array
    engine: Engine
    compute_s: Array
    launch_s: Array
    fetch_s: Array
    stalled_s: Array
    host_s: Array
    low_s: Array
    high_s: Array
    engram_s: Array
    engram_low_s: Array
    engram_high_s: Array

    @property
    def seconds(self) -> Array:
        """Seconds of each iteration."""
        return self.compute_s + self.launch_s + self.stalled_s + self.host_s

    def total_s(self, seconds: Array, where: NDArray[np.bool_] | None = None) -> Array:
        """Sum of ``seconds`` over the iterations ``where`` of each batch of requests, shape (n_batches,)."""
        chosen = seconds if where is None else np.where(where, seconds, 0.0)
        sums = np.bincount(self.batch_of, weights=chosen, minlength=len(self.n_output_tokens))
        return sums.astype(np.float64)

    def tokens_per_s(self, seconds: Array | None = None) -> Array:
        """Output tokens of each batch of requests over its seconds and those of its text, shape (n_batches,)."""
        return self.n_output_tokens / (self.total_s(self.seconds if seconds is None else seconds) + self.text_s)


def lengths(scenario: Scenario, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and output lengths of ``load.batch`` requests, each uniform from ``SHORTEST_TOKENS`` to
    ``load.context_tokens``."""
    n, longest = int(scenario.load.batch), int(scenario.load.context_tokens)
    if longest < SHORTEST_TOKENS:
        raise InputError(f"load.context_tokens: the shortest has {SHORTEST_TOKENS} tokens, got {longest}; give more")
    drawn = np.random.default_rng(seed).integers(SHORTEST_TOKENS, longest + 1, (2, n))
    return drawn[0], drawn[1]


def engine(scenario: Scenario) -> Engine:
    """The engine with the blocks that the memory has room for: its share, less CUDA's context, the weights and the
    working set of the largest batch. Engram tables take none: where they do not fit, they are timed as if they did."""
    model, plan, hbm = scenario.model, scenario.plan, scenario.cluster.device.memories["hbm"]
    bounds = Engine(n_blocks=1)
    taken = CONTEXT_BYTES + serving.memory_use(scenario).parts["weights"]
    taken = taken + residency.working_bytes(model, plan, float(bounds.max_batched_tokens))
    block_bytes = bounds.block_tokens * parameters.kv_bytes_per_token(model)
    n_blocks = int((MEMORY_SHARE * hbm.capacity_bytes - taken) // block_bytes)
    if n_blocks < 1:
        raise InputError(f"model: the weights of {model.name} leave no room for a cache; choose a smaller one")
    return replace(bounds, n_blocks=n_blocks)


def serve(scenario: Scenario, seeds: Sequence[int]) -> Served:
    """All iterations in which ``scenario`` serves one batch of requests for each of ``seeds``."""
    bounds = engine(scenario)
    drawn = [lengths(scenario, seed) for seed in seeds]
    runs = [replay(prompts, outputs, bounds) for prompts, outputs in drawn]
    joined = Iterations(
        **{each.name: np.concatenate([getattr(run, each.name) for run in runs]) for each in fields(Iterations)}
    )
    parts: dict[str, Array] = {}
    for prefill in (True, False):
        where = np.flatnonzero(joined.prefill == prefill)
        for name, seconds in _timed(scenario, _at(joined, where), prefill).items():
            parts.setdefault(name, np.zeros(len(joined.prefill)))[where] = seconds
    rate = scenario.cluster.device.kernels["engine_text"]
    text_s = np.array([np.sum(host_work_s(rate, outputs.astype(np.float64))) for _, outputs in drawn])
    return Served(
        text_s=text_s, text_low_s=text_s * rate.low * HOST_LOW, text_high_s=text_s * rate.high * HOST_HIGH,
        iterations=joined, batch_of=np.repeat(np.arange(len(runs)), [len(run.prefill) for run in runs]),
        n_output_tokens=np.array([outputs.sum() for _, outputs in drawn]), engine=bounds,
        **{f"{name}_s": seconds for name, seconds in parts.items()},
    )  # fmt: skip


def hashed_on_cpu(run: Served, scenario: Scenario) -> Served:
    """``run`` where the host also hashes the n-grams of every new token between two steps, at the measured rate.

    It was measured for a token of each of up to 512 sequences; prompts are taken to go on at that rate.
    """
    extra_s = host_work_s(scenario.cluster.device.kernels["engine_hash"], run.iterations.n_tokens)
    rate = scenario.cluster.device.kernels["engine_hash"]
    low_s, high_s = extra_s * rate.low * HOST_LOW, extra_s * rate.high * HOST_HIGH
    return replace(
        run, host_s=run.host_s + extra_s, low_s=run.low_s + low_s, high_s=run.high_s + high_s,
        engram_s=run.engram_s + extra_s, engram_low_s=run.engram_low_s + low_s,
        engram_high_s=run.engram_high_s + high_s,
    )  # fmt: skip


def _at(iterations: Iterations, index: NDArray[np.intp]) -> Iterations:
    return Iterations(**{each.name: getattr(iterations, each.name)[index] for each in fields(Iterations)})


def captured(n_sequences: Num) -> Num:
    """The batch of the graph that runs a decode step of ``n_sequences``: padded to the next one captured."""
    n = np.asarray(n_sequences, dtype=float)
    return np.where(n <= _CAPTURED, 2.0 ** np.ceil(np.log2(n)), np.ceil(n / _STRIDE) * _STRIDE)


def _timed(scenario: Scenario, run: Iterations, prefill: bool) -> dict[str, Num]:
    """Seconds by kind of one kind of iterations; all of them at once."""
    step, device = _step(scenario, run, prefill), scenario.cluster.device
    layers, rates = step.step.layers, device.kernels
    if "engine_decode" not in rates:
        raise InputError(f"cluster: no host work was measured for {device.name}; choose hgx-h800 or hgx-h100")
    work, launch = rates["engine_prefill" if prefill else "engine_decode"], rates["engine_layer"]
    compute_s = _sum(step, is_compute) + 0.0 * run.n_tokens
    launched_s = host_work_s(launch, scenario.model.num_hidden_layers) if prefill else 0.0
    busy_s = np.maximum(compute_s, launched_s)
    host_s = host_work_s(work, run.n_tokens if prefill else run.n_sequences)
    stalled = stalls(scenario, step, busy_s)
    found = {
        "compute": compute_s, "launch": busy_s - compute_s, "fetch": stalled["fetch"],
        "stalled": stalled["seconds"], "host": host_s, "engram": _engram_s(step, "seconds") + stalled["seconds"],
    }  # fmt: skip
    for (end, host), factor in zip((("low", HOST_LOW), ("high", HOST_HIGH)), interval(step, layers), strict=True):
        device_s = np.maximum(compute_s * factor, launched_s * getattr(launch, end) * host)
        found[end] = device_s + stalled[end] + host_s * getattr(work, end) * host
        found[f"engram_{end}"] = _engram_s(step, end) + stalled[end]
    return found


def stalls(scenario: Scenario, step: TimedStep, step_s: Num) -> dict[str, Num]:
    """What an iteration of ``step_s`` loses to Engram rows from host memory, by the plan's way of fetching: exposed
    ``seconds``, ``low`` and ``high`` by the ends of the fetch's interval, and ``fetch``, all of it with nothing beside.
    """
    found = fetches.scene(scenario, step, step_s)
    if found is None:
        return dict.fromkeys(("seconds", "low", "high", "fetch"), 0.0)
    played = found.played()
    return {
        "seconds": played.exposed_s, "low": found.exposed_s("low"), "high": found.exposed_s("high"),
        "fetch": played.fetch_s,
    }  # fmt: skip


def _engram_s(step: TimedStep, end: str) -> Num:
    """Seconds of Engram's operators on the GPU, at one end of their interval."""
    n = step.step.layers.get("engram", 0.0)
    return n * step.seconds(end=end, where=lambda op: op.part == "engram" and is_compute(op))


def _step(scenario: Scenario, run: Iterations, prefill: bool) -> TimedStep:
    """The operators of all ``run``'s iterations, timed.

    Sequences of different lengths run as as many equal ones, of the mean number of new tokens, which see so many that
    all new tokens together see the same: (query, key) pairs and bytes of the cache come out right, if not their spread.
    """
    model, plan, cluster = scenario.model, scenario.plan, scenario.cluster
    if prefill:
        batch = run.n_sequences
        new = run.n_tokens / batch
        shape = shape_of(model, plan, "prefill", batch, new, run.n_pairs / run.n_tokens + (new - 1.0) / 2.0)
    else:
        batch = captured(run.n_sequences)
        shape = shape_of(model, plan, "decode", batch, 1.0, run.n_seen / batch)
    phase = "prefill" if prefill else "decode"
    step = build(model, shape, phase)
    longer = 1.0 if prefill else uneven(run, model.num_key_value_heads, cluster.device.n_sms)
    ops = tuple(_as_in_engine(op, longer) for op in step.ops)
    step = replace(step, ops=(*ops, *_beside_layers(model, shape.n_tokens, batch)))
    return time_ops(shard(step, model, plan, 1.0), cluster)


def _as_in_engine(op: Op, longer: Num) -> Op:
    """Attention by the engine's library, over caches of different lengths."""
    if op.kind != "attention":
        return op
    return replace(op, variant=f"{op.variant}_{LIBRARY}", shape={**op.shape, "uneven": longer})


def _beside_layers(model, n_tokens: Num, n_sequences: Num) -> list[Op]:
    """What an engine runs that a model's layers do not: keys and values put into the cache, tokens drawn."""
    part = next(part for part in ("dense_layer", "moe_layer") if part in parameters.layer_counts(model))
    cached = n_tokens * parameters.kv_bytes_per_token(model) / model.num_hidden_layers
    logits = 2.0 * n_sequences * model.vocab_size
    return [
        moved("cache_write", Place(part=part, block="attention"), cached, cached),
        moved("sampler", Place(part="head", block="head"), logits, 8.0 * n_sequences, variant="sampler"),
    ]


def _sum(step: TimedStep, wanted) -> Num:
    return sum((t.seconds * step.step.layers.get(t.op.part, 1.0) for t in step.ops if wanted(t.op)), 0.0)
