"""Expert-parallel exchange: tokens travel to the GPUs of their experts (``dispatch``) and results back (``combine``).

Shape: n_tokens (of one GPU), hidden, the dimensions of ``routing`` (top_k, n_experts, n_group ... n_gpus), mode (0
normal, 1 low latency; default 0), n_sms (that run a normal exchange; default 20), notify (1 adds the wait in which a
normal exchange agrees on sizes; default 0), first (1: the kernels of DeepEP's first version, of February 2025; default
0), hot_gpu and hot_node (load of the most loaded GPU and node over the mean, see ``imbalance``; default 1). Bytes are
those of the most loaded GPU, for which all others wait; those that reach a node come over its network cards evenly.

Normal: a token crosses InfiniBand once per distinct other node, to the GPU of the same place in its node, and NVLink
once per distinct other GPU. The SMs that run the exchange copy each of these messages into NVLink; InfiniBand runs
beside them, and the slower of the two decides. Combine is the way back, with the sums.
Low latency: a message for every (token, expert) goes straight there, over NVLink within the node, InfiniBand beyond.
In the first version InfiniBand and the copies into NVLink held each other up between nodes, and all low-latency
messages went over InfiniBand.

Rates are the links' bandwidths times fitted shares of the line rate. These take the place of ``Link.efficiency``, one
number for all uses of a link, which is not used here: a worse fabric is a lower bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels import BYTES, Work, fit_of
from sextant.simulator.kernels.hops import links
from sextant.simulator.kernels.hops import nodes as nodes_of
from sextant.simulator.kernels.routing import crowded, destinations
from sextant.simulator.types import PROVENANCES, Cluster, Estimate, KernelFit, Num, Op

VARIANTS = ("dispatch", "combine")

#: SMs that run a normal exchange where the shape does not say: DeepEP's default and DeepSeek-V3's training.
N_SMS = 20.0

#: How copying SMs and NVLink hold each other up: their times add as this norm, 26% longer than either where both are
#: equal. Of 2, 2.5, 3, 4 and 20 (all but the maximum) the H100 rows err least, in mean
#: and median, at 2.5 and 3, whatever the share of NVLink.
SHARPNESS = 3.0


def most_copies(shape: Mapping[str, Num]) -> tuple[Num, Num]:
    """Copies of a token per distinct node and per distinct GPU, as the most loaded node and GPU see them."""
    nodes, gpus = destinations(shape)
    n_nodes, _ = nodes_of(shape)
    hot_node, hot_gpu = (shape.get(name, 1.0) for name in ("hot_node", "hot_gpu"))
    return crowded(nodes, n_nodes, hot_node), crowded(gpus, shape["n_gpus"], hot_gpu)


def hop_bytes(shape: Mapping[str, Num], format: str) -> tuple[Num, Num]:
    """Bytes that one GPU sends over InfiniBand and over NVLink (in normal mode including what it forwards)."""
    n_nodes, per_node = nodes_of(shape)
    token_bytes = shape["hidden"] * BYTES[format] * shape["n_tokens"]
    nodes, gpus = most_copies(shape)
    low_latency = np.asarray(shape.get("mode", 0.0)) > 0
    outside = 1.0 - 1.0 / n_nodes
    messages = shape["top_k"] * shape.get("hot_gpu", 1.0)
    pure = low_latency & _is_first(shape)
    sent = messages * np.where(pure, 1.0 - 1.0 / np.maximum(shape["n_gpus"], 1.0), outside)
    infiniband = np.where(low_latency, sent, nodes * outside)
    # Forwarded within each node by a GPU that is itself the destination in one of per_node cases.
    forwarded = gpus * (1.0 - 1.0 / per_node)
    direct = np.where(pure, 0.0, messages / n_nodes * (1.0 - 1.0 / per_node))
    return token_bytes * infiniband, token_bytes * np.where(low_latency, direct, forwarded)


def _is_first(shape: Mapping[str, Num]) -> NDArray[np.bool_]:
    """Where an exchange is one of the first version."""
    return np.asarray(shape.get("first", 0.0)) > 0


def work(shape: Mapping[str, Num], format: str, variant: str) -> Work:
    """``message_bytes`` is what one GPU sends over both links together; ``hop_bytes`` tells them apart.

    A copy that crosses InfiniBand is read, written where it lands and read again to be forwarded; one that crosses
    NVLink is written into a buffer, read and written to its place: that is the HBM traffic of a GPU.
    """
    if variant not in VARIANTS:
        raise InputError(f"expert_exchange: unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
    infiniband, nvlink = hop_bytes(shape, format)
    return Work(traffic_bytes={"hbm": 3.0 * infiniband + 3.0 * nvlink}, message_bytes=infiniband + nvlink)


def estimate(op: Op, cluster: Cluster) -> Estimate:
    """Seconds of one exchange. Uses the blocks ``expert_exchange``, of the first version between nodes
    ``expert_exchange_2025_02``, and ``expert_exchange_low_latency``, and the two innermost tiers of the cluster;
    InputError if a group spans nodes and there is no second tier."""
    device, low_latency = cluster.device, np.asarray(op.shape.get("mode", 0.0)) > 0
    found: Estimate | None = None
    if not low_latency.all():
        found = _normal(op, cluster, fit_of(device, "expert_exchange"))
        first = _is_first(op.shape) & (np.asarray(nodes_of(op.shape)[0]) > 1)
        if first.any():
            found = _either(first, _normal(op, cluster, fit_of(device, "expert_exchange_2025_02")), found)
    if low_latency.any():
        fast = _low_latency(op, cluster, fit_of(device, "expert_exchange_low_latency"))
        found = fast if found is None else _either(low_latency, fast, found)
    assert found is not None
    return found


def _either(where: NDArray[np.bool_], one: Estimate, other: Estimate) -> Estimate:
    """``one`` at the points ``where``, elsewhere ``other``."""
    if where.all():
        return one
    return Estimate(
        seconds=np.where(where, one.seconds, other.seconds), low=np.where(where, one.low, other.low),
        high=np.where(where, one.high, other.high),
        limits={k: np.where(where, one.limits[k], other.limits[k]) for k in other.limits},
        provenance=max((one.provenance, other.provenance), key=PROVENANCES.index),
    )  # fmt: skip


def _normal(op: Op, cluster: Cluster, fit: KernelFit) -> Estimate:
    """Coefficients: infiniband_efficiency, nvlink_efficiency (shares of the line rates), sm_bytes_per_s (messages
    copied by one SM: one per distinct GPU), node_copies (more per distinct node of several), combine_copies (what a
    copy costs in a combine between nodes, which adds), dispatch_s, combine_s (fixed), hop_s (each doubling of the
    nodes beyond two), chunk_s (of a pipeline that is divided as well as possible, see ``collective``), notify_s,
    notify_hop_s (between nodes only), overlap (the norm by which InfiniBand and copies add; absent: the slower one)."""
    c, s = fit.coefficients, op.shape
    n_nodes, _ = nodes_of(s)
    inner, outer = links(cluster, n_nodes)
    infiniband, nvlink = hop_bytes(s, op.format)
    infiniband_s = infiniband / (outer.bandwidth_bytes_per_s * c["infiniband_efficiency"])
    nvlink_s = nvlink / (inner.bandwidth_bytes_per_s * c["nvlink_efficiency"])
    copy_s = _copied_bytes(op, c) / (c["sm_bytes_per_s"] * s.get("n_sms", N_SMS))
    push_s = (nvlink_s**SHARPNESS + copy_s**SHARPNESS) ** (1.0 / SHARPNESS)

    doublings = np.log2(np.maximum(n_nodes / 2.0, 1.0))
    fixed_s = c[f"{op.variant}_s"] + c["hop_s"] * doublings
    waits = np.where(n_nodes > 1, s.get("notify", 0.0), 0.0)
    fixed_s = fixed_s + waits * (c["notify_s"] + c["notify_hop_s"] * doublings)
    if "overlap" in c:
        busy_s = (infiniband_s ** c["overlap"] + push_s ** c["overlap"]) ** (1.0 / c["overlap"])
    else:
        busy_s = np.maximum(infiniband_s, push_s)
    busy_s = busy_s + 2.0 * np.sqrt(c["chunk_s"] * busy_s)
    link_s = np.maximum(infiniband_s, nvlink_s)
    return _timed(op, busy_s, fixed_s, {"memory": copy_s, "link": link_s}, cluster, fit)


def _copied_bytes(op: Op, c: Mapping[str, Num]) -> Num:
    """Bytes that the SMs of one GPU copy in normal mode."""
    n_nodes, _ = nodes_of(op.shape)
    nodes, gpus = most_copies(op.shape)
    copies = gpus + np.where(n_nodes > 1, nodes * c["node_copies"], 0.0)
    if op.variant == "combine":
        copies = copies * np.where(n_nodes > 1, c["combine_copies"], 1.0)
    return op.shape["n_tokens"] * op.shape["hidden"] * BYTES[op.format] * copies


def _low_latency(op: Op, cluster: Cluster, fit: KernelFit) -> Estimate:
    """Coefficients: infiniband_efficiency, nvlink_efficiency (shares of the line rates), dispatch_copy_bytes_per_s,
    combine_copy_bytes_per_s (what a GPU itself takes for each message over NVLink, one after the other with the
    link), dispatch_s, combine_s (fixed), node_s (more when the group spans nodes), hop_s (each doubling beyond two)."""
    c = fit.coefficients
    n_nodes, _ = nodes_of(op.shape)
    outside = np.where(_is_first(op.shape) & (np.asarray(op.shape["n_gpus"]) > 1), np.maximum(n_nodes, 2.0), n_nodes)
    if len(cluster.tiers) < 2 and np.any(outside > n_nodes):
        raise InputError(
            f"exchange: deepep_2025_02 sends the messages of decoding over a second tier of links, and cluster "
            f"{cluster.name!r} has one; use deepep"
        )
    inner, outer = links(cluster, n_nodes)
    infiniband, nvlink = hop_bytes(op.shape, op.format)
    infiniband_s = infiniband / (outer.bandwidth_bytes_per_s * c["infiniband_efficiency"])
    nvlink_s = nvlink / (inner.bandwidth_bytes_per_s * c["nvlink_efficiency"])
    copy_s = nvlink / c[f"{op.variant}_copy_bytes_per_s"]
    busy_s = np.maximum(infiniband_s, nvlink_s + copy_s)
    doublings = np.log2(np.maximum(n_nodes / 2.0, 1.0))
    fixed_s = c[f"{op.variant}_s"] + np.where(outside > 1, c["node_s"], 0.0) + c["hop_s"] * doublings
    limits = {"memory": copy_s, "link": np.maximum(infiniband_s, nvlink_s)}
    return _timed(op, busy_s, fixed_s, limits, cluster, fit)


def _timed(op: Op, busy_s: Num, fixed_s: Num, limits: Mapping[str, Num], cluster: Cluster, fit: KernelFit) -> Estimate:
    # A group of one GPU exchanges nothing.
    alone = np.asarray(op.shape["n_gpus"]) <= 1
    floor_s = np.maximum(cluster.device.launch_s, fixed_s)
    seconds = np.where(alone, 0.0, busy_s + floor_s)
    limits = {**{k: np.where(alone, 0.0, v) for k, v in limits.items()}, "launch": np.where(alone, 0.0, floor_s)}
    return Estimate(
        seconds=seconds, low=seconds * fit.low, high=seconds * fit.high, limits=limits, provenance=fit.provenance
    )
