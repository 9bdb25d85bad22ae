"""Engram rows fetched ahead: what of a fetch is exposed, and what it would take to hide it; in training, what tables
cost. The seconds are those of the scenario's own phase, whose columns are all here too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sextant.simulator.result import join, result
from sextant.simulator.types import Num, Result, Scenario
from sextant.studies import answer as phases
from sextant.studies import hidden, prefetch_figures, solve, table_training
from sextant.studies.limits import undefined
from sextant.studies.scenario import Question
from sextant.studies.study import Study

#: Limits with a point at which nothing is hidden: there they read 0.
_NOTE = (
    "hidden_... and ..._free_batch are 0 where none hides the fetch; batches are powers of two up to 4,096; free: no "
    "layer waits, what the fetch slows compute by remains in exposed_fetch_s"
)


def answer(asked: Question, progress: Callable[[int], None] = lambda n: None) -> Result:
    """The phase's own answer to every point, with what hides its fetches."""
    results: list[Result] = []
    order: list[np.ndarray] = []
    done = 0
    for part in solve.parts(asked, phases.structural(asked.scenario)):
        results.append(solve.answered(part, evaluate))
        order.append(part.index)
        done += len(part.index)
        progress(done)
    return join(results, order)


def evaluate(scenario: Scenario, n_points: int = 1) -> Result:
    """Metrics of shape (n_points,); those of the study are 0 at points that cannot be evaluated, or fetch nothing."""
    found = phases.evaluate(scenario, n_points)
    if bool(np.any(np.broadcast_arrays(*undefined(scenario).values()))) or not scenario.model.engram_layers:
        return found
    training = scenario.load.phase == "training"
    extra = table_training.columns(scenario) if training else _serving(scenario, found, n_points)
    full = result(n_points, {**found.columns, **extra}, {}).columns
    notes = () if training or not extra else (_NOTE,)
    return replace(found, columns=full, warnings=(*found.warnings, *notes))


def _serving(scenario: Scenario, found: Result, n_points: int) -> dict[str, Num]:
    if "exposed_fetch_s" not in found.columns:
        return {}
    halves = 2.0 if scenario.plan.overlap == "two_batch" else 1.0
    timed, scene = hidden.scene_of(scenario, found.columns["step_time_s"] - found.columns["exposed_fetch_s"])
    if scene is None:
        return {}
    return {
        "waited_fetch_s": halves * scene.played().waited_s,
        "exposed_fetch_low_s": halves * scene.exposed_s("low"),
        "exposed_fetch_high_s": halves * scene.exposed_s("high"),
        **hidden.limits(scenario, timed, scene, n_points),
    }


STUDY = Study(
    about="Engram rows fetched ahead: exposed time, what hides it; tables in training",
    answer=answer,
    columns=(
        "fetch_s", "exposed_fetch_s", "hidden_bandwidth_bytes_per_s", "hidden_from_layer", "hidden_rows_per_token",
        "hidden_table_bytes", "first_free_batch", "last_free_batch", "distinct_rows_share", "cache_hit_rate",
        "host_cache_hit_rate",
        "touched_rows_share", "row_exchange_s", "table_update_s", "dense_table_update_s",
    ),
    figures=prefetch_figures.figures,
)  # fmt: skip
