"""Memory of every rank of a training plan, for files, programs and a figure: part by part, and over the step."""

from __future__ import annotations

import csv
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sextant.simulator.capacity import CONTEXT_BYTES, capacity

if TYPE_CHECKING:
    from sextant.studies.report import Answer

#: Bytes in use between two times: ``(start_s, end_s, bytes)``.
Row = tuple[float, float, float]


def ranks(answer: Answer) -> list[dict[str, Any]]:
    """One record per rank of a training plan of one point, else none: its bytes by tier and part, their sum in HBM,
    what is left, and with the event engine ``peak_at_s``, when its instructions first hold most."""
    from sextant.studies.report import planned, simulated
    from sextant.studies.training import memory_by_rank

    scenario = answer.question.scenario
    if scenario.load.phase != "training" or answer.n_points != 1 or not planned(answer):
        return []
    over_time = [] if simulated(answer) else timeline(answer)
    found: list[dict[str, Any]] = []
    for rank, memory in enumerate(memory_by_rank(scenario)):
        use = capacity(scenario.cluster.device, "hbm", memory.hbm, CONTEXT_BYTES)
        record: dict[str, Any] = {
            "rank": rank, "hbm": {name: _scalar(size) for name, size in use.parts.items()},
            "host": {name: _scalar(size) for name, size in memory.host.items()},
            "hbm_bytes": _scalar(use.used_bytes), "hbm_free_bytes": _scalar(use.free_bytes),
            "fits": bool(np.all(use.fits)),
        }  # fmt: skip
        if over_time:
            record["peak_at_s"] = peak(over_time[rank])[0]
        found.append(record)
    return found


def timeline(answer: Answer) -> list[list[Row]]:
    """HBM in use on every rank over a simulated step of one point; InputError elsewhere tells what to change."""
    from sextant.studies.training import memory_over_time

    return memory_over_time(answer.question.scenario)


def peak(rows: list[Row]) -> tuple[float, float]:
    """When a rank first holds most, and how much; what rounding adds is no more."""
    most = max(size for _, _, size in rows)
    return next((start, size) for start, _, size in rows if size >= most * (1.0 - 1e-12))


def write_parts(records: list[dict[str, Any]], file: IO[str]) -> None:
    """``rank, tier, part, bytes`` of every rank, as CSV."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["rank", "tier", "part", "bytes"])
    for record in records:
        for tier in ("hbm", "host"):
            for part, size in record[tier].items():
                writer.writerow([record["rank"], tier, part, repr(size)])


def write_timeline(over_time: list[list[Row]], file: IO[str]) -> None:
    """``rank, start_s, end_s, hbm_bytes`` of every instruction of every rank, as CSV."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["rank", "start_s", "end_s", "hbm_bytes"])
    for rank, rows in enumerate(over_time):
        writer.writerows([rank, repr(start), repr(end), repr(size)] for start, end, size in rows)


def figure(answer: Answer):
    """HBM in use over the step: the fullest and the emptiest rank as lines, all of them as a band, peaks marked."""
    import matplotlib.pyplot as plt

    over_time = timeline(answer)
    tops = [peak(rows)[1] for rows in over_time]
    end_s = max(rows[-1][1] for rows in over_time)
    grid = np.linspace(0.0, end_s, 1200)
    lines = np.array([_held(rows, grid) for rows in over_time]) / 1e9
    plot, axes = plt.subplots(figsize=(7.2, 3.2))
    axes.fill_between(grid, lines.min(axis=0), lines.max(axis=0), color="#81a4cd", alpha=0.35, lw=0, label="all ranks")
    chosen = dict.fromkeys((int(np.argmax(tops)), int(np.argmin(tops))))
    for rank, colour in zip(chosen, ("#b5493c", "#2f6690"), strict=False):
        axes.plot(grid, lines[rank], color=colour, lw=0.9, label=f"rank {rank}")
        at, most = peak(over_time[rank])
        axes.plot([at], [most / 1e9], "o", color=colour, ms=4)
        axes.annotate(
            f"{most / 1e9:.1f} at {at:.2f} s", (at, most / 1e9), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    columns = answer.result.columns
    limit = float(columns["hbm_bytes"][0] + columns["hbm_free_bytes"][0]) / 1e9
    axes.axhline(limit, color="black", lw=1.2, label=f"capacity {limit:.1f}")
    axes.set_xlim(0.0, end_s)
    axes.set_ylim(0.0, 1.12 * max(limit, lines.max()))
    axes.set_xlabel("seconds of the step, the optimizer aside")
    axes.set_ylabel("GB of HBM")
    axes.legend(ncol=4, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return plot


def _held(rows: list[Row], at: np.ndarray) -> np.ndarray:
    """Bytes at the times ``at``; a rank that waits holds what its last instruction held."""
    starts = np.array([start for start, _, _ in rows])
    sizes = np.array([size for _, _, size in rows])
    return sizes[np.maximum(np.searchsorted(starts, at, side="right") - 1, 0)]


def _scalar(value: Any) -> float:
    return float(np.ravel(value)[0])
