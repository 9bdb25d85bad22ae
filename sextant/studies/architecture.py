"""The architecture study: experts or tables, residual streams, depth and the grain of experts, varied together at the
parameters and activated parameters of one model, and which of the shapes nobody beats.

The scenario's axes over ``model`` are what varies; expert width, number of experts and rows of tables follow
(``workloads.shapes``). Every shape trains and serves as the scenario and its ``variants`` say. What is published of
losses is counted and nothing else: tables (``loss_curve``) and streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator import paths
from sextant.simulator.errors import InputError
from sextant.simulator.types import Result, Scenario
from sextant.studies import allocated, allocation, architecture_report, axes
from sextant.studies import answer as answering
from sextant.studies.pareto import unbeaten
from sextant.studies.solve import Part
from sextant.studies.study import Study
from sextant.validate import published
from sextant.workloads import shapes

if TYPE_CHECKING:
    from sextant.studies.scenario import Question

#: Streams of the published loss of mHC.
_STREAMS = 4.0
#: What of a model may vary: its loss is known against the same zero, or nothing is known of it.
_AXES = (allocated.PATH, "model.n_streams", "model.num_hidden_layers", "model.num_experts_per_tok")
#: What changes costs, and the loss by an amount that nobody has published.
_UNPRICED = ("num_hidden_layers", "num_experts_per_tok")


def answer(asked: Question, progress: Callable[[int], None]) -> Result:
    """The columns of the allocation study, with the shape of each point and whether it is unbeaten (1 or 0): no other
    feasible point is as good in all objectives and better in one.

    ``loss_change`` is against experts alone with a plain residual. Nobody has published what depth and the grain of
    experts change in it at equal parameters: ``unbeaten_alike`` compares shapes with the same of both, ``unbeaten`` all
    of them, as if that were nothing.
    """
    if asked.scenario.solve:
        raise InputError("study: architecture solves expert width, experts and rows itself; remove solve")
    if other := [p for p in asked.scenario.axes if p.partition(".")[0] == "model" and p not in _AXES]:
        varied = ", ".join(_AXES)
        raise InputError(
            f"architecture compares losses at equal parameters, and {other[0]} would change them; it varies {varied}"
        )
    found = allocation.answer(asked, progress, parts)
    columns = {**found.columns, **_losses(found)}
    wanted = architecture_report.objectives(asked)
    table = np.stack([architecture_report.sign(sense) * columns[name] for name, sense in wanted.items()])
    at = np.flatnonzero(found.feasible)
    kinds = np.stack([columns[name] for name in _UNPRICED], axis=1)
    columns["unbeaten"], columns["unbeaten_alike"] = np.zeros(len(kinds)), np.zeros(len(kinds))
    columns["unbeaten"][at] = unbeaten(table[:, at])
    for kind in np.unique(kinds[at], axis=0):
        alike = at[np.all(kinds[at] == kind, axis=1)]
        columns["unbeaten_alike"][alike] = unbeaten(table[:, alike])
    note = (
        "loss_change counts published effects alone, of tables and of streams, as if they added up; what depth and the "
        "grain of experts change at equal parameters is not published"
    )
    return replace(found, columns=columns, warnings=(*found.warnings, note))


def parts(question: Question) -> Iterator[Part]:
    """The points of a phase in groups, their models shaped to the parameters of the model that they start from."""
    for index, scenario in axes.groups(question, structural=answering.structural(question.scenario)):
        bases = {p: v for p, v in _first(question, index).items() if p == "model"}
        like = question.unchanged(bases)
        given = scenario.model.engram_fraction
        fraction = np.broadcast_to(0.0 if given is None else given, (len(index),))
        for at in (np.flatnonzero(fraction == 0), np.flatnonzero(fraction > 0)):
            if len(at):
                yield from _shaped(index[at], scenario if len(at) == len(index) else _taken(scenario, at), like)


def _first(question: Question, index: np.ndarray) -> dict[str, Any]:
    return {path: values[0] for path, values in axes.columns(question.scenario.axes, index[:1]).items()}


def _taken(scenario: Scenario, at: np.ndarray) -> Scenario:
    return replace(
        scenario, **{top: paths.take(getattr(scenario, top), at) for top in ("model", "cluster", "plan", "load")}
    )


def _shaped(index: np.ndarray, scenario: Scenario, like: Any) -> Iterator[Part]:
    """The points of ``index`` with their shapes; one by one where some of them do not exist."""
    n = len(index)
    try:
        model = shapes.reshaped(scenario.model, like)
    except InputError as error:
        if n > 1:
            for i in range(n):
                yield from _shaped(index[i : i + 1], _taken(scenario, np.array([i])), like)
            return
        yield Part(index=index, scenario=scenario, columns={}, missed=(f"shape: {error.problems[0].message}",))
        return
    plan = scenario.plan if model.engram_layers else allocated.without_tables(scenario.plan)
    told = {
        name: np.broadcast_to(np.asarray(getattr(model, name), dtype=float), (n,))
        for name in architecture_report.VARIED
    }
    yield Part(index=index, scenario=replace(scenario, model=model, plan=plan), columns=told)


def _losses(found: Result) -> dict[str, np.ndarray]:
    """The change of loss by tables and by streams, each with the ends of its interval; of numbers of streams that
    nobody published what lies between those that somebody did."""
    (figure,) = published.figures("mhc_loss.27b")
    share = np.clip(np.log2(found.columns["n_streams"]) / np.log2(_STREAMS), 0.0, 1.0)
    known = (share == 0.0) | (found.columns["n_streams"] == _STREAMS)
    ends = {"": share, "_low": np.where(known, share, 1.0), "_high": np.where(known, share, 0.0)}
    return {f"loss_change{end}": found.columns[f"loss_change{end}"] - s * figure.value for end, s in ends.items()}


STUDY = Study(
    about="rho, streams, depth and grain of experts together at equal parameters: the shapes that none beats",
    answer=answer,
    figures=architecture_report.figures,
    text=architecture_report.text,
    fitted="four statements at 6e20 FLOPs; kernel efficiencies, to H100 and H200 kernels",
)
