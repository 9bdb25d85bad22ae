"""Fitted kernel coefficients, one YAML file per GPU: written by validate, read by the catalogue.

gemm_bf16:
  coefficients: {launch_s: 1.2e-06, ...}
  low: 0.88            # factors on predicted seconds that hold 90% of held-out measurements
  high: 1.12
  provenance: fitted
  source: ...
  held_out: {n_rows: 168, mape: 0.041, median: 0.028, p95: 0.12, bias: -0.004}
  correction:          # where something was learned beyond the coefficients (simulator/kernels/correction.py)
    features: [log2_tiles_per_sm, log2_k]
    scales: 1.2 2.5    # one per feature
    table: |           # one line per centre: its features, then its weight
      -1.5 9.0 0.021
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sextant.simulator.errors import InputError, Problem
from sextant.simulator.types import PROVENANCES, Correction, KernelFit

_HEADER = "# Fitted kernel coefficients; written by `sextant fit`. SI units.\n"


def read_fits(path: Path | str) -> dict[str, KernelFit]:
    """The blocks of a fit file by kernel name; InputError names the file and the block that cannot be read."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        blocks = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(Problem(path=str(path), message=f"not YAML: {error}; write it anew with a fit")) from error
    if not isinstance(blocks, dict):
        raise InputError(Problem(path=str(path), message=f"expected blocks by kernel, got {type(blocks).__name__}"))
    return {str(name): _block(str(path), str(name), block) for name, block in blocks.items()}


def write_fits(path: Path | str, fits: Mapping[str, KernelFit]) -> None:
    """Put ``fits`` into the file, keeping the other blocks; names are sorted and floats read back bit for bit."""
    path = Path(path)
    merged = {**(read_fits(path) if path.is_file() else {}), **fits}
    text = _HEADER
    for name in sorted(merged):
        text += "\n" + yaml.dump(
            {name: _plain(merged[name])}, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _plain(fit: KernelFit) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "coefficients": {key: float(value) for key, value in fit.coefficients.items()},
        "low": float(fit.low),
        "high": float(fit.high),
        "provenance": fit.provenance,
        "source": fit.source,
    }
    if fit.held_out:
        plain["held_out"] = {key: float(f"{value:.4g}") for key, value in fit.held_out.items()}
    if fit.correction is not None:
        c = fit.correction
        rows = np.column_stack([c.centres, c.weights])
        plain["correction"] = {
            "features": list(c.features),
            "scales": _line(c.scales),
            "table": _Table("".join(_line(row) + "\n" for row in rows)),
        }
    return plain


class _Table(str):
    """Lines of numbers, written as they are."""


def _line(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)


class _Dumper(yaml.SafeDumper):
    """Writes a table as a literal block."""


_Dumper.add_representer(_Table, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def _correction(block: Any) -> Correction | None:
    if block is None:
        return None
    features = tuple(str(name) for name in block["features"])
    rows = np.array([[float(cell) for cell in line.split()] for line in block["table"].splitlines()])
    if rows.ndim != 2 or rows.shape[1] != len(features) + 1:
        raise ValueError(f"a table with {len(features)} features and a weight per line")
    scales = np.array([float(cell) for cell in str(block["scales"]).split()])
    if scales.shape != (len(features),) or not (scales > 0).all():
        raise ValueError("one positive scale per feature")
    return Correction(features=features, scales=scales, centres=rows[:, :-1], weights=rows[:, -1])


def _block(path: str, name: str, block: Any) -> KernelFit:
    try:
        fit = KernelFit(
            coefficients={str(key): float(value) for key, value in block["coefficients"].items()},
            low=float(block["low"]),
            high=float(block["high"]),
            provenance=str(block["provenance"]),
            source=str(block.get("source", "")),
            correction=_correction(block.get("correction")),
            held_out={str(key): float(value) for key, value in (block.get("held_out") or {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"needs coefficients, low, high and provenance, got {error}; write it anew with a fit"
        raise InputError(Problem(path=path, key=name, message=message)) from error
    if fit.provenance not in PROVENANCES:
        message = f"provenance must be one of {', '.join(PROVENANCES)}, got {fit.provenance!r}"
        raise InputError(Problem(path=path, key=name, message=message))
    return fit
