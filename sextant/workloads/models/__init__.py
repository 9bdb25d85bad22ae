"""The models: one file per family, whose ``MODELS`` lists its variants; found by their names, registered nowhere."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from sextant.simulator.errors import InputError, nearest
from sextant.workloads.transformer import Transformer


@functools.cache
def catalogue() -> dict[str, Transformer]:
    """Every model by its name."""
    found: dict[str, Transformer] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for model in importlib.import_module(f"{__name__}.{module}").MODELS:
            found[model.name] = model
    return found


def model(name: str) -> Transformer:
    """The model of that name; InputError offers the nearest names."""
    if name not in catalogue():
        raise InputError(f"unknown model {name!r}; {nearest(name, catalogue())}")
    return catalogue()[name]
