"""Figures of the allocation study: loss, memory and cost over rho; loss over the slots of tables."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.studies import allocation_report, loss_curve
from sextant.studies.figures import log_axis

if TYPE_CHECKING:
    from sextant.studies.report import Answer

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_STYLES = {"training": "-", "decode": "--", "prefill": ":"}
#: Machines whose costs are drawn; more cannot be told apart.
_N_MACHINES = 3


def allocation(answer: Answer) -> Any:
    """Three panels over rho, which falls to the right as tables grow: loss with its band, memory of a device, costs."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(3, 1, figsize=(8.4, 8.4), sharex=True, layout="constrained")
    machines = list(allocation_report.machines(answer))
    _loss(panels[0], answer, machines[0])
    _memory(panels[1], answer, machines[0])
    _costs(panels[2], answer, _distinct(answer, machines))
    panels[2].set_xlabel("rho: experts' share of sparse parameters, % (the rest lies in tables)")
    panels[2].invert_xaxis()
    return figure


def _loss(axes: Any, answer: Answer, machine: allocation_report.Machine) -> None:
    at = {name: values[machine.points] for name, values in answer.result.columns.items()}
    share = np.linspace(float(at["rho"].min()), 1.0, 241)
    band = loss_curve.band(share, seed=answer.question.scenario.seed)
    axes.fill_between(100 * share, band.low, band.high, color="#cccccc", label="90% of what the statements allow")
    for (form, values), colour in zip(band.forms.items(), _COLOURS, strict=False):
        axes.plot(100 * share, values, color=colour, lw=0.9, label=form)
    axes.plot(100 * at["rho"], at["loss_change"], ".", color="black", ms=3, label="whole experts, prime tables")
    gain = loss_curve.BEST_LOSS - loss_curve.PURE_LOSS
    near = 100 * float(np.mean(loss_curve.NEAR_BEST))
    axes.plot([100.0, near], [0.0, gain], "s", mfc="none", color="black", ms=6, label="published losses, 6e20 FLOPs")
    axes.axvspan(*(100 * end for end in loss_curve.OPTIMUM), color="#009e73", alpha=0.12, label="published optimum")
    axes.set_ylabel("loss against rho = 100%")
    _legend(axes)


def _memory(axes: Any, answer: Answer, machine: allocation_report.Machine) -> None:
    at = {name: values[machine.points] for name, values in answer.result.columns.items()}
    names = [n for n in at if n.endswith(("_hbm_bytes", "_host_bytes")) and at[n].any()]
    for name, colour in zip(names, itertools.cycle(_COLOURS)):
        phase, kind, _ = name.split("_")
        axes.plot(100 * at["rho"], at[name] / 1e9, color=colour, lw=1.2, label=f"{phase}, {kind.replace('hbm', 'HBM')}")
    axes.set_ylabel(f"GB per device, {machine.name or answer.question.scenario.cluster.name}")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _costs(axes: Any, answer: Answer, machines: list[allocation_report.Machine]) -> None:
    """USD per token over those of the pure mixture; circles at the least loss, diamonds where a phase is cheapest."""
    columns = answer.result.columns
    for machine, colour in zip(machines[:_N_MACHINES], _COLOURS, strict=False):
        best = allocation_report.optima(answer, machine)
        for phase, name in allocation_report.costs(answer).items():
            points = machine.points[columns[name][machine.points] > 0]
            if not len(points):
                continue
            cost, x = columns[name] / columns[name][points[0]], 100 * columns["rho"]
            label = f"{phase}, {machine.name}" if machine.name else phase
            axes.plot(x[points], cost[points], _STYLES[phase], color=colour, lw=1.1, label=label)
            marked = {"o": best.get("least loss"), "D": best.get(f"cheapest: {phase}")}
            for marker, point in marked.items():
                if point is not None:
                    axes.plot(x[point], cost[point], marker, color=colour, ms=4)
    axes.set_ylabel("cost per token, rho = 100% is 1")
    more = f"\n(first {_N_MACHINES} of {len(machines)})" if len(machines) > _N_MACHINES else ""
    _legend(axes, f"circle: least loss\ndiamond: cheapest near it{more}")


def _legend(axes: Any, title: str = "") -> None:
    axes.legend(
        frameon=False, fontsize=7, title=title, title_fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0),
        alignment="left",
    )  # fmt: skip


def _distinct(answer: Answer, machines: list[allocation_report.Machine]) -> list[allocation_report.Machine]:
    """Machines whose costs differ; of those alike the first."""
    found: dict[bytes, allocation_report.Machine] = {}
    for machine in machines:
        names = allocation_report.costs(answer).values()
        found.setdefault(b"".join(answer.result.columns[n][machine.points].tobytes() for n in names), machine)
    return list(found.values())


def memory_law() -> Any:
    """Loss of the 3B model over the slots of its tables: the two published losses, the band, where the law holds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    slots = np.geomspace(1e5, 1.5e7, 201)
    band = loss_curve.memory_law(slots)
    axes.fill_between(slots, band.low, band.high, color="#cccccc", label="90% of what the statements allow")
    axes.plot(slots, band.middle, color=_COLOURS[0], label="median")
    axes.plot([loss_curve.TABLE_SLOTS], [loss_curve.TABLE_LOSS], "s", mfc="none", color="black", label="published")
    axes.axhline(loss_curve.PLAIN_LOSS, color="black", lw=0.8, ls=":", label="published, without tables")
    axes.axvspan(*loss_curve.LAW_SLOTS, color="#009e73", alpha=0.12, label="published: log-linear here")
    log_axis(axes, lambda slots: f"{slots / 1e6:g} M")
    axes.set_xlabel("slots: rows of one layer's tables, over all layers")
    axes.set_ylabel("validation loss, 3B")
    axes.legend(frameon=False, fontsize=7)
    return figure
