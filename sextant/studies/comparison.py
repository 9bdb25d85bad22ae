"""Two scenarios side by side: the difference per metric, per operator and per resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sextant.simulator.errors import InputError
from sextant.studies import metrics as known
from sextant.studies.report import Answer


def compare(a: Answer, b: Answer) -> dict[str, Any]:
    """``{a, b, metrics, operators, resources}`` with rows {name, a, b}, the largest differences of seconds first.

    Operators are matched by name, resources are what bounds them (math, memory, link, rows, launch) per stream; a
    missing one counts 0. Both scenarios must be single points.
    """
    for answer in (a, b):
        if answer.n_points != 1:
            name = answer.question.scenario.name
            got = f"{name!r} has {answer.n_points:,}"
            raise InputError(f"compare takes single points, {got}; write a scenario without axes")
    both = [name for name in known.METRICS if name in a.result.columns and name in b.result.columns]
    names = [*known.headline(both), *(name for name in ("hbm_bytes", "hbm_free_bytes") if name in both)]
    metrics = [{"name": n, "a": float(a.result.columns[n][0]), "b": float(b.result.columns[n][0])} for n in names]
    operators = _rows(_seconds(a.result.breakdown), _seconds(b.result.breakdown))
    resources = _rows(_resources(a.result.breakdown), _resources(b.result.breakdown))
    title = {"a": a.question.scenario.name, "b": b.question.scenario.name}
    return {**title, "metrics": metrics, "operators": operators, "resources": resources}


def _seconds(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(row["seconds"]) for name, row in rows.items()}


def _resources(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in rows.values():
        key = f"{row['stream']}: bound by {row['bound']}"
        sums[key] = sums.get(key, 0.0) + float(row["seconds"])
    return sums


def _rows(a: Mapping[str, float], b: Mapping[str, float]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*a, *b])
    rows = [{"name": n, "a": a.get(n, 0.0), "b": b.get(n, 0.0)} for n in names]
    return sorted(rows, key=lambda row: -abs(row["b"] - row["a"]))
