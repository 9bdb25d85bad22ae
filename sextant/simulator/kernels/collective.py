"""Collectives over the tiers of a cluster: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send_recv.

Shape: n_gpus, n_gpus_per_node, message_bytes (the larger buffer of one rank: all_gather's output, reduce_scatter's
input; of all_to_all the whole send buffer). Ranks lie in one node when n_gpus_per_node >= n_gpus.

Time = latency per step x steps + transfer + 2 sqrt(chunk x transfer). Steps and bytes are those of an algorithm
(``algorithms``); across nodes every GPU drives its own network card, both hops are pipelined and the slower decides.
The square root is what the best division of a pipeline into chunks costs, when each chunk costs ``chunk_s``: one law
from the latency-bound to the bandwidth-bound end, in place of a table of protocols. Of the algorithms that a collective
may run, the fastest is taken, point by point, as a library's tuner would; ``estimate`` takes another by name.

Within a node the rate is the link's bandwidth times a fitted share, which takes the place of ``Link.efficiency``, and
step latencies are fitted too. What is only sent (send_recv, a broadcast to one other) reaches more of it than a ring of
two, whose ranks have a part of their own to copy: efficiency and chunk_s of the block ``collective_send``, where it was
measured. Between nodes nothing was measured: there the link's own efficiency and latency hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import Work, fit_of
from sextant.simulator.kernels.algorithms import ALGORITHMS, VARIANTS, plan
from sextant.simulator.kernels.hops import links, nodes
from sextant.simulator.types import PROVENANCES, Cluster, Estimate, KernelFit, Num, Op

#: Channels of a collective within a node, each of which holds one SM: what NCCL logs on HGX A100 (Channel 00 to 23;
#: NVIDIA/nccl-tests issue 100).
N_CHANNELS = 24.0

#: Widening of the interval for groups that span nodes: no such collective was measured.
OUTER_LOW, OUTER_HIGH = 0.8, 1.4

#: The block of messages that are only sent, and what may be one.
SEND, SENT = "collective_send", ("send_recv", "broadcast")

#: What NVSwitches can add.
SWITCHED = ("bf16", "fp16", "fp32")


def hop_bytes(shape: Mapping[str, Num], variant: str) -> tuple[Num, Num]:
    """Bytes that one rank sends within its node and over its own network card by the first algorithm of ``variant``."""
    if variant not in ALGORITHMS:
        raise InputError(f"collective: unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
    moved = plan(shape, variant, ALGORITHMS[variant][0])
    return moved.inner_bytes, moved.outer_bytes


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """Bytes that one rank sends, over both hops; the additions of a reduction are not counted as FLOPs."""
    inner, outer = hop_bytes(shape, variant)
    return Work(message_bytes=inner + outer)


def choices(op: Op, cluster: Cluster) -> tuple[str, ...]:
    """The algorithms that ``op`` may run on ``cluster``: reduction in the switches only where its rate was measured
    and for formats that they add."""
    able = "switch_efficiency" in fit_of(cluster.device, "collective").coefficients and op.format in SWITCHED
    return tuple(name for name in ALGORITHMS[op.variant] if able or name != "switch")


def chosen(op: Op, cluster: Cluster) -> np.ndarray:
    """The name of the fastest algorithm, per point, shape () or (n_points,)."""
    names = choices(op, cluster)
    seconds = np.broadcast_arrays(*(np.asarray(estimate(op, cluster, name).seconds) for name in names))
    return np.asarray(names)[np.argmin(np.stack(seconds), axis=0)]


def estimate(op: Op, cluster: Cluster, algorithm: str = "auto") -> Estimate:
    """Seconds by the block ``collective``: ring_efficiency and direct_efficiency (share of NVLink's line rate in a
    ring and in all_to_all, for many ranks), pair_loss (the part of it that two ranks do not reach, shrinking as 2 / n),
    base_s and step_s (latency), chunk_s, setup_s and setup_bytes (see ``_setup_s``); where they were fitted also
    reduce_efficiency and reduce_pair_loss of all_reduce, direct_base_s, peer_s (per peer), direct_pair_loss and
    direct_chunk_s of all_to_all, switch_efficiency and switch_s. Zero for a group of one rank.

    InputError if the group spans nodes and the cluster has one tier, or for an algorithm that cannot run. Across nodes
    the interval is wider and the provenance no better than ``published``.
    """
    fit = fit_of(cluster.device, "collective")
    n_nodes, _ = nodes(op.shape)
    names = choices(op, cluster) if algorithm == "auto" else (algorithm,)
    fixed_s, link_s, chunk_s = _fastest([_parts(op, cluster, fit, name) for name in names])
    several = np.asarray(op.shape["n_gpus"]) > 1
    fixed_s = np.where(several, np.maximum(cluster.device.launch_s, fixed_s), 0.0)
    seconds = fixed_s + link_s + chunk_s
    beyond = np.asarray(n_nodes) > 1
    worst = max(fit.provenance, "published", key=PROVENANCES.index)
    return Estimate(
        seconds=seconds, low=seconds * fit.low * np.where(beyond, OUTER_LOW, 1.0),
        high=seconds * fit.high * np.where(beyond, OUTER_HIGH, 1.0),
        limits={"link": link_s, "launch": fixed_s}, provenance=worst if beyond.any() else fit.provenance,
    )  # fmt: skip


def _fastest(parts: list[tuple[Num, Num, Num]]) -> tuple[Num, Num, Num]:
    """Of several (fixed, link, chunk) seconds the three of the smallest sum, per point."""
    if len(parts) == 1:
        return parts[0]
    table = np.stack([np.stack(np.broadcast_arrays(*each)) for each in parts])
    best = np.argmin(table.sum(axis=1), axis=0)
    fixed_s, link_s, chunk_s = np.take_along_axis(table, best[None, None], axis=0)[0]
    return fixed_s, link_s, chunk_s


def _parts(op: Op, cluster: Cluster, fit: KernelFit, algorithm: str) -> tuple[Num, Num, Num]:
    """Seconds of latency, of transfer, and of dividing the message into chunks."""
    c, moved = fit.coefficients, plan(op.shape, op.variant, algorithm)
    n_nodes, local = nodes(op.shape)
    inner, outer = links(cluster, n_nodes)
    share, chunk_s = _share(op.variant, algorithm, local, c), c["chunk_s"]
    send = cluster.device.kernels.get(SEND)
    if send is not None and op.variant in SENT:
        sent = (np.asarray(n_nodes) == 1) & ((op.variant == "send_recv") | (np.asarray(op.shape["n_gpus"]) == 2))
        share = np.where(sent, send.coefficients["efficiency"], share)[()]
        chunk_s = np.where(sent, send.coefficients["chunk_s"], chunk_s)[()]
    inner_s = moved.inner_bytes / (inner.bandwidth_bytes_per_s * share)
    outer_s = moved.outer_bytes / (outer.bandwidth_bytes_per_s * outer.efficiency)
    link_s = np.maximum(inner_s, outer_s)
    if algorithm == "switch":
        return c["switch_s"], link_s, 2.0 * np.sqrt(c["chunk_s"] * link_s)
    fixed_s = c["base_s"] + moved.inner_steps * c["step_s"] + moved.outer_steps * outer.latency_s
    if op.variant == "all_to_all":
        base_s = c.get("direct_base_s", c["base_s"]) + (np.asarray(op.shape["n_gpus"]) - 1.0) * c.get("peer_s", 0.0)
        fixed_s = fixed_s - c["base_s"] + base_s + _setup_s(op.shape, c)
        chunk_s = c.get("direct_chunk_s", chunk_s)
    return fixed_s, link_s, 2.0 * np.sqrt(chunk_s * link_s)


def _share(variant: str, algorithm: str, local: Num, c: Mapping[str, Num]) -> Num:
    """What part of NVLink's line rate payload reaches."""
    if algorithm == "switch":
        return c["switch_efficiency"]
    share, loss = c["ring_efficiency"], c["pair_loss"]
    if variant == "all_to_all":
        share, loss = c["direct_efficiency"], c.get("direct_pair_loss", loss)
    elif variant == "all_reduce":  # its second turn sends on what the first has left on chip
        share, loss = c.get("reduce_efficiency", share), c.get("reduce_pair_loss", loss)
    return share * (1.0 - loss * 2.0 / np.maximum(local, 2.0))


def steady_share(c: Mapping[str, Num], n_gpus: Num) -> Num:
    """What part of NVLink's line rate a long message reaches in a ring of ``n_gpus``, by the block ``collective``."""
    return _share("all_gather", "ring", n_gpus, c)


def _setup_s(shape: Mapping[str, Num], c: Mapping[str, Num]) -> Num:
    """Direct sends ride along with their flags while they are small, at a rate of setup_bytes per setup_s and peer;
    larger ones first agree on buffers with the peer, which takes setup_s. The cheaper of the two is taken."""
    per_peer = shape["message_bytes"] / shape["n_gpus"]
    return c["setup_s"] * np.minimum(1.0, per_peer / c["setup_bytes"])
