"""How much more than the mean the most loaded GPU and node get, where experts are not chosen equally often.

The most loaded GPU decides the time of a layer's experts, the most loaded link that of the exchange: all others wait.
Loads of experts follow a power law with a given exponent, or are given. Without redundant experts they lie where they
lie: the power law's on any GPU, given ones in their order. With them a balancer, which knows the loads, copies the
experts with most load per copy and packs the copies greedily, heaviest first, onto the GPU with the least load that has
room; where nodes hold whole groups of experts, first groups onto nodes and then within each node (deepseek-ai/EPLB).

The power law is that of a public collector of kernel times (aiconfigurator, power_law_logits_v3): an expert's share is
drawn with density x^-exponent between one token and 0.8 of all of them, or between 0.01 and 2 where pairs of token and
expert are no more than experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.types import Num

Array = NDArray[np.float64]

#: Draws of all experts' shares over which the load of the hottest bin is averaged.
_N_SHARES = 200

#: Draws of which expert belongs to which group, over which a balanced power law is averaged.
_N_DRAWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """Load of the most loaded GPU and node over the mean, and the share of that GPU's experts that get any token."""

    gpu: Num = 1.0
    node: Num = 1.0
    hit: Num = 1.0


def exponent(routing: str) -> float | None:
    """The exponent of ``power_law_A``, None where routing is even; ValueError for anything else."""
    if routing in ("", "balanced", "random"):
        return None
    name, _, value = routing.rpartition("_")
    try:
        found = float(value)
    except ValueError:
        found = float("nan")
    if name != "power_law" or not 0.0 <= found < 10.0:
        raise ValueError(f"routing: unknown {routing!r}; choose balanced, random or power_law_A, e.g. power_law_1.2")
    return found


def power_law(power: float, n_experts: Num, n_bins: Num, n_tokens: Num, n_pairs: Num) -> tuple[Num, Num]:
    """Pairs of the bin with most of them, and how many of its experts get any, of ``n_experts`` that lie evenly in
    ``n_bins``, when ``n_tokens`` tokens make ``n_pairs`` in all. Shapes broadcast.

    Means over drawn shares, the same draws for every point; counts of experts and bins are rounded. A millisecond for
    each different point.
    """
    columns = np.broadcast_arrays(n_experts, n_bins, n_tokens, n_pairs)
    kinds, inverse = np.unique(np.stack(columns, axis=-1).reshape(-1, 4), axis=0, return_inverse=True)
    found = np.asarray([_most_drawn(power, *(float(v) for v in kind)) for kind in kinds])[np.ravel(inverse)]
    pairs, hit = np.reshape(found.T, (2, *columns[0].shape))
    return pairs[()], hit[()]


@lru_cache(maxsize=4096)
def _most_drawn(power: float, n_experts: float, n_bins: float, n_tokens: float, n_pairs: float) -> tuple[float, float]:
    bins = max(round(n_bins), 1)
    here = max(round(n_experts / bins), 1)
    low, high = (float(bound) for bound in _bounds(n_experts, n_tokens, n_pairs))
    drawn = _quantile(power, low, high, np.random.default_rng(0).random((_N_SHARES, bins, here)))
    pairs = np.minimum(n_pairs * drawn / drawn.sum(axis=(1, 2), keepdims=True), n_tokens)
    sums = pairs.sum(axis=2)
    hottest = pairs[np.arange(_N_SHARES), sums.argmax(axis=1)]
    hit = np.clip((hottest >= 0.5).sum(axis=1).mean(), 1.0, here)
    most = float(sums.max(axis=1).mean())
    # No expert gets a token twice, so that many pairs need as many experts.
    return most, float(np.maximum(np.minimum(hit, max(most, 1.0)), most / n_tokens))


def _quantile(power: float, low: float, high: float, below: Array) -> Array:
    """The values below which shares ``below`` of the density x^-power between two bounds lie."""
    if abs(power - 1.0) < 1e-9:
        return low * (high / low) ** below
    ends = low ** (1.0 - power), high ** (1.0 - power)
    return (ends[0] + below * (ends[1] - ends[0])) ** (1.0 / (1.0 - power))


def power_law_loads(power: float, n_experts: int, n_tokens: float, n_pairs: float) -> Array:
    """Loads of ``n_experts``, heaviest first, relative to their mean, shape (n_experts,): the law's quantiles in the
    middles of equal shares; none above one pair per token."""
    low, high = (float(bound) for bound in _bounds(n_experts, n_tokens, n_pairs))
    drawn = _quantile(power, low, high, 1.0 - (np.arange(n_experts) + 0.5) / n_experts)
    return np.minimum(drawn / drawn.mean(), n_experts * n_tokens / n_pairs)


def replicate(loads: Sequence[float] | Array, n_slots: int) -> tuple[NDArray[np.int64], Array]:
    """Which expert each of ``n_slots`` slots holds, and its share of that expert's load, both (n_slots,): one slot for
    each, then one more, time after time, for the expert with most load per copy."""
    loads = np.asarray(loads, dtype=float)
    n_copies = np.ones(len(loads))
    owners = list(range(len(loads)))
    for _ in range(n_slots - len(loads)):
        hottest = int(np.argmax(loads / n_copies))
        n_copies[hottest] += 1.0
        owners.append(hottest)
    owner = np.asarray(owners)
    return owner, (loads / n_copies)[owner]


def pack(loads: Sequence[float] | Array, n_bins: int) -> NDArray[np.int64]:
    """The bin of each load, (n_loads,): heaviest first, into the least loaded bin that has room; bins hold equally
    many, the last one fewer where the number does not divide."""
    loads = np.asarray(loads, dtype=float)
    room = np.full(n_bins, -(-len(loads) // n_bins))
    sums, bins = np.zeros(n_bins), np.zeros(len(loads), dtype=int)
    for i in np.argsort(-loads, kind="stable"):
        least = int(np.argmin(np.where(room > 0, sums, np.inf)))
        bins[i] = least
        sums[least] += loads[i]
        room[least] -= 1
    return bins


@lru_cache(maxsize=512)
def packed(loads: tuple[float, ...], n_slots: int, n_nodes: int, n_gpus: int, n_group: int) -> tuple[float, float]:
    """Loads of the most loaded GPU and node over the mean, of experts in the order of ``loads``; with more slots than
    experts a balancer copies and packs them, without they stay in order."""
    gpus = np.zeros(n_gpus)
    per_node = n_gpus // n_nodes
    if n_slots <= len(loads):
        np.add.at(gpus, np.arange(len(loads)) * n_gpus // len(loads), loads)
    elif n_group % n_nodes == 0 and n_slots % n_nodes == 0:
        of_group = np.reshape(loads, (n_group, -1))
        home = pack(of_group.sum(axis=1), n_nodes)
        for node in range(n_nodes):
            _, shares = replicate(of_group[home == node].ravel(), n_slots // n_nodes)
            np.add.at(gpus, node * per_node + pack(shares, per_node), shares)
    else:
        _, shares = replicate(loads, n_slots)
        np.add.at(gpus, pack(shares, n_gpus), shares)
    nodes = np.add.reduceat(gpus, np.arange(0, n_gpus, max(per_node, 1)))
    return float(gpus.max() / gpus.mean()), float(nodes.max() / nodes.mean())


@lru_cache(maxsize=512)
def packed_power_law(
    power: float, n_experts: int, n_tokens: float, n_pairs: float, n_slots: int, n_nodes: int, n_gpus: int, n_group: int
) -> tuple[float, float]:
    """``packed`` for experts whose loads follow a power law, on average over which of them form a group."""
    loads = power_law_loads(power, n_experts, n_tokens, n_pairs)
    rng = np.random.default_rng(0)
    found = [packed(tuple(rng.permutation(loads).tolist()), n_slots, n_nodes, n_gpus, n_group) for _ in range(_N_DRAWS)]
    gpu, node = np.mean(found, axis=0)
    return float(gpu), float(node)


def _bounds(n_experts: Num, n_tokens: Num, n_pairs: Num) -> tuple[Num, Num]:
    many = np.asarray(n_pairs) > n_experts
    return np.where(many, 1.0, 0.01), np.where(many, np.maximum(0.8 * np.asarray(n_tokens), 1.001), 2.0)
