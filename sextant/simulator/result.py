"""Build a ``Result`` from what an evaluation computed: broadcast, mark what is infeasible, never a NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sextant.simulator.types import Flag, Num, Result


def result(
    n_points: int,
    columns: Mapping[str, Num],
    reasons: Mapping[str, Flag],
    *,
    provenance: Mapping[str, float] | None = None,
    breakdown: Mapping[str, Mapping[str, object]] | None = None,
    warnings: Sequence[str] = (),
) -> Result:
    """A ``Result`` of ``n_points``; ``reasons`` maps the text of a limit to where it is broken (booleans).

    Columns that came out non-finite make their points infeasible with the reason "numeric", and read 0 there.
    """
    full = {name: np.array(np.broadcast_to(np.asarray(v, dtype=float), (n_points,))) for name, v in columns.items()}
    broken = {text: np.broadcast_to(np.asarray(hit, dtype=bool), (n_points,)) for text, hit in reasons.items()}
    bad = np.zeros(n_points, dtype=bool)
    for values in full.values():
        bad |= ~np.isfinite(values)
        values[~np.isfinite(values)] = 0.0
    if bad.any():
        broken = {**broken, "numeric: this point has no finite answer": bad}
    broken = {text: hit for text, hit in broken.items() if hit.any()}
    feasible = ~np.any(list(broken.values()), axis=0) if broken else np.ones(n_points, dtype=bool)
    limits: list[tuple[str, ...]] = [()] * n_points
    for i in np.flatnonzero(~feasible):
        limits[i] = tuple(text for text, hit in broken.items() if hit[i])
    return Result(
        columns=full, feasible=feasible, limits=tuple(limits), provenance=dict(provenance or {}),
        breakdown=dict(breakdown or {}), warnings=tuple(warnings),
    )  # fmt: skip


def part(found: Result, start: int, stop: int) -> Result:
    """The points from ``start`` to before ``stop``."""
    columns = {name: values[start:stop] for name, values in found.columns.items()}
    return replace(
        found, columns=columns, feasible=found.feasible[start:stop], limits=found.limits[start:stop]
    )  # fmt: skip


def join(results: Sequence[Result], order: Sequence[np.ndarray]) -> Result:
    """One ``Result`` from the parts of a sweep; ``order[i]`` holds the point numbers of ``results[i]``."""
    n = sum(len(index) for index in order)
    names = dict.fromkeys(name for r in results for name in r.columns)
    columns = {name: np.zeros(n) for name in names}
    feasible = np.zeros(n, dtype=bool)
    limits: list[tuple[str, ...]] = [()] * n
    for part, index in zip(results, order, strict=True):
        for name, values in part.columns.items():
            columns[name][index] = values
        feasible[index] = part.feasible
        for i, reasons in zip(index, part.limits, strict=True):
            limits[i] = reasons
    first = results[0]
    warnings = tuple(dict.fromkeys(w for r in results for w in r.warnings))
    return Result(
        columns=columns, feasible=feasible, limits=tuple(limits), provenance=first.provenance,
        breakdown=first.breakdown, warnings=warnings,
    )  # fmt: skip
