"""The clock of several processes: medians of the slowest rank's time, from a start that all share.

A sample is several calls in a row between two CUDA events. The devices first meet in a small collective that is not
timed, and sleep before it long enough for the host to have enqueued everything: neither the skew of the processes nor
the launches of the first calls are in the sample. Short calls are captured into a graph (``graph``), since the host
needs longer to launch a collective than NVLink to carry a small one; where a capture is refused, and for long calls,
they are launched one by one (``events``).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from sextant.validate.node.processes import Ranks

Call = Callable[[], object]

#: Calls longer than this are launched one by one.
LONG_US = 3000.0
#: What a sample should last, and the most calls in it.
SAMPLE_US, MAX_CALLS = 1500.0, 64
#: Device cycles slept before a sample: about 0.2 ms at 1.7 GHz; and before a case: a device that has been idle comes to
#: its clocks within some ten milliseconds, and until then a small collective takes up to half as long again.
SLEEP_CYCLES, WAKE_CYCLES = 350_000, 50_000_000
BUDGET_US, MIN_SAMPLES, MAX_SAMPLES = 40_000.0, 15, 41


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Microseconds of one call on the slowest rank: median, 10th and 90th percentile over ``n_samples`` samples;
    ``launched_us`` where the host launches every call."""

    us: float
    us_p10: float
    us_p90: float
    n_samples: int
    timing: str
    launched_us: float

    def columns(self) -> dict[str, str | int]:
        """As cells of a row."""
        return {
            "us": f"{self.us:.3f}", "us_p10": f"{self.us_p10:.3f}", "us_p90": f"{self.us_p90:.3f}",
            "n_samples": self.n_samples, "timing": self.timing, "launched_us": f"{self.launched_us:.3f}",
        }  # fmt: skip


TIME_COLUMNS = ("us", "us_p10", "us_p90", "n_samples", "timing", "launched_us")


def meet(ranks: Ranks) -> None:
    """Let all devices leave one small collective together, once the host has run ahead of them."""
    if ranks.target.cuda:
        if "meeting" not in ranks.kept:
            ranks.kept["meeting"] = torch.zeros(1, device=ranks.device)
        torch.cuda._sleep(SLEEP_CYCLES)
        dist.all_reduce(ranks.kept["meeting"], group=ranks.group("meeting"))
    else:
        dist.barrier(group=ranks.control)


def span_us(ranks: Ranks, run: Call) -> float:
    """Microseconds of this process from the common start to the end of ``run``."""
    ranks.synchronize()
    if not ranks.target.cuda:
        meet(ranks)
        start_s = time.perf_counter()
        run()
        return (time.perf_counter() - start_s) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    dist.barrier(group=ranks.control)
    meet(ranks)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def timed(ranks: Ranks, call: Call, *, budget_us: float = BUDGET_US, capture: bool = True) -> Times:
    """Times of ``call``, which every process makes; the same answer in all of them."""
    if ranks.target.cuda:
        torch.cuda._sleep(WAKE_CYCLES)
    for _ in range(2):
        call()
    first_us = min(ranks.slowest([span_us(ranks, call) for _ in range(3)]))
    n_calls = max(1, min(MAX_CALLS, math.ceil(SAMPLE_US / first_us)))

    def several() -> None:
        for _ in range(n_calls):
            call()

    launched = [span_us(ranks, several) / n_calls for _ in range(3)]
    launched_us = sorted(ranks.slowest(launched))[1]
    graph = None
    if capture and ranks.graphs and ranks.target.cuda and launched_us < LONG_US:
        graph = captured(ranks, several)
    run = several if graph is None else graph.replay
    name = f"{'graph' if graph else 'events' if ranks.target.cuda else 'host'}:{n_calls}"
    n_samples = max(MIN_SAMPLES, min(MAX_SAMPLES, math.ceil(budget_us / (launched_us * n_calls))))
    if not ranks.target.cuda:  # there only to see that everything runs
        n_samples = 3
    span_us(ranks, run)
    samples = ranks.slowest([span_us(ranks, run) / n_calls for _ in range(n_samples)])
    low, median, high = np.percentile(samples, (10.0, 50.0, 90.0))
    return Times(
        us=float(median), us_p10=float(low), us_p90=float(high), n_samples=n_samples, timing=name,
        launched_us=launched_us,
    )  # fmt: skip


def captured(ranks: Ranks, run: Call) -> torch.cuda.CUDAGraph | None:
    """The calls of ``run`` as a graph; None in all processes where one of them was refused."""
    graph, fine = torch.cuda.CUDAGraph(), True
    collecting = gc.isenabled()
    gc.disable()  # a tensor collected during a capture may call the driver in ways that a capture forbids
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
    except Exception:  # whatever refuses: the calls are then launched one by one, and ``timing`` says so
        fine = False
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    return graph if all(ranks.gathered(fine)) else None
