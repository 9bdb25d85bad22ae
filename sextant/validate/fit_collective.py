"""Fit collectives: what share of a link's line rate they reach, and their latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.kernels.collective import SEND, SENT, SWITCHED
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

SEND_BOUNDS = {
    "efficiency": Bounds(start=0.8, low=0.3, high=1.0), "chunk_s": Bounds(start=1e-6, low=0.0, high=1e-4),
}  # fmt: skip

#: What tells groups of different sizes apart.
_BY_GROUP = (
    "pair_loss", "step_s", "reduce_pair_loss", "direct_pair_loss", "peer_s", "switch_efficiency", "switch_s",
)  # fmt: skip

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
    byte). InputError for rows of several collectives, or of formats that switches can add and that they cannot."""
    kinds = {_kind(row) for row in rows}
    if len(kinds) != 1:
        found = ", ".join(" ".join(kind) for kind in sorted(kinds)) or "no rows"
        raise InputError(f"rows of one collective are needed, got {found}")
    size = np.asarray([operators.message_bytes(str(row["format"])) for row in rows])
    op, format = kinds.pop()
    return operators.collective(op, columns(rows, op), size, format)


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


def plain_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """Timed rows of the plain collectives, as cases of the law, in order; ``medians`` where measured several times."""
    return medians([{**row, **plain_case(row)} for row in rows if row.get("us", "") != "" and not row.get("variant")])


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per case of timed rows, with the median of its times: small collectives differ by a third from pass to
    pass."""
    times: dict[tuple[str, ...], list[float]] = {}
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in rows:
        names = ("op", "variant", "format", "n_gpus", "message_elements", "busiest_elements", "library")
        case = tuple(str(row.get(name, "")) for name in names)
        times.setdefault(case, []).append(float(row["us"]))
        first.setdefault(case, row)
    return [{**first[case], **({"us": f"{np.median(us):.6g}"} if len(us) > 1 else {})} for case, us in times.items()]


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
    rows of groups of so many ranks.

    Rows without a time, variants (uneven parts, both ways) and what is only sent take no part: variants are judges, the
    others are ``fit_send``'s. Rows of one group size cannot tell what grows with it: those coefficients then stay
    as in ``device``'s own block, or where the search would start.
    """
    rows = [row for row in plain_rows(rows) if row["op"] not in SENT]
    measured_s, test = column(rows, "us") * 1e-6, collective_test(rows, test_n_gpus)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        mine = [row for row, keep in zip(rows, chosen, strict=True) if keep]
        return predict_collective(mine, with_fit(device, "collective", fit), nvlink_bytes_per_s)

    fixed: dict[str, float] = {}
    if len({float(r["n_gpus"]) for r in rows}) == 1:
        known = device.kernels.get("collective")
        own = known.coefficients if known else {}
        fixed = {name: float(own.get(name, COLLECTIVE_BOUNDS[name].start)) for name in _BY_GROUP}
    bounds = {name: b for name, b in COLLECTIVE_BOUNDS.items() if name not in fixed}
    return solve("collective", bounds, predict, measured_s, test, source, fixed)


def fit_send(rows: Sequence[Row], device: Device, nvlink_bytes_per_s: float, source: str = "") -> Fitted:
    """The block ``collective_send`` from messages between two GPUs; latencies are those of ``device``'s block
    ``collective``. Whole sizes are held out. InputError where there are no such rows."""
    rows = sent_rows(rows)
    if not rows:
        raise InputError(f"{SEND}: no rows of {' or '.join(SENT)} between two GPUs")
    measured_s, test = column(rows, "us") * 1e-6, collective_test(rows)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        mine = [row for row, keep in zip(rows, chosen, strict=True) if keep]
        return predict_collective(mine, with_fit(device, SEND, fit), nvlink_bytes_per_s)

    return solve(SEND, SEND_BOUNDS, predict, measured_s, test, source)


def sent_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """Timed rows of messages that are only sent."""
    return [row for row in plain_rows(rows) if row["op"] in SENT and float(row["n_gpus"]) == 2]


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
