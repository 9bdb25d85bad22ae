"""``sextant predict``: a file of kernel cases in, the same rows with predictions out, and how far off they were."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from sextant.simulator.types import Cluster
from sextant.studies import files, tables
from sextant.studies.cli import plain
from sextant.validate.prediction import Predictions, numbers, predict, single_kernel_cluster
from sextant.validate.prediction.case_file import CaseFile, Chunk

#: Columns that a prediction adds.
ADDED = ("predicted_us", "low_us", "high_us", "bound", "provenance", "error")

#: Reasons that a summary spells out.
_MAX_REASONS = 3

Progress = Callable[[int], object]


@dataclass(slots=True)
class OpTotal:
    """What is known of the rows of one operator: how many, and of those that were measured, three arrays per chunk:
    predicted over measured, and whether the measured time lies in the interval."""

    n_rows: int = 0
    n_predicted: int = 0
    ratios: list[np.ndarray] = field(default_factory=list)
    inside: list[np.ndarray] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Counts, and where rows were measured the errors: shares of the measured time."""
        found: dict[str, Any] = {"rows": self.n_rows, "predicted": self.n_predicted}
        ratio = np.concatenate(self.ratios) if self.ratios else np.empty(0)
        found["measured"] = len(ratio)
        if len(ratio):
            size = np.abs(ratio - 1.0)
            found |= {
                "mape": float(size.mean()), "median": float(np.median(size)), "p95": float(np.quantile(size, 0.95)),
                "bias": float((ratio - 1.0).mean()), "inside": float(np.concatenate(self.inside).mean()),
            }  # fmt: skip
        return found


@dataclass(slots=True)
class Outcome:
    """A file predicted: totals by operator, why rows were not predicted, the columns that were replaced, whether the
    file has measured times, and how many of those were none."""

    device: str
    totals: dict[str, OpTotal] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    replaced: tuple[str, ...] = ()
    measured: bool = False
    n_unmeasured: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of the file."""
        return sum(total.n_rows for total in self.totals.values())

    @property
    def n_predicted(self) -> int:
        """Rows that have a prediction."""
        return sum(total.n_predicted for total in self.totals.values())

    def summaries(self) -> dict[str, dict[str, Any]]:
        """``OpTotal.summary`` by operator, and of ``all`` where there are several."""
        found = {op: total.summary() for op, total in self.totals.items()}
        if len(found) > 1:
            parts = self.totals.values()
            whole = OpTotal(
                n_rows=self.n_rows, n_predicted=self.n_predicted,
                ratios=[r for t in parts for r in t.ratios], inside=[i for t in parts for i in t.inside],
            )  # fmt: skip
            found["all"] = whole.summary()
        return found

    def notes(self) -> list[str]:
        """What a user should know besides the answer."""
        found = []
        if self.replaced:
            found.append(f"the input's columns {', '.join(self.replaced)} are replaced")
        if self.n_unmeasured:
            found.append(f"us: {self.n_unmeasured:,} rows have no usable time and are not judged")
        if missing := self.n_rows - self.n_predicted:
            first = "; ".join(f"{n:,} x {why}" for why, n in self.reasons.most_common(_MAX_REASONS))
            more = len(self.reasons) - _MAX_REASONS
            tail = f"; and {more:,} other reasons" if more > 0 else ""
            found.append(f"{missing:,} of {self.n_rows:,} rows are not predicted (column error): {first}{tail}")
        return found


def run(path: str, device: str, out: str | None, *, json: bool, progress: Progress) -> tuple[str, Outcome]:
    """Predict every row of ``path`` on ``device``; rows go to ``out`` where it is given. What belongs on stdout, and
    the outcome. InputError for an unknown device, a file that is none, a place that cannot be written."""
    cluster = single_kernel_cluster(device)
    with CaseFile(path) as cases:
        if out:
            outcome, written = Outcome(device=device), Path(out)
            files.save(written, lambda file: _write(_text(file, written), cases, cluster, outcome, progress), "wb")
            return (_as_json(outcome, path, out) if json else f"{table(outcome)}\nwritten: {plain(out)}"), outcome
        outcome, text = Outcome(device=device), io.StringIO()
        if json:
            rows = [row for part in _predicted(cases, cluster, outcome, progress) for row in part]
            return _as_json(outcome, path, None, [_named(outcome, cases, row) for row in rows]), outcome
        _write(text, cases, cluster, outcome, progress)
        return (table(outcome) if outcome.measured else text.getvalue().rstrip("\n")), outcome


def table(outcome: Outcome) -> str:
    """Per operator: rows, and of those with a measured time the errors of the prediction."""
    heads = ["op", ">rows", ">predicted"]
    if outcome.measured:
        heads += [">measured", ">MAPE", ">median", ">95th pct", ">bias", ">inside 90%"]
    found = tables.grid(*heads)
    for op, s in outcome.summaries().items():
        cells = [op or "(empty)", f"{s['rows']:,}", f"{s['predicted']:,}"]
        if outcome.measured:
            errors = [f"{100 * s[name]:.1f}%" if name in s else "" for name in ("mape", "median", "p95")]
            bias = f"{100 * s['bias']:+.1f}%" if "bias" in s else ""
            cells += [f"{s['measured']:,}", *errors, bias, f"{100 * s['inside']:.1f}%" if "inside" in s else ""]
        tables.add(found, cells)
    return tables.rendered(found)


def _as_json(outcome: Outcome, path: str, out: str | None, rows: Sequence[Mapping[str, Any]] | None = None) -> str:
    from sextant.studies.report import dumps

    found: dict[str, Any] = {
        "cases": path, "device": outcome.device, "rows": outcome.n_rows, "predicted": outcome.n_predicted,
        "ops": outcome.summaries(), "errors": dict(outcome.reasons.most_common()), "notes": outcome.notes(),
    }  # fmt: skip
    if out:
        found["out"] = out
    if rows is not None:
        found["predictions"] = list(rows)
    return dumps(found)


def _named(outcome: Outcome, cases: CaseFile, row: Sequence[str]) -> dict[str, Any]:
    """A row of text by column, the added times as numbers (None where there is none)."""
    names = [*(name for name in cases.header if name not in outcome.replaced), *ADDED]
    found: dict[str, Any] = dict(zip(names, row, strict=True))
    return {**found, **{name: float(found[name]) if found[name] else None for name in ADDED[:3]}}


def _text(file: IO[bytes], path: Path) -> IO[str]:
    """A text file upon a binary one, gzipped where the name says so."""
    raw = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if path.suffix == ".gz" else file
    return io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=False)  # type: ignore[arg-type]


def _write(file: IO[str], cases: CaseFile, cluster: Cluster, outcome: Outcome, progress: Progress) -> None:
    """The rows with their predictions as a CSV, comments first."""
    writer = csv.writer(file, lineterminator="\n")
    parts = _predicted(cases, cluster, outcome, progress)
    first = next(parts)
    file.writelines(f"{line}\n" for line in cases.comments)
    writer.writerow([*(name for name in cases.header if name not in outcome.replaced), *ADDED])
    writer.writerows(first)
    for part in parts:
        writer.writerows(part)
    file.flush()
    if isinstance(file, io.TextIOWrapper) and isinstance(inner := file.detach(), gzip.GzipFile):
        inner.close()


def _predicted(
    cases: CaseFile, cluster: Cluster, outcome: Outcome, progress: Progress
) -> Iterator[list[Sequence[str]]]:
    """The rows of each chunk with their predictions; ``outcome`` learns of them."""
    outcome.replaced = tuple(name for name in ADDED if name in cases.header)
    outcome.measured = "us" in cases.header
    kept = [i for i, name in enumerate(cases.header) if name not in ADDED]
    for chunk in cases.chunks():
        columns = dict(zip(cases.header, zip(*chunk.rows, strict=True), strict=True))
        found = predict(columns, len(chunk.rows), cluster)
        for i, why in chunk.problems.items():
            found.us[i] = np.nan
            found.error[i] = why
        _count(outcome, columns, found)
        progress(outcome.n_rows)
        yield _extended(chunk, kept if outcome.replaced else None, found)


def _extended(chunk: Chunk, kept: list[int] | None, found: Predictions) -> list[Sequence[str]]:
    good = np.isfinite(found.us).tolist()
    times = [
        [f"{v:.4f}" if ok else "" for v, ok in zip(values.tolist(), good, strict=True)]
        for values in (found.us, found.low_us, found.high_us)
    ]
    words = [
        [word if ok else "" for word, ok in zip(values.tolist(), good, strict=True)]
        for values in (found.bound, found.provenance)
    ]
    rows = chunk.rows if kept is None else [[row[i] for i in kept] for row in chunk.rows]
    added = zip(*times, *words, found.error.tolist(), strict=True)
    return [[*row, *more] for row, more in zip(rows, added, strict=True)]


def _count(outcome: Outcome, columns: Mapping[str, Sequence[str]], found: Predictions) -> None:
    """Add the rows of a chunk to the totals of their operators."""
    names = [cell.strip().lower() for cell in columns["op"]]
    index: dict[str, int] = {}
    labels = np.fromiter((index.setdefault(name, len(index)) for name in names), dtype=np.intp, count=len(names))
    predicted = np.isfinite(found.us)
    outcome.reasons.update(found.error[~predicted].tolist())
    us = numbers(columns["us"]).values if outcome.measured else np.full(len(names), np.nan)
    usable = us > 0
    if outcome.measured:
        outcome.n_unmeasured += int((~usable).sum())
    ratio = np.divide(found.us, us, out=np.full(len(names), np.nan), where=usable)
    inside = (found.low_us <= us) & (us <= found.high_us)
    for op, label in index.items():
        mine = labels == label
        total = outcome.totals.setdefault(op, OpTotal())
        total.n_rows += int(mine.sum())
        total.n_predicted += int((mine & predicted).sum())
        judged = mine & predicted & usable
        if judged.any():
            total.ratios.append(ratio[judged])
            total.inside.append(inside[judged])
