"""Whole models beside their predictions as text, JSON and CSV: a line per case, or one case by what its kernels do."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sextant.simulator.units import show
from sextant.studies import files, tables, whole_data, whole_kernels
from sextant.studies.whole_kernels import Kernel
from sextant.studies.whole_models import Compared, Predicted, compared, predicted, summary
from sextant.validate.whole import cases
from sextant.validate.whole.cases import Difference, WholeCase

#: What is in no prediction.
LEFT_OUT = (
    "not in the prediction: the host (steps are CUDA graphs), kernels that the implementation runs beside the ideal "
    "operators unless a case lists them, rows of a kernel's input that the kernel before it left in L2"
)
#: A kernel's name is cut to so many characters: templates go on for thousands.
_NAME = 70
_COLUMNS = ("case", "measured_s", "predicted_s", "low_s", "high_s", "error", "inside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Every measured case beside its prediction."""

    rows: Sequence[Compared]

    def text(self) -> str:
        """One line per case, then mean and largest error, and what is not predicted."""
        table = tables.grid("case", ">measured", ">predicted", ">90% interval", ">error", "inside")
        for row in self.rows:
            between = f"{_seconds(row.low_s)} .. {_seconds(row.high_s)}"
            cells = (row.case, _seconds(row.measured_s), _seconds(row.predicted_s), between)
            tables.add(table, (*cells, f"{100 * row.error:+.1f}%", "yes" if row.inside else "no"))
        all_ = summary(self.rows)
        said = (
            f"{all_.n_cases} cases: mean error {100 * all_.mean:.1f}%, largest {100 * all_.largest:+.1f}% "
            f"({all_.worst}), bias {100 * all_.bias:+.1f}%, {all_.n_inside} inside the 90% interval"
        )
        return "\n".join([tables.rendered(table), "", *tables.wrapped(said), "", *tables.wrapped(LEFT_OUT)])

    def as_json(self) -> dict[str, Any]:
        """The same as records, in seconds."""
        return {
            "cases": [_record(row) for row in self.rows],
            "summary": asdict(summary(self.rows)),
            "not_predicted": LEFT_OUT,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCase:
    """One case: its rows, its prediction by operator, and the kernels of a profiled step, if there are."""

    case: WholeCase
    rows: Sequence[Compared]
    guess: Predicted
    kernels: Sequence[Kernel]

    def text(self) -> str:
        """Predicted and measured microseconds by what the kernels compute, every operator, every kernel."""
        lines = [
            f"measured {_seconds(row.measured_s)}, predicted {_seconds(row.predicted_s)}, error {100 * row.error:+.1f}%"
            for row in self.rows
        ]
        parts = [self._beside(), self._operators()] + ([self._kernels()] if self.kernels else [])
        notes = [line for extra in self.case.differs for line in tables.wrapped(f"differs: {_note(extra)}")]
        return "\n".join([self.case.name, *lines, "", "\n\n".join(parts), *([""] if notes else []), *notes])

    def as_json(self) -> dict[str, Any]:
        """The same as records."""
        return {
            "case": self.case.name, "rows": [_record(row) for row in self.rows],
            "computes": by_class(self.guess, self.kernels), "operators": [asdict(line) for line in self.guess.lines],
            "kernels": [{**asdict(k), "computes": whole_kernels.of_kernel(k.name)} for k in self.kernels],
        }  # fmt: skip

    def _beside(self) -> str:
        table = tables.grid("computes", ">operators", ">predicted us", ">kernels", ">measured us", ">error")
        for row in by_class(self.guess, self.kernels):
            error = f"{100 * row['error']:+.1f}%" if row["error"] is not None else ""
            ours = (_count(row["operators"]), _us(row["predicted_us"]))
            tables.add(table, (row["computes"], *ours, _count(row["kernels"]), _us(row["measured_us"]), error))
        return tables.rendered(table)

    def _operators(self) -> str:
        table = tables.grid("operator", "computes", ">runs", ">us each", ">us", ">90% interval")
        for line in sorted(self.guess.lines, key=lambda line: -line.seconds):
            each = f"{1e6 * line.seconds / line.count:,.2f}"
            between = f"{_us(1e6 * line.low_s)} .. {_us(1e6 * line.high_s)}"
            tables.add(table, (line.name, line.what, _count(line.count), each, _us(1e6 * line.seconds), between))
        return tables.rendered(table)

    def _kernels(self) -> str:
        table = tables.grid("measured kernel", "computes", ">runs", ">us each", ">us")
        for kernel in sorted(self.kernels, key=lambda kernel: -kernel.us):
            each = f"{kernel.us / kernel.count:,.2f}"
            name = kernel.name if len(kernel.name) <= _NAME else f"{kernel.name[: _NAME - 3]}..."
            tables.add(table, (name, whole_kernels.of_kernel(kernel.name), _count(kernel.count), each, _us(kernel.us)))
        return tables.rendered(table)


def judged(device: str = "h200", case: str = "") -> Judged | JudgedCase:
    """The committed measurements of ``device`` beside predictions, or one case of them. InputError where nothing was
    measured, or there is no such case."""
    chosen = cases.chosen([case] if case else [])
    rows = compared(chosen, whole_data.measured_s(device), device)
    if not case or len(chosen) != 1:
        return Judged(rows=rows)
    one = chosen[0]
    return JudgedCase(case=one, rows=rows, guess=predicted(one, device), kernels=whole_data.kernels(device, one.name))


def write(rows: Sequence[Compared], place: str | Path) -> Path:
    """The rows as a CSV file, in seconds. InputError if it cannot be written."""
    return files.save(Path(place), lambda file: _write(rows, file))


def _write(rows: Sequence[Compared], file: IO[str]) -> None:
    writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(row) for row in rows)


def _record(row: Compared) -> dict[str, Any]:
    return {**asdict(row), "error": row.error, "inside": row.inside}


def by_class(guess: Predicted, kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Rows {computes, operators, predicted_us, kernels, measured_us, error} of one case, the longest first, the sum
    last; ``error`` is None where one of the two is absent."""
    measured = whole_kernels.by_class(kernels)
    sums: dict[str, tuple[float, float]] = {}
    for line in guess.lines:
        count, us = sums.get(line.what, (0.0, 0.0))
        sums[line.what] = (count + line.count, us + 1e6 * line.seconds)
    rows = [_class_row(name, sums.get(name), measured.get(name)) for name in {**sums, **measured}]
    rows.sort(key=lambda row: -max(row["predicted_us"], row["measured_us"]))
    return [*rows, _class_row("all", _total(sums.values()), _total(measured.values()) if measured else None)]


def _total(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    counts, us = zip(*pairs, strict=True)
    return sum(counts), sum(us)


def _class_row(name: str, ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> dict[str, Any]:
    error = ours[1] / theirs[1] - 1.0 if ours and theirs and theirs[1] else None
    ours, theirs = ours or (0.0, 0.0), theirs or (0.0, 0.0)
    return {
        "computes": name, "operators": ours[0], "predicted_us": ours[1], "kernels": theirs[0], "measured_us": theirs[1],
        "error": error,
    }  # fmt: skip


def _note(each: Difference) -> str:
    gone = f"; instead of {', '.join(each.instead_of)}" if each.instead_of else ""
    kernel = f"; {each.count} x {', '.join(f'{k} {v}' for k, v in each.case.items())}" if each.count else ""
    return f"{each.what}{gone}{kernel}"


def _seconds(value: float) -> str:
    return show(value, "s", 4)


def _us(value: float) -> str:
    return f"{value:,.1f}" if value else ""


def _count(value: float) -> str:
    return f"{value:,.0f}" if value else ""
