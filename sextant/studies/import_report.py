"""What ``sextant import`` says of a config: the model's sizes, what was not used, what to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sextant.studies import metrics
from sextant.studies.tables import wrapped
from sextant.workloads import parameters
from sextant.workloads.huggingface import Imported


def summary(found: Imported, config: str) -> dict[str, Any]:
    """{name, family, config, n_parameters, n_activated_parameters, convention, kv_bytes_per_token, unused, notes}."""
    model = found.model
    return {
        "name": model.name, "family": found.family, "config": config,
        "n_parameters": int(parameters.n_parameters(model)),
        "n_activated_parameters": int(parameters.activated_parameters(model)),
        "convention": "without MTP; activated without the input embedding",
        "kv_bytes_per_token": int(parameters.kv_bytes_per_token(model)),
        "unused": list(found.unused), "notes": list(found.notes), "written": None,
    }  # fmt: skip


def text(summary: Mapping[str, Any]) -> str:
    """The summary for a person."""
    total, active = summary["n_parameters"], summary["n_activated_parameters"]
    lines = [
        f"{summary['name']}, a {summary['family']} model",
        f"parameters            {total:,} ({metrics.count(total)})",
        f"activated parameters  {active:,} ({metrics.count(active)})",
        f"KV cache              {summary['kv_bytes_per_token']:,} bytes per token in BF16",
        *wrapped(f"not used: {', '.join(summary['unused']) or 'nothing'}"),
        *(f"note: {note}" for note in summary["notes"]),
    ]
    if summary["written"]:
        lines.append(f"written: {summary['written']} (name it as a scenario's model, or: sextant show model FILE)")
    return "\n".join(lines)
