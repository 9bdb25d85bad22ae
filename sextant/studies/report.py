"""Answers for people and for programs: short tables, JSON, CSV, and a folder of both with figures."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

import sextant
from sextant.simulator.errors import InputError
from sextant.simulator.types import Result
from sextant.studies import axes, memory_report, metrics, solve
from sextant.studies.equations import equation
from sextant.studies.files import folder, save
from sextant.studies.scenario import Question
from sextant.validate import published

if TYPE_CHECKING:
    from sextant.simulator.des import Span
    from sextant.simulator.pipeline import PipelineRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question with its result: what every report is made from."""

    question: Question
    result: Result

    @property
    def n_points(self) -> int:
        """The number of design points."""
        return len(self.result.feasible)

    def axis_values(self) -> dict[str, np.ndarray]:
        """The value of every axis at every point."""
        return axes.columns(self.question.scenario.axes, np.arange(self.n_points))

    def solved_columns(self) -> list[str]:
        """The columns of the result that ``solve`` is about: each field, then its size."""
        given = self.question.scenario.solve
        named = solve.columns(given)
        pairs = ((named[path], equation(each)[0]) for path, each in given.items())
        return list(dict.fromkeys(name for pair in pairs for name in pair))


def interval(answer: Answer, name: str, point: int = 0) -> tuple[float, float]:
    """The 90% interval of a metric that scales with the step time, as (low, high)."""
    columns = answer.result.columns
    value, step = columns[name][point], columns["step_time_s"][point]
    if step == 0:  # a point that no plan can be made of has no times, and no interval
        return value, value
    low, high = columns["step_time_low_s"][point] / step, columns["step_time_high_s"][point] / step
    faster_is_more = name.startswith(("tokens_per", "images_per", "mfu"))
    return (value / high, value / low) if faster_is_more else (value * low, value * high)


def planned(answer: Answer, point: int = 0) -> bool:
    """Whether the point could be evaluated at all; a plan that cannot exist has reasons, but no times."""
    return bool(answer.result.columns["step_time_s"][point] > 0)


#: Seconds that no operator's time is part of.
_OF_THE_MACHINE = ("mtbf_s", "checkpoint_s", "checkpoint_interval_s")


def scales(name: str) -> bool:
    """Whether a metric moves with the step time, so that its interval follows from the step's."""
    timed = name.endswith("_s") or name.startswith(("tokens_per", "images_per", "mfu", "gpu_hours", "usd_per"))
    return timed and name not in ("step_time_low_s", "step_time_high_s", *_OF_THE_MACHINE)


def comparisons(answer: Answer, point: int = 0, groups: Sequence[str] | None = None) -> dict[str, published.Comparison]:
    """The published figures that the scenario (or ``groups``) asks to be judged by, by metric; the first wins."""
    if not planned(answer, point):
        return {}
    columns = answer.result.columns
    predicted = {name: float(values[point]) for name, values in columns.items()}
    ends = {name: interval(answer, name, point) for name in predicted if scales(name) and "step_time_s" in predicted}
    found: dict[str, published.Comparison] = {}
    for group in answer.question.published if groups is None else groups:
        pairs = published.compare(
            predicted, group, low={n: e[0] for n, e in ends.items()}, high={n: e[1] for n, e in ends.items()}
        )
        for pair in pairs:
            found.setdefault(pair.metric, pair)
    return found


def limits(answer: Answer, point: int) -> list[str]:
    """Why a point is infeasible, a missing capacity with the bytes it misses by; empty if it is feasible."""
    free = answer.result.columns.get("hbm_free_bytes")
    miss = "" if free is None or free[point] >= 0 else f": {-free[point] / 1e9:.1f} GB too much"
    return [text + miss if text.startswith("hbm:") else text for text in answer.result.limits[point]]


def changed(answer: Answer) -> list[str]:
    """What ``--set`` changed, by dotted path: published figures are of the scenario without it."""
    return [path for path, entry in answer.question.entries.items() if entry.place.startswith("--set")]


def as_json(answer: Answer) -> dict[str, Any]:
    """The contract of ``run --json``: {scenario, points, breakdown, provenance, published, memory, warnings, versions,
    seed}.

    ``published`` compares a single point with the figures that its scenario names, ``memory`` has every rank of a
    single training plan (``memory_report.ranks``); both are empty for a sweep.
    """
    result, scenario = answer.result, answer.question.scenario
    swept = answer.axis_values()
    points = [
        {
            **{path: _plain(values[i]) for path, values in swept.items()},
            "metrics": {name: float(values[i]) for name, values in result.columns.items()},
            "feasible": bool(result.feasible[i]), "limits": limits(answer, i),
        }
        for i in range(answer.n_points)
    ]  # fmt: skip
    return {
        "scenario": scenario.name, "points": points, "breakdown": result.breakdown, "provenance": result.provenance,
        "published": [_pair(pair) for pair in comparisons(answer).values()] if answer.n_points == 1 else [],
        "memory": memory_report.ranks(answer),
        "warnings": list(result.warnings), "versions": versions(), "seed": scenario.seed,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What computed the answer."""
    return {"sextant": sextant.__version__, "numpy": np.__version__, "python": platform.python_version()}


def write(answer: Answer, out: str | Path) -> list[Path]:
    """Results of ``answer`` in folder ``out``: points.csv, result.json, breakdown.csv, memory.csv, figures; returns the
    files."""
    from sextant.studies import figures

    place = folder(out)
    files = [
        save(place / "points.csv", lambda f: _points_csv(answer, f)),
        save(place / "result.json", lambda f: f.write(dumps(as_json(answer)) + "\n")),
    ]
    if answer.result.breakdown:
        files.append(save(place / "breakdown.csv", lambda f: _breakdown_csv(answer.result.breakdown, f)))
    return files + _memory_files(answer, place) + figures.draw(answer, place)


def _memory_files(answer: Answer, place: Path) -> list[Path]:
    """memory.csv of every rank of one training plan, and memory_over_time.csv where the event engine played it."""
    records = memory_report.ranks(answer)
    files = [save(place / "memory.csv", lambda f: memory_report.write_parts(records, f))] if records else []
    if records and not simulated(answer):
        rows = memory_report.timeline(answer)
        files.append(save(place / "memory_over_time.csv", lambda f: memory_report.write_timeline(rows, f)))
    return files


def write_trace(answer: Answer, out: str | Path) -> Path:
    """``trace.json`` of the pipeline in folder ``out``, for Perfetto; InputError where no pipeline was simulated."""
    from sextant.simulator.trace import chrome_trace
    from sextant.studies.training import pipeline_counters

    run = _pipeline_run(answer)
    spans = [*run.spans, *run.messages, *_optimizer_spans(answer, run)]
    found = chrome_trace(spans, pipeline_counters(answer.question.scenario, run))
    return save(folder(out) / "trace.json", lambda f: f.write(json.dumps(found, separators=(",", ":")) + "\n"))


def simulated(answer: Answer) -> str:
    """ "" if the answer is of one pipeline that the event engine played; else what to change so that it is."""
    scenario = answer.question.scenario
    if answer.question.study:
        return f"a trace shows a training pipeline, got study: {answer.question.study}"
    if scenario.load.phase != "training":
        return f"a trace shows a training pipeline, got load.phase: {scenario.load.phase}"
    if answer.n_points != 1:
        return f"a trace shows one point, got {answer.n_points:,}; fix the axes with --set"
    if scenario.engine != "event":
        return f"a trace needs the event engine, got engine: {scenario.engine}; add --set engine=event"
    if not planned(answer):
        return f"a trace shows a step, but this one has none; {'; '.join(limits(answer, 0))}"
    if scenario.plan.pipeline < 2:
        return "a trace shows a pipeline, got plan.pipeline: 1; raise it"
    return ""


def pipeline_spans(answer: Answer) -> list[Span]:
    """The spans of every rank: the chunks of the pipeline, then the optimizer, for which all ranks wait."""
    run = _pipeline_run(answer)
    return [*run.spans, *_optimizer_spans(answer, run)]


def _pipeline_run(answer: Answer) -> PipelineRun:
    from sextant.studies.training import pipeline_run

    problem = simulated(answer)
    if problem:
        raise InputError(f"--trace: {problem}")
    return pipeline_run(answer.question.scenario)


def _optimizer_spans(answer: Answer, run: PipelineRun) -> list[Span]:
    from sextant.simulator.des import Span

    end_s = float(answer.result.columns["step_time_s"][0])
    start_s = end_s - float(answer.result.columns["optimizer_s"][0])
    tracks = dict.fromkeys(span.track for span in run.spans)
    return [
        Span(name="optimizer", track=track, stream="compute", start_s=start_s, end_s=end_s, kind="optimizer")
        for track in tracks
    ]


def dumps(value: object) -> str:
    """``value`` as JSON. A number without end, such as an unlimited rate, is null: JSON has no infinity."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _points_csv(answer: Answer, file: IO[str]) -> None:
    swept, columns = answer.axis_values(), answer.result.columns
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*swept, *columns, "feasible", "limits"])
    for i in range(answer.n_points):
        row: list[Any] = [_plain(values[i]) for values in swept.values()]
        row += [repr(float(values[i])) for values in columns.values()]
        writer.writerow([*row, int(answer.result.feasible[i]), "; ".join(limits(answer, i))])


def _breakdown_csv(rows: Mapping[str, Mapping[str, object]], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    names = list(next(iter(rows.values())))
    writer.writerow(["operator", *names])
    for operator, row in rows.items():
        writer.writerow([operator, *(row[name] for name in names)])


def _pair(pair: published.Comparison) -> dict[str, Any]:
    return {
        "metric": pair.metric, "predicted": float(pair.predicted), "low": float(pair.low), "high": float(pair.high),
        "published": pair.published, "error": float(pair.error), "inside": bool(pair.inside), "source": pair.source,
        "confidence": pair.confidence,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def best(answer: Answer) -> list[int]:
    """Points in the order of the first objective, the feasible ones first; file order without objectives."""
    order: Iterable[int] = range(answer.n_points)
    objectives = answer.question.scenario.objectives
    if not objectives:
        return list(order)
    name, sense = next(iter(objectives.items()))
    values = answer.result.columns.get(name)
    if values is None:
        return list(order)
    sign = -1.0 if sense == "max" else 1.0
    return sorted(order, key=lambda i: (not answer.result.feasible[i], sign * values[i], i))


def headline(answer: Answer) -> list[str]:
    """The metrics of the short table that this answer has."""
    return metrics.headline(answer.result.columns)
