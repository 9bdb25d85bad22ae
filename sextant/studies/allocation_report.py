"""The allocation study as one table and its figures: the best share per machine and budget, loss beside cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.units import dimension, show
from sextant.studies import loss_curve
from sextant.studies.allocated import PATH
from sextant.studies.cli import plain
from sextant.studies.metrics import shown

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: Loss that a cheaper choice may give away.
NEAR = 0.002
COSTS = {
    "training": "training_usd_per_trillion_tokens", "decode": "decode_usd_per_million_tokens",
    "prefill": "prefill_usd_per_million_tokens",
}  # fmt: skip
#: Columns of the table beside the costs.
_TOLD = {"decode_hbm_bytes": "HBM, decode", "decode_host_bytes": "host", "training_hbm_bytes": "HBM, training"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Points that differ in nothing but the fraction: what they share, and their numbers, by falling rho."""

    shared: Mapping[str, object]
    points: np.ndarray

    @property
    def name(self) -> str:
        """What tells it from other machines."""
        return ", ".join(_value(path, value) for path, value in self.shared.items())


def machines(answer: Answer) -> Iterator[Machine]:
    """The machines of a sweep, in the order of its axes."""
    swept = {path: values for path, values in answer.axis_values().items() if path != PATH}
    keys = [tuple(values[i] for values in swept.values()) for i in range(answer.n_points)]
    rho = answer.result.columns["rho"]
    for key in dict.fromkeys(keys):
        points = np.array([i for i, other in enumerate(keys) if other == key])
        order = np.argsort(-rho[points], kind="stable")
        yield Machine(shared=dict(zip(swept, key, strict=True)), points=points[order])


def optima(answer: Answer, machine: Machine) -> dict[str, int]:
    """The best points of a machine by what they are best at; empty where none is feasible.

    Least loss; least loss at no more than the cost of pure experts; least cost within ``NEAR`` of the least loss, for
    each cost that there is. A tie goes to more experts.
    """
    columns, feasible = answer.result.columns, answer.result.feasible
    points = machine.points[feasible[machine.points]]
    if not len(points):
        return {}
    loss = columns["loss_change"][points]
    found = {"least loss": int(points[np.argmin(loss)])}
    pure = points[columns["rho"][points] == 1.0]
    for phase, name in costs(answer).items():
        cost = columns[name]
        if len(pure):
            fits = points[cost[points] <= cost[pure[0]]]
            found[f"at equal cost: {phase}"] = int(fits[np.argmin(columns["loss_change"][fits])])
        near = points[loss <= loss.min() + NEAR]
        found[f"cheapest: {phase}"] = int(near[np.argmin(cost[near])])
    return found


def costs(answer: Answer) -> dict[str, str]:
    """The costs that the answer has, by phase."""
    return {phase: name for phase, name in COSTS.items() if name in answer.result.columns}


def text(answer: Answer) -> str:
    """The optima of every machine, those alike in all that is shown together, then what the losses rest on."""
    from sextant.studies import tables

    result = answer.result
    told = [*costs(answer).values(), *(name for name in _TOLD if name in result.columns)]
    ok = int(result.feasible.sum())
    lines = [f"{plain(answer.question.scenario.name)}: {answer.n_points:,} points, {ok:,} feasible"]
    for rows, alike in _alike(answer, told).items():
        table = tables.grid("", ">rho", ">experts", ">rows", ">loss", ">90%", *(f">{_head(name)}" for name in told))
        for cells in rows:
            tables.add(table, cells)
        nothing = list(dict.fromkeys(reason for i in alike[0].points for reason in result.limits[i]))[:3]
        body = tables.rendered(table) if rows else "\n".join(f"infeasible: {plain(reason)}" for reason in nothing)
        lines += ["", _together(alike), body]
        out = sum(int((~result.feasible[machine.points]).sum()) for machine in alike)
        if rows and out:
            lines += tables.wrapped(
                f"{out} of {sum(len(m.points) for m in alike)} shares are infeasible: {plain('; '.join(nothing))}"
            )
    notes = [
        f"at equal cost: least loss at no more than what rho = 1 costs; cheapest: within {NEAR:g} of the least loss"
    ]
    return "\n".join(
        [
            *lines,
            "",
            *(line for note in (*notes, *_notes(answer.question.scenario.seed)) for line in tables.wrapped(note)),
        ]
    )


def _head(name: str) -> str:
    phase = name.partition("_")[0]
    return _TOLD.get(name) or f"{phase} {'USD/T' if name.endswith('trillion_tokens') else 'USD/M'}"


def _together(alike: Sequence[Machine]) -> str:
    """What machines share, each field once with all of its values."""
    fields = {path: dict.fromkeys(_value(path, m.shared[path]) for m in alike) for path in alike[0].shared}
    return "; ".join(f"{path.rpartition('.')[2]} {', '.join(values)}" for path, values in fields.items()) or "optima"


def _alike(answer: Answer, told: Sequence[str]) -> dict[tuple[tuple[str, ...], ...], list[Machine]]:
    """The machines by the rows of the table that they have."""
    found: dict[tuple[tuple[str, ...], ...], list[Machine]] = {}
    for machine in machines(answer):
        labels: dict[int, list[str]] = {}
        for label, point in optima(answer, machine).items():
            labels.setdefault(point, []).append(label)
        rows = tuple((_joined(given), *_cells(answer, point, told)) for point, given in labels.items())
        found.setdefault(rows, []).append(machine)
    return found


def _joined(labels: Sequence[str]) -> str:
    """Labels of one point, those of one kind together: "at equal cost: training, decode"."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kind, _, phase = label.partition(": ")
        kinds.setdefault(kind, []).append(phase)
    return "; ".join(f"{kind}: {', '.join(phases)}" if any(phases) else kind for kind, phases in kinds.items())


def _cells(answer: Answer, point: int, told: Sequence[str]) -> tuple[str, ...]:
    at = {name: float(values[point]) for name, values in answer.result.columns.items()}
    return (
        f"{100 * at['rho']:.1f}%", f"{at['n_routed_experts']:.0f}", f"{at['engram_rows']:,.0f}",
        f"{at['loss_change']:.4f}", f"{at['loss_change_low']:.4f} .. {at['loss_change_high']:.4f}",
        *(f"{at[name]:.4g}" if "usd" in name else shown(name, at[name]) for name in told),
    )  # fmt: skip


def _notes(seed: int) -> list[str]:
    """What the losses rest on, and how far they are off where the paper says more."""
    found = []
    for check in loss_curve.checks(shares(), seed):
        found.append(
            f"not fitted: {check.name.replace('_', '-')} against MoE-27B {check.predicted:.4f} "
            f"({check.low:.4f} .. {check.high:.4f}), published {check.published:.3f}, off by {check.error:+.4f}"
        )
    found.append("loss: against rho = 1 at equal parameters; its level at another budget cannot be known from what is "
                 "published, nor can the scatter between training runs")  # fmt: skip
    return found


def judged(answer: Answer) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The published losses that the curve is judged by, whatever was asked."""
    found = loss_curve.checks(shares(), answer.question.scenario.seed)
    return {f"engram_loss.{c.name}": {"saved_loss": (-c.predicted, -c.high, -c.low)} for c in found}


def shares() -> dict[str, tuple[float, float]]:
    """Experts and tables of Engram-27B and -40B, as shares of the sparse parameters of MoE-27B."""
    from sextant.workloads.models import model
    from sextant.workloads.ops import engram
    from sextant.workloads.sizes import sparse_parameters

    whole = sparse_parameters(model("moe-27b"))
    found = {}
    for name in ("engram_27b", "engram_40b"):
        each = model(name.replace("_", "-"))
        experts = sparse_parameters(replace(each, engram_layers=()))
        tables = len(each.engram_layers) * engram.table_parameters(each)
        found[name] = (float(experts / whole), float(tables / whole))
    return found


def figures(answer: Answer) -> dict[str, Any]:
    """``allocation``: loss with its band, memory and cost over rho; ``memory_law``: loss over the slots of tables."""
    from sextant.studies import allocation_figure

    return {"allocation": allocation_figure.allocation(answer), "memory_law": allocation_figure.memory_law()}


def _value(path: str, value: object) -> str:
    name = path.rpartition(".")[2]
    return show(value, dimension(name)) if isinstance(value, float) else str(value)
