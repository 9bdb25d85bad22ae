"""Dotted paths into records: read or replace one field of a tree of frozen dataclasses and mappings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Correction

Record = TypeVar("Record")


def names(record: Any) -> tuple[str, ...]:
    """The keys one can step into from ``record``: dataclass fields or mapping keys; empty for a leaf."""
    if is_dataclass(record):
        return tuple(f.name for f in fields(record))
    if isinstance(record, Mapping):
        return tuple(str(k) for k in record)
    return ()


def get(record: Any, path: str) -> Any:
    """The value at ``path`` (``device.memories.hbm.bandwidth_bytes_per_s``); InputError offers the nearest names."""
    for key in path.split("."):
        record = _step(record, key, path)
    return record


def put(record: Record, path: str, value: Any) -> Record:
    """A copy of ``record`` in which the field at ``path`` is ``value``; the field must exist."""
    key, _, rest = path.partition(".")
    child = _step(record, key, path)
    new = put(child, rest, value) if rest else value
    if isinstance(record, Mapping):
        return type(record)({**record, key: new})  # type: ignore[call-arg]
    return replace(record, **{key: new})  # type: ignore[type-var]


def leaves(record: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of ``record`` by its dotted path, in field order."""
    found: dict[str, Any] = {}
    for key in names(record):
        child, path = _step(record, key, key), f"{prefix}{key}"
        found.update(leaves(child, path + ".") if names(child) else {path: child})
    return found


def take(record: Record, index: Any) -> Record:
    """``record`` with every array in it (shape (n_points,)) replaced by its elements at ``index``."""
    return mapped(record, lambda values: values[index])


def mapped(record: Record, change: Callable[[NDArray[np.float64]], Any]) -> Record:
    """``record`` with every array of points in it replaced by what ``change`` makes of it; the tables of a
    ``Correction`` are no points, and stay whole."""
    if isinstance(record, np.ndarray):
        return change(record) if record.ndim else record  # type: ignore[return-value]
    if isinstance(record, Mapping):
        return type(record)({key: mapped(value, change) for key, value in record.items()})  # type: ignore[call-arg]
    if isinstance(record, tuple):
        return tuple(mapped(value, change) for value in record)  # type: ignore[return-value]
    if is_dataclass(record) and not isinstance(record, type | Correction):
        changed = {f.name: mapped(getattr(record, f.name), change) for f in fields(record)}
        return replace(record, **changed)
    return record


def _step(record: Any, key: str, path: str) -> Any:
    known = names(record)
    if key not in known:
        where = type(record).__name__ if is_dataclass(record) else "this place"
        raise InputError(f"{path!r}: {where} has no field {key!r}; {nearest(key, known)}")
    return record[key] if isinstance(record, Mapping) else getattr(record, key)
