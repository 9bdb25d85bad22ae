"""A profile as text and as JSON: its streams, kernels and gaps, and beside a prediction where it is of a chunk pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sextant.simulator.errors import InputError
from sextant.studies import answer, tables, trace_comparison
from sextant.studies.cli import plain
from sextant.studies.scenario import Question
from sextant.studies.trace_comparison import Line, Pair
from sextant.validate import trace as profile
from sextant.validate import trace_file
from sextant.validate.trace_file import Trace

#: What the published DualPipe trace is a profile of.
CHUNK_PAIR = "deepseek_v3_h800_chunk_pair"
_UNKNOWN_ROWS, _NAME = 12, 80
_HEADS = (">traced", ">predicted", ">error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A profile, and what the scenario of that name predicts of it ("" and None where nothing is compared)."""

    path: str
    trace: Trace
    scenario: str
    pair: Pair | None

    def text(self) -> str:
        """Streams, the division of the span, phases, classes, slowdowns, unknown kernels, the comparison."""
        parts = [self._streams(), self._times(), self._phases(), self._groups(), self._slowdowns(), self._unknown()]
        if self.pair is not None:
            parts += [self._compared(self.pair), self._classes(self.pair)]
        return "\n\n".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """The same as records, in seconds."""
        trace = self.trace
        found: dict[str, Any] = {
            "path": self.path, "streams": [asdict(x) for x in profile.streams(trace)],
            "times": asdict(profile.times(trace)), "phases": [asdict(x) for x in profile.phases(trace)],
            "kernels": [asdict(x) for x in profile.groups(trace)],
            "slowdowns": [asdict(x) for x in profile.slowdowns(trace)],
            "unknown": [
                {"name": name, "n_kernels": n, "sum_s": s} for name, (n, s) in profile.unknown(trace).items()
            ],
        }  # fmt: skip
        if self.pair is not None:
            found["scenario"] = self.scenario
            found["replayed_s"] = trace_comparison.replayed_s(trace)
            found["compared"] = [_record(line) for line in trace_comparison.lines(trace, self.pair)]
            pairs = trace_comparison.class_lines(trace, self.pair)
            found["compared_kernels"] = [{"phase": phase, **_record(line)} for phase, line in pairs]
        return found

    def _streams(self) -> str:
        table = tables.grid("stream", "carries", ">kernels", ">sum ms", ">busy ms")
        for each in profile.streams(self.trace):
            what = "messages" if each.communicates else "compute"
            tables.add(table, (each.name, what, f"{each.n_kernels:,}", _ms(each.sum_s), _ms(each.busy_s)))
        return tables.rendered(table)

    def _times(self) -> str:
        found = profile.times(self.trace)
        share = 100.0 * found.exposed_s / found.span_s if found.span_s else 0.0
        said = (
            f"span {_ms(found.span_s)} ms: compute busy {_ms(found.compute_busy_s)}, messages busy "
            f"{_ms(found.message_busy_s)}, both {_ms(found.overlap_s)}, exposed messages {_ms(found.exposed_s)} "
            f"({share:.1f}%), idle {_ms(found.idle_s)}; between compute kernels {found.n_launch_gaps:,} launches of "
            f"{_ms(found.launch_gaps_s)} ms in all and {found.n_waits:,} waits of {_ms(found.waits_s)} ms"
        )
        return "\n".join(tables.wrapped(said))

    def _phases(self) -> str:
        table = tables.grid("launched by", ">ranges", ">kernels", ">sum ms", ">busy ms")
        for each in profile.phases(self.trace):
            counts = (f"{each.n_ranges:,}", f"{each.n_kernels:,}")
            tables.add(table, (each.name or "no range", *counts, _ms(each.sum_s), _ms(each.busy_s)))
        return tables.rendered(table)

    def _groups(self) -> str:
        table = tables.grid("kernels", "launched by", "stream", ">kernels", ">sum ms", ">mean us", ">min", ">max")
        for each in profile.groups(self.trace):
            spread = (_us(each.sum_s / each.n_kernels), _us(each.min_s), _us(each.max_s))
            cells = (each.kernel_class, each.phase or "no range", each.stream, f"{each.n_kernels:,}", _ms(each.sum_s))
            tables.add(table, (*cells, *spread))
        return tables.rendered(table)

    def _slowdowns(self) -> str:
        rows = profile.slowdowns(self.trace)
        if not rows:
            return ""
        table = tables.grid("the same kernels", "beside", ">compared", ">slower by", ">quartiles")
        for row in rows:
            between = f"{row.low:.2f} .. {row.high:.2f}"
            tables.add(table, (row.kernel_class, row.beside, f"{row.n_kernels:,}", f"x{row.median:.2f}", between))
        return tables.rendered(table)

    def _unknown(self) -> str:
        rows = list(profile.unknown(self.trace).items())
        if not rows:
            return ""
        table = tables.grid("unknown kernel", ">kernels", ">sum ms")
        for name, (n, seconds) in rows[:_UNKNOWN_ROWS]:
            tables.add(table, (name if len(name) <= _NAME else f"{name[: _NAME - 3]}...", f"{n:,}", _ms(seconds)))
        left = f"\nand {len(rows) - _UNKNOWN_ROWS:,} more" if len(rows) > _UNKNOWN_ROWS else ""
        return tables.rendered(table) + left

    def _compared(self, pair: Pair) -> str:
        table = tables.grid(f"ms, beside {plain(self.scenario)}", *_HEADS)
        for line in trace_comparison.lines(self.trace, pair):
            tables.add(table, (line.name, *_cells(line)))
        notes = (
            "phases: seconds covered by their kernels (two streams at once count once). dispatch, combine: of all "
            "transfers; the prediction includes agreement on sizes, of which notify is the traced part, waiting for "
            "the slowest rank included"
        )
        span_s, replayed_s = profile.times(self.trace).span_s, trace_comparison.replayed_s(self.trace)
        order = (
            f"the traced pieces, layer by layer, played in the schedule's order: {_ms(replayed_s)} ms, "
            f"{100.0 * (replayed_s / span_s - 1.0):+.1f}%"
        )
        return "\n".join([tables.rendered(table), *tables.wrapped(notes), "", *tables.wrapped(order)])

    def _classes(self, pair: Pair) -> str:
        table = tables.grid("launched by", "ms, summed over kernels", ">kernels", ">operators", *_HEADS)
        for phase, line in trace_comparison.class_lines(self.trace, pair):
            counts = (f"{line.n_kernels:,}", f"{line.n_operators:,.0f}")
            tables.add(table, (phase, line.name, *counts, *_cells(line)))
        return tables.rendered(table)


def judged(path: str | Path, asked: Question | None = None) -> Judged:
    """The profile in ``path``, beside a scenario; left out, a profile of a chunk pair is compared with the shipped one.

    InputError where the file is no profile, or the scenario or the profile's ranges are not those of a chunk pair."""
    trace = trace_file.read(path)
    whole = trace_comparison.comparable(trace)
    if asked is not None and not whole:
        told = ", ".join(f"{name} {n}" for name, n in trace_comparison.range_counts(trace).items())
        remedy = "leave --scenario out, or profile whole chunks"
        raise InputError(f"{path}: ranges of a chunk pair, once per layer each, expected, got {told}; {remedy}")
    chosen = asked if asked is not None or not whole else answer.question(CHUNK_PAIR)
    pair = None if chosen is None else trace_comparison.chunk_pair(chosen.scenario)
    return Judged(path=str(path), trace=trace, scenario="" if chosen is None else chosen.scenario.name, pair=pair)


def _record(line: Line) -> dict[str, Any]:
    found = {**asdict(line), "error": line.error}
    return found if line.n_kernels or line.n_operators else {k: v for k, v in found.items() if not k.startswith("n_")}


def _cells(line: Line) -> tuple[str, str, str]:
    ours = "" if line.predicted_s is None else _ms(line.predicted_s)
    return _ms(line.traced_s), ours, "" if line.error is None else f"{100.0 * line.error:+.1f}%"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}"
