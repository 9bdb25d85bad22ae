"""Which cables a flow takes: minimal paths, one by hash, all of them alike, or the least loaded.

Links of a fabric with E endpoints and C cables, as ``contention`` counts them: 0 .. E - 1 the ports out of the
endpoints, then E ports into them, E links from an endpoint to its NVSwitches and E back, then every cable from its
first switch to its second, then the other way. An endpoint whose peer lies in its own node uses NVLink alone; one whose
peer hangs on another plane goes over NVLink first, to the endpoint of its node on that plane.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from sextant.hwmodels.topologies.demands import Flows
from sextant.hwmodels.topologies.distances import adjacency, hops
from sextant.hwmodels.topologies.fabric import Fabric, Ints
from sextant.simulator.contention import Uses
from sextant.simulator.errors import InputError, nearest

ROUTINGS = ("hash", "ecmp", "adaptive")

#: Into how many pieces adaptive routing divides a flow, and from how many of its paths each piece chooses at most.
_PIECES, _CHOICES = 8, 64

Hop = tuple[int, int]  # the link of a cable in one direction, and the switch it leads to


class Paths:
    """Minimal paths between switches of one fabric, found once per pair."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._hops: list[list[Hop]] = [[] for _ in range(fabric.n_switches)]
        first, n_links = 4 * fabric.n_endpoints, fabric.n_links
        for i, (a, b) in enumerate(fabric.ends.tolist()):
            self._hops[a].append((first + i, b))
            self._hops[b].append((first + n_links + i, a))
        self._far: dict[int, NDArray[np.float64]] = {}
        self._onwards: dict[tuple[int, int], list[Hop]] = {}
        self._choices: dict[tuple[int, int], Ints] = {}
        self._shares: dict[tuple[int, int], tuple[Ints, NDArray[np.float64]]] = {}

    def onwards(self, switch: int, target: int) -> list[Hop]:
        """The cables from ``switch`` that lead one step nearer to ``target``, by number."""
        known = self._onwards.get((switch, target))
        if known is not None:
            return known
        far = self._far.get(target)
        if far is None:
            far = self._far[target] = hops(self.fabric, np.array([target]))[0]
        if not np.isfinite(far[switch]):
            raise InputError(f"{self.fabric.name}: no cables lead from switch {switch} to switch {target}")
        known = [hop for hop in self._hops[switch] if far[hop[1]] == far[switch] - 1]
        self._onwards[switch, target] = known
        return known

    def all(self, switch: int, target: int) -> Iterator[tuple[int, ...]]:
        """Every minimal path as links, cable by cable, in a fixed order."""
        if switch == target:
            yield ()
            return
        for link, following in self.onwards(switch, target):
            for rest in self.all(following, target):
                yield (link, *rest)

    def hashed(self, switch: int, target: int, draw: np.random.Generator) -> tuple[int, ...]:
        """One minimal path: at every switch one of the cables that lead nearer, drawn at random."""
        path = []
        while switch != target:
            ways = self.onwards(switch, target)
            link, switch = ways[int(draw.integers(len(ways)))]
            path.append(link)
        return tuple(path)

    def choices(self, switch: int, target: int, draw: np.random.Generator) -> Ints:
        """Minimal paths to choose from, (n_paths, n_links): as many different ones as ``_CHOICES`` draws find."""
        known = self._choices.get((switch, target))
        if known is None:
            drawn = dict.fromkeys(self.hashed(switch, target, draw) for _ in range(_CHOICES))
            known = self._choices[switch, target] = np.array(list(drawn), dtype=np.int64)
        return known

    def spread(self, switch: int, target: int) -> tuple[Ints, NDArray[np.float64]]:
        """Links and the share of a flow on each, when every switch spreads evenly over the cables that lead nearer."""
        known = self._shares.get((switch, target))
        if known is None:
            shares: dict[int, float] = {}
            at = {switch: 1.0}
            while at and set(at) != {target}:
                following: dict[int, float] = {}
                for place, part in at.items():
                    ways = self.onwards(place, target)
                    for link, to in ways:
                        shares[link] = shares.get(link, 0.0) + part / len(ways)
                        following[to] = following.get(to, 0.0) + part / len(ways)
                at = following
            known = np.array(list(shares), dtype=np.int64), np.array(list(shares.values()))
            self._shares[switch, target] = known
        return known


def paths(fabric: Fabric, a: int, b: int) -> list[tuple[int, ...]]:
    """All minimal paths between two switches as the numbers of their cables (rows of ``Fabric.ends``)."""
    first = 4 * fabric.n_endpoints
    return [tuple((link - first) % fabric.n_links for link in path) for path in Paths(fabric).all(a, b)]


def route(
    fabric: Fabric, flows: Flows, *, routing: str = "ecmp", port_bytes_per_s: float = 50e9,
    nvlink_bytes_per_s: float = 200e9, seed: int = 0,
) -> Uses:  # fmt: skip
    """What every flow uses. ``routing``: ``hash`` sends each flow whole over one minimal path, drawn by ``seed``;
    ``ecmp`` spreads each over all of them; ``adaptive`` sends it in pieces, each where the fullest link is least full.

    Ports and cables carry ``port_bytes_per_s``, an endpoint's NVLink ``nvlink_bytes_per_s``, per direction (400 Gbit/s
    and an H800's 200 GB/s). InputError for an unknown routing or an endpoint that is not there.
    """
    if routing not in ROUTINGS:
        raise InputError(f"routing: unknown {routing!r}; {nearest(routing, ROUTINGS)}")
    n = fabric.n_endpoints
    if len(flows.source) and not (min(flows.source.min(), flows.target.min()) >= 0
                                  and max(flows.source.max(), flows.target.max()) < n):  # fmt: skip
        raise InputError(f"flows: {fabric.name} has endpoints 0 to {n - 1}; choose sources and targets among them")
    capacity = np.full(4 * n + 2 * fabric.n_links, port_bytes_per_s)
    capacity[2 * n : 4 * n] = nvlink_bytes_per_s
    found, load = Paths(fabric), np.zeros(len(capacity))
    _, plane = connected_components(adjacency(fabric), directed=False)
    draw = np.random.default_rng(seed)
    pieces = []
    for f, (source, target, size) in enumerate(zip(flows.source, flows.target, flows.bytes, strict=True)):
        ends, leaving = _ends(fabric, plane, int(source), int(target))
        links, shares = np.empty(0, dtype=np.int64), np.empty(0)
        if leaving is not None:
            a, b = int(fabric.switch[leaving]), int(fabric.switch[target])
            if routing == "hash":
                links = np.array(found.hashed(a, b, draw), dtype=np.int64)
                shares = np.ones(len(links))
            elif routing == "ecmp":
                links, shares = found.spread(a, b)
            else:
                links, shares = _least_loaded(found, a, b, float(size), load, draw)
        pieces.append((np.full(len(ends) + len(links), f), np.concatenate([ends, links]),
                       np.concatenate([np.ones(len(ends)), shares])))  # fmt: skip
    if not pieces:
        pieces = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    flow, link, share = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return Uses(flow=flow, link=link, share=share, bytes_per_s=capacity, n_flows=len(flows.source))


def _ends(fabric: Fabric, plane: NDArray[np.int32], source: int, target: int) -> tuple[Ints, int | None]:
    """The links at both ends, and the endpoint from which the flow leaves its node; None if it does not."""
    n = fabric.n_endpoints
    if source == target:
        return np.empty(0, dtype=np.int64), None
    if fabric.node[source] == fabric.node[target]:
        return np.array([2 * n + source, 3 * n + target]), None
    if plane[fabric.switch[source]] == plane[fabric.switch[target]]:
        return np.array([source, n + target]), source
    peers = np.flatnonzero(
        (fabric.node == fabric.node[source]) & (plane[fabric.switch] == plane[fabric.switch[target]])
    )
    if not len(peers):
        raise InputError(f"{fabric.name}: endpoint {source} has no neighbour on the plane of endpoint {target}")
    via = int(peers[0])
    return np.array([2 * n + source, 3 * n + via, via, n + target]), via


def _least_loaded(
    found: Paths, a: int, b: int, size: float, load: NDArray[np.float64], draw: np.random.Generator
) -> tuple[Ints, NDArray[np.float64]]:
    """Pieces of a flow, one after the other, over the path whose fullest link is least full; ``load`` grows."""
    shares: dict[int, float] = {}
    ways = found.choices(a, b, draw)
    for _ in range(_PIECES if ways.size else 0):
        best = ways[np.argmin(load[ways].max(axis=1))]
        load[best] += size / _PIECES
        for link in best.tolist():
            shares[link] = shares.get(link, 0.0) + 1.0 / _PIECES
    return np.array(list(shares), dtype=np.int64), np.array(list(shares.values()))
