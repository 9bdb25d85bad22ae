"""Time a kernel: which clock, how often, and what is reported.

Four ways, named in the ``timing`` column of every measured row:

``graph``   The default on a GPU. Calls that rotate over several input sets (together more than the L2 cache, where
            64 sets suffice for that) are captured back to back in one CUDA graph and the graph is replayed between two
            CUDA events; a sample is the replay's time over its number of calls. Neither the host's launches nor the
            events' own few microseconds weigh on it; the gap between two dependent kernels of one stream does.
``flush``   Where a call cannot be captured. Before each call a buffer of more than twice the L2 cache is
            written, then the call is timed between two CUDA events; the write keeps the device busy while the host
            enqueues, so that a launch of less than about 100 us is hidden. A sample holds 2 to 5 us of event overhead.
``host``    On the CPU: a host clock around one call.

``host_sync``  As ``host``, where the host's own work is part of the call: the clock stops when the device has finished.

What must be new for every sample (random rows of a table, say) is drawn by a call outside the timed region.
Each way is a ``Sampler``; ``repeat`` asks it for samples until a budget of time is spent, and reports the median, the
10th and the 90th percentile.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Call = Callable[[], object]

#: Written between two flushed calls; more than twice the L2 cache of any GPU up to 120 MB of L2.
FLUSH_BYTES = 256 * 1024 * 1024
#: Length a captured graph should have, so that what surrounds its replay stays below one percent.
GRAPH_US = 1000.0
MAX_GRAPH_CALLS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Microseconds of one call: median, percentiles 10 and 90 over ``n_repeats`` samples, and how they were taken."""

    us: float
    us_p10: float
    us_p90: float
    n_repeats: int
    timing: str
    sm_clock_mhz: float | None = None


class Sampler(Protocol):
    """``sampler(n)`` gives ``n`` samples in microseconds per call; one sample runs ``n_calls`` calls."""

    @property
    def n_calls(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def sm_clock_mhz(self) -> float | None: ...

    def __call__(self, n_samples: int, /) -> list[float]: ...


def summarise(samples_us: Sequence[float], *, timing: str, sm_clock_mhz: float | None = None) -> Timing:
    """Median, 10th and 90th percentile of samples in microseconds; raises ``ValueError`` on none, or on one not > 0."""
    values = np.asarray(samples_us, dtype=np.float64)
    if values.size == 0 or not bool(np.all(np.isfinite(values) & (values > 0.0))):
        raise ValueError(f"timing: samples must be positive and finite, got {list(samples_us)[:5]}")
    low, median, high = np.percentile(values, (10.0, 50.0, 90.0))
    return Timing(
        us=float(median),
        us_p10=float(low),
        us_p90=float(high),
        n_repeats=int(values.size),
        timing=timing,
        sm_clock_mhz=sm_clock_mhz,
    )


def repeat(sampler: Sampler, *, budget_us: float = 40_000.0, min_repeats: int = 7, max_repeats: int = 50) -> Timing:
    """Take samples for about ``budget_us`` microseconds, at least ``min_repeats`` and at most ``max_repeats`` of them.

    One sample more is taken first and dropped: it warms up, and says how many fit the budget.
    """
    first_us = sampler(1)[0]
    fitting = math.ceil(budget_us / max(first_us * sampler.n_calls, 1e-3))
    n_samples = max(min_repeats, min(max_repeats, fitting))
    samples_us = sampler(n_samples)
    return summarise(samples_us, timing=sampler.label, sm_clock_mhz=sampler.sm_clock_mhz)


def _nothing() -> None:
    """What runs before a sample that needs nothing new."""


@dataclass(slots=True)
class HostSampler:
    """Times calls, in turn, with a host clock in seconds; ``before`` runs ahead of each, untimed."""

    calls: Sequence[Call]
    clock: Callable[[], float] = time.perf_counter
    n_calls: int = 1
    label: str = "host"
    sm_clock_mhz: float | None = None
    before: Call = _nothing

    def __call__(self, n_samples: int, /) -> list[float]:
        samples_us = []
        for i in range(n_samples):
            call = self.calls[i % len(self.calls)]
            self.before()
            start_s = self.clock()
            call()
            samples_us.append((self.clock() - start_s) * 1e6)
        return samples_us


def sm_clock_mhz() -> float | None:
    """Clock of the multiprocessors as the driver reports it now, in MHz; None where it cannot be read."""
    import torch

    try:
        return float(torch.cuda.clock_rate())
    except Exception:  # the clock is a note beside the measurement: a missing driver library must not lose the row
        return None


def _timed_events(n_samples: int, before: Call, call: Call) -> tuple[list[float], float | None]:
    """Microseconds between two events around ``call``, ``n_samples`` times, all enqueued before the first is awaited.

    ``before`` runs outside the timed region. The clock is read while the device still works.
    """
    import torch

    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n_samples)]
    for start, end in events:
        before()
        start.record()
        call()
        end.record()
    clock_mhz = sm_clock_mhz() if n_samples > 1 else None
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events], clock_mhz


@dataclass(slots=True)
class GraphSampler:
    """Replays a captured sequence of calls; a sample is the replay's time per call. ``before`` runs untimed."""

    graph: Any
    n_calls: int
    n_sets: int
    outputs: list[object] = field(default_factory=list)
    sm_clock_mhz: float | None = None
    before: Call = _nothing

    @property
    def label(self) -> str:
        """Way of timing, the number of rotated input sets and of captured calls."""
        return f"graph:{self.n_sets}x{self.n_calls}"

    def __call__(self, n_samples: int, /) -> list[float]:
        samples_us, self.sm_clock_mhz = _timed_events(n_samples, self.before, self.graph.replay)
        return [us / self.n_calls for us in samples_us]


class FlushSampler:
    """Writes more than the L2 cache before each timed call."""

    label = "flush"
    n_calls = 1

    def __init__(self, calls: Sequence[Call], before: Call = _nothing) -> None:
        import torch

        self.calls, self.before = calls, before
        self.buffer = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        self.sm_clock_mhz: float | None = None
        self.position = 0

    def _evict(self) -> None:
        self.before()
        self.buffer.fill_(1)

    def _next(self) -> None:
        self.calls[self.position % len(self.calls)]()
        self.position += 1

    def __call__(self, n_samples: int, /) -> list[float]:
        samples_us, self.sm_clock_mhz = _timed_events(n_samples, self._evict, self._next)
        return samples_us


def _captured(calls: Sequence[Call], n_calls: int) -> GraphSampler:
    """A graph of ``n_calls`` calls in turn. Each input set keeps its last output alive, so that successive calls write
    to different memory. Whatever stops the capture is raised after the capture has been ended."""
    import torch

    n_sets = len(calls)
    outputs: list[object] = [None] * n_sets
    graph = torch.cuda.CUDAGraph()
    collecting = gc.isenabled()
    gc.disable()  # a collected tensor or graph may call the driver in ways a capture forbids
    torch.cuda.synchronize()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        for i in range(n_calls):
            outputs[i % n_sets] = calls[i % n_sets]()
    finally:
        try:
            graph.capture_end()
        finally:
            if collecting:
                gc.enable()
    return GraphSampler(graph=graph, n_calls=n_calls, n_sets=n_sets, outputs=outputs)


def capture(calls: Sequence[Call], before: Call = _nothing) -> GraphSampler:
    """Capture the calls in turn on the current CUDA stream (not the default), as often as fills about ``GRAPH_US``.

    A first graph calls every input set once; where its replay is shorter than that, a longer one takes its place.
    """
    import torch

    n_sets = len(calls)
    before()
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    once = _captured(calls, n_sets)
    once.before = before
    once(1)
    per_call_us = max(once(1)[0], 1e-3)
    n_calls = min(MAX_GRAPH_CALLS // n_sets, math.ceil(GRAPH_US / per_call_us / n_sets)) * n_sets
    if n_calls <= n_sets:
        return once
    del once
    longer = _captured(calls, n_calls)
    longer.before = before
    return longer


def sampler_for(calls: Sequence[Call], *, cuda: bool, before: Call = _nothing) -> Sampler:
    """The sampler of a list of equal calls over rotated inputs: graph, flush where capture fails, host on the CPU.

    ``before`` runs ahead of every sample, outside the timed region, on the same stream.
    """
    if not cuda:
        before()
        for call in calls[:2]:
            call()
        return HostSampler(calls=calls, before=before)
    import torch

    try:
        return capture(calls, before)
    except Exception:  # any refusal to be captured; a broken device shows at the synchronisation, and is raised there
        torch.cuda.synchronize()
        for call in calls[:2]:
            call()
        return FlushSampler(calls, before)
