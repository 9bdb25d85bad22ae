"""Figures of an answer: where the step's time goes, what fills the memory, how a metric moves along an axis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.studies import metrics
from sextant.studies.axes import is_numeric
from sextant.studies.files import save

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: Fixed so that the same answer gives the same bytes.
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "sextant", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "figure.dpi": 150, "savefig.bbox": "tight", "svg.fonttype": "path",
}  # fmt: skip
_COLOURS = ("#2f6690", "#81a4cd", "#d9a441", "#b5493c", "#7d9d74", "#6f5c8a", "#a8a29a", "#444444")
_STEP_PARTS = (
    "forward_s", "backward_input_s", "backward_weight_s", "forward_backward_s", "bubble_s", "optimizer_s",
)  # fmt: skip
_N_OPERATORS = 14


def draw(answer: Answer, place: Path) -> list[Path]:
    """Every figure that fits the answer, as png and svg in ``place``; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn: list[Path] = []
    with plt.rc_context(_STYLE):
        for name, figure in _figures(answer):
            drawn += [_save(figure, place / f"{name}.{kind}") for kind in ("png", "svg")]
            plt.close(figure)
    return drawn


def _figures(answer: Answer):
    columns = answer.result.columns
    if answer.n_points > 1:
        numeric = [path for path, values in answer.question.scenario.axes.items() if is_numeric(values)]
        if numeric:
            yield "curve", curve(answer, numeric[0])
        return
    if all(name in columns for name in _STEP_PARTS):
        yield "step", step(answer)
    if answer.result.breakdown:
        yield "operators", operators(answer)
    yield "memory", memory(answer)


def step(answer: Answer):
    """Parts of the training step as stacked bars, predicted and, where there are figures, published."""
    import matplotlib.pyplot as plt

    from sextant.studies.report import comparisons

    figure, axes = plt.subplots(figsize=(7.2, 2.2))
    beside = comparisons(answer)
    bars = {"predicted": {name: float(answer.result.columns[name][0]) for name in _STEP_PARTS}}
    if all(name in beside for name in _STEP_PARTS):
        bars = {"published": {name: beside[name].published for name in _STEP_PARTS}, **bars}
    for y, values in enumerate(bars.values()):
        left = 0.0
        for name, colour in zip(_STEP_PARTS, _COLOURS, strict=False):
            label = metrics.METRICS[name].label if y == 0 else None
            axes.barh(y, values[name], left=left, color=colour, label=label, height=0.6)
            if values[name] > 0.04 * sum(values.values()):
                axes.text(left + values[name] / 2, y, f"{values[name]:.2f}", ha="center", va="center", color="white")
            left += values[name]
        axes.text(left, y, f"  {left:.2f} s", va="center")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_xlabel("seconds of one optimizer step, as rank 0 of the pipeline spends them")
    axes.set_xlim(0, 1.12 * max(sum(v.values()) for v in bars.values()))
    axes.legend(ncol=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False)
    return figure


def operators(answer: Answer):
    """The operators that take most time, by what bounds them, with their 90% intervals."""
    import matplotlib.pyplot as plt

    rows = list(answer.result.breakdown.items())[:_N_OPERATORS][::-1]
    bounds = sorted({str(row["bound"]) for _, row in rows})
    colour = dict(zip(bounds, _COLOURS, strict=False))
    figure, axes = plt.subplots(figsize=(7.2, 0.24 * len(rows) + 0.9))
    unit, factor = ("s", 1.0) if max(_f(row["seconds"]) for _, row in rows) > 0.5 else ("ms", 1e3)
    for y, (_, row) in enumerate(rows):
        seconds, low, high = (factor * _f(row[key]) for key in ("seconds", "low_s", "high_s"))
        axes.barh(y, seconds, color=colour[str(row["bound"])], height=0.7)
        axes.plot([low, high], [y, y], color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlabel(f"{unit} per step on one device; line: 90% interval")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour[bound]) for bound in bounds]
    axes.legend(handles, [f"bound by {bound}" for bound in bounds], frameon=False, loc="lower right")
    return figure


def memory(answer: Answer):
    """What fills the HBM of the fullest device, against its capacity."""
    import matplotlib.pyplot as plt

    columns = answer.result.columns
    skip = ("hbm_bytes", "hbm_free_bytes")
    parts = {n: float(v[0]) for n, v in columns.items() if n.startswith("hbm_") and n not in skip and v[0] > 0}
    figure, axes = plt.subplots(figsize=(7.2, 1.4))
    left = 0.0
    for (name, size), colour in zip(parts.items(), _COLOURS, strict=False):
        axes.barh(0, size / 1e9, left=left, color=colour, label=name.removeprefix("hbm_").removesuffix("_bytes"))
        left += size / 1e9
    limit = (columns["hbm_bytes"][0] + columns["hbm_free_bytes"][0]) / 1e9
    axes.axvline(limit, color="black", lw=1.2)
    axes.text(limit, 0.46, " capacity", ha="left", va="bottom")
    axes.set_yticks([])
    axes.set_xlabel("GB of HBM on the fullest device")
    axes.set_xlim(0, 1.15 * max(limit, left))
    axes.legend(ncol=4, loc="lower center", bbox_to_anchor=(0.45, 1.05), frameon=False)
    return figure


def curve(answer: Answer, path: str):
    """The first objective (or the step time) along the first numeric axis, a line per value of the other axes."""
    import matplotlib.pyplot as plt

    scenario, swept = answer.question.scenario, answer.axis_values()
    name = next((n for n in scenario.objectives if n in answer.result.columns), "step_time_s")
    values, ok = answer.result.columns[name], answer.result.feasible
    others = [p for p in swept if p != path]
    keys = [tuple(_text(swept[p][i]) for p in others) for i in range(answer.n_points)]
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for key, colour in zip(dict.fromkeys(keys), _COLOURS, strict=False):
        at = np.array([i for i, k in enumerate(keys) if k == key])
        x = swept[path][at].astype(float)
        axes.plot(x, values[at], color=colour, lw=1.2, label=", ".join(key) or None)
        axes.plot(x[~ok[at]], values[at][~ok[at]], "x", color=colour, ms=4)
    axes.set_xlabel(path)
    axes.set_ylabel(metrics.METRICS[name].label if name in metrics.METRICS else name)
    if others:
        axes.legend(title=", ".join(others), frameon=False)
    if not ok.all():
        axes.set_title("crosses: infeasible", loc="right", fontsize=8)
    return figure


def _save(figure: Any, path: Path) -> Path:
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    return save(path, lambda f: figure.savefig(f, format=kind, metadata=metadata), "wb")


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _f(value: object) -> float:
    return float(value)  # type: ignore[arg-type]
