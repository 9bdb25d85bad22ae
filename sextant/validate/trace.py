"""What a profile of a GPU says: how busy its streams are, what overlaps, what is exposed, which kernels take the time.

A stream communicates if most of its kernel time is messages (``kernel_names.MESSAGES``). Busy times are unions of
intervals, sums are sums: two kernels that share the SMs count once in the one and twice in the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.validate.intervals import Union, union
from sextant.validate.kernel_names import MESSAGES, OTHER, TRANSFERS
from sextant.validate.trace_file import Kernels, Trace

#: Between two kernels of a busy device a launch takes microseconds; longer ones wait for something.
LAUNCH_GAP_S = 10e-6
#: A kernel runs beside messages if they cover this much of it, and without them if they cover that little.
_BESIDE, _WITHOUT = 0.95, 0.02
#: Kernels shorter than this are not compared beside messages: a profiler's clock ticks in microseconds.
_COMPARABLE_S = 20e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """One stream: its kernels, their summed seconds, and the seconds in which at least one runs."""

    name: str
    communicates: bool
    n_kernels: int
    sum_s: float
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Where the span from the first start to the last end goes, in seconds.

    ``compute_busy_s`` and ``message_busy_s`` are of all streams of their kind; ``exposed_s`` has a message and no
    compute, ``idle_s`` nothing on any stream. ``launch_gaps_s`` are the short gaps between kernels of the compute
    streams (at most ``LAUNCH_GAP_S``), ``waits_s`` the long ones.
    """

    span_s: float
    compute_busy_s: float
    message_busy_s: float
    overlap_s: float
    exposed_s: float
    idle_s: float
    n_launch_gaps: int
    launch_gaps_s: float
    n_waits: int
    waits_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Kernels of one class, launched by one range, on one stream."""

    kernel_class: str
    phase: str
    stream: str
    n_kernels: int
    sum_s: float
    min_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the ranges of one name launched: how many ranges, their kernels' summed and covered seconds."""

    name: str
    n_ranges: int
    n_kernels: int
    sum_s: float
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """The same kernels with a transfer, or an agreement on sizes, beside them over those without; quartiles."""

    kernel_class: str
    beside: str
    n_kernels: int
    low: float
    median: float
    high: float


def communicating(kernels: Kernels) -> tuple[str, ...]:
    """The streams most of whose kernel time is messages, in order of name."""
    message = np.isin(kernels.classes, MESSAGES)
    names = np.unique(kernels.streams).tolist()
    of = {name: kernels.streams == name for name in names}
    return tuple(
        name for name in names if 2 * kernels.seconds[of[name] & message].sum() > kernels.seconds[of[name]].sum()
    )


def streams(trace: Trace) -> tuple[StreamTimes, ...]:
    """Every stream, the busiest first."""
    kernels, messages = trace.kernels, communicating(trace.kernels)
    found = [
        StreamTimes(
            name=name, communicates=name in messages, n_kernels=int(chosen.sum()),
            sum_s=float(kernels.seconds[chosen].sum()), busy_s=_union(kernels, chosen).seconds,
        )
        for name in np.unique(kernels.streams).tolist()
        for chosen in [kernels.streams == name]
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda each: -each.busy_s))


def times(trace: Trace) -> Times:
    """How the span divides."""
    kernels = trace.kernels
    on_message_stream = np.isin(kernels.streams, communicating(kernels))
    compute, messages = _union(kernels, ~on_message_stream), _union(kernels, on_message_stream)
    sent = _union(kernels, on_message_stream & np.isin(kernels.classes, MESSAGES))
    span_s = float(kernels.end_s.max() - kernels.start_s.min())
    gaps = compute.gaps()
    length = gaps.end_s - gaps.start_s
    # Times are floats: a gap of the limit itself counts as a launch.
    short = length <= LAUNCH_GAP_S * (1.0 + 1e-6)
    return Times(
        span_s=span_s, compute_busy_s=compute.seconds, message_busy_s=messages.seconds,
        overlap_s=compute.overlap_s(messages), exposed_s=sent.seconds - sent.overlap_s(compute),
        idle_s=span_s - _union(kernels, np.ones(len(kernels.names), dtype=bool)).seconds,
        n_launch_gaps=int(short.sum()), launch_gaps_s=float(length[short].sum()),
        n_waits=int((~short).sum()), waits_s=float(length[~short].sum()),
    )  # fmt: skip


def groups(trace: Trace) -> tuple[Group, ...]:
    """Totals by class, phase and stream, the longest first."""
    kernels = trace.kernels
    keys = np.stack([kernels.classes, trace.phases, kernels.streams], axis=1)
    unique, which = np.unique(keys, axis=0, return_inverse=True)
    found = []
    for i, (kernel_class, phase, stream) in enumerate(unique.tolist()):
        seconds = kernels.seconds[which.ravel() == i]
        found.append(
            Group(
                kernel_class=kernel_class, phase=phase, stream=stream, n_kernels=seconds.size,
                sum_s=float(seconds.sum()), min_s=float(seconds.min()), max_s=float(seconds.max()),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda each: (-each.sum_s, each.kernel_class, each.phase, each.stream)))


def phases(trace: Trace) -> tuple[Phase, ...]:
    """What the ranges of each name launched, in order of their first kernel; "" is what no range launched."""
    kernels, names = trace.kernels, trace.phases
    return tuple(
        Phase(
            name=name, n_ranges=np.unique(kernels.range[chosen]).size if name else 0, n_kernels=int(chosen.sum()),
            sum_s=float(kernels.seconds[chosen].sum()), busy_s=_union(kernels, chosen).seconds,
        )
        for name in dict.fromkeys(names.tolist())
        for chosen in [names == name]
    )  # fmt: skip


def range_seconds(trace: Trace) -> list[float]:
    """Seconds covered by the kernels that each range launched itself, in the order of ``trace.ranges``."""
    return [_union(trace.kernels, trace.kernels.range == i).seconds for i in range(len(trace.ranges))]


def unknown(trace: Trace) -> dict[str, tuple[int, float]]:
    """(executions, seconds) of every kernel that no pattern knows, by name, the longest first."""
    kernels = trace.kernels
    found: dict[str, tuple[int, float]] = {}
    for i in np.flatnonzero(kernels.classes == OTHER).tolist():
        n, seconds = found.get(kernels.names[i], (0, 0.0))
        found[kernels.names[i]] = (n + 1, seconds + float(kernels.seconds[i]))
    return dict(sorted(found.items(), key=lambda item: (-item[1][1], item[0])))


def slowdowns(trace: Trace) -> tuple[Slowdown, ...]:
    """How much slower compute kernels run beside messages, by class and by what the messages do.

    Compared are kernels at the same place of ranges of the same name, of equal name and grid, some of which ran beside
    messages and some without; kernels of which a range has not always as many are left out, as those whose grid follows
    the routed tokens.
    """
    kernels = trace.kernels
    on_message_stream = np.isin(kernels.streams, communicating(kernels))
    covers = {
        "transfer": _cover(kernels, on_message_stream & np.isin(kernels.classes, TRANSFERS)),
        "agreement on sizes": _cover(kernels, on_message_stream & (kernels.classes == "notify")),
    }
    any_message = _cover(kernels, on_message_stream)
    ratios: dict[tuple[str, str], list[float]] = {}
    for place in _places(trace, ~on_message_stream):
        without = place[any_message[place] < _WITHOUT]
        for beside, cover in covers.items():
            slow = place[cover[place] > _BESIDE]
            if slow.size and without.size:
                ratio = float(np.mean(kernels.seconds[slow]) / np.mean(kernels.seconds[without]))
                ratios.setdefault((str(kernels.classes[place[0]]), beside), []).append(ratio)
    return tuple(_slowdown(*key, found) for key, found in sorted(ratios.items()))


def _slowdown(kernel_class: str, beside: str, ratios: list[float]) -> Slowdown:
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return Slowdown(
        kernel_class=kernel_class, beside=beside, n_kernels=len(ratios), low=low, median=median, high=high
    )  # fmt: skip


def _places(trace: Trace, chosen: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Kernels long enough to compare that stand at the same place of ranges of one name, as arrays of indices."""
    kernels, names = trace.kernels, trace.phases
    seen: dict[tuple[object, ...], int] = {}
    places: dict[tuple[object, ...], list[int]] = {}
    for i in np.flatnonzero(chosen & (kernels.range >= 0)).tolist():
        what = (kernels.names[i], kernels.grids[i])
        turn = seen[kernels.range[i], *what] = seen.get((kernels.range[i], *what), 0) + 1
        places.setdefault((names[i], turn, *what), []).append(i)
    for indices in places.values():
        found = np.array(indices, dtype=np.intp)
        if found.size > 1 and float(np.mean(kernels.seconds[found])) >= _COMPARABLE_S:
            yield found


def _cover(kernels: Kernels, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of each kernel's time in which one of the chosen runs, shape (n_kernels,)."""
    covered = _union(kernels, chosen).covered_s(kernels.start_s, kernels.end_s)
    return covered / np.where(kernels.seconds > 0, kernels.seconds, np.inf)


def _union(kernels: Kernels, chosen: NDArray[np.bool_]) -> Union:
    return union(kernels.start_s[chosen], kernels.end_s[chosen])
