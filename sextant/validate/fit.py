"""Fit kernel coefficients of one GPU from measured rows and put them into its fit file.

    sextant fit KIND ROWS.csv.gz [ROWS ...] --device h100 --out FILE [--source TEXT]

Blocks that FILE holds already count as the device's: ``moe`` builds on the blocks of ``gemm``, ``mhc`` on ``memory``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sextant.hwmodels import cluster as cluster_named
from sextant.hwmodels import device as device_named
from sextant.hwmodels.fits import read_fits, write_fits
from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Device
from sextant.validate.fit_attention import fit_attention, fit_mla, regime
from sextant.validate.fit_collective import fit_collective, fit_send, sent_rows
from sextant.validate.fit_conv2d import fit_conv2d
from sextant.validate.fit_engine import fit_engine
from sextant.validate.fit_exchange import fit_exchange, fit_first
from sextant.validate.fit_fetch import fit_fetch
from sextant.validate.fit_gather import fit_gather
from sextant.validate.fit_gemm import COEFFICIENTS, fit_gemm
from sextant.validate.fit_grouped import COEFFICIENTS as GROUPED
from sextant.validate.fit_grouped import fit_grouped, fit_layers, fit_products
from sextant.validate.fit_host_copy import fit_host_copy
from sextant.validate.fit_memory import access, fit_memory
from sextant.validate.fit_mhc import fit_mhc
from sextant.validate.fit_mhc_training import fit_mhc_backward, fit_mhc_training
from sextant.validate.fit_wgrad import fit_wgrad
from sextant.validate.solver import Errors, Fitted, Row, with_fit

Fitter = Callable[[Sequence[Row], Device, str], list[Fitted]]


def read_rows(path: Path | str) -> list[dict[str, str]]:
    """The rows of a kernel-case CSV, plain or gzipped; InputError if it cannot be read or has no rows."""
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; give a CSV of kernel cases") from error
    if not rows:
        raise InputError(f"{path}: no rows; give a CSV with a header and one kernel per line")
    return rows


def origin(path: Path | str) -> str:
    """Where measured rows come from, in one phrase, from the ``# key: value`` lines at the head of their file."""
    path = Path(path)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        head = [line[1:].partition(":") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    said = {key.strip(): value.strip() for key, _, value in head}
    parts = [
        f"kernels measured on one {said['device']}" if "device" in said else "measured kernels",
        f"torch {said['torch']}" if "torch" in said else "", f"CUDA {said['cuda']}" if "cuda" in said else "",
        said.get("date", "")[:10],
    ]  # fmt: skip
    return f"{', '.join(part for part in parts if part)} ({path.name})"


def tested(e: Errors) -> dict[str, float]:
    """The errors on held-out rows as a fit file keeps them."""
    return {"n_rows": e.n_rows, "mape": e.mape, "median": e.median, "p95": e.p95, "bias": e.bias}


def fit_gemms(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """Blocks ``gemm_<format>`` for every format in ``rows``, BF16 first: FP8 takes its launch time from there."""
    found: list[Fitted] = []
    present = {str(row.get("format", "")) for row in rows}
    for format in (f for f in COEFFICIENTS if f in present):
        found.append(fit_gemm(rows, device, format, source))
        device = with_fit(device, found[-1].name, found[-1].fit)
    if not found:
        raise InputError(f"no rows of a format that can be fitted ({', '.join(COEFFICIENTS)}); check column 'format'")
    return found


def fit_experts(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """Blocks ``grouped_gemm_<format>`` and ``moe_<format>``. Where rows measure products themselves, from them and from
    the layers that are built of them; else both from layers, and ``device`` must hold the dense blocks."""
    rows = [row for row in rows if row["op"] in ("grouped_gemm", "moe")]
    direct = sorted({row["format"] for row in rows if row["op"] == "grouped_gemm" and row.get("us", "")})
    found: list[Fitted] = []
    for format in map(str, direct):
        found.append(fit_products(rows, device, format, source))
        device = with_fit(device, found[-1].name, found[-1].fit)
    layers = {str(row["format"]) for row in rows if row["op"] == "moe" and row.get("us", "")}
    for format in (f for f in GROUPED if f in layers):
        if format in direct:
            found.append(fit_layers(rows, device, format, source))
        else:
            found += fit_grouped(rows, device, format, source)
    if not found:
        raise InputError(f"no rows of a format that can be fitted ({', '.join(GROUPED)}); check column 'format'")
    return found


def fit_memories(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """The block ``memory`` and one for each kind of access that the rows show."""
    present = sorted({found for row in rows if (found := access(row)) is not None})
    return [fit_memory(rows, device, source, variant) for variant in present]


def fit_attentions(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """A block for every regime of attention in ``rows``: latent or not, forward, backward, encoder, decode."""
    regimes: dict[str, list[Row]] = {}
    for row in rows:
        if row["op"] in ("attention", "mla") and row.get("us", "") != "":
            regimes.setdefault(regime(row), []).append(row)
    found: list[Fitted] = []
    for name, part in sorted(regimes.items()):
        latent_decode = part[0]["op"] == "mla" and part[0].get("phase") == "decode"
        found.append(
            fit_mla(part, device, source, name) if latent_decode else fit_attention(name, part, device, source)
        )
    return found


def fit_collectives(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """The block ``collective`` from NVLink rows of one node of this device, and that of what is only sent."""
    nvlink = _nvlink_bytes_per_s(device)
    found = fit_collective(rows, device, nvlink, source)
    if not sent_rows(rows):
        return [found]
    return [found, fit_send(rows, with_fit(device, found.name, found.fit), nvlink, source)]


def fit_exchanges(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """The exchange of experts, normal and low latency, from rows of several node counts; the errors are those of
    leaving out one count after the other. The device needs the block ``collective``."""
    own = [{**row, "nvlink_bytes_per_s": _nvlink_bytes_per_s(device)} for row in rows]
    modes = [[row for row in own if row.get("mode") == mode] for mode in ("normal", "low_latency")]
    return [fit_exchange(part, device, source) for part in modes if part]


def fit_first_exchanges(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """What exchanges DeepEP's first version made, from its published rates on an H800; the device needs the block
    ``expert_exchange``."""
    nvlink = next(iter(cluster_named("hgx-h800").tiers.values())).link.bandwidth_bytes_per_s
    return [fit_first([{**row, "nvlink_bytes_per_s": float(nvlink)} for row in rows], device, source)]


def _nvlink_bytes_per_s(device: Device) -> float:
    tier = next(iter(cluster_named(f"hgx-{device.name}").tiers.values()))
    return float(tier.link.bandwidth_bytes_per_s)


def fit_wgrads(rows: Sequence[Row], device: Device, source: str) -> list[Fitted]:
    """The block of FP8 weight gradients."""
    return [fit_wgrad(rows, device, source)]


FITTERS: Mapping[str, Fitter] = {
    "gemm": fit_gemms, "moe": fit_experts, "memory": fit_memories, "attention": fit_attentions,
    "collective": fit_collectives, "exchange": fit_exchanges,
    "exchange_2025_02": fit_first_exchanges, "wgrad": fit_wgrads, "mhc": fit_mhc, "gather": fit_gather,
    "host_copy": fit_host_copy, "conv2d": fit_conv2d, "fetch": fit_fetch, "engine": fit_engine,
    "mhc_training": fit_mhc_training, "mhc_backward": fit_mhc_backward,
}  # fmt: skip


def report(fitted: Sequence[Fitted]) -> str:
    """A table of errors: one line per block and part."""
    names = " ".join(f"{name:>7s}" for name in ("MAPE", "median", "p95", "bias"))
    lines = [f"{'kernel':24s} {'part':10s} {'rows':>6s} {names}  5% to 95%"]
    for block in fitted:
        lines.append(_line(block.name, "training", block.training))
        if block.cross_validated is not None:
            lines.append(_line("", "crossed", block.cross_validated))
        if block.judged:
            lines.append(_line("", "held out", block.held_out))
    return "\n".join(lines)


def _line(name: str, part: str, e: Errors) -> str:
    shares = " ".join(f"{100 * value:6.2f}%" for value in (e.mape, e.median, e.p95, e.bias))
    return f"{name:24s} {part:10s} {e.n_rows:6d} {shares}  {e.low:.3f} to {e.high:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when fitted and written, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="sextant fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", help=f"one of {', '.join(FITTERS)}")
    parser.add_argument("rows", nargs="+", help="measured kernel cases, CSV or CSV.gz")
    parser.add_argument("--device", required=True, help="catalogue name of the GPU that was measured")
    parser.add_argument("--out", required=True, help="fit file; other blocks in it are kept")
    parser.add_argument(
        "--source", default="", help="where the rows come from, kept with the fit (default: what their files say)"
    )
    given = parser.parse_args(arguments)
    try:
        if given.kind not in FITTERS:
            raise InputError(f"unknown kind {given.kind!r}; {nearest(given.kind, FITTERS)}")
        # Rows are of runs of milliseconds: coefficients belong to the clock that those reach.
        device = replace(device_named(given.device), clock_under_load=1.0)
        if Path(given.out).is_file():
            device = replace(device, kernels={**device.kernels, **read_fits(given.out)})
        rows = [row for path in given.rows for row in read_rows(path)]
        source = given.source or "; ".join(origin(path) for path in given.rows)
        fitted = FITTERS[given.kind](rows, device, source)
        if not fitted:
            raise InputError(f"no rows of {given.kind} in {', '.join(given.rows)}; check column 'op'")
        write_fits(
            given.out,
            {
                block.name: replace(block.fit, held_out=tested(block.held_out) if block.judged else {})
                for block in fitted
            },
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(fitted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
