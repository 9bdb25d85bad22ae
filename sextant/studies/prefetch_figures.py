"""Figures of the study of prefetch: one pass as it runs, and what is exposed over bandwidth and over the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sextant.simulator import paths
from sextant.simulator.fetch import WAYS
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Scenario
from sextant.simulator.units import show
from sextant.studies import fetches, hidden, solve
from sextant.studies.fetches import Scene

if TYPE_CHECKING:
    from sextant.simulator.des import Span
    from sextant.studies.report import Answer

_STREAMS = ("compute", "link", "host")
_COLOURS = {"layer": "#2f6690", "fetch": "#d9a441", "other": "#a8a29a", "prepare": "#7d9d74"}
_NAMES = {"layer": "layer", "fetch": "rows on the link", "other": "other copies", "prepare": "the CPU gathers"}
_WAY_COLOURS = dict(zip(WAYS, ("#b5493c", "#2f6690", "#7d9d74", "#d9a441", "#a8a29a"), strict=True))
_BANDWIDTHS = np.geomspace(1e9, 5.12e11, 61)


def figures(answer: Answer) -> Mapping[str, Any]:
    """``timeline``, ``exposed_over_bandwidth``, ``exposed_over_layer`` of the first point; none where it fetches
    nothing."""
    found = _first(answer)
    if found is None:
        return {}
    scenario, timed, scene = found
    return {
        "timeline": timeline(fetches.point_spans(scene, 0), scene),
        "exposed_over_bandwidth": over_bandwidth(scenario, timed, scene),
        "exposed_over_layer": over_layer(scenario, timed, scene),
    }


def _first(answer: Answer) -> tuple[Scenario, TimedStep, Scene] | None:
    """The first point, its operators and its pass."""
    from sextant.studies import answer as phases
    from sextant.studies import report

    columns = answer.result.columns
    if "exposed_fetch_s" not in columns or not report.planned(answer):
        return None
    part = next(iter(solve.parts(answer.question, phases.structural(answer.question.scenario))))
    where = int(np.flatnonzero(part.index == 0)[0])
    scenario = paths.take(part.scenario, np.array([where]))
    step_s = columns["step_time_s"][:1] - columns["exposed_fetch_s"][:1]
    timed, scene = hidden.scene_of(scenario, step_s)
    return None if scene is None else (scenario, timed, scene)


def timeline(spans: list[Span], scene: Scene):
    """Compute, the link and the host from the start of a pass until all rows are there, a bar per layer and fetch."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = [stream for stream in _STREAMS if any(span.stream == stream for span in spans)]
    end_s, shown_s = _window(spans, scene)
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.45 * len(rows)))
    kinds: dict[str, str] = {}
    for span in spans:
        kind = span.name.rstrip("0123456789")
        kinds[kind] = _COLOURS[kind]
        left, right = 1e3 * span.start_s, 1e3 * min(span.end_s, shown_s)
        if left >= right:
            continue
        y = len(rows) - 1 - rows.index(span.stream)
        axes.barh(y, right - left, left=left, height=0.7, color=_COLOURS[kind], edgecolor="white", lw=0.4)
        number = span.name[len(kind) :]
        if right - left > 0.02 * 1e3 * shown_s and (kind != "layer" or int(number) in scene.at):
            axes.text((left + right) / 2, y, str(int(number) + 1), ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.set_xlim(0.0, 1e3 * shown_s)
    axes.set_xlabel(f"ms, of a pass of {show(end_s, 's', 3)}; numbers are layers that look rows up")
    handles = [Patch(color=colour) for colour in kinds.values()]
    figure.legend(handles, [_NAMES[kind] for kind in kinds], ncol=4, loc="lower center", bbox_to_anchor=(0.5, 0.95),
                  frameon=False)  # fmt: skip
    return figure


def _window(spans: list[Span], scene: Scene) -> tuple[float, float]:
    """Seconds of the pass, and of what is drawn: until the last fetch and the first layer with rows have ended."""
    end_s = max(span.end_s for span in spans)
    first = f"layer{scene.at[0]}"
    last_s = max(span.end_s for span in spans if span.name == first or not span.name.startswith("layer"))
    return end_s, min(1.2 * last_s, end_s)


def over_bandwidth(scenario: Scenario, timed: TimedStep, scene: Scene):
    """Exposed time over the bandwidth of the memory that holds the tables, a line per way of fetching."""
    from matplotlib.ticker import LogLocator

    from sextant.studies.figures import log_axis

    tier = scenario.plan.placement["engram"]
    memory = f"device.memories.{tier}.bandwidth_bytes_per_s"
    cluster = paths.put(fetches.sharing(scenario), memory, _BANDWIDTHS)

    def exposed(way: str) -> np.ndarray:
        asked = replace(scenario, plan=replace(scenario.plan, prefetch=way))
        fetch, beside = fetches.fetching(asked, timed, fetches.fetch_ops(timed), cluster)
        played = replace(scene, fetch=fetch, beside=beside).played()
        return np.broadcast_to(np.asarray(played.exposed_s), _BANDWIDTHS.shape)

    figure, axes = _lines(_BANDWIDTHS, exposed)
    log_axis(axes, lambda value: show(value, "bytes_per_s", 3))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
    axes.set_xlabel(f"bandwidth of {tier} to one device, all else as it is")
    return figure


def over_layer(scenario: Scenario, timed: TimedStep, scene: Scene):
    """Exposed time of one Engram layer over where it stands, a line per way of fetching."""
    layers = np.arange(1, len(scene.layers_s) + 1)

    def exposed(way: str) -> np.ndarray:
        asked = replace(scenario, plan=replace(scenario.plan, prefetch=way))
        fetch, beside = fetches.fetching(asked, timed, fetches.fetch_ops(timed), fetches.sharing(scenario))
        there = [replace(scene, fetch=fetch, beside=beside, at=(int(layer) - 1,)).played() for layer in layers]
        return np.array([np.asarray(each.exposed_s).reshape(-1)[0] for each in there])

    figure, axes = _lines(layers, exposed)
    axes.set_xlabel("layer that looks rows up, the only one")
    return figure


def _lines(x: np.ndarray, exposed: Callable[[str], np.ndarray]):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for way in WAYS:
        # On demand and behind a full grid all is exposed: one line hides the other.
        style = "--" if way == "full_grid" else "-"
        axes.plot(x, 1e3 * exposed(way), style, color=_WAY_COLOURS[way], lw=1.4, label=way)
    axes.set_ylabel("exposed, ms")
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    axes.legend(title="plan.prefetch", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure, axes
