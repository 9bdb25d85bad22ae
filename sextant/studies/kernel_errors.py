"""How wrong the kernel model is: its predictions beside the committed measurements that no fit has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sextant import validate
from sextant.simulator.errors import InputError, nearest
from sextant.studies import tables
from sextant.validate import cases, fit
from sextant.validate.prediction import predict, single_kernel_cluster

#: The measured kernels of each GPU that has some.
_FOLDER = Path(validate.__file__).parent / "data" / "measured"
MEASURED = {"h200": tuple(_FOLDER / f"h200_{name}.csv" for name in ("kernels", "between", "streams"))}

#: The kind that a table sums an operator up under, where it is not its own.
KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("copy", "rmsnorm", "rmsnorm_backward", "layernorm", "swiglu", "swiglu_backward", "gelu", "add", "cast",
         "cast_transpose", "requant_transpose", "rope", "permute", "unpermute", "adam"), "memory-bound"),
    "h2d": "host copy", "d2h": "host copy",
}  # fmt: skip
#: Operators whose formats are told apart.
_BY_FORMAT = ("gemm", "grouped_gemm")
_ORDER = (
    "gemm bf16", "gemm fp8", "gemm fp8_block", "grouped_gemm bf16", "grouped_gemm fp8", "moe", "attention", "mla",
    "memory-bound", "host copy", "gather", "mhc_pre", "mhc_post", "sinkhorn", "engram_gate", "conv2d", "routing",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Measured and predicted kernels of one GPU, one entry per row, shape (n_rows,): seconds, and the kind."""

    kind: NDArray[np.str_]
    op: NDArray[np.str_]
    held_out: NDArray[np.bool_]
    measured_s: NDArray[np.float64]
    predicted_s: NDArray[np.float64]
    low_s: NDArray[np.float64]
    high_s: NDArray[np.float64]

    def only(self, chosen: NDArray[np.bool_]) -> Judged:
        """Those rows."""
        return Judged(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class KindErrors:
    """Errors of one kind, shares of the measured time; ``inside`` is the share of rows in the 90% interval,
    ``n_missing`` counts rows that the model cannot predict."""

    kind: str
    n_rows: int
    n_missing: int
    mape: float
    median: float
    p95: float
    bias: float
    inside: float


def judged(device: str = "h200") -> Judged:
    """Every committed measurement of ``device`` beside its prediction (NaN where there is none); InputError for a GPU
    without any."""
    if device not in MEASURED:
        raise InputError(f"device: no measured kernels of {device!r}; {nearest(device, MEASURED)}")
    # Rows with an error were not measured; two streams of work at once are judged by the study of contention.
    rows = [row for path in MEASURED[device] for row in fit.read_rows(path)]
    rows = [row for row in rows if row["us"] and row["op"] != "contention"]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "us"}
    found = predict(columns, len(rows), single_kernel_cluster(device))
    said = [{name: value for name, value in row.items() if value} for row in rows]
    return Judged(
        kind=np.array([_kind(row) for row in said]), op=np.array([row["op"] for row in said]),
        held_out=np.array([cases.split(row) == "held_out" for row in said]),
        measured_s=1e-6 * np.array([float(row["us"]) for row in rows]),
        predicted_s=1e-6 * found.us, low_s=1e-6 * found.low_us, high_s=1e-6 * found.high_us,
    )  # fmt: skip


def _kind(row: Mapping[str, str]) -> str:
    return f"{row['op']} {row['format']}" if row["op"] in _BY_FORMAT else KINDS.get(row["op"], row["op"])


def errors(found: Judged) -> list[KindErrors]:
    """The errors of each kind of the given rows, products first, and of all together."""
    kinds = [kind for kind in _ORDER if (found.kind == kind).any()]
    kinds += sorted(set(found.kind.tolist()) - set(_ORDER))
    return [*(_errors(kind, found.only(found.kind == kind)) for kind in kinds), _errors("all", found)]


def _errors(kind: str, part: Judged) -> KindErrors:
    known = np.isfinite(part.predicted_s)
    n_missing, part = int((~known).sum()), part.only(known)
    if not known.any():
        return KindErrors(kind=kind, n_rows=0, n_missing=n_missing, mape=0.0, median=0.0, p95=0.0, bias=0.0, inside=0.0)
    relative = part.predicted_s / part.measured_s - 1.0
    size = np.abs(relative)
    inside = (part.low_s <= part.measured_s) & (part.measured_s <= part.high_s)
    return KindErrors(
        kind=kind, n_rows=len(size), n_missing=n_missing, mape=float(size.mean()), median=float(np.median(size)),
        p95=float(np.quantile(size, 0.95)), bias=float(relative.mean()), inside=float(inside.mean()),
    )  # fmt: skip


def table(rows: list[KindErrors]) -> str:
    """One line per kind."""
    found = tables.grid("kernel", ">rows", ">not predicted", ">MAPE", ">median", ">95th pct", ">bias", ">inside 90%")
    for row in rows:
        tables.add(found, list(_cells(row)))
    return tables.rendered(found)


def _cells(row: KindErrors) -> Iterator[str]:
    yield row.kind
    yield f"{row.n_rows:,}"
    yield str(row.n_missing or "")
    yield from (f"{100 * value:.1f}%" for value in (row.mape, row.median, row.p95))
    yield f"{100 * row.bias:+.1f}%"
    yield f"{100 * row.inside:.1f}%"
