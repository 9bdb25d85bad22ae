"""Fit collectives and expert-parallel exchanges: what share of a link's line rate they reach, and their latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import BYTES, estimate
from sextant.simulator.kernels.collective import SWITCHED
from sextant.simulator.kernels.expert_exchange import destinations
from sextant.simulator.types import Cluster, Device, KernelFit, Link, Num, Op, Tier
from sextant.validate.prediction import operators
from sextant.validate.solver import (
    Array,
    Bounds,
    Errors,
    Fitted,
    Row,
    column,
    columns,
    errors,
    held_out,
    solve,
    with_fit,
)

COLLECTIVE_BOUNDS = {
    "ring_efficiency": Bounds(start=0.8, low=0.3, high=1.0),
    "direct_efficiency": Bounds(start=0.75, low=0.3, high=1.0),
    "pair_loss": Bounds(start=0.2, low=0.0, high=0.6),
    "base_s": Bounds(start=5e-6, low=1e-7, high=3e-5),
    "step_s": Bounds(start=8e-7, low=0.0, high=1e-5),
    "chunk_s": Bounds(start=1.7e-6, low=0.0, high=1e-4),
    "reduce_efficiency": Bounds(start=0.85, low=0.3, high=1.0),
    "reduce_pair_loss": Bounds(start=0.1, low=0.0, high=0.6),
    "direct_base_s": Bounds(start=5e-6, low=1e-7, high=3e-5),
    "peer_s": Bounds(start=1e-7, low=0.0, high=2e-6),
    "direct_pair_loss": Bounds(start=0.2, low=0.0, high=0.6),
    "direct_chunk_s": Bounds(start=5e-7, low=0.0, high=1e-4),
    "setup_s": Bounds(start=7e-6, low=0.0, high=1e-4),
    "setup_bytes": Bounds(start=4e4, low=1e3, high=1e7),
    "switch_efficiency": Bounds(start=0.6, low=0.3, high=1.0),
    "switch_s": Bounds(start=2e-5, low=1e-6, high=1e-4),
}

NORMAL_BOUNDS = {
    "infiniband_efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "nvlink_efficiency": Bounds(start=0.7, low=0.3, high=1.0),
    "sm_bytes_per_s": Bounds(start=1.6e10, low=1e9, high=1e11),
    "dispatch_node_copies": Bounds(start=1.2, low=0.0, high=6.0),
    "combine_node_copies": Bounds(start=2.0, low=0.0, high=6.0),
    "dispatch_s": Bounds(start=3e-5, low=1e-6, high=2e-4),
    "combine_s": Bounds(start=5e-5, low=1e-6, high=2e-4),
    "hop_s": Bounds(start=1e-5, low=0.0, high=1e-4),
    "chunk_s": Bounds(start=1e-6, low=0.0, high=1e-4),
}

LOW_LATENCY_BOUNDS = {
    "infiniband_efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "dispatch_nvlink_efficiency": Bounds(start=0.55, low=0.1, high=1.0),
    "combine_nvlink_efficiency": Bounds(start=0.5, low=0.1, high=1.0),
    "dispatch_s": Bounds(start=1.5e-5, low=1e-6, high=2e-4),
    "combine_s": Bounds(start=1.2e-5, low=1e-6, high=2e-4),
    "node_s": Bounds(start=1e-5, low=0.0, high=1e-4),
    "hop_s": Bounds(start=3e-6, low=0.0, high=1e-4),
}

#: GPUs of one node in every measured system; nodes that a token of DeepSeek-V3 may spread over, also in measured rows.
PER_NODE, MAX_NODES = operators.PER_NODE, operators.MAX_NODES


def node_cluster(device: Device, nvlink: Num, infiniband: Num = 50e9, latency_s: Num = 3.7e-6) -> Cluster:
    """Nodes of 8 over a network card per GPU; bandwidths in bytes/s, one direction, may be arrays of one per row.

    InfiniBand: 3.7 us across leaves and 40 of 50 GB/s effective, arXiv:2505.09343 table 5 and section 4.3.
    """
    inside = Link(bandwidth_bytes_per_s=nvlink, latency_s=1e-6)
    outside = Link(bandwidth_bytes_per_s=infiniband, latency_s=latency_s, efficiency=0.8)
    tiers = {"nvlink": Tier(n_devices=PER_NODE, link=inside), "infiniband": Tier(n_devices=256.0, link=outside)}
    return Cluster(name=device.name, device=device, n_devices=2048.0, tiers=tiers)


def collective_op(rows: Sequence[Row]) -> Op:
    """One array operator for rows of one collective; ``message_elements`` counts elements of ``format`` (int8: one
    byte). InputError for rows of several collectives, or of formats that switches can add and that they cannot."""
    kinds = {_kind(row) for row in rows}
    if len(kinds) != 1:
        found = ", ".join(" ".join(kind) for kind in sorted(kinds)) or "no rows"
        raise InputError(f"rows of one collective are needed, got {found}")
    size = np.asarray([operators.message_bytes(str(row["format"])) for row in rows])
    op, format = kinds.pop()
    return operators.collective(op, columns(rows, op), size, format)


def _kind(row: Row) -> tuple[str, str]:
    """A collective, and a format that stands for all that NVSwitches add, or that they do not."""
    return str(row["op"]), "bf16" if row["format"] in SWITCHED else "int8"


def predict_collective(rows: Sequence[Row], device: Device, nvlink_bytes_per_s: float) -> Array:
    """Seconds per row of one node, shape (n_rows,)."""
    cluster, seconds = node_cluster(device, nvlink_bytes_per_s), np.zeros(len(rows))
    for kind in sorted({_kind(row) for row in rows}):
        mask = np.asarray([_kind(row) == kind for row in rows])
        op = collective_op([row for row in rows if _kind(row) == kind])
        seconds[mask] = np.asarray(estimate(op, cluster).seconds)
    return seconds


def fit_collective(
    rows: Sequence[Row], device: Device, nvlink_bytes_per_s: float, source: str = "",
    test_n_gpus: Sequence[float] = (),
) -> Fitted:  # fmt: skip
    """The block ``collective`` from NVLink rows. Whole message sizes (bytes) are held out, or with ``test_n_gpus`` all
    rows of groups of so many ranks."""
    measured_s, test = column(rows, "us") * 1e-6, collective_test(rows, test_n_gpus)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        mine = [row for row, keep in zip(rows, chosen, strict=True) if keep]
        return predict_collective(mine, with_fit(device, "collective", fit), nvlink_bytes_per_s)

    return solve("collective", COLLECTIVE_BOUNDS, predict, measured_s, test, source)


def collective_test(rows: Sequence[Row], test_n_gpus: Sequence[float] = ()) -> NDArray[np.bool_]:
    """Which rows are held out, shape (n_rows,): whole message sizes in bytes, or all groups of so many ranks."""
    if len(test_n_gpus):
        return np.isin(column(rows, "n_gpus"), np.asarray(test_n_gpus))
    size = column(rows, "message_elements") * [operators.message_bytes(str(r["format"])) for r in rows]
    return held_out(list(size), 0.25)


def errors_by_collective(
    found: Fitted, rows: Sequence[Row], device: Device, nvlink_bytes_per_s: float, test: NDArray[np.bool_]
) -> dict[str, Errors]:
    """Errors of the rows that ``test`` marks, per collective: how one block serves each of them."""
    device = with_fit(device, "collective", found.fit)
    mine = [row for row, keep in zip(rows, test, strict=True) if keep]
    predicted, measured = predict_collective(mine, device, nvlink_bytes_per_s), column(mine, "us") * 1e-6
    kinds = np.asarray([str(row["op"]) for row in mine])
    return {op: errors(predicted[kinds == op], measured[kinds == op]) for op in sorted(set(kinds))}


def exchange_ops(rows: Sequence[Row]) -> dict[str, tuple[NDArray[np.bool_], Op]]:
    """Per variant, the mask of its rows and one array operator for them: FP8 dispatch, BF16 combine."""
    found: dict[str, tuple[NDArray[np.bool_], Op]] = {}
    modes = np.asarray([str(row["mode"]) for row in rows])
    for variant in ("dispatch", "combine"):
        mask = np.asarray([row["op"] == f"ep_{variant}" for row in rows])
        mine = [row for row, keep in zip(rows, mask, strict=True) if keep]
        if mine:
            c = columns(mine, f"ep_{variant}")
            found[variant] = (mask, operators.exchange(f"ep_{variant}", c, modes[mask]))
    return found


def predict_exchange(rows: Sequence[Row], device: Device) -> Array:
    """Seconds per row, shape (n_rows,). A row's ``nvlink_bytes_per_s`` is its node's NVLink rate, one direction."""
    nvlink = column(rows, "nvlink_bytes_per_s")
    seconds = np.zeros(len(rows))
    for mask, op in exchange_ops(rows).values():
        seconds[mask] = np.asarray(estimate(op, node_cluster(device, nvlink[mask])).seconds)
    return seconds


def published_row(
    variant: str, mode: str, n_gpus: float, n_tokens: float, nvlink_bytes_per_s: float, us: float = 0.0,
    gigabytes_per_s: float = 0.0,
) -> dict[str, str | float]:  # fmt: skip
    """A published DeepEP figure (hidden 7168, top 8 of 256, at most 4 nodes) as a row.

    A normal figure is a logical rate: bytes to every distinct node (within one node: GPU), the own one included, over
    the time of the transfer. It becomes ``us`` here.
    """
    row: dict[str, str | float] = {
        "op": f"ep_{variant}", "mode": mode, "n_nodes": np.ceil(n_gpus / PER_NODE), "n_gpus": n_gpus,
        "n_tokens": n_tokens, "hidden": 7168.0, "top_k": 8.0, "n_experts": 256.0, "n_sms": 20.0,
        "nvlink_bytes_per_s": nvlink_bytes_per_s, "us": us,
    }  # fmt: skip
    if gigabytes_per_s:
        routing: dict[str, Num] = {"max_nodes": MAX_NODES, "top_k": 8.0, "n_experts": 256.0}
        nodes, gpus = destinations({**routing, "n_gpus_per_node": PER_NODE, "n_gpus": n_gpus})
        copies = float(gpus if n_gpus <= PER_NODE else nodes)
        token_bytes = 7168.0 * BYTES["fp8_block" if variant == "dispatch" else "bf16"]
        row["us"] = n_tokens * token_bytes * copies / gigabytes_per_s * 1e-3
    return row


def fit_exchange(
    rows: Sequence[Row], device: Device, test_nodes: Sequence[float], left_out: Sequence[float] = (), source: str = ""
) -> Fitted:
    """``expert_exchange`` (rows of mode normal) or ``expert_exchange_low_latency``; rows of ``test_nodes`` nodes are
    held out, those of ``left_out`` are neither fitted nor judged. Each row has ``nvlink_bytes_per_s``.

    All normal rows, the held-out ones too, give the wait before the transfer (``notify_us``), which is not judged.
    """
    modes = {str(row["mode"]) for row in rows}
    if len(modes) != 1:
        raise InputError(f"rows of one mode are needed, got {', '.join(sorted(modes)) or 'no rows'}")
    normal = modes == {"normal"}
    fixed = notify(rows) if normal else {}
    rows = [row for row in rows if float(row["n_nodes"]) not in left_out]
    name = "expert_exchange" if normal else "expert_exchange_low_latency"
    measured_s = column(rows, "us") * 1e-6
    test = np.isin(column(rows, "n_nodes"), np.asarray(test_nodes))

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        mine = [row for row, keep in zip(rows, chosen, strict=True) if keep]
        return predict_exchange(mine, with_fit(device, name, fit))

    return solve(name, NORMAL_BOUNDS if normal else LOW_LATENCY_BOUNDS, predict, measured_s, test, source, fixed)


def notify(rows: Sequence[Row]) -> Mapping[str, float]:
    """The wait before a normal transfer: at two nodes, and more for each doubling; medians over at most 64 tokens."""
    waits = {
        nodes: float(np.median([float(r["notify_us"]) for r in rows if _waits(r) and float(r["n_nodes"]) == nodes]))
        for nodes in sorted({float(r["n_nodes"]) for r in rows if _waits(r)})
    }
    doublings = np.log2(np.asarray(list(waits))) - 1.0
    seconds = np.asarray(list(waits.values())) * 1e-6
    if len(seconds) < 2:
        return {"notify_s": float(seconds.mean()) if len(seconds) else 0.0, "notify_hop_s": 0.0}
    slope, start = np.polyfit(doublings, seconds, 1)
    return {"notify_s": float(start), "notify_hop_s": float(slope)}


def _waits(row: Row) -> bool:
    return float(row.get("notify_us", 0.0) or 0.0) > 0 and float(row["n_tokens"]) <= 64


def check_exchange(rows: Sequence[Row], device: Device) -> Errors:
    """Errors on rows that took no part in a fit, e.g. published figures of another GPU."""
    return errors(predict_exchange(rows, device), column(rows, "us") * 1e-6)
