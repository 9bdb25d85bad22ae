"""The architecture study as tables of the shapes that none beats, and as a figure of loss over each cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.units import dimension, show
from sextant.studies.cli import plain
from sextant.studies.metrics import METRICS, shown

if TYPE_CHECKING:
    from sextant.studies.report import Answer
    from sextant.studies.scenario import Question

#: What is good where the scenario does not say.
USUAL = ("loss_change", "training_usd_per_trillion_tokens", "decode_usd_per_million_tokens")
#: What the study tells of a shape beside the columns of the allocation study.
VARIED = ("n_streams", "num_hidden_layers", "num_experts_per_tok", "moe_intermediate_size")
#: How a shape is called, by the column that tells it.
_SHAPE = {
    "rho": "rho", "n_routed_experts": "experts", "num_experts_per_tok": "of a token", "moe_intermediate_size": "width",
    "num_hidden_layers": "layers", "n_streams": "streams", "engram_rows": "rows",
}  # fmt: skip
#: Rows that a reader looks at; the files have all.
_N_ROWS = 16
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def sign(sense: str) -> float:
    """1.0 where less of a metric is better, -1.0 where more is."""
    return -1.0 if sense == "max" else 1.0


def objectives(asked: Question) -> dict[str, str]:
    """What makes a shape good: the scenario's objectives, or else loss, the cost of training and that of decoding."""
    return dict(asked.scenario.objectives) or dict.fromkeys(USUAL, "min")


def front(answer: Answer, column: str) -> list[int]:
    """The points that ``column`` calls unbeaten, the best in the first objective first."""
    columns, (name, sense) = answer.result.columns, next(iter(objectives(answer.question).items()))
    at = np.flatnonzero(columns[column] > 0)
    return at[np.argsort(sign(sense) * columns[name][at], kind="stable")].tolist()


def own(answer: Answer) -> list[int]:
    """The unbeaten points among those with the depth and the grain of experts of the model that all start from."""
    model, columns = answer.question.unchanged({}), answer.result.columns
    same = (columns["num_hidden_layers"] == model.num_hidden_layers) & (
        columns["num_experts_per_tok"] == model.num_experts_per_tok
    )
    return [i for i in front(answer, "unbeaten_alike") if same[i]]


def text(answer: Answer) -> str:
    """Two tables: the unbeaten shapes of the model's own depth and grain, and those of all."""
    result, heads = answer.result, ", ".join(map(_head, objectives(answer.question)))
    ok = int(result.feasible.sum())
    lines = [f"{plain(answer.question.scenario.name)}: {answer.n_points:,} points, {ok:,} feasible"]
    everything = front(answer, "unbeaten")
    for what, points in (
        ("with the layers and the experts per token of the model", own(answer)),
        ("of all, if depth and grain cost no loss, which nobody knows", everything),
    ):
        lines += ["", f"beaten by none in {heads}, {what}: {len(points)}"]
        lines += [_table(answer, points)] if points else []
    if not everything:
        reasons = dict.fromkeys(reason for each in result.limits for reason in each)
        lines += [f"infeasible: {plain(reason)}" for reason in list(reasons)[:3]]
    return "\n".join(lines)


def _table(answer: Answer, points: Sequence[int]) -> str:
    """Shapes, what is swept beside them, and the objectives; thinned evenly where there are many."""
    from sextant.studies import tables

    swept, names = answer.axis_values(), list(objectives(answer.question))
    other = [path for path in swept if path.rpartition(".")[2] not in (*_SHAPE, "engram_fraction")]
    heads = (*(path.rpartition(".")[2] for path in other), *_SHAPE.values(), *map(_head, names))
    table = tables.grid(*(f">{head}" for head in heads))
    chosen = np.unique(np.linspace(0, len(points) - 1, min(_N_ROWS, len(points))).astype(int))
    for i in (points[k] for k in chosen):
        at = {name: float(values[i]) for name, values in answer.result.columns.items()}
        cells = [_value(path, swept[path][i]) for path in other]
        tables.add(table, [*cells, *_shape(at), *(_told(name, at[name]) for name in names)])
    text = tables.rendered(table)
    return (
        text if len(chosen) == len(points) else f"{text}\n({len(chosen)} of {len(points)} shown; --out DIR writes all)"
    )


def _shape(at: Mapping[str, float]) -> list[str]:
    return [f"{100 * at[name]:.1f}%" if name == "rho" else f"{at[name]:,.0f}" for name in _SHAPE]


def _told(name: str, value: float) -> str:
    return f"{value:+.4f}" if name == "loss_change" else shown(name, value)


def _head(name: str) -> str:
    if name == "loss_change":
        return "loss change"
    return METRICS[name].label if name in METRICS else name


def _value(path: str, value: object) -> str:
    return show(value, dimension(path.rpartition(".")[2])) if isinstance(value, float) else str(value)


def figures(answer: Answer) -> dict[str, Any]:
    """``pareto``: the first objective over each other one, shapes by their streams, the unbeaten ones marked."""
    return {"pareto": _pareto(answer)}


def _pareto(answer: Answer) -> Any:
    import matplotlib.pyplot as plt

    columns, feasible = answer.result.columns, answer.result.feasible
    first, *others = objectives(answer.question)
    n = max(len(others), 1)
    figure, panels = plt.subplots(1, n, figsize=(5.4 * n, 4.8), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], others, strict=False):
        for streams, colour in zip(np.unique(columns["n_streams"][feasible]), _COLOURS, strict=False):
            at = feasible & (columns["n_streams"] == streams)
            label = f"{streams:.0f} residual streams" if streams > 1 else "plain residual"
            axes.plot(columns[name][at], columns[first][at], ".", ms=4, alpha=0.6, color=colour, label=label)
        for points, marker, label in (
            (own(answer), "D", "beaten by none with the model's depth and grain"),
            (front(answer, "unbeaten"), "o", "beaten by none of all"),
        ):
            x, y = columns[name][points], columns[first][points]
            axes.plot(x, y, marker, ms=8, mfc="none", mew=1.0, color="black", label=label)
            if f"{first}_low" in columns:
                low, high = (columns[f"{first}_{end}"][points] for end in ("low", "high"))
                axes.vlines(x, low, high, color="black", lw=0.6, alpha=0.4)
        axes.set_xlabel(_head(name))
        axes.set_ylabel(_head(first))
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8, frameon=False
    )
    figure.suptitle(answer.question.scenario.name, fontsize=9)
    return figure
