"""Fitted kernel coefficients, one YAML file per GPU: written by validate, read by the catalogue.

gemm_bf16:
  coefficients: {launch_s: 1.2e-06, ...}
  low: 0.88            # factors on predicted seconds that hold 90% of held-out measurements
  high: 1.12
  provenance: fitted
  source: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sextant.simulator.errors import InputError, Problem
from sextant.simulator.types import PROVENANCES, KernelFit

_HEADER = "# Fitted kernel coefficients; written by `python -m sextant.validate.fit`. SI units.\n"


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
        text += "\n" + yaml.safe_dump({name: _plain(merged[name])}, sort_keys=False, width=120, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _plain(fit: KernelFit) -> dict[str, Any]:
    return {
        "coefficients": {key: float(value) for key, value in fit.coefficients.items()},
        "low": float(fit.low),
        "high": float(fit.high),
        "provenance": fit.provenance,
        "source": fit.source,
    }


def _block(path: str, name: str, block: Any) -> KernelFit:
    try:
        fit = KernelFit(
            coefficients={str(key): float(value) for key, value in block["coefficients"].items()},
            low=float(block["low"]),
            high=float(block["high"]),
            provenance=str(block["provenance"]),
            source=str(block.get("source", "")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"needs coefficients, low, high and provenance, got {error}; write it anew with a fit"
        raise InputError(Problem(path=path, key=name, message=message)) from error
    if fit.provenance not in PROVENANCES:
        message = f"provenance must be one of {', '.join(PROVENANCES)}, got {fit.provenance!r}"
        raise InputError(Problem(path=path, key=name, message=message))
    return fit
