"""The plans of a search in time and memory, with the front that none of them beats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sextant.studies.figures import log_axis, save_figure, styled
from sextant.studies.plans import Found


def draw(found: Found, place: Path) -> list[Path]:
    """``pareto.png`` and ``pareto.svg`` in ``place``; nothing where no plan is feasible. Returns the files."""
    import matplotlib.pyplot as plt

    front = found.front()
    if not front:
        return []
    with styled():
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        seconds, gigabytes = found.columns["step_time_s"], found.columns["hbm_bytes"] / 1e9
        done = seconds > 0
        for mask, colour, label in (
            (done & ~found.feasible, "#d8d4cc", "ruled out"), (found.feasible, "#81a4cd", "feasible"),
        ):  # fmt: skip
            # Equal to a pixel: as many marks as anyone can tell apart, so that a vector file stays small.
            x, y = _thinned(seconds[mask], gigabytes[mask])
            axes.plot(x, y, ".", ms=2.5, color=colour, label=label, rasterized=True)
        axes.plot(seconds[front], gigabytes[front], "-o", ms=3, lw=1, color="#b5493c", label="Pareto front")
        log_axis(axes, lambda value: f"{value:,g}")
        capacity = float(np.max(gigabytes[found.feasible]))
        axes.set_ylim(0, 2 * capacity)
        axes.set_xlabel("step time in s")
        axes.set_ylabel("memory of the fullest GPU in GB")
        axes.set_title(found.scenario.name, fontsize=9)
        axes.legend(loc="upper right", fontsize=8, edgecolor="white")
        files = [save_figure(figure, place / f"pareto.{kind}") for kind in ("png", "svg")]
        plt.close(figure)
    return files


def _thinned(seconds: np.ndarray, gigabytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(seconds):
        return seconds, gigabytes
    cells = np.stack([np.round(np.log(seconds), 2), np.round(gigabytes, 0)], axis=1)
    first = np.sort(np.unique(cells, axis=0, return_index=True)[1])
    return seconds[first], gigabytes[first]
