"""The figure of a model's card: where its parameters are, and what a token costs beside a GPU's roofline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sextant.studies.card_table import ROWS, name, prefixed
from sextant.studies.cli import plain
from sextant.studies.figures import save_figure, styled
from sextant.studies.metrics import count

#: One colour per piece, the same in both panels where a row of work is made of it.
_COLOURS = {
    "attention": "#2f6690", "routed_experts": "#d9a441", "experts": "#d9a441", "shared_experts": "#e8c98b",
    "mlp": "#7d9d74", "dense_mlp": "#7d9d74", "embedding": "#a8a29a", "head": "#6b6660", "embedding_head": "#6b6660",
    "engram_tables": "#b5493c", "engram": "#b5493c", "engram_gate": "#d98c82", "router": "#81a4cd", "norm": "#d5d2cc",
    "hyper_connection": "#6f5c8a", "streams": "#6f5c8a", "vision": "#3d8b8b", "generation": "#a05195",
    "dense_layer": "#b9c7b3", "moe_layer": "#e3cda4", "mtp": "#444444",
}  # fmt: skip
_OTHERS = ("#8c6d31", "#637939", "#843c39", "#7b4173", "#5254a3", "#9c9ede")
_MARKERS = {
    "attention": "o", "experts": "s", "dense_mlp": "^", "embedding_head": "D", "mtp": "v", "engram": "P",
    "streams": "X", "vision": "p", "generation": "h",
}  # fmt: skip
_PHASES = {
    "training_forward": "#81a4cd", "training_backward": "#2f6690", "prefill": "#7d9d74", "decode_1": "#b5493c",
    "decode_128": "#d9a441", "image_understanding": "#3d8b8b", "image_generation": "#a05195",
}  # fmt: skip
_HATCH = "/////"
#: A segment narrower than this share of its bar has its name in the legend alone.
_LABELLED = 0.04
#: Work below this share of the largest of a phase is not worth a point.
_DRAWN = 0.02


def draw(card: Mapping[str, Any], place: Path) -> list[Path]:
    """The figure of ``model_card.card`` as model.png and model.svg in ``place``; returns the files."""
    import matplotlib.pyplot as plt

    with styled():
        figure = model(card)
        written = [save_figure(figure, place / f"model.{kind}") for kind in ("png", "svg")]
        plt.close(figure)
    return written


def model(card: Mapping[str, Any]):
    """One page: parameters by part and piece above, FLOPs against HBM bytes per token below."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8.4, 9.0))
    title = f"{card['name']} ({card['system']})"
    if card["changed"]:
        title += ", " + ", ".join(card["changed"])
    figure.text(0.02, 0.975, plain(title[:110]), fontsize=11, fontweight="bold", va="top")
    bars, roofline = figure.add_axes((0.12, 0.72, 0.86, 0.22)), figure.add_axes((0.12, 0.11, 0.86, 0.45))
    _bars(bars, card)
    _roofline(roofline, card["work"])
    return figure


def _bars(axes: Any, card: Mapping[str, Any]) -> None:
    """Three bars of full length: all parameters by part and by piece, with the activated share hatched, and the
    activated ones by piece."""
    from matplotlib.patches import Patch

    sizes = card["parameters"]
    pieces = dict(sorted(sizes["by_piece"].items(), key=lambda item: -item[1]["parameters"]))
    parts = {part: row for part, row in sizes["by_part"].items() if part != "mtp"}
    colours = _colours([*pieces, *parts])
    all_n, active_n = card["n_parameters"], card["n_activated_parameters"]
    rows = (
        (f"all {count(all_n)}\nby part", parts, "parameters", all_n),
        ("by piece", pieces, "parameters", all_n),
        (f"activated\n{count(active_n)}", pieces, "activated", active_n),
    )
    for y, (_, entries, key, whole) in enumerate(rows):
        left = 0.0
        for piece, row in entries.items():
            width = row[key] / whole
            if not width:
                continue
            axes.barh(y, width, left=left, color=colours[piece], height=0.72, edgecolor="white", lw=0.6)
            used = row["activated"] / whole if key == "parameters" else 0.0
            axes.barh(y, used, left=left, color="none", height=0.72, edgecolor="black", lw=0.0, hatch=_HATCH, alpha=0.6)
            if width > _LABELLED:
                text = f"{name(piece)}\n{count(row[key])}, {100 * width:.3g}%"
                _inside(axes, left + width / 2, y, text, width, colours[piece])
            left += width
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(left=False)
    named = {name(key): key for key in [*pieces, *parts]}
    handles = [Patch(color=colours[key]) for key in named.values()]
    labels = [_legend(key, label, sizes) for label, key in named.items()]
    handles.append(Patch(facecolor="white", edgecolor="black", hatch=_HATCH, lw=0.4))
    labels.append("hatched: used by one token")
    axes.legend(
        handles, labels, ncol=3 if len(labels) <= 15 else 4, loc="upper left", bbox_to_anchor=(-0.08, -0.02),
        frameon=False, fontsize=7.5, handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip


def _legend(key: str, label: str, sizes: Mapping[str, Any]) -> str:
    row = sizes["by_piece"].get(key) or sizes["by_part"][key]
    times = sizes["by_part"].get(key, {}).get("n", 1)
    return f"{label}{f' x{times:g}' if times != 1 else ''}: {count(row['parameters'])}"


def _colours(keys: Iterable[str]) -> dict[str, str]:
    spare = itertools.cycle(_OTHERS)
    return {key: _COLOURS.get(key) or next(spare) for key in dict.fromkeys(keys)}


def _inside(axes: Any, x: float, y: float, text: str, width: float, colour: str) -> None:
    """A label in the middle of a segment, left out where it would be wider than the segment."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    label = axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black",
                      bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0})  # fmt: skip
    if label.get_window_extent().width > 0.96 * width * axes.get_window_extent().width:
        label.remove()


def _roofline(axes: Any, work: Mapping[str, Any]) -> None:
    """FLOPs over HBM bytes per token, each phase a colour, each block a marker; the ridge parts compute from memory."""
    points: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str, str]] = []
    used: list[str] = []
    for phase, entry in work["phases"].items():
        colour = _PHASES.get(phase, "black")
        total = entry["hbm_bytes_per_token"], entry["flops_per_token"]
        for block, cost in entry["blocks"].items():
            x, y = cost["hbm_bytes_per_token"], cost["flops_per_token"]
            if min(x, y) <= 0 or (x < _DRAWN * total[0] and y < _DRAWN * total[1]):
                continue
            axes.plot(x, y, _MARKERS.get(block, "d"), color=colour, ms=5.5, alpha=0.9, mew=0)
            points.append((x, y))
            used.append(block)
        # A phase that costs the same as one before it is drawn inside of it.
        size = 16 if phase == "training_forward" else 12
        axes.plot(*total, "*", color=colour, ms=size, mec="black", mew=0.6, zorder=4, alpha=0.85)
        points.append(total)
        ratio = entry["flops_per_byte"]
        text = f"{entry['label']}: {f'{ratio:,.0f}' if ratio >= 99.5 else f'{ratio:.2g}'} FLOP/B\n"
        text += f"{prefixed(total[1])}FLOP, {prefixed(total[0])}B"
        labels.append((*total, text, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Room for labels stands above the points and beside them.
    (x0, x1), (y0, y1) = _limits(points, 0, 2.0), _limits(points, 1, 5.0)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    axes.set_xlabel("HBM bytes per token, one device with the whole model in " + work["format"].upper())
    axes.set_ylabel("FLOP per token")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: prefixed(value))
    axes.grid(True, which="major", lw=0.3, color="#dddddd")
    _ridge(axes, work, (x0, x1), (y0, y1))
    _markers(axes, sorted(set(used), key=lambda row: ROWS.index(row) if row in ROWS else len(ROWS)))
    _place(axes, labels, points)


def _limits(points: Sequence[tuple[float, float]], which: int, room: float) -> tuple[float, float]:
    values = [point[which] for point in points]
    return min(values) / 2.0, max(values) * room


def _ridge(axes: Any, work: Mapping[str, Any], xs: tuple[float, float], ys: tuple[float, float]) -> None:
    """The line on which the GPU's peak and its bandwidth take equally long, and the side that compute bounds."""
    ridge = work["ridge_flops_per_byte"]
    axes.plot(xs, [ridge * x for x in xs], color="black", lw=1.1, zorder=1)
    axes.fill_between(xs, [ridge * x for x in xs], [ys[1] * 10] * 2, color="#2f6690", alpha=0.06, lw=0, zorder=0)
    axes.fill_between(xs, [ys[0] / 10] * 2, [ridge * x for x in xs], color="#d9a441", alpha=0.06, lw=0, zorder=0)
    gpu = work["gpu"].upper()
    title = (
        f"a token's work: above the line compute is the limit, below it memory (ridge of the {gpu}, {ridge:.0f} FLOP/B)"
    )
    axes.set_title(title, fontsize=8.5, loc="left")


def _markers(axes: Any, blocks: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker=_MARKERS.get(block, "d"), color="#555555", ms=5.5, label=name(block))
        for block in blocks
    ]
    handles.append(
        Line2D(
            [],
            [],
            ls="",
            marker="*",
            color="white",
            mec="black",
            ms=11,
            label=f"all; blocks under {_DRAWN:.0%} left out",
        )
    )
    axes.legend(handles=handles, ncol=5, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(-0.08, -0.09),
                handletextpad=0.3, columnspacing=1.2)  # fmt: skip


def _place(axes: Any, labels: Sequence[tuple[float, float, str, str]], points: Sequence[tuple[float, float]]) -> None:
    """Write each label near its point where it covers no other label, no point, and does not leave the panel."""
    from matplotlib.transforms import Bbox

    panel = axes.get_window_extent()
    taken = [Bbox.from_bounds(px - 7, py - 7, 14, 14) for px, py in axes.transData.transform(points)]
    for x, y, text, colour in labels:
        label = axes.text(
            x, y, text, fontsize=7.5, ha="center", va="center", zorder=5,
            bbox={"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": colour, "lw": 0.9},
        )  # fmt: skip
        size = label.get_window_extent().padded(8)
        px, py = axes.transData.transform((x, y))
        best = min(_around(px, py, size.width, size.height), key=lambda box: _cost(box, panel, taken, px, py))
        label.set_position(axes.transData.inverted().transform(((best.x0 + best.x1) / 2, (best.y0 + best.y1) / 2)))
        axes.annotate(
            "", (x, y), label.get_position(), zorder=3,
            arrowprops={"arrowstyle": "-", "lw": 0.7, "color": colour, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        taken.append(best)


def _around(px: float, py: float, width: float, height: float) -> Iterable[Any]:
    """Boxes of that size around a point, in pixels, in growing circles."""
    from matplotlib.transforms import Bbox

    for far in (0.0, 15.0, 35.0, 60.0, 90.0, 130.0, 180.0, 240.0):
        for step in range(24):
            dx, dy = math.cos(math.tau * step / 24), math.sin(math.tau * step / 24)
            x, y = px + dx * (width / 2 + 12 + far), py + dy * (height / 2 + 12 + far)
            yield Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _cost(box: Any, panel: Any, taken: Sequence[Any], px: float, py: float) -> tuple[int, float]:
    """What speaks against a place: first the panel's edge and what it covers, then its distance."""
    inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
    covered = sum(box.overlaps(other) for other in taken)
    return covered + (0 if inside else 100), math.hypot((box.x0 + box.x1) / 2 - px, (box.y0 + box.y1) / 2 - py)
