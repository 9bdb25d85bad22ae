"""Which rate of the machine an answer hangs on: each one changed alone, and how far that moves a metric.

Rates are not listed here: every positive number of the cluster's record is one, by its dotted path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sextant.simulator import paths
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Correction, Result, Scenario
from sextant.studies import plans, training
from sextant.studies.answer import evaluate
from sextant.studies.fields import quantity
from sextant.studies.stages import Layouts, layout
from sextant.workloads import parameters

#: Numbers of a machine that say how many, and are no rates; SMs work at a rate of their own.
_COUNTS = ("n_", "num_")
_RATES_ALL_THE_SAME = ("n_sms",)
#: What a plan gives to communication; all else in it is a degree.
_OF_PLAN = ("plan.n_comm_sms",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One rate, its value, and the metric with more and with less of it."""

    path: str
    value: float
    base: float
    more: float
    less: float
    change: float

    @property
    def elasticity(self) -> float:
        """Per cent that the metric moves by for each per cent of the rate, between less and more of it."""
        if min(self.more, self.less) <= 0:
            return 0.0
        return math.log(self.more / self.less) / math.log((1.0 + self.change) / (1.0 - self.change))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The rates of a machine by how much a metric hangs on them, the most first; ``idle`` do not move it at all."""

    scenario: str
    metric: str
    base: float
    change: float
    rates: tuple[Rate, ...]
    idle: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """{scenario, metric, value, change, rates: [{path, value, more, less, elasticity}], idle}."""
        rows = [
            {"path": r.path, "value": r.value, "more": r.more, "less": r.less, "elasticity": r.elasticity}
            for r in self.rates
        ]
        return {
            "scenario": self.scenario, "metric": self.metric, "value": self.base, "change": self.change, "rates": rows,
            "idle": list(self.idle),
        }  # fmt: skip


def share(text: str) -> float:
    """The change that ``--change`` asks for, such as ``10%``; InputError unless it lies between 0 and 1."""
    try:
        found = float(text) if _is_number(text) else quantity(text, "")
    except InputError as error:
        raise InputError(f"--change {text}: {error.problems[0].message}") from None
    if not 0.0 < found < 1.0:
        raise InputError(f"--change {text}: expected a share between 0 and 100 %; write for example 10%")
    return float(found)


def study(
    scenario: Scenario, by: str = "", change: float = 0.1, *, kernels: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:  # fmt: skip
    """Each rate of ``scenario``'s machine times 1 + ``change`` and 1 - ``change``, all else as it is.

    The layers stay on the pipeline stages where the unchanged machine has them. ``kernels`` adds the fitted
    coefficients of every kernel. InputError if the scenario sweeps, has no such metric, or no plan can be made of it.
    """
    if scenario.axes or scenario.solve:
        raise InputError("a sensitivity is of one point; fix the axes with --set, and remove solve")
    scenario = _held(scenario)
    by = by or plans.objective(scenario)
    base = _metric(evaluate(scenario), by)
    found: list[Rate] = []
    idle: list[str] = []
    leaves = list(rates(scenario, kernels=kernels))
    for i, (path, value) in enumerate(leaves):
        swept = paths.put(scenario, path, value * np.array([1.0 + change, 1.0 - change]))
        more, less = _values(evaluate(swept, 2), by)
        if more == less == base:
            idle.append(path)
        else:
            found.append(Rate(path=path, value=value, base=base, more=more, less=less, change=change))
        progress(i + 1, len(leaves))
    found.sort(key=lambda rate: (-abs(rate.elasticity), rate.path))
    return Sensitivity(
        scenario=scenario.name, metric=by, base=base, change=change, rates=tuple(found), idle=tuple(idle)
    )  # fmt: skip


def rates(scenario: Scenario, *, kernels: bool = False) -> Iterator[tuple[str, float]]:
    """Every positive number of the cluster that is a rate, and its value, by dotted path in the order of the record."""
    for path, value in _leaves(scenario.cluster, "cluster."):
        name = path.rpartition(".")[2]
        if name.startswith(_COUNTS) and name not in _RATES_ALL_THE_SAME:
            continue
        if ".kernels." in path and not (kernels and ".coefficients." in path):
            continue
        yield path, value
    for path in _OF_PLAN:
        if (value := float(paths.get(scenario, path))) > 0:
            yield path, value


def _leaves(record: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """The positive, finite numbers of a record; a correction's tables are none."""
    for name in paths.names(record):
        # Keys with a dot in them cannot be reached by a path.
        if "." in name:
            continue
        child, path = paths.get(record, name), prefix + name
        if isinstance(child, Correction):
            continue
        if paths.names(child):
            yield from _leaves(child, path + ".")
        elif isinstance(child, int | float) and not isinstance(child, bool) and 0 < child < math.inf:
            yield path, float(child)


def _held(scenario: Scenario) -> Scenario:
    """``scenario`` with the layers of its stages written down, so that no change of a rate moves them."""
    plan = scenario.plan
    impossible = not evaluate(scenario).columns["step_time_s"][0] > 0
    if scenario.load.phase != "training" or plan.layers_per_stage or plan.pipeline == 1 or impossible:
        return scenario
    stages = layout(scenario, training.timed_step(scenario), 1)
    assert not isinstance(stages, Layouts), "one point has one layout"
    is_layer = [any(part.endswith("layer") for part in unit) for unit in parameters.units(scenario.model)]
    ends = np.cumsum([0, *(sum(part.endswith("layer") for part in chunk) for chunk in stages.chunks)])
    held = tuple(float(b - a) for a, b in pairwise(ends.tolist()))
    assert sum(held) == sum(is_layer), "every layer lies on a stage"
    return replace(scenario, plan=replace(plan, layers_per_stage=held))


def _metric(found: Result, by: str) -> float:
    if by not in found.columns:
        raise InputError(f"--by {by}: not a metric of this answer; {nearest(by, tuple(found.columns))}")
    if not found.columns["step_time_s"][0] > 0:
        raise InputError(f"this plan cannot be made: {'; '.join(found.limits[0])}; change it with --set")
    return float(found.columns[by][0])


def _values(found: Result, by: str) -> tuple[float, float]:
    values = found.columns[by]
    return float(values[0]), float(values[1])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
