"""A pass of layers, some of which wait for rows that lie in another memory: what is fetched when, and what it costs.

Rows are addressed by tokens alone, so all fetches may start with the pass. Each is prepared by the host (threads gather
rows), then on the link, one after the other; a layer begins when its rows are there.

What else is copied over the link in a pass starts with it too, and takes all that is left. The link is shared fairly
(max-min): a fetch whose rows need less than half of it, because they come one by one, does not notice; one that needs
the share u of it gets half until the other copies are done, and takes 2 - 1/u seconds longer for each second that its
own bytes would take of the whole link.

The pass is a list of tasks, which ``overlap.finish_times`` adds up (max-plus, arrays of design points) and
``des.simulate_tasks`` plays: the same times, by a law of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.overlap import Task, finish_times
from sextant.simulator.types import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Rows that layer number ``layer`` (from 0) waits for: seconds in which the host prepares them, and on the link, of
    which their bytes alone, with nothing else to wait for, would take ``carried_s``.

    ``link_s`` is beside compute; what is left of it when compute waits takes the share ``waited`` of its seconds.
    """

    layer: int
    link_s: Num
    carried_s: Num
    prepare_s: Num = 0.0
    waited: Num = 1.0

    @property
    def alone_s(self) -> Num:
        """Seconds of the whole with nothing beside it."""
        return self.prepare_s + self.waited * self.link_s

    @property
    def share(self) -> Num:
        """The share of the link that the rows use while they come, in [0, 1]."""
        some = np.asarray(self.link_s) > 0
        return np.where(some, np.minimum(self.carried_s / np.where(some, self.link_s, 1.0), 1.0), 0.0)[()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """How fetches and compute share the machine.

    ``ahead``: fetches start with the pass, otherwise each when its layer could begin. While rows, or what they share
    the link with, are on it, compute takes ``1 + slowdown`` times as long (a tuple: one per layer); if it ``stands``,
    it waits for a fetch to end before it goes on.
    """

    ahead: bool = True
    slowdown: Num | tuple[Num, ...] = 0.0
    stands: bool = False

    def slowdown_of(self, layer: int) -> Num:
        """What layer number ``layer``, from 0, loses."""
        if not self.ahead or self.stands:
            return 0.0
        return self.slowdown[layer] if isinstance(self.slowdown, tuple) else self.slowdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a pass comes to: its seconds; of those exposed by fetches; of those spent waiting for rows, the rest of
    which compute was slowed; ``fetch_s``, all fetches one after the other, with nothing beside them."""

    seconds: Num
    exposed_s: Num
    waited_s: Num
    fetch_s: Num


def pass_tasks(layers_s: Sequence[Num], fetches: Sequence[Fetch], beside: Beside, other_s: Num = 0.0) -> list[Task]:
    """The tasks of a pass over layers of so many seconds, in issue order: ``layer0`` ... on the stream compute,
    ``prepare<layer>`` on host, ``other<layer>`` and ``fetch<layer>`` on link.

    ``other_s`` are seconds of other copies on the link. InputError for a fetch of a layer that is not there, or two of
    one layer.
    """
    needed = _by_layer(len(layers_s), fetches)
    ahead: list[Task] = []
    at_layer: dict[int, list[Task]] = {}
    seen: Num = 0.0
    for layer, fetch in needed.items():
        after = (f"layer{layer - 1}",) if layer and not beside.ahead else ()
        longer = np.maximum(2.0 - 1.0 / np.maximum(fetch.share, 0.5), 0.0)
        between = longer * (np.minimum(seen + fetch.carried_s, other_s) - np.minimum(seen, other_s))
        seen = seen + fetch.carried_s
        tasks = _fetch_tasks(fetch, beside, between, after)
        (ahead if beside.ahead else at_layer.setdefault(layer, [])).extend(tasks)
    tasks = ahead
    for i, seconds in enumerate(layers_s):
        tasks += at_layer.get(i, [])
        after = (f"fetch{i}",) if i in needed else ()
        slowdown = beside.slowdown_of(i)
        slowed = "link" if np.any(np.asarray(slowdown) > 0) else ""
        tasks.append(
            Task(name=f"layer{i}", stream="compute", seconds=seconds, after=after, beside=slowed, slowdown=slowdown)
        )
    return tasks


def _by_layer(n_layers: int, fetches: Sequence[Fetch]) -> dict[int, Fetch]:
    for fetch in fetches:
        if not 0 <= fetch.layer < n_layers:
            raise InputError(f"fetch: layer {fetch.layer} of a pass of {n_layers}; number them from 0")
    found = {fetch.layer: fetch for fetch in sorted(fetches, key=lambda fetch: fetch.layer)}
    if len(found) < len(fetches):
        raise InputError("fetch: two of one layer; add their seconds up")
    return found


def _fetch_tasks(fetch: Fetch, beside: Beside, between_s: Num, after: tuple[str, ...]) -> list[Task]:
    """One fetch, behind ``between_s`` more for other copies; where compute stands, the kernel itself is what waits."""
    tasks: list[Task] = []
    stream, link_s = ("compute", fetch.link_s + between_s) if beside.stands else ("link", fetch.link_s)
    if np.any(np.asarray(fetch.prepare_s) > 0):
        tasks.append(Task(name=f"prepare{fetch.layer}", stream="host", seconds=fetch.prepare_s, after=after))
        after = (f"prepare{fetch.layer}",)
    if not beside.stands and np.any(np.asarray(between_s) > 0):
        tasks.append(Task(name=f"other{fetch.layer}", stream="link", seconds=between_s))
    waited = 1.0 if beside.stands else fetch.waited
    return [*tasks, Task(name=f"fetch{fetch.layer}", stream=stream, seconds=link_s, after=after, waited=waited)]


def played(layers_s: Sequence[Num], fetches: Sequence[Fetch], beside: Beside, other_s: Num = 0.0) -> Pass:
    """The pass by its recurrence; the first layer may wait too."""
    done = finish_times(pass_tasks(layers_s, fetches, beside, other_s))
    end, waited = done[f"layer{len(layers_s) - 1}"], 0.0 * np.asarray(other_s)
    for fetch in fetches:
        before = done[f"layer{fetch.layer - 1}"] if fetch.layer else 0.0
        waited = waited + np.maximum(done[f"fetch{fetch.layer}"] - before, 0.0)
    exposed = np.maximum(end - sum(layers_s, 0.0), 0.0)
    one_by_one = sum((fetch.alone_s for fetch in fetches), 0.0)
    return Pass(seconds=end, exposed_s=exposed, waited_s=exposed if beside.stands else waited, fetch_s=one_by_one)


def hidden_from(layers_s: Sequence[Num], fetch: Fetch, beside: Beside, other_s: Num = 0.0) -> Num:
    """The first layer, counted from 1, in front of which one such fetch is not waited for; 0 where none is that deep.

    Shape of the seconds, broadcast. InputError for fetches that do not start with the pass: those are always waited
    for.
    """
    if not beside.ahead or beside.stands:
        raise InputError("hidden_from: only what is fetched beside compute can be hidden")
    last = len(layers_s) - 1
    # Layers in front of the one that waits run as they would in front of any other.
    done = finish_times(pass_tasks(layers_s, [replace(fetch, layer=last)], beside, other_s))
    first = np.asarray(0.0)
    for layer in reversed(range(last + 1)):
        before = done[f"layer{layer - 1}"] if layer else 0.0
        first = np.where(done[f"fetch{last}"] <= before, layer + 1.0, first)
    return first[()]
