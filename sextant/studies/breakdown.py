"""Seconds per operator and per bound of one point, for tables, comparisons and figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num


def breakdown(
    timed: TimedStep, layers: Mapping[str, Num], repeats: Num, step_s: Num, point: int = 0
) -> dict[str, dict[str, object]]:
    """``{name: {seconds, share, bound, stream, phase, part, provenance, low_s, high_s}}`` of operators at ``point``.

    ``repeats`` is how often the step's operators run (micro-batches, halves). The same operator of different layer
    kinds is listed once, its seconds summed; ``share`` is of the step, so that overlapped streams add to more than 1.
    """
    rows: dict[str, dict[str, object]] = {}
    total, times = float(_at(step_s, point)), _at(repeats, point)
    for item in timed.ops:
        n = float(_at(layers.get(item.op.part, 1.0), point) * _at(item.op.count, point) * times)
        seconds = n * float(_at(item.time.seconds, point))
        if seconds == 0.0:
            continue
        if item.op.name not in rows:
            rows[item.op.name] = {
                "seconds": 0.0, "low_s": 0.0, "high_s": 0.0, "share": 0.0, "bound": item.time.bound_at(point),
                "stream": item.op.stream, "phase": item.op.phase, "block": item.op.block, "kind": item.op.kind,
                "provenance": item.time.provenance,
            }  # fmt: skip
        row = rows[item.op.name]
        row["seconds"] = _number(row["seconds"]) + seconds
        row["low_s"] = _number(row["low_s"]) + n * float(_at(item.time.low, point))
        row["high_s"] = _number(row["high_s"]) + n * float(_at(item.time.high, point))
        row["share"] = _number(row["seconds"]) / total if total else 0.0
    return dict(sorted(rows.items(), key=lambda kv: -_number(kv[1]["seconds"])))


def _number(value: object) -> float:
    return float(value)  # type: ignore[arg-type]


def _at(value, point: int):
    return value[point] if isinstance(value, np.ndarray) and value.ndim else value
