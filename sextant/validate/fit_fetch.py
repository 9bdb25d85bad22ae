"""Fit what fetches of host rows cost in a pass (``simulator.kernels.host_rows``) from rows of
``sextant.validate.fetch``, kernels alone, hot and cold, and of ``sextant.validate.resident``, kernels beside a fetch
that was there before them. No pass is seen.

Held out are whole pairs of lookups and programs. What kernels lose beside a fetch are medians over few calls: the
errors told are those of the fetches beside the same calls, with the one factor that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError
from sextant.simulator.kernels import estimate, operator
from sextant.simulator.kernels.gather import tile_rows
from sextant.simulator.kernels.held_sms import longer
from sextant.simulator.kernels.host_rows import N_PROGRAMS, OPEN, SHARES, beside_s, cold_s, few_s
from sextant.simulator.types import Device, KernelFit, Op
from sextant.validate.solver import Array, Bounds, Fitted, Row, alone, column, errors, held_out, solve, with_fit

COLD = {
    "line_s": Bounds(start=1e-8, low=1e-9, high=1e-7),
    "span_bytes": Bounds(start=65536.0, low=4096.0, high=2.0**21),
    "event_s": Bounds(start=3e-6, low=0.0, high=6e-6),
}
FEW = {
    "round_s": Bounds(start=1.5e-6, low=5e-7, high=4e-6),
    "byte_s": Bounds(start=8e-11, low=0.0, high=1e-9),
    "walk_s": Bounds(start=4e-7, low=0.0, high=2e-6),
    "cold_s": Bounds(start=8e-8, low=0.0, high=1e-6),
    "overlap_power": Bounds(start=6.0, low=1.0, high=20.0),
    "floor_s": Bounds(start=1.5e-6, low=1e-7, high=1e-5),
}
#: Cold rows are of this width at most: wider ones are bound by the link.
_NARROW_BYTES = 320.0
#: Calls of each class, by the beginning of their names; the others are kernels over rows.
_CLASSES = (
    ("gemm", "product"), ("grouped", "grouped"), ("attention", "attention"), ("latent", "mla"), ("mhc_pre", "mhc_pre"),
)  # fmt: skip
#: Products that take less are bound by launches and not by tiles: no part of the fit.
_LAUNCHED_US = 12.0


def fit_fetch(rows: Sequence[Row], device: Device, source: str = "") -> list[Fitted]:
    """The three blocks. InputError for rows without fetches alone, cold ones, and fetches beside calls."""
    single = [row for row in rows if not row.get("call")]
    both = [row for row in rows if row.get("call") and row.get("start") == "before" and float(row["programs"]) > 1]
    if not single or not both or "fetch_cold_us" not in single[0]:
        raise InputError(
            "rows of both python -m sextant.validate.fetch and python -m sextant.validate.resident are needed"
        )
    cold = _cold(single, device, source)
    device = with_fit(device, cold.name, cold.fit)
    few = _few([row for row in single if float(row["programs"]) > 0], device, source)
    device = with_fit(device, few.name, few.fit)
    few, seen = _beside(few, both, rows, device)
    return [cold, few, _slowed(both, source, seen, device)]


def op_of(rows: Sequence[Row]) -> Op:
    """All rows as one operator."""
    shape = {name: column(rows, name) for name in ("lookups", "row_bytes", "table_bytes")}
    return operator("gather", "gather", "bf16", shape, variant="host")


def rows_of(rows: Sequence[Row], device: Device) -> Array:
    """Rows in a program's tile: as asked for, else by the kernel's own rule."""
    asked = column(rows, "in_turn")
    return np.where(asked > 0, asked, tile_rows(column(rows, "row_bytes"), column(rows, "lookups"), device.n_sms))


def _test(rows: Sequence[Row]) -> NDArray[np.bool_]:
    return held_out([(row["lookups"], row["programs"]) for row in rows], 0.25)


def _cold(rows: Sequence[Row], device: Device, source: str) -> Fitted:
    """From fetches by all SMs: measured with and without page tables in the cache. ``event_s`` is what timing one
    launch adds, and no part of a fetch."""
    rows = [row for row in rows if float(row["programs"]) == 0 and float(row["row_bytes"]) <= _NARROW_BYTES]
    hot_s, shape = 1e-6 * column(rows, "fetch_alone_us"), op_of(rows).shape

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        part = {key: np.asarray(values)[chosen] for key, values in shape.items()}
        more = cold_s(part, with_fit(device, "gather_host_cold", fit))
        return hot_s[chosen] + fit.coefficients["event_s"] + np.asarray(more)

    return solve("gather_host_cold", COLD, predict, 1e-6 * column(rows, "fetch_cold_us"), _test(rows), source)


def _few(rows: Sequence[Row], device: Device, source: str) -> Fitted:
    """From fetches by few programs, hot and cold."""
    op, tile, programs = op_of(rows), rows_of(rows, device), column(rows, "programs")
    event_s = float(device.kernels["gather_host_cold"].coefficients["event_s"])
    measured_s = 1e-6 * np.concatenate([column(rows, "fetch_alone_us"), column(rows, "fetch_cold_us")])
    measured_s[len(rows) :] -= event_s
    test = np.tile(_test(rows), 2)

    def predict(fit: KernelFit, chosen: NDArray[np.bool_]) -> Array:
        cluster = alone(with_fit(device, "gather_host_few", fit))
        found = [few_s(op, cluster, tile, programs=programs, cold=cold) for cold in ("no", "first")]
        return np.concatenate([np.asarray(each) for each in found])[chosen]

    return solve("gather_host_few", FEW, predict, measured_s, test, source)


def _beside(few: Fitted, both: Sequence[Row], rows: Sequence[Row], device: Device) -> tuple[Fitted, Array]:
    """The block with ``beside`` and ``beside_rows``, medians over the calls of a kind, each once, and measured over
    predicted seconds of each. Of kernels over rows it does not matter which came first: they leave room on every SM."""
    one = replace(few.fit, coefficients={**few.fit.coefficients, "beside": 1.0, "beside_rows": 1.0})
    cluster = alone(with_fit(device, few.name, one))
    streams = [row for row in rows if row.get("call") and _class(row) == "rows_s" and _in_flight(row) >= OPEN]
    cores = [row for row in both if _class(row) != "rows_s"]
    factors, seen = dict[str, float](), []
    for name, part in (("beside", cores), ("beside_rows", streams)):
        part = [row for row in part if row["fetch_beside_us"] and float(row["programs"]) == N_PROGRAMS]
        if not part:
            raise InputError(f"no fetch beside calls ({name}); measure all calls")
        predicted_s = np.asarray(beside_s(op_of(part), cluster, rows_of(part, device)))
        ratios = 1e-6 * column(part, "fetch_beside_us") / predicted_s
        of_calls = [np.median(ratios[[row["call"] == call for row in part]]) for call in {row["call"] for row in part}]
        # Page tables may be found beside a product, of which ``beside_s`` assumes the contrary: no reason to be faster.
        factors[name] = max(float(np.median(of_calls)), 1.0)
        seen.append(ratios / factors[name])
    fit = replace(one, coefficients={**one.coefficients, **factors})
    return replace(few, fit=fit), np.concatenate(seen)


def _slowed(rows: Sequence[Row], source: str, seen: Array, device: Device) -> Fitted:
    """What calls lose: of products by the clusters held, else medians over the calls of a class, beside fetches with
    few and with many rows in flight."""
    found = _held([row for row in rows if _class(row) == "product"], device)
    for end, open_ in (("open", True), ("full", False)):
        part = [row for row in rows if (_in_flight(row) == OPEN) == open_ and _in_flight(row) >= OPEN]
        for name in (*SHARES, "rows_s"):
            of = [row for row in part if _class(row) == name]
            if not of:
                raise InputError(f"no call of class {name!r} beside a fetch ({end}); measure all calls")
            found[f"{name}_{end}"] = median(_lost(row, name) for row in of)
    fit = KernelFit(coefficients=found, low=0.5, high=2.0, provenance="fitted", source=source)
    # Nothing is held out: factors are medians. With one program the law is judged, in the tests.
    all_ = errors(np.ones_like(seen), seen)
    return Fitted(name="beside_fetch", fit=fit, training=all_, held_out=all_)


def _held(rows: Sequence[Row], device: Device) -> dict[str, float]:
    """``held``, of one to as many clusters as there are programs that which errs least over the products, with the
    median ``late`` of each."""
    rows = [row for row in rows if float(row["call_alone_us"]) > _LAUNCHED_US]
    if not rows:
        raise InputError("no product beside a fetch; measure all calls")
    alone_us, beside_us = column(rows, "call_alone_us"), column(rows, "call_beside_us")
    sizes = np.array([[float(size) for size in str(row["call"]).split()[1].split("x")] for row in rows]).T
    op = operator("gemm", "product", "bf16", dict(zip("mnk", sizes, strict=True)))
    time = estimate(op, alone(device))
    on_cores_us = alone_us * np.minimum(time.limits["math"] / time.seconds, 1.0)
    best: tuple[float, dict[str, float]] = (np.inf, {})
    for held in np.arange(1.0, N_PROGRAMS + 1.0):
        more_us = on_cores_us * np.asarray(longer(op, device.n_sms, held))
        some = more_us > 0.0
        if not some.any():
            continue
        late = float(np.median((beside_us - alone_us)[some] / more_us[some]))
        off = float(np.mean(np.abs((alone_us + late * more_us) / beside_us - 1.0)))
        best = min(best, (off, {"held": float(held), "late": late}), key=lambda each: each[0])
    return best[1]


def _in_flight(row: Row) -> float:
    return float(row["programs"]) * float(row["in_turn"])


def _class(row: Row) -> str:
    return next((name for start, name in _CLASSES if str(row["call"]).startswith(start)), "rows_s")


def _lost(row: Row, name: str) -> float:
    before_us, after_us = float(row["call_alone_us"]), float(row["call_beside_us"])
    return 1e-6 * (after_us - before_us) if name == "rows_s" else after_us / before_us - 1.0
