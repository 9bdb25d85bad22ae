"""The pipeline as a Gantt chart: a row per rank, a colour per kind of chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sextant.simulator.des import Span
    from sextant.studies.report import Answer

#: Kinds of chunks, with the name and the colour that they have in every figure.
KINDS = {
    "F": ("forward", "#2f6690"), "FB": ("forward and backward overlapped", "#b5493c"),
    "B": ("backward, input", "#81a4cd"), "BW": ("backward", "#7d9d74"), "W": ("backward, weights", "#d9a441"),
    "optimizer": ("optimizer", "#6f5c8a"),
}  # fmt: skip
#: A step of more than so many chunks per rank is drawn whole, and its beginning and its end larger.
_N_CHUNKS = 60


def pipeline(answer: Answer):
    """What every rank of the pipeline does and when; of a long step also the beginning and the end, enlarged."""
    from sextant.studies.report import pipeline_spans

    return gantt(pipeline_spans(answer))


def gantt(spans: Sequence[Span]):
    """A figure of ``spans`` on one stream per track, of the kinds in ``KINDS``."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    ranks = sorted({span.track for span in spans})
    end_s = max(span.end_s for span in spans)
    window = end_s * min(1.0, _N_CHUNKS * len(ranks) / len(spans))
    rows = _rows(spans, ranks)
    height = 0.9 + 0.17 * len(ranks)
    if window == end_s:
        figure, axes = plt.subplots(figsize=(9, height))
        _draw(axes, rows, 0.0, end_s, ranks)
        axes.set_xlabel("seconds")
    else:
        figure = plt.figure(figsize=(9, 1.75 * height + 0.4))
        grid = figure.add_gridspec(2, 2, height_ratios=(1.0, 0.75), hspace=0.3, wspace=0.05)
        first, last, whole = (figure.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, :]))
        _draw(first, rows, 0.0, window / 2, ranks)
        _draw(last, rows, end_s - window / 2, end_s, ranks)
        last.set_yticklabels([])
        _draw(whole, rows, 0.0, end_s, ranks, fine=True)
        for axes, name in ((first, "first seconds"), (last, "last seconds"), (whole, "seconds, the whole step")):
            axes.set_xlabel(name)
    there = {span.kind for span in spans}
    named = {label: colour for kind, (label, colour) in KINDS.items() if kind in there}
    handles = [Patch(color=colour) for colour in named.values()]
    figure.legend(handles, list(named), ncol=3, loc="lower center", bbox_to_anchor=(0.5, 0.9), frameon=False)
    return figure


def _rows(spans: Sequence[Span], ranks: Sequence[str]) -> Mapping[tuple[str, int], list[tuple[float, float]]]:
    """(start, length) of the spans of each kind on each row."""
    place = {rank: y for y, rank in enumerate(ranks)}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for span in spans:
        found.setdefault((span.kind, place[span.track]), []).append((span.start_s, span.end_s - span.start_s))
    return found


def _draw(
    axes: Any, rows: Mapping[tuple[str, int], list[tuple[float, float]]], first: float, last: float,
    ranks: Sequence[str], *, fine: bool = False,
) -> None:  # fmt: skip
    """Bars between ``first`` and ``last`` seconds; ``fine`` ones are a few pixels wide, and kept as pixels."""
    edge = {"lw": 0.0, "rasterized": True} if fine else {"edgecolor": "white", "lw": 0.3}
    for (kind, y), bars in rows.items():
        shown = [(start, length) for start, length in bars if start + length > first and start < last]
        axes.broken_barh(shown, (y - 0.45, 0.9), color=KINDS[kind][1], **edge)
    axes.set_xlim(first, last)
    axes.set_yticks(range(len(ranks)), ranks)
    axes.tick_params(axis="y", labelsize=5 if fine else 7)
    axes.set_ylim(len(ranks) - 0.3, -0.7)
