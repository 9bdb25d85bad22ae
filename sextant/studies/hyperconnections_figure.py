"""The figure of the study of residual streams: overhead of a step over their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.validate import published

if TYPE_CHECKING:
    from sextant.studies.report import Answer

_COLOURS = {"fused": "#2f6690", "tile_kernels": "#c9913a", "unfused": "#b5493c"}


def overhead(found: Answer) -> Any:
    """A plot per machine (every axis beside streams, kernels and recompute), a line per kernels and recompute."""
    import matplotlib.pyplot as plt

    swept, values = found.axis_values(), 100.0 * found.result.columns["time_overhead"]
    streams = np.asarray(_axis(found, "model.n_streams"), dtype=float)
    others = [p for p in swept if p not in ("model.n_streams", "plan.hyper_connections", "plan.recompute")]
    machines = [", ".join(str(swept[p][i]) for p in others) for i in range(found.n_points)]
    kernels, again = _axis(found, "plan.hyper_connections"), ["mhc" in r for r in _axis(found, "plan.recompute")]
    names = list(dict.fromkeys(machines))
    figure, plots = plt.subplots(1, len(names), figsize=(1.6 + 2.4 * len(names), 3.0), sharey=True, squeeze=False)
    for name, axes in zip(names, plots[0], strict=True):
        for kind, remade in dict.fromkeys(zip(kernels, again, strict=True)):
            at = [i for i in range(found.n_points) if (machines[i], kernels[i], again[i]) == (name, kind, remade)]
            at = sorted((i for i in at if found.result.columns["step_time_s"][i] > 0), key=lambda i: streams[i])
            label = f"{kind}, {'made again' if remade else 'kept'}"
            style = {"color": _COLOURS[kind], "ls": "-" if remade else "--", "lw": 1.2, "marker": "o", "ms": 3}
            axes.plot(streams[at], values[at], label=label, **style)
            bad = [i for i in at if not found.result.feasible[i]]
            axes.plot(streams[bad], values[bad], "x", color="black", ms=5, zorder=3)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("residual streams")
    if found.question.published:
        known = published.figure("mhc.training.time_overhead").value
        plots[0][0].plot(4.0, 100.0 * known, "*", color="black", ms=8, label="published, machine unnamed", zorder=4)
    plots[0][0].set_ylabel("longer step than with one residual, %")
    plots[0][0].set_ylim(bottom=0)
    handles, labels = plots[0][0].get_legend_handles_labels()
    plots[0][-1].legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _axis(found: Answer, path: str) -> list[Any]:
    """The value of a field at every point, swept or not."""
    from sextant.simulator import paths

    swept = found.axis_values()
    return list(swept[path]) if path in swept else [paths.get(found.question.scenario, path)] * found.n_points
