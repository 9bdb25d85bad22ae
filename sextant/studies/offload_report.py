"""The offload experiment for people: a table of all variants, and a figure of where their seconds go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.units import show
from sextant.studies import tables

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: What a run's seconds are made of, with a colour each, in the order of the bars.
_PARTS: Mapping[str, tuple[str, str]] = {
    "decode_s": ("decode, GPU", "#2f6690"), "prefill_s": ("prefill, GPU and launches", "#81a4cd"),
    "host_s": ("host between steps", "#d9a441"), "exposed_fetch_s": ("waiting for rows", "#b5493c"),
}  # fmt: skip


def table(found: Answer) -> str:
    """One row per point and variant: tokens per second, loss, seconds by part, interval and spread over draws."""
    from sextant.studies.offload import ROWS, rows

    grid = tables.grid(
        "backbone", "table", "tokens/s", "90% interval", "draws", "loss", "whole", "prefill", "decode", "host", "rows",
        "exposed",
    )  # fmt: skip
    named = _points(found)
    for i, name, m in rows(found):
        ends = (m["tokens_per_s"] * m["step_time_s"] / m[end] for end in ("step_time_high_s", "step_time_low_s"))
        tables.add(
            grid,
            [named[i] if name == "baseline" else "", ROWS[name], f"{m['tokens_per_s']:,.0f}",
             " to ".join(f"{end:,.0f}" for end in ends),
             f"{m['tokens_per_s_least']:,.0f} to {m['tokens_per_s_most']:,.0f}",
             "" if name == "baseline" else f"{100 * m['throughput_loss']:.2f}%", f"{m['step_time_s']:.2f} s",
             *(f"{m[part]:.2f}" for part in ("prefill_s", "decode_s", "host_s", "fetch_s", "exposed_fetch_s"))],
        )  # fmt: skip
    return "\n".join([tables.rendered(grid), *_notes(found)])


def _points(found: Answer) -> list[str]:
    swept = found.axis_values()
    if not swept:
        return [found.question.scenario.model.name]
    return [", ".join(_shown(values[i]) for values in swept.values()) for i in range(found.n_points)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _notes(found: Answer) -> list[str]:
    columns, notes = found.result.columns, []
    free = columns["in_hbm_free_bytes"]
    if np.any(free < 0):
        missing = show(float(-free.min()), "bytes")
        notes.append(f"in HBM: does not fit, {missing} too much; timed as if it did, with the same cache")
    for i, name in enumerate(_points(found)):
        n_lost, n_blocks = columns["n_preempted"][i], columns["n_blocks"][i]
        if n_lost > 0:
            notes.append(f"{name}: {n_lost:.0f} times a request loses its part of {n_blocks:.0f} blocks, and is redone")
    return notes


def seconds(found: Answer) -> Any:
    """Bars of seconds by part, one per variant, a group per point."""
    import matplotlib.pyplot as plt

    from sextant.studies.offload import ROWS, rows

    bars = list(rows(found))
    figure, axes = plt.subplots(figsize=(7.6, 0.9 + 0.27 * len(bars) + 0.2 * found.n_points))
    at = [k + 1.2 * i for k, (i, _, _) in enumerate(bars)]
    left = np.zeros(len(bars))
    for part, (label, colour) in _PARTS.items():
        width = np.array([m[part] for _, _, m in bars])
        axes.barh(at, width, left=left, height=0.78, color=colour, label=label)
        left += width
    for y, end, (_, name, m) in zip(at, left, bars, strict=True):
        lost = "" if name == "baseline" else f", {-100 * m['throughput_loss']:+.2f}%"
        axes.text(end + 0.01 * left.max(), y, f"{m['tokens_per_s']:,.0f} tokens/s{lost}", va="center", fontsize=7)
    axes.set_yticks(at, [ROWS[name] for _, name, _ in bars], fontsize=7)
    for i, name in enumerate(_points(found)):
        first = next(y for y, (point, _, _) in zip(at, bars, strict=True) if point == i)
        axes.text(0.0, first - 0.62, name, fontsize=8, fontweight="bold", va="bottom")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * left.max())
    axes.set_xlabel("seconds for the whole batch")
    axes.legend(loc="lower right", fontsize=7, frameon=False)
    return figure
