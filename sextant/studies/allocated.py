"""``model.engram_fraction`` in a question: what it decides stands in every point before anything evaluates it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sextant.simulator import paths
from sextant.simulator.errors import InputError, Problem
from sextant.simulator.types import Plan, Scenario
from sextant.studies.equations import OFF
from sextant.workloads import allocation
from sextant.workloads.transformer import Transformer

if TYPE_CHECKING:
    from sextant.studies.layers import Entry
    from sextant.studies.solve import Part

PATH = "model.engram_fraction"
#: What follows from the fraction, and cannot be an axis or a solved field beside it.
FOLLOWS = ("model.n_routed_experts", "model.engram_rows")


def given(entries: Mapping[str, Entry]) -> bool:
    """Whether a question says anything of the fraction."""
    return PATH in entries or f"axes.{PATH}" in entries


def problems(entries: Mapping[str, Entry]) -> list[Problem]:
    """What is wrong beside the fraction: fields that follow from it and are swept or solved."""
    if not given(entries):
        return []
    keys = [f"{block}.{path}" for block in ("axes", "solve") for path in FOLLOWS]
    message = f"follows from {PATH}; remove one of the two"
    return [entries[key].problem(message, value=False) for key in keys if key in entries and entries[key].raw != OFF]


def moving(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """The fields that a sweep over the fraction, or a study that may fill up slots of experts, moves."""
    return FOLLOWS if f"axes.{PATH}" in entries or (PATH in entries and "study" in entries) else ()


def first(scenario: Scenario, entries: Mapping[str, Entry]) -> Scenario:
    """``scenario`` of one point with what its fraction decides; InputError at the fraction's place in the file."""
    if not isinstance(scenario.model, Transformer):  # another record with fields of its own
        return scenario
    try:
        return replace(scenario, model=allocation.allocated(scenario.model))
    except InputError as error:
        place = entries.get(f"axes.{PATH}", entries.get(PATH))
        if place is None:
            raise
        told = [p.message.removeprefix(f"{PATH}: ") for p in error.problems]
        raise InputError(*(place.problem(message, value=False) for message in told)) from None


def parts(part: Part) -> Iterator[Part]:
    """``part`` with what the fraction decides, and columns that say it; points with a fraction of 0 come apart."""
    model = part.scenario.model
    fraction = model.engram_fraction if isinstance(model, Transformer) else None
    if fraction is None or part.missed:
        yield part
        return
    n = len(part.index)
    none = np.broadcast_to(np.asarray(fraction) == 0, (n,))
    for at in (np.flatnonzero(none), np.flatnonzero(~none)):
        if len(at):
            yield _allocated(part if len(at) == n else _taken(part, at))


def _taken(part: Part, at: np.ndarray) -> Part:
    columns = {name: values[at] for name, values in part.columns.items()}
    records = {top: paths.take(getattr(part.scenario, top), at) for top in ("model", "cluster", "plan", "load")}
    return replace(part, index=part.index[at], scenario=replace(part.scenario, **records), columns=columns)


def _allocated(part: Part) -> Part:
    given = allocation.budget(part.scenario.model)
    model = allocation.allocated(part.scenario.model, given)
    told = {
        "n_routed_experts": model.n_routed_experts,
        "engram_rows": model.engram_rows if model.engram_layers else 0.0,
        "leftover_parameters": allocation.leftover_parameters(model, given),
    }
    n = len(part.index)
    columns = {name: np.broadcast_to(np.asarray(value, dtype=float), (n,)) for name, value in told.items()}
    plan = part.scenario.plan
    plan = plan if model.engram_layers else without_tables(plan)
    scenario = replace(part.scenario, model=model, plan=plan)
    return replace(part, scenario=scenario, columns={**part.columns, **columns})


def without_tables(plan: Plan) -> Plan:
    """``plan`` of a model that has no tables: they lie nowhere, and nothing fetches them."""
    placement = {name: tier for name, tier in plan.placement.items() if name != "engram"}
    return replace(plan, placement=placement, prefetch="none")
