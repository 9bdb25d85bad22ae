"""The committed measurements of whole models."""

from __future__ import annotations

import csv
from pathlib import Path

from sextant import validate
from sextant.simulator.errors import InputError
from sextant.studies.whole_kernels import Kernel

MEASURED = Path(validate.__file__).parent / "data" / "measured"

_COMMAND = "python -m sextant.validate.whole.run"


def measured_s(device: str, folder: Path | None = None) -> dict[str, float]:
    """Seconds of the passes of each case that was measured, repeated for seconds; InputError where nothing was."""
    rows = _rows((folder or MEASURED) / f"{device}_models.csv", device)
    return {row["case"]: 1e-6 * float(row["lasting_us"]) for row in rows if row["lasting_us"]}


def kernels(device: str, case: str, folder: Path | None = None) -> list[Kernel]:
    """The kernels of one profiled step of a case; none where it was not profiled."""
    path = (folder or MEASURED) / f"{device}_model_kernels.csv"
    rows = _rows(path, device) if path.exists() else []
    return [
        Kernel(name=row["kernel"], count=float(row["count"]), us=float(row["us"]))
        for row in rows
        if row["case"] == case
    ]


def _rows(path: Path, device: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(line for line in lines if not line.startswith("#")))
    except FileNotFoundError:
        raise InputError(
            f"device: no measured models of {device!r} ({path.name}); measure them on such a GPU: {_COMMAND}"
        ) from None
