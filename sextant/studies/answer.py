"""From a question to its answer: each group of points with the same structure is evaluated as arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sextant.simulator.result import join
from sextant.simulator.types import Result, Scenario
from sextant.studies import axes, catalogue
from sextant.studies.limits import plan_limits
from sextant.studies.scenario import Check, Question, load

#: The fields that each limit is about, for errors that name a place in the file: the first is blamed.
_BLAME = {
    "divisibility: heads by tensor": ("plan.tensor", "model.num_attention_heads"),
    "divisibility: routed and redundant experts by expert": (
        "plan.expert", "plan.redundant_experts", "model.n_routed_experts",
    ),
    "divisibility: data x tensor by expert": ("plan.expert", "plan.data", "plan.tensor"),
    "divisibility: expert without routed experts": ("plan.expert", "model.n_routed_experts"),
    "devices: tensor x context x pipeline x data exceeds the cluster": (
        "plan.data", "plan.tensor", "plan.pipeline", "plan.context", "cluster.n_devices",
    ),
    "unsupported: context parallelism is not modelled yet": ("plan.context",),
}  # fmt: skip


def question(given: str | Path, sets: Sequence[str] = ()) -> Question:
    """The question that a scenario file, or a shipped scenario's name, asks; InputError with everything wrong."""
    checks: tuple[Check, ...] = (_divisible,)
    return load(locate(given), sets=sets, catalogue=catalogue.catalogue(), checks=checks)


def locate(given: str | Path) -> str | Path:
    """``given``, or where the package ships it: a scenario is found by name, and by its path inside the package."""
    path = Path(given)
    if path.exists():
        return given
    if str(given) in catalogue.scenario_names():
        return catalogue.scenario_path(str(given))
    shipped = catalogue.SCENARIOS.parents[1] / path
    return shipped if path.suffix == ".yaml" and shipped.is_file() else given


def evaluate(scenario: Scenario, n_points: int = 1) -> Result:
    """Metrics of a scenario whose swept fields are arrays of shape (n_points,)."""
    if scenario.load.phase == "training":
        from sextant.studies.training import evaluate_training

        return _noted(_bounded(evaluate_training(scenario, n_points), scenario), scenario)
    from sextant.studies.serving import evaluate_serving

    return _noted(_bounded(evaluate_serving(scenario, n_points), scenario), scenario)


def answer(asked: Question, progress: Callable[[int], None] = lambda n: None) -> Result:
    """The result of every point of the question's design table, in its order; ``progress`` gets points done so far."""
    results: list[Result] = []
    order: list[np.ndarray] = []
    done = 0
    for index, scenario in axes.groups(asked, structural=structural(asked.scenario)):
        results.append(evaluate(scenario, len(index)))
        order.append(index)
        done += len(index)
        progress(done)
    return join(results, order)


def structural(scenario: Scenario) -> frozenset[str]:
    """Axes that a sweep evaluates value by value. In training the stages depend on every dimension of the model."""
    swept = set(scenario.axes)
    fixed = set(catalogue.STRUCTURAL)
    if scenario.load.phase == "training":
        fixed |= {path for path in swept if path.startswith("model.") or path == "load.context_tokens"}
    return frozenset(fixed)


def _noted(found: Result, scenario: Scenario) -> Result:
    """``found`` with a note of whose kernels the device's times come from, where they are not its own."""
    device = scenario.cluster.device
    if not any("taken over from" in fit.source for fit in device.kernels.values()):
        return found
    note = f"kernel coefficients of {device.name}: {device.source.get('kernels', 'taken over from other GPUs')}"
    return replace(found, warnings=(*found.warnings, note))


def _bounded(found: Result, scenario: Scenario) -> Result:
    """``found`` with the points that break the scenario's constraints marked, each with its nearest miss."""
    if not scenario.constraints:
        return found
    feasible, limits = found.feasible.copy(), [list(reasons) for reasons in found.limits]
    for metric, ends in scenario.constraints.items():
        values = found.columns.get(metric)
        for end, bound in ends.items():
            if values is None:
                broken = np.ones(len(feasible), dtype=bool)
            else:
                broken = (operator.gt if end == "max" else operator.lt)(values, bound)
            feasible &= ~broken
            for i in np.flatnonzero(broken):
                got = "not computed in this phase" if values is None else f"{values[i]:.6g}"
                limits[i].append(f"constraint: {metric} {end} {bound:.6g}, got {got}")
    return replace(found, feasible=feasible, limits=tuple(tuple(reasons) for reasons in limits))


def _divisible(scenario: Scenario):
    for reason, broken in plan_limits(scenario).items():
        if bool(np.any(broken)):
            fields = _BLAME[reason]
            value = getattr(scenario.plan, fields[0].removeprefix("plan."))
            yield fields, f"{reason.partition(': ')[2]} does not work out, got {value:g}; {_remedy(reason, scenario)}"


def _remedy(reason: str, scenario: Scenario) -> str:
    model, plan, cluster = scenario.model, scenario.plan, scenario.cluster
    remedies: Mapping[str, str] = {
        "divisibility: heads by tensor": f"choose a divisor of {model.num_attention_heads:g} heads",
        "divisibility: routed and redundant experts by expert": "choose a divisor of "
        f"{model.n_routed_experts + plan.redundant_experts:g} experts, or set plan.redundant_experts",
        "divisibility: data x tensor by expert": f"choose a divisor of {plan.data * plan.tensor:g}",
        "divisibility: expert without routed experts": "leave it at 1: this model has no routed experts",
        "devices: tensor x context x pipeline x data exceeds the cluster": f"the cluster has {cluster.n_devices:g} "
        f"devices, the plan asks for {plan.tensor * plan.context * plan.pipeline * plan.data:g}",
        "unsupported: context parallelism is not modelled yet": "leave it at 1",
    }
    return remedies[reason]
