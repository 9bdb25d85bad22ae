"""The figure of measured kernels: predicted over measured seconds of every kernel that no fit has seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sextant.studies import figures, kernel_errors
from sextant.studies.kernel_errors import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Kinds drawn in one colour, and how the legend calls them.
_FAMILIES = (
    ("dense products", ("gemm bf16", "gemm fp8", "gemm fp8_block", "conv2d"), "#2f6690"),
    ("experts", ("grouped_gemm bf16", "grouped_gemm fp8", "moe"), "#81a4cd"),
    ("attention, MLA", ("attention", "mla"), "#b5493c"),
    ("memory-bound, copies, routing", ("memory-bound", "host copy", "routing"), "#d9a441"),
    ("gather", ("gather",), "#7d9d74"),
    ("mHC, Engram", ("mhc_pre", "mhc_post", "sinkhorn", "engram_gate"), "#6f5c8a"),
)
#: Errors beyond this are drawn at the edge.
_FARTHEST = 0.5


def draw(found: Judged, device: str, place: Path, name: str = "kernels") -> list[Path]:
    """Two panels as png and svg in ``place``: every held-out kernel over its measured time, and the spread per kind."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    with figures.styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), width_ratios=(3, 2), layout="constrained")
        for label, kinds, colour in _FAMILIES:
            part = found.only(np.isin(found.kind, kinds))
            error = np.clip(part.predicted_s / part.measured_s - 1.0, -_FARTHEST, _FARTHEST)
            left.scatter(part.measured_s, 100 * error, s=7, color=colour, alpha=0.7, linewidths=0, label=label)
        left.axhspan(-10, 10, color="#000000", alpha=0.05, linewidth=0)
        left.axhline(0, color="#444444", linewidth=0.8)
        left.set(xscale="log", xlabel="measured", ylabel="predicted, % off", ylim=(-105 * _FARTHEST, 105 * _FARTHEST))
        left.xaxis.set_major_formatter(EngFormatter(unit="s"))
        left.set_title(
            f"{len(found.kind):,} kernels of one {device.upper()} that no fit has seen", loc="left", fontsize=9
        )
        left.legend(fontsize=7, ncols=2, loc="upper right", frameon=False, markerscale=2)
        _spread(right, found)
        paths = [figures.save_figure(figure, place / f"{name}.{kind}") for kind in ("png", "svg")]
        plt.close(figure)
    return paths


def _spread(axes: Axes, found: Judged) -> None:
    """Per kind the middle 90% of errors as a bar, the median as a dot."""
    rows = [row for row in kernel_errors.errors(found) if row.n_rows]
    rows = rows[:-1][::-1]
    for i, row in enumerate(rows):
        part = found.only(found.kind == row.kind)
        low, middle, high = np.nanquantile(100 * (part.predicted_s / part.measured_s - 1.0), (0.05, 0.5, 0.95))
        colour = next((c for _, kinds, c in _FAMILIES if row.kind in kinds), "#444444")
        axes.plot((low, high), (i, i), color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6)
        axes.plot(middle, i, "o", color=colour, markersize=4)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row.kind} ({100 * row.mape:.1f}%)" for row in rows], fontsize=7)
    axes.set_xlabel("predicted, % off: middle 90%, median")
    axes.set_title("by kind (mean absolute error)", loc="left", fontsize=9)
