"""Spans of the event engine as a trace for Perfetto and chrome://tracing: a process per rank, a thread per stream.

Quantities such as bytes held are counters of their rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sextant.simulator.des import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A quantity of ``track`` that changes: ``values[i]``, in ``unit``, from ``times_s[i]`` on."""

    name: str
    track: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]
    unit: str = ""


def chrome_trace(spans: Iterable[Span], counters: Iterable[Counter] = ()) -> dict[str, Any]:
    """``spans`` in the Trace Event Format: complete events (ph X, ts and dur in microseconds), names (ph M), and
    ``counters`` (ph C).

    Tracks become processes and their streams threads, numbered in order of name; events are ordered by start.
    """
    found, counted = list(spans), list(counters)
    tracks = {name: pid for pid, name in enumerate(sorted({s.track for s in (*found, *counted)}))}
    streams = {name: tid for tid, name in enumerate(sorted({s.stream for s in found}))}
    events: list[dict[str, Any]] = []
    for track, pid in tracks.items():
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": track}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})
    for track, stream in sorted({(s.track, s.stream) for s in found}):
        ids = {"pid": tracks[track], "tid": streams[stream]}
        events.append({"ph": "M", "name": "thread_name", **ids, "args": {"name": stream}})
    for s in sorted(found, key=lambda s: (s.start_s, s.track, s.stream, s.end_s)):
        events.append(
            {
                "ph": "X", "name": s.name, "cat": s.kind or s.stream, "pid": tracks[s.track], "tid": streams[s.stream],
                "ts": _us(s.start_s), "dur": _us(s.end_s - s.start_s),
            }
        )  # fmt: skip
    for c in sorted(counted, key=lambda c: (c.track, c.name)):
        about = {"ph": "C", "name": c.name, "pid": tracks[c.track]}
        samples = zip(c.times_s, c.values, strict=True)
        events += [{**about, "ts": _us(at), "args": {c.unit or "value": value}} for at, value in samples]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _us(seconds: float) -> float:
    # Picoseconds: what is left of a difference of two times beyond that is rounding.
    return round(1e6 * seconds, 6)
