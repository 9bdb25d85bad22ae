"""Figures of an answer: where the step's time goes, what fills the memory, how a metric moves along an axis."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.types import BOUNDS
from sextant.simulator.units import dimension, show
from sextant.studies import memory_report, metrics, study
from sextant.studies.axes import is_numeric
from sextant.studies.files import save
from sextant.studies.pipeline_figure import pipeline

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: Fixed so that the same answer gives the same bytes.
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "sextant", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "figure.dpi": 150, "savefig.bbox": "tight", "svg.fonttype": "path", "text.parse_math": False,
}  # fmt: skip
_COLOURS = (
    "#2f6690",
    "#81a4cd",
    "#d9a441",
    "#b5493c",
    "#7d9d74",
    "#6f5c8a",
    "#a8a29a",
    "#444444",
    "#4f9d9b",
    "#c98bb9",
    "#8c6d46",
    "#b9c46a",
    "#d97b5a",
)
_STEP_PARTS = (
    "forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s", "optimizer_s",
)  # fmt: skip
#: A bound has one colour in all figures.
_BOUND_COLOURS: dict[str, str] = dict(zip(BOUNDS, ("#2f6690", "#d9a441", "#b5493c", "#6f5c8a", "#a8a29a"), strict=True))
_N_OPERATORS = 14
#: Lines that one plot can hold apart, and points that are still worth a marker each.
_N_LINES, _N_MARKED = 12, 40


def draw(answer: Answer, place: Path) -> list[Path]:
    """Every figure that fits the answer, as png and svg in ``place``; returns the files."""
    import matplotlib.pyplot as plt

    drawn: list[Path] = []
    with styled():
        for name, figure in _figures(answer):
            drawn += [save_figure(figure, place / f"{name}.{kind}") for kind in ("png", "svg")]
            plt.close(figure)
    return drawn


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The look of all figures, drawn without a display; the same answer gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def _figures(answer: Answer):
    from sextant.studies.report import planned, simulated

    own = study.find(answer.question.study).figures if answer.question.study else None
    if own is not None:
        yield from own(answer).items()
        return
    if answer.n_points == 1 and not planned(answer):
        return
    columns = answer.result.columns
    if answer.n_points > 1:
        numeric = [path for path, values in answer.question.scenario.axes.items() if is_numeric(values)]
        if numeric:
            yield "curve", curve(answer, numeric[0])
        return
    if all(name in columns for name in _STEP_PARTS):
        yield "step", step(answer)
    if not simulated(answer):
        yield "pipeline", pipeline(answer)
        yield "memory_over_time", memory_report.figure(answer)
    if answer.result.breakdown:
        yield "operators", operators(answer)
    yield "memory", memory(answer)


def step(answer: Answer):
    """Parts of the training step as stacked bars, predicted and, where there are figures, published."""
    import matplotlib.pyplot as plt

    from sextant.studies.report import comparisons

    figure, axes = plt.subplots(figsize=(7.2, 2.2))
    beside = comparisons(answer)
    parts = (*_STEP_PARTS, *(["jitter_s"] if "jitter_s" in answer.result.columns else []))
    bars = {"predicted": {name: float(answer.result.columns[name][0]) for name in parts}}
    if all(name in beside for name in _STEP_PARTS):
        known = {name: beside[name].published for name in _STEP_PARTS}
        bars = {"published": {name: known.get(name, 0.0) for name in parts}, **bars}
    longest = max(sum(values.values()) for values in bars.values())
    for y, values in enumerate(bars.values()):
        left = 0.0
        for name, colour in zip(parts, _COLOURS, strict=False):
            label = metrics.METRICS[name].label if y == 0 else None
            axes.barh(y, values[name], left=left, color=colour, label=label, height=0.6)
            if values[name] > 0.06 * longest:
                axes.text(left + values[name] / 2, y, f"{values[name]:.2f}", ha="center", va="center", color="white")
            left += values[name]
        axes.text(left, y, f"  {left:.2f} s", va="center")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_xlabel("seconds of one optimizer step, as the average rank of the pipeline spends them")
    axes.set_xlim(0, 1.12 * longest)
    axes.legend(ncol=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False)
    return figure


def operators(answer: Answer):
    """The operators that take most time, by what bounds them, with their 90% intervals."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = list(answer.result.breakdown.items())[:_N_OPERATORS][::-1]
    bounds = [bound for bound in BOUNDS if any(row["bound"] == bound for _, row in rows)]
    figure, axes = plt.subplots(figsize=(7.2, 0.24 * len(rows) + 0.9))
    unit, factor = ("s", 1.0) if max(_f(row["seconds"]) for _, row in rows) > 0.5 else ("ms", 1e3)
    for y, (_, row) in enumerate(rows):
        seconds, low, high = (factor * _f(row[key]) for key in ("seconds", "low_s", "high_s"))
        axes.barh(y, seconds, color=_BOUND_COLOURS[str(row["bound"])], height=0.7)
        axes.plot([low, high], [y, y], color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlabel(f"{unit} per step on one device; line: 90% interval")
    handles = [Patch(color=_BOUND_COLOURS[bound]) for bound in bounds]
    names = [f"bound by {bound}" for bound in bounds]
    axes.legend(handles, names, frameon=False, ncol=len(bounds), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def memory(answer: Answer):
    """What fills the HBM of the fullest device, against its capacity."""
    import matplotlib.pyplot as plt

    columns = answer.result.columns
    skip = ("hbm_bytes", "hbm_free_bytes")
    parts = {n: float(v[0]) for n, v in columns.items() if n.startswith("hbm_") and n not in skip and v[0] > 0}
    figure, axes = plt.subplots(figsize=(7.2, 1.4))
    left = 0.0
    for (name, size), colour in zip(parts.items(), itertools.cycle(_COLOURS)):
        label = f"{name.removeprefix('hbm_').removesuffix('_bytes').replace('_', ' ')} {size / 1e9:.1f}"
        axes.barh(0, size / 1e9, left=left, color=colour, label=label)
        left += size / 1e9
    limit = (columns["hbm_bytes"][0] + columns["hbm_free_bytes"][0]) / 1e9
    axes.axvline(limit, color="black", lw=1.2)
    axes.text(limit, 0.46, f"capacity {limit:.1f}", ha="center", va="bottom")
    axes.set_yticks([])
    axes.set_xlabel("GB of HBM on the fullest device")
    axes.set_xlim(0, 1.15 * max(limit, left))
    axes.legend(ncol=4, loc="lower center", bbox_to_anchor=(0.45, 1.15), frameon=False)
    return figure


def curve(answer: Answer, path: str):
    """The first objective (or the first metric of the table) along a numeric axis, a line per value of the others."""
    import matplotlib.pyplot as plt

    swept, columns = answer.axis_values(), answer.result.columns
    objectives = [n for n in answer.question.scenario.objectives if n in columns]
    name = (objectives or metrics.compared(columns))[0]
    values, ok = columns[name], answer.result.feasible
    factor, label = _scale(name, values)
    others = [p for p in swept if p != path]
    keys = [tuple(_text(p, swept[p][i]) for p in others) for i in range(answer.n_points)]
    lines = list(dict.fromkeys(keys))
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for key, colour in zip(lines[:_N_LINES], itertools.cycle(_COLOURS)):
        at = np.array([i for i, k in enumerate(keys) if k == key])
        at = at[np.argsort(swept[path][at].astype(float), kind="stable")]
        x, y, bad = swept[path][at].astype(float), values[at] * factor, ~ok[at]
        style = "-" if lines.index(key) < len(_COLOURS) else "--"
        marker = "o" if len(at) <= _N_MARKED else None
        axes.plot(x, y, style, color=colour, lw=1.2, marker=marker, ms=3, label=", ".join(key))
        axes.plot(x[bad], y[bad], "x", color="black", ms=5, zorder=3)
    _axis(axes, path, swept[path].astype(float))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if others:
        title = ", ".join(p.rpartition(".")[2] for p in others)
        more = f"\n(first {_N_LINES} of {len(lines)})" if len(lines) > _N_LINES else ""
        axes.legend(title=title + more, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if not ok.all():
        axes.set_title("x: infeasible", loc="right", fontsize=8)
    return figure


def log_axis(axes: Any, text: Callable[[float], str]) -> None:
    """A logarithmic horizontal axis, labelled by ``text`` at 1, 2 and 5: matplotlib's own labels are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(float(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _axis(axes: Any, path: str, x: np.ndarray) -> None:
    """The axis of a swept field: in units, and logarithmic where its values are spaced by a factor."""
    name = path.rpartition(".")[2]
    scale = 0 if x.min() <= 0 else x.max() / x.min()
    steps = np.diff(np.unique(x))
    if scale >= 8 and len(steps) > 1 and steps.max() > 3 * steps.min():
        log_axis(axes, lambda value: _text(name, value))
        if len(steps) < _N_LINES:
            axes.set_xticks(np.unique(x), [_text(name, float(v)) for v in np.unique(x)])
            axes.minorticks_off()
    elif dimension(name):
        axes.xaxis.set_major_formatter(lambda value, _: show(float(value), dimension(name), 3))
    axes.set_xlabel(path)


def _scale(name: str, values: np.ndarray) -> tuple[float, str]:
    """What to multiply a metric by so that its axis reads well, and the axis's label with the unit."""
    metric = metrics.METRICS.get(name)
    label = metric.label if metric else name.replace("_", " ")
    top = float(np.max(np.abs(values)))
    if metric and metric.percent:
        return 100.0, f"{label}, %"
    if (metric.unit if metric else "s" if name.endswith("_s") else "") == "s":
        factor, unit = next(((f, u) for f, u in ((1.0, "s"), (1e3, "ms")) if top * f >= 1), (1e6, "us"))
        return factor, f"{label}, {unit}"
    if metric and metric.unit == "bytes":
        return 1e-9, f"{label}, GB"
    words = ((1e-12, "10^12"), (1e-9, "10^9"), (1e-6, "10^6"))
    factor, word = next(((f, w) for f, w in words if top * f >= 1), (1.0, ""))
    return factor, ", ".join(piece for piece in (label, word) if piece)


def save_figure(figure: Any, path: Path) -> Path:
    """Write ``figure`` to ``path``, whose suffix is png or svg, without a date; returns the path."""
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    return save(path, lambda f: figure.savefig(f, format=kind, metadata=metadata), "wb")


def _text(path: str, value: object) -> str:
    return show(value, dimension(path.rpartition(".")[2])) if isinstance(value, float) else str(value)


def _f(value: object) -> float:
    return float(value)  # type: ignore[arg-type]
