"""Where a router sends a token: how many of the nodes and GPUs hold its top-k experts, whatever the degree.

Shape: n_experts, top_k, n_group and topk_group (the groups of experts that a limited router knows, and of how many it
may take experts; default 1 and 1, no limit), n_slots (experts with redundant copies; default n_experts), n_gpus
(expert-parallel degree), n_gpus_per_node. Scores of experts are equally distributed and independent of each other.

The router ranks groups by the scores of their best experts, then takes the top k within the best ``topk_group`` of
them. So it looks for groups that hold highly ranked experts, and nearly always uses all groups it may: of DeepSeek-V3's
4 of 8 groups 3.98 on average, where groups drawn blindly would give 3.63. The law is exact for groups ranked by their
best expert (DeepSeek-V2 arXiv:2405.04434 s2.1.2, DeepEP's benchmark); DeepSeek-V3 ranks them by the sum of their two
best (arXiv:2412.19437 s2.1.2, s4.2), which has no closed form and stays within 0.6% of it (tests).

Groups lie on consecutive nodes: several on one, one on each, or each on several. Redundant copies stay on the node of
their group where nodes hold whole groups; where they do not, experts are packed regardless of groups, as DeepSeek's
load balancer does (deepseek-ai/EPLB README: hierarchical where nodes divide groups, else global).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from sextant.simulator import points
from sextant.simulator.kernels.hops import nodes as nodes_of
from sextant.simulator.types import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """How one token's ``top_k`` experts lie in ``n_group`` groups. ``holding[n][c]`` is the expected number of bins of
    n groups each that hold exactly c of the experts, for every n that divides the groups."""

    n_group: int
    top_k: int
    holding: Mapping[int, tuple[float, ...]]

    @property
    def mean_used(self) -> float:
        """The expected number of groups that hold any of the experts."""
        return sum(self.holding[1][1:])


def _sums(counts: tuple[int, ...], n_drawn: int, most: int) -> NDArray[np.float64]:
    """Probabilities that the sum of ``n_drawn`` of ``counts``, drawn without replacement, is 0 ... ``most``."""
    ways = np.zeros((n_drawn + 1, most + 1))
    ways[0, 0] = 1.0
    for count in counts:
        for drawn in range(n_drawn, 0, -1):
            ways[drawn, count:] += ways[drawn - 1, : most + 1 - count]
    return ways[n_drawn] / ways[n_drawn].sum()


@lru_cache(maxsize=4096)
def occupancy(n_group: int, topk_group: int, group_size: float, top_k: int, *, blind: bool = False) -> Occupancy:
    """The exact law for ``topk_group`` of ``n_group`` groups of ``group_size`` experts each.

    A chain over the ranking of all experts: the next expert belongs to a group not yet met (which may still be taken
    while fewer than ``topk_group`` are) or to one met before. ``blind`` draws the groups first, whatever their scores.
    """
    limit = min(topk_group, n_group)
    reach = limit if blind else n_group
    states: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(top_k):
        after: dict[tuple[int, ...], float] = {}
        for counts, p in states.items():
            ways: dict[tuple[int, ...], float] = {}
            for i, count in enumerate(counts):
                ways[_with(counts, i)] = ways.get(_with(counts, i), 0.0) + max(group_size - count, 0.0)
            if len(counts) < limit:
                ways[(*counts, 1)] = ways.get((*counts, 1), 0.0) + (reach - len(counts)) * group_size
            total = sum(ways.values())
            for state, way in ways.items() if total > 0 else [(counts, 1.0)]:
                after[state] = after.get(state, 0.0) + p * way / (total if total > 0 else 1.0)
        states = after
    padded = {(*counts, *[0] * (n_group - len(counts))): p for counts, p in states.items()}
    holding = {n: _holding(padded, n, top_k) for n in range(1, n_group + 1) if n_group % n == 0}
    return Occupancy(n_group=n_group, top_k=top_k, holding=holding)


def _holding(states: Mapping[tuple[int, ...], float], n_merged: int, top_k: int) -> tuple[float, ...]:
    total = np.zeros(top_k + 1)
    for counts, p in states.items():
        total += p * _sums(counts, n_merged, top_k) * len(counts) / n_merged
    return tuple(float(n) for n in total)


def _with(counts: tuple[int, ...], i: int) -> tuple[int, ...]:
    """One expert more in group ``i``; the order of groups does not matter, so largest first."""
    return tuple(sorted((*counts[:i], counts[i] + 1, *counts[i + 1 :]), reverse=True))


def distinct(n_choices: Num, n_items: Num, n_bins: Num) -> Num:
    """Expected number of distinct bins hit by ``n_choices`` different items, when ``n_items`` lie evenly in ``n_bins``.

    A bin of e = n_items / n_bins items is missed with probability C(n_items - e, n_choices) / C(n_items, n_choices)
    (hypergeometric). Broadcasts; the counts may be fractions.
    """
    return n_bins * (1.0 - _missed(n_choices, n_items, n_items / n_bins))


def _missed(n_choices: Num, n_items: Num, n_marked: Num) -> Num:
    """The probability that none of ``n_choices`` different items out of ``n_items`` is one of ``n_marked``."""
    left = n_items - n_marked
    spare = left - n_choices + 1.0
    possible = np.asarray(spare) > 0
    ways = gammaln(left + 1.0) - gammaln(np.where(possible, spare, 1.0))
    all_ways = gammaln(n_items + 1.0) - gammaln(np.maximum(n_items - n_choices, 0.0) + 1.0)
    return np.where(possible, np.exp(np.minimum(ways - all_ways, 0.0)), 0.0)[()]


def destinations(shape: Mapping[str, Num]) -> tuple[Num, Num]:
    """Expected distinct nodes and distinct GPUs of one token's experts, its own node and GPU included.

    Floats, or arrays where a dimension is one; a fractional ``top_k`` is interpolated.
    """
    n_nodes, _ = nodes_of(shape)
    experts = shape["n_experts"]
    values = (
        shape.get("n_group", 1.0), shape.get("topk_group", 1.0), experts, shape["top_k"],
        shape.get("n_slots", experts), n_nodes, shape["n_gpus"],
    )  # fmt: skip
    if all(np.ndim(value) == 0 for value in values):
        return _destinations(*(float(value) for value in values))
    # A sweep repeats few kinds of groups: each is worked out once.
    size = np.broadcast_shapes(*map(np.shape, values))
    columns = np.broadcast_arrays(*values)
    equal = points.distinct([c.ravel() for c, value in zip(columns, values, strict=True) if np.size(value) > 1])
    rows = [column.ravel() if equal is None else column.flat[equal[0]] for column in columns]
    found = np.array([_destinations(*kind) for kind in zip(*(row.tolist() for row in rows), strict=True)])
    found = found if equal is None else found[equal[1]]
    return found[:, 0].reshape(size), found[:, 1].reshape(size)


@lru_cache(maxsize=65536)
def _destinations(
    n_group: float, topk_group: float, n_experts: float, top_k: float, n_slots: float, n_nodes: float, n_gpus: float
) -> tuple[float, float]:
    groups, limit, whole = max(round(n_group), 1), max(round(topk_group), 1), int(np.floor(top_k))
    laws = [(occupancy(groups, limit, n_experts / groups, whole), 1.0 - top_k + whole)]
    if top_k > whole:
        laws.append((occupancy(groups, limit, n_experts / groups, whole + 1), top_k - whole))
    copied = n_slots > n_experts
    nodes = sum(share * _nodes(law, copied, n_slots, n_nodes) for law, share in laws)
    gpus = sum(share * _gpus(law, copied, n_slots, n_nodes, n_gpus) for law, share in laws)
    # Rounding alone can leave these bounds.
    least = min(top_k, 1.0)
    return min(max(nodes, least), top_k), min(max(gpus, least), top_k)


def _nodes(law: Occupancy, copied: bool, n_slots: float, n_nodes: float) -> float:
    """Nodes of whole groups; of parts of groups; with copies, or where neither divides the other, packed anyhow."""
    if _divides(n_nodes, law.n_group):
        return sum(law.holding[round(law.n_group / n_nodes)][1:])
    if _divides(law.n_group, n_nodes) and not copied:
        return _inside(law.holding[1], n_slots / law.n_group, n_nodes / law.n_group)
    return float(distinct(law.top_k, n_slots, n_nodes))


def _gpus(law: Occupancy, copied: bool, n_slots: float, n_nodes: float, n_gpus: float) -> float:
    """GPUs of whole groups or of parts of them; where there are copies, any expert of a node lies on any GPU of it."""
    if copied and _divides(n_nodes, law.n_group):
        return _inside(law.holding[round(law.n_group / n_nodes)], n_slots / n_nodes, n_gpus / n_nodes)
    if not copied and _divides(n_gpus, law.n_group):
        return sum(law.holding[round(law.n_group / n_gpus)][1:])
    if not copied and _divides(law.n_group, n_gpus):
        return _inside(law.holding[1], n_slots / law.n_group, n_gpus / law.n_group)
    return float(distinct(law.top_k, n_slots, n_gpus))


def _inside(holding: tuple[float, ...], n_slots: float, n_bins: float) -> float:
    """Distinct bins, when ``holding[c]`` sets of ``n_slots`` slots in ``n_bins`` bins each hold c of the experts."""
    return sum(n * float(distinct(float(c), n_slots, n_bins)) for c, n in enumerate(holding) if c and n > 0)


def crowded(copies: Num, n_bins: Num, load: Num) -> Num:
    """Copies of a token, were all of the ``n_bins`` GPUs or nodes as loaded as the one with ``load`` times the mean.

    A token reaches a bin once or not at all: twice the experts there do not make twice the copies.
    """
    missed = np.clip(1.0 - np.asarray(copies) / n_bins, 0.0, 1.0)
    return np.where(np.asarray(load) == 1.0, copies, n_bins * (1.0 - missed**load))[()]


def _divides(part: float, whole: float) -> bool:
    return whole % part < 1e-9
