"""Which plans a search looks at: the values that each field of a plan may take, from the scenario or from the machine.

What a scenario says under ``search`` is checked like an axis. What it leaves open follows from the model and the
cluster: degrees that divide what they divide, every schedule, every set of activations to recompute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np

from sextant.simulator import schedule
from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Plan, Scenario
from sextant.studies import axes
from sextant.studies.fields import Field, convert, find
from sextant.studies.layers import Catalogue, Entry
from sextant.studies.limits import plan_limits
from sextant.workloads import parameters

#: What a search varies.
FIELDS = (
    "schedule", "pipeline", "virtual_stages", "overlap", "n_comm_sms", "recompute", "zero_stage", "tensor", "context",
    "data", "expert", "micro_batch",
)  # fmt: skip
#: Schedules whose steps are formulas; those in a V are played point by point, and searched where a scenario lists them.
_SCHEDULES = tuple(name for name in schedule.NAMES if name not in schedule.VEES)
_MICRO_BATCHES = (1.0, 2.0, 4.0, 8.0)
_VIRTUAL_STAGES = (2.0, 4.0)
_CONTEXTS = (1.0, 2.0, 4.0, 8.0)
#: SMs for communication where the scenario sets none aside: DeepSeek-V3's (report arXiv:2412.19437 s3.2.2).
_COMM_SMS = 20.0


def given(entries: Mapping[str, Entry], catalogue: Catalogue, problems: list[Problem]) -> dict[str, tuple[Any, ...]]:
    """The values under ``search`` by the plan's field; whatever is wrong with them is added to ``problems``."""
    found: dict[str, tuple[Any, ...]] = {}
    for path, entry in entries.items():
        if not path.startswith("search."):
            continue
        name = path.removeprefix("search.").removeprefix("plan.")
        if name not in FIELDS:
            message = f"a search varies fields of the plan; {nearest(name[:60], FIELDS)}"
            problems.append(entry.problem(message, value=False))
            continue
        try:
            axes.length(entry)
            field = _field(name, catalogue)
            values = axes.values(entry, lambda raw, field=field: convert(raw, field), field.whole)
            found[name] = tuple(dict.fromkeys(values))
        except InputError as error:
            problems += error.problems
    return found


def values(scenario: Scenario) -> dict[str, tuple[Any, ...]]:
    """The values of every field of a search, in order; an empty ``data`` follows from the other degrees.

    The defaults of ``overlap`` and ``n_comm_sms`` belong to a schedule and are in ``overlaps``.
    """
    model, cluster = scenario.model, scenario.cluster
    training = scenario.load.phase == "training"
    n_devices, slots = int(cluster.n_devices), int(model.n_routed_experts + scenario.plan.redundant_experts)
    node_size = int(next(iter(cluster.tiers.values())).n_devices)
    heads = int(model.num_key_value_heads if model.attention == "gqa" else model.num_attention_heads)
    default: dict[str, tuple[Any, ...]] = {
        "schedule": _SCHEDULES if training else (scenario.plan.schedule,),
        "pipeline": tuple(p for p in _divisors(n_devices) if p <= _n_units(scenario)) if training else (1.0,),
        "virtual_stages": (1.0, *_VIRTUAL_STAGES) if training else (1.0,),
        "overlap": (), "n_comm_sms": (),
        "recompute": _recomputes(model) if training else (scenario.plan.recompute,),
        "zero_stage": (0.0, 1.0, 2.0, 3.0) if training else (scenario.plan.zero_stage,),
        "tensor": _divisors(math.gcd(heads, node_size)),
        "context": tuple(c for c in _CONTEXTS if n_devices % c == 0) if _has_context(scenario) else (1.0,),
        "data": (),
        "expert": tuple(e for e in _divisors(slots) if e <= n_devices) if slots else (1.0,),
        "micro_batch": _MICRO_BATCHES if training else (scenario.plan.micro_batch,),
    }  # fmt: skip
    return {name: tuple(scenario.search.get(name, default[name])) for name in FIELDS}


def overlaps(scenario: Scenario, name: str) -> tuple[tuple[str, float], ...]:
    """The (overlap, n_comm_sms) that plans with the schedule ``name`` are tried with."""
    phase, own = scenario.load.phase, scenario.plan.n_comm_sms
    kinds = scenario.search.get("overlap")
    if kinds is None:
        hidden = name == "dualpipe"
        kinds = ("none", "two_batch") if phase != "training" else ("forward_backward",) if hidden else ("none",)
    sms = scenario.search.get("n_comm_sms")
    pairs = []
    for kind in kinds:
        apart = (own or _COMM_SMS,) if kind != "none" and parameters.has_experts(scenario.model) else (0.0,)
        pairs += [(str(kind), float(n)) for n in (apart if sms is None else sms)]  # type: ignore[arg-type]
    return tuple(pairs)


def _field(name: str, catalogue: Catalogue) -> Field:
    field = find(Plan(), name, "plan")
    choices = catalogue.choices.get(f"plan.{name}", ())
    return replace(field, choices=tuple(choices)) if choices else field


def _divisors(n: int) -> tuple[float, ...]:
    return tuple(float(d) for d in range(1, n + 1) if n % d == 0)


def _n_units(scenario: Scenario) -> int:
    """Most stages that the model's layers can fill."""
    return len(parameters.units(scenario.model))


def _recomputes(model) -> tuple[tuple[str, ...], ...]:
    """Every set of activations that can be made again, and all of them."""
    kinds = ["norm", "swiglu"]
    kinds += ["mla_up"] if model.attention == "mla" else []
    kinds += ["mhc"] if np.any(np.asarray(model.n_streams) > 1) else []
    sets = chain.from_iterable(combinations(kinds, n) for n in range(len(kinds) + 1))
    return (*sets, ("full",))


def _has_context(scenario: Scenario) -> bool:
    """Whether this version models context parallelism."""
    two = replace(scenario, plan=replace(scenario.plan, context=2.0))
    return not any(bool(np.any(hit)) for text, hit in plan_limits(two).items() if text.startswith("unsupported: cont"))
