"""The trace of a simulated pipeline in the Trace Event Format."""

import json

import pytest

from sextant.simulator.des import Span
from sextant.simulator.pipeline import ChunkSeconds, simulate
from sextant.simulator.trace import chrome_trace

SPANS = [
    Span(name="late", track="rank 01", stream="compute", start_s=2.0, end_s=2.5, kind="F"),
    Span(name="send", track="rank 00", stream="link", start_s=1e-6, end_s=3e-6),
    Span(name="early", track="rank 00", stream="compute", start_s=0.0, end_s=1e-6, kind="BW"),
]


def complete(trace):
    """The events that have a length."""
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_spans_are_complete_events_in_microseconds():
    """ts and dur; ordered by start."""
    found = [(e["name"], e["ts"], e["dur"]) for e in complete(chrome_trace(SPANS))]
    assert found == [("early", 0.0, 1.0), ("send", 1.0, 2.0), ("late", 2e6, 5e5)]


def test_ranks_are_processes_and_streams_are_threads():
    """Every pid and tid in use has the name it had as a span; a stream is the same thread number on all ranks."""
    trace = chrome_trace(SPANS)
    meta = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    ranks = {e["pid"]: e["args"]["name"] for e in meta if e["name"] == "process_name"}
    streams = {(e["pid"], e["tid"]): e["args"]["name"] for e in meta if e["name"] == "thread_name"}
    by_name = {span.name: span for span in SPANS}
    for event in complete(trace):
        span = by_name[event["name"]]
        assert ranks[event["pid"]] == span.track
        assert streams[event["pid"], event["tid"]] == span.stream
        assert event["cat"] == (span.kind or span.stream)
    assert len(ranks) == 2 and len(streams) == 3
    assert len({tid for (_, tid), name in streams.items() if name == "compute"}) == 1


def test_no_spans_are_an_empty_trace():
    """Still one that opens."""
    assert chrome_trace([]) == {"traceEvents": [], "displayTimeUnit": "ms"}


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "dualpipe"])
def test_a_pipeline_fills_its_trace_without_overlap(name):
    """Every instruction is an event, none of a rank before the one before it ended; the last end is the step."""
    chunks = ChunkSeconds(
        forward=[0.05] * 4, backward_input=[0.07] * 4, backward_weight=[0.03] * 4,
        pair={(i, 3 - i): 0.13 for i in range(4)},
    )  # fmt: skip
    run = simulate(name, chunks, 4, 8, send_s=1e-3)
    events = complete(json.loads(json.dumps(chrome_trace(run.spans), allow_nan=False)))
    assert len(events) == len(run.spans)
    for pid in range(4):
        mine = [event for event in events if event["pid"] == pid]
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in zip(mine, mine[1:], strict=False))
    assert max(e["ts"] + e["dur"] for e in events) == pytest.approx(1e6 * run.step_s, rel=1e-9)


def test_the_same_run_is_the_same_bytes():
    """Nothing depends on the order in which spans are handed over, or on a hash."""
    chunks = ChunkSeconds(forward=[1.0] * 4, backward_input=[1.0] * 4, backward_weight=[0.5] * 4, pair={})
    once, again = (json.dumps(chrome_trace(simulate("zb1p", chunks, 4, 8).spans)) for _ in range(2))
    assert once == again
    assert json.dumps(chrome_trace(reversed(SPANS))) == json.dumps(chrome_trace(SPANS))
