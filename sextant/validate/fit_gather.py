"""Fit the gather of table rows: ``gather_hbm`` and ``gather_host`` from rows with tier, rows, dim, lookups, us.

Whole row widths are held out, one after the other; errors and interval are those of all rows so predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.fit_mhc import fit_unseen
from sextant.validate.prediction import operators
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, columns, with_fit

#: Fewer lookups than this into host memory are left out: the index sets that the timer rotates then touch so few pages
#: together that their translations stay cached from one round to the next, which a server's fresh rows do not.
FRESH_LOOKUPS = 4096.0

_COMMON = {
    "efficiency": Bounds(start=0.8, low=0.3, high=1.0),
    "overlap_power": Bounds(start=4.0, low=1.0, high=20.0),
    "floor_s": Bounds(start=1.5e-6, low=1e-7, high=2e-5),
}
#: HBM shows how fast blocks are issued, and no cost of translation up to tables of 64 GiB; host memory the reverse.
BOUNDS: Mapping[str, Mapping[str, Bounds]] = {
    "hbm": {**_COMMON, "rows_per_s": Bounds(start=1.6e9, low=1e8, high=1e10)},
    "host": {
        **_COMMON,
        "miss_s": Bounds(start=2e-8, low=1e-9, high=2e-7),
        "reach_bytes": Bounds(start=6e8, low=1e8, high=4e9),
        "growth": Bounds(start=0.12, low=0.0, high=0.5),
    },
}


def fit_gather(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The blocks ``gather_<tier>`` of the tiers in ``rows``; host memory takes the pace of issue from HBM's rows. Both
    tiers are needed: InputError where one is absent."""
    rows = [row for row in rows if row.get("op") == "gather" and row.get("us")]
    found: list[Fitted] = []
    fixed = {"miss_s": 0.0, "reach_bytes": 1e9, "growth": 0.0}
    for tier in BOUNDS:
        part = [
            row for row in rows if row["tier"] == tier and (tier == "hbm" or float(row["lookups"]) >= FRESH_LOOKUPS)
        ]
        if not part:
            raise InputError(f"no rows of gather from tier {tier!r}; check columns 'op', 'tier' and 'lookups'")
        found.append(_fit(tier, part, device, source, fixed))
        fixed = {"rows_per_s": float(found[0].fit.coefficients["rows_per_s"])}
    return found


def gather_op(rows: Sequence[Row], tier: str) -> Op:
    """All rows of one tier as one operator."""
    return operators.gather(columns(rows, "gather"), tier)


def _fit(tier: str, rows: Sequence[Row], device: Device, source: str, fixed: Mapping[str, float]) -> Fitted:
    name, measured_s = f"gather_{tier}", column(rows, "us") * 1e-6

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = [row for row, taken in zip(rows, chosen, strict=True) if taken]
        return np.asarray(estimate(gather_op(part, tier), alone(with_fit(device, name, fit))).seconds)

    fitted = fit_unseen(name, BOUNDS[tier], fixed, predict, measured_s, column(rows, "dim"), "row widths")
    return replace(fitted, fit=replace(fitted.fit, source=f"{source}; {fitted.fit.source}"))
