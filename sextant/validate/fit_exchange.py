"""Fit expert-parallel exchanges (``ep_dispatch``, ``ep_combine``) to rows of several node counts.

The share of NVLink's line rate is not fitted here: rows of one kind of link cannot tell it from what the copying SMs
reach. It is that of long messages in a ring of a node's GPUs, by the block ``collective`` of the same device. So no row
of another GPU is needed, and published figures of one are predictions.

Eight nodes of the measured system do not carry what fewer do: their normal dispatch gets 18 GB/s through InfiniBand
from two dozen tokens on, however many SMs copy, and a combine of 8,192 and more tokens as little, where smaller
combines, four nodes and DeepEP's own 64 GPUs get 45. Why is not known. These rows are not fitted (``collapses``), and
errors on them are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, fit_of
from sextant.simulator.kernels.collective import steady_share
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.exchange_rates import published_row
from sextant.validate.fit_collective import node_cluster
from sextant.validate.prediction import operators
from sextant.validate.solver import Array, Bounds, Errors, Fitted, Row, column, columns, errors, solve, with_fit

NORMAL_BOUNDS = {
    "infiniband_efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "sm_bytes_per_s": Bounds(start=1.6e10, low=1e9, high=1e11),
    "node_copies": Bounds(start=1.0, low=0.0, high=6.0),
    "combine_copies": Bounds(start=1.2, low=0.5, high=3.0),
    "dispatch_s": Bounds(start=3e-5, low=1e-6, high=2e-4),
    "combine_s": Bounds(start=5e-5, low=1e-6, high=2e-4),
    "hop_s": Bounds(start=1e-5, low=0.0, high=1e-4),
    "chunk_s": Bounds(start=1e-6, low=0.0, high=1e-4),
}

LOW_LATENCY_BOUNDS = {
    "infiniband_efficiency": Bounds(start=0.9, low=0.3, high=1.0),
    "dispatch_copy_bytes_per_s": Bounds(start=5e11, low=1e11, high=1e13),
    "combine_copy_bytes_per_s": Bounds(start=5e11, low=1e11, high=1e13),
    "dispatch_s": Bounds(start=1.5e-5, low=1e-6, high=2e-4),
    "combine_s": Bounds(start=1.2e-5, low=1e-6, high=2e-4),
    "node_s": Bounds(start=1e-5, low=0.0, high=1e-4),
    "hop_s": Bounds(start=3e-6, low=0.0, high=1e-4),
}

#: What differs in DeepEP's first version.
_FIRST_BOUNDS = {"overlap": Bounds(start=3.0, low=1.0, high=20.0)}

#: GPUs of a measured node, all on one NVLink switch.
NVLINK_GPUS = 8

#: Most tokens per GPU of a normal exchange over eight measured nodes that InfiniBand carries as over fewer.
_CARRIED = {"ep_dispatch": 16.0, "ep_combine": 4096.0}


def collapses(row: Row) -> bool:
    """Whether a measured row is one of a normal exchange that eight nodes did not carry."""
    many = float(row["n_tokens"]) > _CARRIED[str(row["op"])]
    return row["mode"] == "normal" and float(row["n_nodes"]) >= 8 and many


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


def fit_exchange(rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """``expert_exchange`` (rows of mode normal) or ``expert_exchange_low_latency``, fitted to all node counts; each row
    has ``nvlink_bytes_per_s``. InputError for rows of two modes, or of one node count.

    The held-out errors and the interval are those of ``leave_one_out``: each row by the fit to the other node counts.
    """
    rows = [row for row in rows if not collapses(row)]
    judged = leave_one_out(rows, device)
    predicted_s = np.concatenate([seconds for _, seconds in judged.values()])
    held = [row for part, _ in judged.values() for row in part]
    found = _solve(rows, device, np.zeros(len(rows), dtype=bool), source)
    tested = errors(predicted_s, column(held, "us") * 1e-6)
    low, high = min(tested.low, found.training.low), max(tested.high, found.training.high)
    return replace(found, fit=replace(found.fit, low=low, high=high), held_out=tested)


def leave_one_out(rows: Sequence[Row], device: Device) -> dict[float, tuple[list[Row], Array]]:
    """Per node count its rows, and their seconds predicted by a fit to the rows of all other counts.

    Rows for which ``collapses`` holds are fitted by none and predicted like the others.
    """
    counts = column(rows, "n_nodes")
    found: dict[float, tuple[list[Row], Array]] = {}
    for count in np.unique(counts):
        fit = _solve(rows, device, counts == count, "")
        test = [row for row, n in zip(rows, counts, strict=True) if n == count]
        found[float(count)] = (test, predict_exchange(test, with_fit(device, fit.name, fit.fit)))
    return found


def _solve(rows: Sequence[Row], device: Device, test: NDArray[np.bool_], source: str) -> Fitted:
    modes = {str(row["mode"]) for row in rows}
    if len(modes) != 1:
        raise InputError(f"rows of one mode are needed, got {', '.join(sorted(modes)) or 'no rows'}")
    normal = modes == {"normal"}
    name = "expert_exchange" if normal else "expert_exchange_low_latency"
    fixed = {"nvlink_efficiency": float(steady_share(fit_of(device, "collective").coefficients, NVLINK_GPUS))}
    fitted = ~np.asarray([collapses(row) for row in rows])
    if normal:
        fixed |= notify([row for row, chosen in zip(rows, ~test & fitted, strict=True) if chosen])

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        mine = [row for row, keep in zip(rows, chosen, strict=True) if keep]
        return predict_exchange(mine, with_fit(device, name, fit))

    bounds = NORMAL_BOUNDS if normal else LOW_LATENCY_BOUNDS
    return solve(name, bounds, predict, column(rows, "us") * 1e-6, test, source, fixed, left_out=~fitted)


def fit_first(rows: Sequence[Row], device: Device, source: str = "") -> Fitted:
    """``expert_exchange_2025_02``, DeepEP's first version between nodes: ``expert_exchange``, where InfiniBand and the
    copies into NVLink hold each other up.

    ``rows`` are published rates (``bytes_per_s``) with ``nvlink_bytes_per_s``. One coefficient is fitted, and nothing
    is held out: the interval is that of ``expert_exchange`` with what the fit leaves.
    """
    rates = zip(rows, column(rows, "nvlink_bytes_per_s"), column(rows, "bytes_per_s"), strict=True)
    rows = [published_row(row, float(nvlink), bytes_per_s=float(rate)) for row, nvlink, rate in rates]
    name, base = "expert_exchange_2025_02", fit_of(device, "expert_exchange")
    fixed = {key: float(value) for key, value in base.coefficients.items()}
    chosen = np.zeros(len(rows), dtype=bool)
    found = solve(
        name, _FIRST_BOUNDS, lambda fit, _: predict_exchange(rows, with_fit(device, name, fit)),
        column(rows, "us") * 1e-6, chosen, source, fixed, left_out=chosen,
    )  # fmt: skip
    left = found.training
    fit = replace(found.fit, low=base.low * min(left.low, 1.0), high=base.high * max(left.high, 1.0))
    return replace(found, fit=fit)


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
