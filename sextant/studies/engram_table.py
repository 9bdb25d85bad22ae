"""Engram blocks beside their predictions, as text and JSON: a line per case and way, or per kernel in the passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sextant.simulator.units import show
from sextant.studies import engram_blocks, tables
from sextant.studies.engram_blocks import Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Every measured case and way beside its prediction."""

    rows: Sequence[Judged]

    def text(self) -> str:
        """One line per case and way, then how many of each way are within 20 us or 10%."""
        table = tables.grid(
            "case", "way", ">pass", ">error", ">exposed us", ">predicted us", ">off us", ">error", "near"
        )
        for row in self.rows:
            error = f"{100 * row.error:+.0f}%" if abs(row.error) < 10 else ""
            whole = f"{100 * (row.pass_predicted_s / row.pass_measured_s - 1):+.1f}%"
            told = f"{1e6 * row.measured_s:.1f} +- {1e6 * row.spread_s:.1f}"
            off = f"{1e6 * row.predicted_s:.1f}", f"{1e6 * row.off_s:+.1f}", error
            cells = (
                row.case,
                row.way,
                show(row.pass_measured_s, "s", 4),
                whole,
                told,
                *off,
                "yes" if row.near else "no",
            )
            tables.add(table, cells)
        said = [f"{way}: {near} of {n} within 20 us or 10%" for way, (near, n) in self.near().items()]
        return "\n".join([tables.rendered(table), "", *tables.wrapped("; ".join(said))])

    def near(self) -> dict[str, tuple[int, int]]:
        """Of every way: cases within 20 us or 10%, and cases."""
        ways = dict.fromkeys(row.way for row in self.rows)
        return {
            way: (sum(row.near for row in self.rows if row.way == way), sum(row.way == way for row in self.rows))
            for way in ways
        }

    def as_json(self) -> dict[str, Any]:
        """The same as records, in seconds."""
        near = {way: {"near": near, "cases": n} for way, (near, n) in self.near().items()}
        return {"rows": [{**asdict(row), "off_s": row.off_s, "near": row.near} for row in self.rows], "ways": near}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """mHC's and Engram's kernels inside passes, beside their predictions."""

    rows: Sequence[Mapping[str, Any]]

    def text(self) -> str:
        """One line per case and kernel, then each kernel's errors."""
        table = tables.grid("case", "kernel", ">runs", ">measured us", ">predicted us", ">error")
        for row in self.rows:
            us = (f"{1e6 * row[key]:,.2f}" for key in ("measured_s", "predicted_s"))
            tables.add(table, (row["case"], row["kernel"], f"{row['runs']:.0f}", *us, f"{100 * row['error']:+.1f}%"))
        said = [
            f"{name}: mean {100 * mean:.1f}%, largest {100 * most:.1f}%" for name, (mean, most) in self.sums().items()
        ]
        return "\n".join([tables.rendered(table), "", *tables.wrapped("; ".join(said))])

    def sums(self) -> dict[str, tuple[float, float]]:
        """Mean and largest size of the errors of each kernel."""
        names = dict.fromkeys(row["kernel"] for row in self.rows)
        sizes = {name: [abs(row["error"]) for row in self.rows if row["kernel"] == name] for name in names}
        return {name: (float(np.mean(each)), max(each)) for name, each in sizes.items()}

    def as_json(self) -> dict[str, Any]:
        """The same as records, in seconds."""
        return {
            "kernels": list(self.rows),
            "errors": {k: {"mean": m, "largest": x} for k, (m, x) in self.sums().items()},
        }


def judged(device: str = "h200", prefix: str = "") -> Blocks:
    """The committed measurements of ``device`` beside predictions."""
    return Blocks(rows=engram_blocks.judged(device, prefix))


def judged_kernels(device: str = "h200", prefix: str = "") -> Kernels:
    """The kernels of the committed profiles beside predictions."""
    return Kernels(rows=engram_blocks.kernel_errors(device, prefix))
