"""How wrong one GPU's fits are on another GPU, known by its datasheet, one copy and one product alone.

    sextant validate transfer --from h100 --to h200 [--rows FILE ...] [--json]

Rows of a target whose measurements are not shipped come from files. Kernels that both GPUs were measured with from the
same library tell what the transfer is worth; those of other libraries are shown apart, for their error is the
libraries' as well. The two rows that the target's rates were read from are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sextant import hwmodels
from sextant.hwmodels.gpus import Transfer
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Cluster, Device, KernelFit
from sextant.studies import kernel_errors, tables
from sextant.studies.kernel_errors import MEASURED, Judged
from sextant.validate import fit
from sextant.validate.prediction import predict, single_kernel_cluster
from sextant.validate.prediction.operators import BARE
from sextant.validate.transfer import Rate, Rates, named_rates, news, transferred

Row = Mapping[str, str]

#: What is shipped of a GPU's kernels.
SHIPPED: Mapping[str, tuple[Path, ...]] = {
    name: (*paths, *paths[0].parent.glob(f"{name}_per_tensor.csv")) for name, paths in MEASURED.items()
}

#: Kinds that an H100 and an H200 were both measured with from one library, cuBLAS: TensorRT-LLM calls it for BF16
#: products as torch does, and for FP8 ones with one scale per operand, around which it converts its activations.
SAME_LIBRARY = ("gemm bf16", "gemm fp8 per tensor")

#: Operators whose formats, and whose phases, are told apart.
_BY_FORMAT, _BY_PHASE = ("gemm", "grouped_gemm", "moe"), ("attention", "mla")
#: What is no single kernel of one GPU.
_LEFT_OUT = ("contention", "h2d", "d2h")


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTransfer:
    """Errors of one kind: shares of the measured time (``KindErrors``), the share of rows in the widened interval, and
    the 5% and 95% quantiles of measured over predicted time."""

    kind: str
    same_library: bool
    n_rows: int
    mape: float
    median: float
    p95: float
    bias: float
    inside: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The errors of every kind that the source's fits know, and what the transfer rested on.

    ``copy`` and ``product`` say what the target's two rates add to the source's intervals (1.0: nothing);
    ``unknown`` counts rows by kind that the source has no kernels for.
    """

    source: str
    target: str
    rows: tuple[KindTransfer, ...]
    rates: Rates
    copy: float
    product: float
    widening: Transfer
    unknown: Mapping[str, int]

    def text(self) -> str:
        """A line per kind, those of one library first, and what the transfer rested on."""
        heads = ("library", ">rows", ">MAPE", ">median", ">95th pct", ">bias", ">inside", ">measured / predicted")
        table = tables.grid(f"{self.source} -> {self.target}", *heads)
        for row in self.rows:
            tables.add(table, list(_cells(row)))
        said = [
            f"interval: of {self.source}'s blocks, x{self.widening.low:g} to x{self.widening.high:g}",
            _rate_text("copy", self.rates.copy, self.copy), _rate_text("product", self.rates.gemm, self.product),
        ]  # fmt: skip
        if self.unknown:
            said.append("not predicted: " + ", ".join(f"{kind} ({n})" for kind, n in self.unknown.items()))
        return "\n".join([tables.rendered(table), "", *(line for each in said for line in tables.wrapped(each))])

    def as_json(self) -> dict[str, Any]:
        """The same as records, in seconds."""
        rates = {"copy": (self.rates.copy, self.copy), "product": (self.rates.gemm, self.product)}
        return {
            "source": self.source, "target": self.target, "rows": [asdict(row) for row in self.rows],
            "widened": [self.widening.low, self.widening.high], "reason": self.widening.reason,
            "rates": {
                name: None if rate is None else {"case": dict(rate.case), "seconds": rate.seconds, "beyond": beyond}
                for name, (rate, beyond) in rates.items()
            },
            "not_predicted": dict(self.unknown),
        }  # fmt: skip


def study(source: str, target: str, paths: Sequence[Path | str] = ()) -> Study:
    """The errors of ``source``'s own fits on measured kernels of ``target``: of the files, else the shipped ones.

    InputError where there are no rows, no fits or no rule between the two GPUs.
    """
    widening = widening_between(source, target)
    rows = [row for row in measured_rows(target, paths) if row["op"] not in _LEFT_OUT]
    rates, datasheet = named_rates(rows), carried(source, target).device
    cluster = carried(source, target, rates)
    found = judged([row for row in rows if not _is_rate(row, rates)], cluster, widening)
    kinds, unknown = _kinds(found)
    copy, product = (1.0 if rate is None else news(datasheet, rate) for rate in (rates.copy, rates.gemm))
    return Study(
        source=source, target=target, rows=kinds, rates=rates, copy=copy, product=product, widening=widening,
        unknown=unknown,
    )  # fmt: skip


def carried(source: str, target: str, rates: Rates | None = None) -> Cluster:
    """One node of ``target`` at the clock of short runs, with the kernels of ``source`` by the target's datasheet and,
    where given, its two rates; InputError for unknown names."""
    cluster = single_kernel_cluster(target)
    given = rates or Rates(copy=None, gemm=None)
    return replace(cluster, device=transferred(lending(source), cluster.device, given.copy, given.gemm))


def lending(source: str) -> Device:
    """The GPU called ``source`` with the kernels that were measured on it alone; InputError where there are none."""
    device = hwmodels.device(source)
    own = hwmodels.own_fits(source)
    if not own:
        raise InputError(f"source: {source!r} has no fits of its own; {nearest(source, ('h100', 'h200'))}")
    return replace(device, kernels=own)


def widening_between(source: str, target: str) -> Transfer:
    """How far the catalogue trusts the source's fits on the target (``hwmodels.gpus.Transfer``). InputError where the
    target takes its fits from another GPU."""
    lending(source)
    if source == target:
        raise InputError(f"target: {target!r} is the source; name another GPU")
    found = hwmodels.transfer_of(target)
    if found is None or found.gpu != source:
        lender = "no other GPU" if found is None else found.gpu
        raise InputError(f"target: {target!r} takes fits from {lender}, not from {source!r}; name that one")
    return found


def measured_rows(target: str, paths: Sequence[Path | str] = ()) -> list[dict[str, str]]:
    """Measured kernels of ``target``: of the files, else the shipped ones; InputError where neither has any."""
    chosen = tuple(paths) or SHIPPED.get(target, ())
    rows = [row for path in chosen for row in fit.read_rows(path) if row.get("us") and row.get("op")]
    if not rows:
        raise InputError(f"target: no measured kernels of {target!r} are shipped; give files of them with --rows")
    return rows


def judged(rows: Sequence[Row], cluster: Cluster, widening: Transfer) -> Judged:
    """Measured rows beside what ``carried`` blocks predict in the widened interval; NaN where no block of the source is
    of such a kernel, or where it lacks what the row's call does besides."""
    names = dict.fromkeys(name for row in rows for name in row if name != "us")
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    kernels = {name: hwmodels.transferred(block, widening) for name, block in cluster.device.kernels.items()}
    found = predict(columns, len(rows), replace(cluster, device=replace(cluster.device, kernels=kernels)))
    kinds = np.array([kind_of(row) for row in rows])
    known = np.array([_is_known(*pair, kernels) for pair in zip(rows, found.provenance, strict=True)])
    predicted, low, high = (1e-6 * np.where(known, each, np.nan) for each in (found.us, found.low_us, found.high_us))
    return Judged(
        kind=kinds, op=np.array([row["op"] for row in rows]), held_out=np.ones(len(rows), dtype=bool),
        measured_s=1e-6 * np.array([float(row["us"]) for row in rows]), predicted_s=predicted, low_s=low, high_s=high,
    )  # fmt: skip


def kind_of(row: Row) -> str:
    """What a row is summed up under: its operator and format, or phase and direction."""
    op, format = row["op"], row.get("format", "")
    if op == "gemm" and format == "fp8" and row.get("variant", "") == "per_tensor":
        return "gemm fp8 per tensor"
    if op in _BY_FORMAT:
        return f"{op} {format}{' converted' if _converts(row) else ''}{' skewed' if _is_skewed(row) else ''}"
    if op in _BY_PHASE:
        backward = " backward" if row.get("direction", "") == "backward" else ""
        return f"{op} {row.get('phase', '')}{backward}"
    return kernel_errors.KINDS.get(op, op)


def _converts(row: Row) -> bool:
    """Whether the call takes BF16 activations and converts them to FP8 first."""
    fp8 = row["op"] == "gemm" and row.get("format", "").startswith("fp8")
    return fp8 and not row.get("variant", "") and row.get("library", "") not in BARE


def _is_known(row: Row, provenance: str, kernels: Mapping[str, KernelFit]) -> bool:
    """Whether a prediction rests on kernels of the source (skewed routing always counts as assumed), and on a block
    that knows the conversion which the row's call includes."""
    if provenance == "assumed" and not _is_skewed(row):
        return False
    block = kernels.get(f"gemm_{row.get('format', '')}")
    return not _converts(row) or (block is not None and "convert" in block.coefficients)


def _is_skewed(row: Row) -> bool:
    return row.get("routing", "").startswith("power_law")


def _is_rate(row: Row, rates: Rates) -> bool:
    said = {name: value for name, value in row.items() if value}
    return any(rate is not None and said == rate.case for rate in (rates.copy, rates.gemm))


def _kinds(found: Judged) -> tuple[tuple[KindTransfer, ...], dict[str, int]]:
    """Errors of the kinds with predictions, those of one library first, and how many rows of others there are."""
    known: list[KindTransfer] = []
    unknown: dict[str, int] = {}
    for row in kernel_errors.errors(found)[:-1]:
        part = found.only(found.kind == row.kind)
        if row.n_missing:
            unknown[row.kind] = row.n_missing
        if row.n_rows:
            low, high = np.nanquantile(part.measured_s / part.predicted_s, [0.05, 0.95])
            kind = KindTransfer(
                kind=row.kind, same_library=row.kind in SAME_LIBRARY, n_rows=row.n_rows, mape=row.mape,
                median=row.median, p95=row.p95, bias=row.bias, inside=row.inside, low=float(low), high=float(high),
            )  # fmt: skip
            known.append(kind)
    return tuple(sorted(known, key=lambda kind: not kind.same_library)), unknown


def _cells(row: KindTransfer) -> Iterator[str]:
    yield row.kind
    yield "the same" if row.same_library else "another"
    yield f"{row.n_rows:,}"
    yield from (f"{100 * value:.1f}%" for value in (row.mape, row.median, row.p95))
    yield f"{100 * row.bias:+.1f}%"
    yield f"{100 * row.inside:.1f}%"
    yield f"{row.low:.2f} .. {row.high:.2f}"


def _rate_text(name: str, rate: Rate | None, factor: float) -> str:
    if rate is None:
        return f"{name}: none among the rows, datasheet alone"
    sizes = ("format", "variant", "bytes", "m", "n", "k", "n_tokens", "hidden", "n_streams")
    said = " ".join([rate.case["op"], *(f"{name} {rate.case[name]}" for name in sizes if name in rate.case)])
    told = "inside the source's interval" if factor == 1.0 else f"x{factor:.3f} beyond the source's interval"
    return f"{name}: {said}, {1e6 * rate.seconds:,.1f} us, {told}"
