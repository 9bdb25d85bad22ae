"""A study: a module of this package with ``STUDY``, which a scenario asks for by ``study: NAME``.

A scenario without one asks what its ``load.phase`` says. A study answers the same design table with columns of its own,
from as many phases as it wants (the scenario's ``variants``), and draws its own figures.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.types import Result

if TYPE_CHECKING:
    from sextant.studies.report import Answer
    from sextant.studies.scenario import Question

#: A module that defines a study says so on a line of its own; to import all modules only to ask takes a second.
_DEFINES = re.compile(r"^STUDY\b.*=", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """``answer`` gives the result of all points of a question, in the order of its design table, and tells its second
    argument how many are done.

    ``columns`` are the metrics of the short table. ``figures`` gives a figure per file name, ``text`` what is printed
    instead of the table. ``judged`` has, per group of published figures, what the answer predicts of each metric as
    (value, low, high); ``fitted`` says what its inputs were fitted to.
    """

    about: str
    answer: Callable[[Question, Callable[[int], None]], Result]
    columns: tuple[str, ...] = ()
    figures: Callable[[Answer], Mapping[str, Any]] | None = None
    text: Callable[[Answer], str] | None = None
    judged: Callable[[Answer], Mapping[str, Mapping[str, tuple[float, float, float]]]] | None = None
    fitted: str = ""


@cache
def names() -> tuple[str, ...]:
    """The studies there are, by the name of their module."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(file.stem for file in files if _DEFINES.search(file.read_text(encoding="utf-8")))


def find(name: str) -> Study:
    """The study called ``name``; InputError offers the nearest names."""
    if name not in names():
        raise InputError(f"unknown study {name!r}; {nearest(name, names())}")
    return importlib.import_module(f"sextant.studies.{name}").STUDY
