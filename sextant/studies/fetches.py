"""Engram rows from other memories in one pass while serving: what is fetched, how, and what layers wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator import des, prefetch
from sextant.simulator.chunk import layer_times
from sextant.simulator.des import Span
from sextant.simulator.fetch import Fetched, fetched, share_over_rows, shared, slowdown
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.prefetch import Beside, Fetch, Pass
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Cluster, Num, Op, Scenario
from sextant.workloads import parameters
from sextant.workloads.ops import table_rows
from sextant.workloads.transformer import sequence_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A pass without its fetches: seconds of each layer, in order; one Engram layer's fetch, by its way, with factors
    to both ends of a 90% interval, on its seconds (``low``, ``high``) and on what compute loses (``slowed_low`` ...);
    the layers (from 0) that need one; seconds of other copies on the link."""

    layers_s: tuple[Num, ...]
    fetch: Fetch
    beside: Beside
    low: float
    high: float
    at: tuple[int, ...]
    other_s: Num
    slowed_low: float = 1.0
    slowed_high: float = 1.0

    @property
    def fetches(self) -> list[Fetch]:
        """One fetch per Engram layer."""
        return [replace(self.fetch, layer=layer) for layer in self.at]

    def played(self) -> Pass:
        """The pass by its recurrence."""
        return prefetch.played(self.layers_s, self.fetches, self.beside, self.other_s)

    def exposed_s(self, end: str) -> Num:
        """What is exposed at the ``low`` or ``high`` end: fetches and what compute loses, both at their own."""
        factor, slowed = getattr(self, end), getattr(self, f"slowed_{end}")
        names = ("link_s", "carried_s", "prepare_s")
        fetch = replace(self.fetch, **{name: factor * getattr(self.fetch, name) for name in names})
        lost = tuple(slowed * self.beside.slowdown_of(layer) for layer in range(len(self.layers_s)))
        return replace(self, fetch=fetch, beside=replace(self.beside, slowdown=lost)).played().exposed_s

    def tasks(self) -> list[prefetch.Task]:
        """The pass as tasks."""
        return prefetch.pass_tasks(self.layers_s, self.fetches, self.beside, self.other_s)


def node_size(scenario: Scenario) -> Num:
    """Devices of the innermost tier."""
    return next(iter(scenario.cluster.tiers.values())).n_devices


def n_sharing(scenario: Scenario) -> Num:
    """Devices of one host that run the plan, all at the same time."""
    plan = scenario.plan
    return np.minimum(node_size(scenario), plan.tensor * plan.context * plan.pipeline * plan.data)


def sharing(scenario: Scenario) -> Cluster:
    """The cluster while all of a host's devices that the plan uses read its memory."""
    cluster = scenario.cluster
    if not scenario.model.engram_layers or scenario.plan.placement.get("engram", "hbm") == "hbm":
        return cluster
    return replace(cluster, device=shared(cluster.device, n_sharing(scenario)))


def fetch_ops(timed: TimedStep) -> list[Op]:
    """The operators of one Engram layer that fetch rows from another memory."""
    return [item.op for item in timed.ops if item.op.stream == "host" and item.op.part == "engram"]


def scene(scenario: Scenario, timed: TimedStep, step_s: Num, in_turn: Num = 0.0) -> Scene | None:
    """The pass of ``step_s`` seconds without fetches, whose operators are ``timed``; None if it fetches nothing.

    It begins behind the embedding and ends in front of the head. Where layers overlap, each has its share of the
    pass as if none did. ``in_turn`` as ``fetched`` has it.
    """
    ops = fetch_ops(timed)
    if not ops or "engram" not in timed.step.layers:
        return None
    cluster = sharing(scenario)
    ways = _ways(scenario, timed, ops, cluster, in_turn)
    fetch, beside = _together(scenario, timed, ops, ways)
    at = tuple(sorted(int(layer) - 1 for layer in scenario.model.engram_layers))
    return Scene(
        layers_s=_layers_s(scenario, timed, step_s), fetch=fetch, beside=beside, at=at, other_s=_other_s(scenario),
        low=min(way.low for way in ways), high=max(way.high for way in ways),
        slowed_low=min(way.slowed_low for way in ways), slowed_high=max(way.slowed_high for way in ways),
    )  # fmt: skip


def fetching(scenario: Scenario, timed: TimedStep, ops: Sequence[Op], cluster: Cluster) -> tuple[Fetch, Beside]:
    """The fetch of one Engram layer's ``ops`` on devices of ``cluster``: from several memories one after the other;
    ``timed`` are the operators of the pass."""
    return _together(scenario, timed, ops, _ways(scenario, timed, ops, cluster))


def _ways(
    scenario: Scenario, timed: TimedStep, ops: Sequence[Op], cluster: Cluster, in_turn: Num = 0.0
) -> list[Fetched]:
    """Beside the first layer, which is beside every fetch that something hides."""
    first = _units(scenario)[0]
    beside = share_over_rows(item for item in timed.ops if item.op.part in first and item.op.part != "engram")
    return [fetched(op, cluster, scenario.plan.prefetch, n_sharing(scenario), in_turn, beside) for op in ops]


def _together(scenario: Scenario, timed: TimedStep, ops: Sequence[Op], ways: Sequence[Fetched]) -> tuple[Fetch, Beside]:
    def total(seconds: Callable[[Fetched], Num]) -> Num:
        return sum((op.count * seconds(way) for op, way in zip(ops, ways, strict=True)), 0.0)

    link_s = total(lambda way: way.link_s)
    fetch = Fetch(
        layer=0, prepare_s=total(lambda way: way.prepare_s), link_s=link_s, carried_s=total(lambda way: way.carried_s),
        waited=total(lambda way: way.waited * way.link_s) / np.where(np.asarray(link_s) > 0, link_s, 1.0),
    )  # fmt: skip
    return fetch, replace(ways[0].beside, slowdown=_slowdowns(scenario, timed, ways))


def _slowdowns(scenario: Scenario, timed: TimedStep, ways: Sequence[Fetched]) -> tuple[Num, ...]:
    """What each layer loses beside the fetch: beside the worst of several."""
    one, device = _parts_s(timed), scenario.cluster.device
    lost: dict[tuple[str, ...], Num] = {}
    for unit in _units(scenario):
        if unit not in lost:
            ops = [item for item in timed.ops if item.op.part in unit]
            seconds = sum((one[part] for part in unit), 0.0)
            each = [slowdown(way, ops, seconds, device) for way in ways]
            lost[unit] = each[0] if len(each) == 1 else np.max(np.broadcast_arrays(*each), axis=0)
    return tuple(lost[unit] for unit in _units(scenario))


def _units(scenario: Scenario) -> list[tuple[str, ...]]:
    """The parts of every layer."""
    units = parameters.units(scenario.model)[: int(scenario.model.num_hidden_layers)]
    return [tuple(part for part in unit if part not in ("vision", "embedding")) for unit in units]


def _parts_s(timed: TimedStep) -> dict[str, Num]:
    table = timed.table()
    return {part: layer_times(table, part).forward_s for part in timed.step.layers}


def _layers_s(scenario: Scenario, timed: TimedStep, step_s: Num) -> tuple[Num, ...]:
    one, layers = _parts_s(timed), timed.step.layers
    scale = step_s / sum((layers[part] * seconds for part, seconds in one.items()), 0.0)
    return tuple(scale * sum((one[part] for part in unit), 0.0) for unit in _units(scenario))


def _other_s(scenario: Scenario) -> Num:
    """Seconds of what else the pass copies from the host."""
    size = scenario.load.copied_bytes
    if not np.any(np.asarray(size) > 0):
        return 0.0
    copy = operator("host_copy", "other", "bf16", {"bytes": size}, variant="h2d")
    return np.where(np.asarray(size) > 0, estimate(copy, sharing(scenario)).seconds, 0.0)[()]


def played(scenario: Scenario, timed: TimedStep, step_s: Num) -> Pass:
    """The pass of ``step_s`` with its fetches; on the event engine too, where the scenario asks for it."""
    found = scene(scenario, timed, step_s)
    if found is None:
        return Pass(seconds=step_s, exposed_s=0.0, waited_s=0.0, fetch_s=0.0)
    formula = found.played()
    if scenario.engine != "event":
        return formula
    without = np.sum(np.broadcast_arrays(*found.layers_s), axis=0)
    seconds = np.array([_end_s(point_spans(found, i)) for i in range(np.size(formula.seconds))])
    seconds = seconds.reshape(np.shape(formula.seconds))
    return replace(formula, seconds=seconds, exposed_s=np.maximum(seconds - without, 0.0))


def point_spans(found: Scene, point: int) -> list[Span]:
    """One point of a pass as the event engine plays it."""

    def at(value: Num) -> float:
        array = np.asarray(value, dtype=float)
        return float(array if array.ndim == 0 else array[point])

    tasks = [
        replace(task, seconds=at(task.seconds), slowdown=at(task.slowdown), waited=at(task.waited))
        for task in found.tasks()
    ]
    return des.simulate_tasks(tasks)


def _end_s(spans: Sequence[Span]) -> float:
    """When the last layer ends, whatever is still copied."""
    return max(span.end_s for span in spans if span.name.startswith("layer"))


def row_columns(scenario: Scenario) -> dict[str, Num]:
    """``distinct_rows_share`` and hit rates of a pass, where the plan fetches rows once or caches them."""
    model, load, plan = scenario.model, scenario.load, scenario.plan
    access = table_rows.access(plan, load)
    if access.plain and not np.any(np.asarray(access.host_cache_bytes) > 0):
        return {}
    tokens = load.batch * (1.0 if load.phase == "decode" else sequence_tokens(model, load))
    rows = table_rows.moved_rows(model, access, tokens, plan.placement.get("engram", "hbm"))
    return {
        "distinct_rows_share": table_rows.distinct_share(model, access.exponent, tokens),
        "cache_hit_rate": rows.hit_rate,
        "host_cache_hit_rate": rows.host_hit_rate,
    }  # fmt: skip


#: What is known of a way of fetching, where that is little.
_KNOWN = {
    "few_sms": "prefetch: few_sms: rates of kernels on one H200, alone and in pairs; products find no room on its SMs",
    "copy_engine": "prefetch: copy_engine: assumed: copies slow compute by 3%, each device has CPU threads of its own",
}


def warnings(scenario: Scenario) -> list[str]:
    """What a reader should know about fetches, and about the memory that devices share."""
    plan, cluster = scenario.plan, scenario.cluster
    if not scenario.model.engram_layers or plan.placement.get("engram", "hbm") == "hbm":
        return []
    notes = [_KNOWN[plan.prefetch]] if plan.prefetch in _KNOWN else []
    alone, left = (c.device.memories["host"].bandwidth_bytes_per_s for c in (cluster, sharing(scenario)))
    if np.any(np.asarray(left) < np.asarray(alone)):
        notes.append(
            "devices of one host read less than their links carry: they share its memory and its sockets' links"
        )
    return notes
