"""Fit collectives: what share of a link's line rate they reach, and their latencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.types import Cluster, Device, KernelFit, Link, Num, Op, Tier
from sextant.validate.prediction import operators
from sextant.validate.solver import (
    Array,
    Bounds,
    Fitted,
    Row,
    column,
    columns,
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
    "setup_s": Bounds(start=7e-6, low=0.0, high=1e-4),
    "setup_bytes": Bounds(start=1e5, low=1e3, high=1e7),
}

#: What tells groups of different sizes apart.
_BY_GROUP = ("pair_loss", "step_s")

#: GPUs of one node in every measured system.
PER_NODE = operators.PER_NODE


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
    byte)."""
    variants = {str(row["op"]) for row in rows}
    if len(variants) != 1:
        raise InputError(f"rows of one collective are needed, got {', '.join(sorted(variants)) or 'no rows'}")
    size = np.asarray([operators.message_bytes(str(row["format"])) for row in rows])
    op = variants.pop()
    return operators.collective(op, columns(rows, op), size)


def even_all_to_all(n_gpus: float, busiest_bytes: float) -> dict[str, str | float]:
    """The all_to_all of equal parts, in bf16, that moves as many bytes per rank as the busiest rank of an uneven one
    sends to others or gets from them."""
    elements = busiest_bytes / operators.message_bytes("bf16") * n_gpus / (n_gpus - 1.0)
    return {"op": "all_to_all", "format": "bf16", "n_gpus": n_gpus, "message_elements": elements}


def plain_case(row: Row) -> dict[str, str | float]:
    """A row that ``node.collectives`` measured as a case of the law, which knows neither variants nor bystanders: what
    an uneven all_to_all moves at its busiest, and send_recv as one pair, both ways as fast as one."""
    case: dict[str, str | float] = {name: row[name] for name in ("op", "format", "n_gpus", "message_elements")}
    if row["op"] == "all_to_all" and row.get("variant"):
        size = operators.message_bytes(str(row["format"]))
        return even_all_to_all(float(row["n_gpus"]), size * float(row["busiest_elements"]))
    return {**case, "n_gpus": 2.0} if row["op"] == "send_recv" else case


def fit_collective(rows: Sequence[Row], device: Device, nvlink_bytes_per_s: float, source: str = "") -> Fitted:
    """The block ``collective`` from NVLink rows; whole message sizes (bytes) are held out.

    Rows without a time and variants (uneven parts, both ways) take no part: those are judges. Rows of one group size
    cannot tell what grows with it: ``pair_loss`` and ``step_s`` then stay those of ``device``'s own block, or where
    the search would start. BF16 all_reduce rows on more than two GPUs are left out, in fitting and in judging: there
    NCCL may add inside the NVLink switches, which is not modelled (the int8 rows cannot, and stay in).
    """
    rows = [{**r, **plain_case(r)} for r in rows if r.get("us", "") != "" and not r.get("variant")]
    rows = [r for r in rows if not (r["op"] == "all_reduce" and r["format"] != "int8" and float(r["n_gpus"]) > 2)]
    rows = sorted(rows, key=lambda r: str(r["op"]))
    measured_s = column(rows, "us") * 1e-6
    variants = sorted({str(r["op"]) for r in rows})
    ops = [collective_op([r for r in rows if r["op"] == v]) for v in variants]
    test = held_out([float(b) for op in ops for b in np.asarray(op.shape["message_bytes"])], 0.25)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        cluster = node_cluster(with_fit(device, "collective", fit), nvlink_bytes_per_s)
        return np.concatenate([np.asarray(estimate(op, cluster).seconds) for op in ops])[chosen]

    fixed: dict[str, float] = {}
    if len({float(r["n_gpus"]) for r in rows}) == 1:
        known = device.kernels.get("collective")
        fixed = {
            name: float(known.coefficients[name]) if known else COLLECTIVE_BOUNDS[name].start for name in _BY_GROUP
        }
    bounds = {name: b for name, b in COLLECTIVE_BOUNDS.items() if name not in fixed}
    return solve("collective", bounds, predict, measured_s, test, source, fixed)
