"""What stays hidden of a fetch: the bandwidth it takes, how early a layer may ask, how many rows, how large a table,
which batches. A fetch is hidden if no layer waits for it; what it slows compute by is another matter.

Limits are found by bisection over what one Engram layer fetches, all points at once; 0 stands for "none is hidden".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator import paths, prefetch
from sextant.simulator.kernels import reshape
from sextant.simulator.timed import TimedStep
from sextant.simulator.types import Num, Scenario
from sextant.studies import fetches, serving
from sextant.studies.fetches import Scene
from sextant.workloads.ops import engram

#: Where limits are looked for: bytes per second of a memory, and factors on the rows of a token.
_BANDWIDTHS = (1e6, 1e14)
_ROWS = (1e-3, 1e5)
#: A table of one page is small, whatever it holds.
_LEAST_TABLE_BYTES = 4096.0
_HALVINGS = 40
#: Batches that are tried.
BATCHES = 2.0 ** np.arange(13)

Hidden = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def limits(scenario: Scenario, timed: TimedStep, scene: Scene, n_points: int) -> dict[str, Num]:
    """Metrics of shape (n_points,) or scalars: what hides the fetches of ``scene``, all else as it is."""
    names = ("hidden_bandwidth_bytes_per_s", "hidden_from_layer", "hidden_rows_per_token", "hidden_table_bytes")
    if not scene.beside.ahead or scene.beside.stands:
        return dict.fromkeys((*names, "first_free_batch", "last_free_batch"), 0.0)
    at, cluster = fetches.fetch_ops(timed), fetches.sharing(scenario)
    tier = scenario.plan.placement["engram"]
    # A large table is spread over the node, of which each device counts its share.
    most = cluster.device.memories[tier].capacity_bytes * fetches.node_size(scenario) / len(scene.at)

    def by_bandwidth(slower: NDArray[np.float64]) -> NDArray[np.bool_]:
        memory = f"device.memories.{tier}.bandwidth_bytes_per_s"
        slow = paths.put(cluster, memory, _BANDWIDTHS[1] / slower)
        return _hidden(scene, *fetches.fetching(scenario, timed, at, slow))

    def by_rows(factor: NDArray[np.float64]) -> NDArray[np.bool_]:
        ops = [reshape(op, lookups=op.shape["lookups"] * factor) for op in at]
        return _hidden(scene, *fetches.fetching(scenario, timed, ops, cluster))

    def by_table(size: NDArray[np.float64]) -> NDArray[np.bool_]:
        return _hidden(scene, *fetches.fetching(scenario, timed, [reshape(op, table_bytes=size) for op in at], cluster))

    slower = _largest(by_bandwidth, 1.0, _BANDWIDTHS[1] / _BANDWIDTHS[0], n_points)
    rows = _largest(by_rows, *_ROWS, n_points)
    return {
        names[0]: np.divide(_BANDWIDTHS[1], slower, out=np.zeros(n_points), where=slower > 0),
        names[1]: prefetch.hidden_from(scene.layers_s, scene.fetch, scene.beside, scene.other_s),
        names[2]: rows * engram.n_rows(scenario.model),
        names[3]: len(scene.at) * _largest(by_table, _LEAST_TABLE_BYTES, most, n_points),
        **_batches(scenario, n_points),
    }


def _hidden(scene: Scene, fetch: prefetch.Fetch, beside: prefetch.Beside) -> NDArray[np.bool_]:
    return np.asarray(replace(scene, fetch=fetch, beside=beside).played().waited_s) <= 0.0


def _largest(hidden: Hidden, low: Num, high: Num, n_points: int) -> NDArray[np.float64]:
    """The largest value from ``low`` to ``high`` that is hidden, (n_points,); 0 where not even ``low`` is.

    By bisection of its logarithm: what is more takes longer. Where programs take more rows in turn of more rows, a
    fetch of some more may be faster; then it is one such value.
    """
    least, most = (np.broadcast_to(np.log(end), (n_points,)).copy() for end in (low, high))
    some, all_ = (np.broadcast_to(hidden(np.exp(end)), (n_points,)) for end in (least, most))
    at, over = least, most
    for _ in range(_HALVINGS):
        middle = 0.5 * (at + over)
        found = np.broadcast_to(hidden(np.exp(middle)), (n_points,))
        at, over = np.where(found, middle, at), np.where(found, over, middle)
    return np.where(all_, high, np.where(some, np.exp(at), 0.0))


def _batches(scenario: Scenario, n_points: int) -> dict[str, Num]:
    """The smallest and the largest of ``BATCHES`` that fit and wait for nothing."""
    index = np.repeat(np.arange(n_points), len(BATCHES))
    swept = paths.take(scenario, index)
    swept = replace(swept, engine="analytic", load=replace(swept.load, batch=np.tile(BATCHES, n_points)))
    found = serving.evaluate_serving(swept, len(index))
    scene = scene_of(swept, found.columns["step_time_s"] - found.columns["exposed_fetch_s"])[1]
    assert scene is not None, "the scenario fetches rows"
    free = np.broadcast_to(np.asarray(scene.played().waited_s) <= 0.0, index.shape) & found.feasible
    by_point = np.where(free, swept.load.batch, 0.0).reshape(n_points, len(BATCHES))
    first = np.where(by_point > 0, by_point, np.inf).min(axis=1)
    return {"first_free_batch": np.where(np.isfinite(first), first, 0.0), "last_free_batch": by_point.max(axis=1)}


def scene_of(scenario: Scenario, step_s: Num) -> tuple[TimedStep, Scene | None]:
    """The operators of a pass, and the pass of ``step_s`` seconds without fetches; of one half of two that overlap."""
    halves = 2.0 if scenario.plan.overlap == "two_batch" else 1.0
    timed = serving.timed_pass(scenario)[0]
    return timed, fetches.scene(scenario, timed, step_s / halves)
