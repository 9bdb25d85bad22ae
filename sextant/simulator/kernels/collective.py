"""Collectives over the tiers of a cluster: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send_recv.

Shape: n_gpus, n_gpus_per_node, message_bytes (the larger buffer of one rank: all_gather's output, reduce_scatter's
input; of all_to_all the whole send buffer). Ranks lie in one node when n_gpus_per_node >= n_gpus.

Time = latency per step x steps + transfer + 2 sqrt(chunk x transfer). The transfer is the law of the ring (or of direct
sends in all_to_all); across nodes every GPU drives its own network card, both hops are pipelined and the slower
decides. The square root is what the best division of a pipeline into chunks costs, when each chunk costs ``chunk_s``:
one law from the latency-bound to the bandwidth-bound end, in place of a table of protocols. Reduction inside the
switches (NVLink multicast) is not modelled.

Within a node the rate is the link's bandwidth times a fitted share, which takes the place of ``Link.efficiency``, and
step latencies are fitted too. Between nodes nothing was measured: there the link's own efficiency and latency hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.hops import links, nodes
from sextant.simulator.types import PROVENANCES, Cluster, Estimate, Num, Op

VARIANTS = ("all_gather", "all_reduce", "all_to_all", "broadcast", "reduce_scatter", "send_recv")

#: Channels of a collective within a node, each of which holds one SM: what NCCL logs on HGX A100 (Channel 00 to 23;
#: NVIDIA/nccl-tests issue 100).
N_CHANNELS = 24.0

#: Widening of the interval for groups that span nodes: no such collective was measured.
OUTER_LOW, OUTER_HIGH = 0.8, 1.4


def hop_bytes(shape: Mapping[str, Num], variant: str) -> tuple[Num, Num]:
    """Bytes that one rank sends within its node and over its own network card, in the hierarchical ring.

    Within a node of g ranks the ring moves (g - 1) / g of the buffer, and once more for the second half of an
    all_reduce; between N nodes every rank moves its 1 / g part (N - 1) / N times (an all_to_all sends directly).
    """
    if variant not in VARIANTS:
        raise InputError(f"collective: unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
    size = shape["message_bytes"]
    n_nodes, local = nodes(shape)
    beyond, within = 1.0 - 1.0 / n_nodes, 1.0 - 1.0 / local
    several = np.asarray(shape["n_gpus"]) > 1
    if variant == "all_to_all":
        return size * (local - 1.0) / shape["n_gpus"], size * beyond
    if variant == "broadcast":
        return size * within, size / local * np.where(n_nodes > 1, 1.0, 0.0)
    if variant == "send_recv":
        crosses = n_nodes > 1
        return size * np.where(several & ~crosses, 1.0, 0.0), size * np.where(crosses, 1.0, 0.0)
    passes = 2.0 if variant == "all_reduce" else 1.0
    return passes * size * within, passes * size / local * beyond


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Bytes that one rank sends, over both hops; the additions of a reduction are not counted as FLOPs."""
    inner, outer = hop_bytes(shape, variant)
    return Work(message_bytes=inner + outer)


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds by the block ``collective``: ring_efficiency and direct_efficiency (share of NVLink's line rate in a
    ring and in all_to_all, for many ranks), pair_loss (the part of it that two ranks do not reach, shrinking as 2 / n),
    base_s and step_s (latency), chunk_s, setup_s and setup_bytes (what all_to_all adds, and the message at which half
    of it is paid). Zero for a group of one rank.

    InputError if the group spans nodes and the cluster has one tier. Across nodes the interval is wider and the
    provenance no better than ``published``.
    """
    fit = fit_of(cluster.device, "collective")
    c, s = fit.coefficients, op.shape
    n_nodes, local = nodes(s)
    inner, outer = links(cluster, n_nodes)
    inner_bytes, outer_bytes = hop_bytes(s, op.variant)
    best = c["direct_efficiency"] if op.variant == "all_to_all" else c["ring_efficiency"]
    share = best * (1.0 - c["pair_loss"] * 2.0 / np.maximum(local, 2.0))
    inner_s = inner_bytes / (inner.bandwidth_bytes_per_s * share)
    outer_s = outer_bytes / (outer.bandwidth_bytes_per_s * outer.efficiency)
    link_s = np.maximum(inner_s, outer_s)

    inner_steps, outer_steps = _steps(op.variant, local, n_nodes)
    fixed_s = c["base_s"] + inner_steps * c["step_s"] + outer_steps * outer.latency_s
    several = np.asarray(s["n_gpus"]) > 1
    if op.variant == "all_to_all":
        # Small direct sends ride along with their flags; larger ones first agree on buffers with every peer.
        fixed_s = fixed_s + c["setup_s"] * s["message_bytes"] / (s["message_bytes"] + c["setup_bytes"])
    fixed_s = np.where(several, np.maximum(cluster.device.launch_s, fixed_s), 0.0)
    seconds = fixed_s + link_s + 2.0 * np.sqrt(c["chunk_s"] * link_s)
    beyond = np.asarray(n_nodes) > 1
    worst = max(fit.provenance, "published", key=PROVENANCES.index)
    return Estimate(
        seconds=seconds, low=seconds * fit.low * np.where(beyond, OUTER_LOW, 1.0),
        high=seconds * fit.high * np.where(beyond, OUTER_HIGH, 1.0),
        limits={"link": link_s, "launch": fixed_s}, provenance=worst if beyond.any() else fit.provenance,
    )  # fmt: skip


def _steps(variant: str, local: Num, n_nodes: Num) -> tuple[Num, Num]:
    """Steps whose latencies add: a ring inside the node, a tree (reducing, sending) or a ring between nodes."""
    if variant in ("all_to_all", "send_recv"):
        return np.where(n_nodes > 1, 0.0, 1.0), np.where(n_nodes > 1, 1.0, 0.0)
    if variant == "all_reduce":
        return 2.0 * (local - 1.0), 2.0 * np.ceil(np.log2(n_nodes))
    if variant == "broadcast":
        return local - 1.0, np.ceil(np.log2(n_nodes))
    return local - 1.0, n_nodes - 1.0
