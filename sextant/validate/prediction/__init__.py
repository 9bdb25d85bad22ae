"""Predicted times of kernel cases: rows of a CSV in the vocabulary of ``vocabulary.KINDS``, whole columns at a time.

Rows are grouped by what their text says (operator, phase, format, direction, variant ...); each group becomes one array
operator of the simulator (``operators``) and is estimated at once. A row that cannot be predicted says why and affects
no other. Needs neither torch nor a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.types import Cluster, Estimate
from sextant.validate.prediction import evaluation
from sextant.validate.prediction.vocabulary import FRACTIONS, TEXT, ZERO, CaseKind, filled, kind_named, text_problem

__all__ = ["Numbers", "Predictions", "numbers", "predict", "single_kernel_cluster"]

single_kernel_cluster = evaluation.single_kernel_cluster

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """One entry per row, shape (n_rows,): microseconds with their 90% interval (NaN where there is no prediction), what
    bounds the kernel, where the numbers come from, and why there is no prediction ("" where there is one)."""

    us: Array
    low_us: Array
    high_us: Array
    bound: NDArray[np.object_]
    provenance: NDArray[np.object_]
    error: NDArray[np.object_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A column as numbers, NaN where a cell is empty or none; ``problems`` says of which rows it is none and why."""

    values: Array
    problems: Mapping[int, str] = field(default_factory=dict)


def predict(columns: Mapping[str, Sequence[str]], n_rows: int, cluster: Cluster) -> Predictions:
    """Predictions of ``n_rows`` cases on one device of ``cluster`` (or a group of its devices), in their order.

    ``columns`` are the cells of a CSV by the names of their columns; those outside the vocabulary are ignored.
    """
    text_of, us = np.full(n_rows, "", dtype=object), np.full(n_rows, np.nan)
    found = Predictions(
        us=us, low_us=us.copy(), high_us=us.copy(), bound=text_of, provenance=text_of.copy(), error=text_of.copy()
    )
    for text, rows in _groups(columns, n_rows):
        kind, problem = kind_named(text["op"], text["phase"])
        problem = problem or (text_problem(kind, text) if kind else "")
        if problem or kind is None:
            found.error[rows] = problem
            continue
        _predict_group(found, columns, rows, text, kind, cluster)
    return found


def _groups(columns: Mapping[str, Sequence[str]], n_rows: int) -> list[tuple[dict[str, str], NDArray[np.intp]]]:
    """Rows that say the same in all columns of text, and what they say."""
    names = [name for name in TEXT if name == "op" or name in columns]
    cells = [columns.get(name) or [""] * n_rows for name in names]
    index: dict[tuple[str, ...], int] = {}
    labels = np.fromiter(
        (index.setdefault(key, len(index)) for key in zip(*cells, strict=True)),
        dtype=np.intp, count=n_rows,
    )  # fmt: skip
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(labels, minlength=len(index)))[:-1]) if index else []
    # Cells that differ in case or blanks say the same: they are merged by estimating them the same way.
    blank = dict.fromkeys(TEXT, "")
    said = [{**blank, **{n: cell.strip().lower() for n, cell in zip(names, key, strict=True)}} for key in index]
    return list(zip(said, parts, strict=True))


def _predict_group(
    found: Predictions, columns: Mapping[str, Sequence[str]], rows: NDArray[np.intp], text: dict[str, str],
    kind: CaseKind, cluster: Cluster,
) -> None:  # fmt: skip
    """Fill ``found`` at ``rows``, which are of one kind."""
    wanted = (*kind.needed, *kind.defaults)
    values: dict[str, Array] = {}
    problems: dict[int, str] = {}
    for name in wanted:
        if name not in columns:
            continue
        cells = list(columns[name])
        read = numbers(cells if len(rows) == len(cells) else [cells[i] for i in rows.tolist()])
        values[name] = read.values
        _note(problems, read.problems, name)
        _note(problems, _unusable(name, read.values), name)
    absent = [name for name in kind.needed if name not in values]
    if absent:
        found.error[rows] = f"{', '.join(absent)}: missing; add the column{'s' if len(absent) > 1 else ''}"
        return
    for name in kind.needed:
        _note(problems, dict.fromkeys(np.flatnonzero(np.isnan(values[name])).tolist(), "missing; give it"), name)
    c = filled(kind, values.get)
    for wrong, why in evaluation.relations(c):
        _note(problems, dict.fromkeys(np.flatnonzero(wrong).tolist(), why), "")
    for i, why in problems.items():
        found.error[rows[i]] = why
    good = np.ones(len(rows), dtype=bool)
    good[list(problems)] = False
    codes = evaluation.regimes(text, c)
    for code in [None] if codes is None else np.unique(codes[good]).tolist():
        chosen = good if codes is None else good & (codes == code)
        if chosen.any():
            part = c if chosen.all() else {name: column[chosen] for name, column in c.items()}
            _store(found, rows[chosen], text, kind, part, cluster)


def _store(
    found: Predictions, rows: NDArray[np.intp], text: dict[str, str], kind: CaseKind, c: Mapping[str, Array],
    cluster: Cluster,
) -> None:  # fmt: skip
    try:
        with np.errstate(all="ignore"):
            estimated = evaluation.timed(text, evaluation.format_of(text, kind), c, cluster)
    except (InputError, ValueError) as error:
        found.error[rows] = " ".join(str(error).split())
        return
    except KeyError as error:
        found.error[rows] = str(error.args[0])
        return
    values = [np.broadcast_to(1e6 * np.asarray(v), rows.shape) for v in _interval(estimated)]
    fine = np.isfinite(values).all(axis=0)
    found.error[rows[~fine]] = "the columns are too large or contradict each other: no finite time follows from them"
    for target, value in zip((found.us, found.low_us, found.high_us), values, strict=True):
        target[rows[fine]] = value[fine]
    found.bound[rows[fine]] = np.broadcast_to(estimated.bound, rows.shape)[fine]
    found.provenance[rows[fine]] = estimated.provenance


def _interval(found: Estimate) -> tuple[object, object, object]:
    return found.seconds, found.low, found.high


def _note(problems: dict[int, str], more: Mapping[int, str], name: str) -> None:
    """Keep the first problem of every row."""
    for i, why in more.items():
        problems.setdefault(i, f"{name}: {why}" if name else why)


def _unusable(name: str, values: Array) -> dict[int, str]:
    """Rows whose number cannot be a size."""
    found: dict[int, str] = {}
    smallest_bad = values < 0 if name in ZERO else values <= 0
    for i in np.flatnonzero(smallest_bad).tolist():
        found[i] = f"{values[i]:g} is {'negative' if values[i] < 0 else 'zero'}; give a positive number"
    if name not in FRACTIONS:
        for i in np.flatnonzero(values % 1.0 > 0).tolist():
            found.setdefault(i, f"{values[i]:g} is no whole number; give one")
    return found


def numbers(cells: Sequence[str]) -> Numbers:
    """Cells as numbers; an empty one is NaN without being a problem, a word, an infinity or a NaN is one."""
    try:
        values = np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
        if np.isfinite(values).all():
            return Numbers(values=values)
    except ValueError:
        pass
    values, problems = np.full(len(cells), np.nan), {}
    for i, cell in enumerate(cells):
        if not cell.strip():
            continue
        try:
            value = float(cell)
        except ValueError:
            value = np.nan
        if np.isfinite(value):
            values[i] = value
        else:
            problems[i] = f"{cell.strip()[:40]!r} is no number; give one"
    return Numbers(values=values, problems=problems)
