"""Where every number of a question comes from, as ``sextant check`` lists it, and a file that asks the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np

from sextant.simulator import paths, units
from sextant.studies import allocated
from sextant.studies.equations import equation, figure
from sextant.studies.fields import find
from sextant.studies.layers import BASED, BLOCKS
from sextant.studies.scenario import Question, base_names


class Leaf(NamedTuple):
    """One resolved field: its dotted path, its value (a tuple if swept), the value for a person, and its source."""

    path: str
    value: Any
    text: str
    source: str


def resolved(question: Question) -> list[Leaf]:
    """Every field of the question with its source: ``file:line``, ``--set ...``, ``base NAME (source)`` or ``default``.

    The order is that of the records; a record's own ``source`` fields are not listed but shown as the source.
    """
    scenario, entries = question.scenario, question.entries
    names = base_names(entries, {p: v[0] for p, v in scenario.axes.items()})
    found = [
        Leaf(key, value, str(value), entries[key].place if key in entries else "default")
        for key, value in (("name", scenario.name), ("engine", scenario.engine), ("seed", scenario.seed))
    ]
    for path in ("model", "cluster", "cluster.device"):
        if path in names:
            swept = scenario.axes.get(path)
            source = entries[f"axes.{path}" if swept else path].place
            found.append(Leaf(path, swept or names[path], _text(path, swept or names[path], ""), source))
    for top in BLOCKS:
        record = getattr(scenario, top)
        for path, value in (paths.leaves(record) if paths.names(record) else {}).items():
            if "source" not in path.split("."):
                found.append(_leaf(question, top, path, value, names))
    for path, entry in entries.items():
        top, _, rest = path.partition(".")
        if top == "constraints":
            metric, _, side = rest.rpartition(".")
            value = scenario.constraints[metric][side]
            found.append(Leaf(path, value, _text(path, value, units.dimension(metric)), entry.place))
        elif top == "objectives":
            found.append(Leaf(path, entry.raw, str(entry.raw), entry.place))
    return found


def canonical(question: Question) -> str:
    """A scenario file that asks the same question: no ``base:`` scenario, no ``--set``, all in SI.

    The same question gives the same text, and loading the text gives the same scenario.
    """
    scenario = question.scenario
    names = base_names(question.entries, {p: v[0] for p, v in scenario.axes.items()})
    # Fields that are solved, or follow from a fraction, as the file sets them.
    asked = question.at({}) if scenario.solve or allocated.PATH in question.entries else scenario
    lines = [f"name: {_flow(scenario.name)}"]
    if question.description:
        lines.append(f"description: {_flow(question.description)}")
    for top in BLOCKS:
        fields = {"base": names[top]} if top in BASED else {}
        if top == "cluster" and "cluster.device" in names:
            fields["device"] = names["cluster.device"]
        record = getattr(asked, top)
        for path in question.entries:
            block, _, rest = path.partition(".")
            if block == top and rest and path != "cluster.device" and path not in scenario.axes:
                fields[rest] = paths.get(record, rest)
        lines.append(f"{top}: {_flow(fields)}")
    for key, value in (
        ("axes", scenario.axes), ("solve", scenario.solve), ("search", scenario.search),
        ("constraints", scenario.constraints), ("objectives", scenario.objectives),
        ("engine", scenario.engine), ("seed", scenario.seed), ("published", question.published),
    ):  # fmt: skip
        lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _leaf(question: Question, top: str, path: str, value: Any, names: Mapping[str, Any]) -> Leaf:
    full, entries = f"{top}.{path}", question.entries
    dimension = find(getattr(question.scenario, top), path, top).dimension
    if full in question.scenario.axes:
        swept = question.scenario.axes[full]
        return Leaf(full, swept, _text(full, swept, dimension), entries[f"axes.{full}"].place)
    text = _text(full, value, dimension)
    if full == allocated.PATH and full in entries:  # nothing is left of it in a model that it has shaped
        return Leaf(full, entries[full].raw, str(entries[full].raw), entries[full].place)
    if full in allocated.FOLLOWS and allocated.given(entries):
        return Leaf(full, value, text, f"follows from {allocated.PATH}")
    if full in question.scenario.solve:
        return Leaf(full, value, text, _solved(question, full))
    if full in entries:
        return Leaf(full, value, text, entries[full].place)
    if top not in BASED:
        return Leaf(full, value, text, "default")
    base = names["cluster.device"] if full.startswith("cluster.device.") and "cluster.device" in names else names[top]
    own = _own_source(getattr(question.scenario, top), path)
    return Leaf(full, value, text, f"base {base}" + (f" ({own})" if own else ""))


def _solved(question: Question, path: str) -> str:
    """The equation that a field follows from, and the size that it reaches at the first point."""
    scenario = question.scenario
    name, target, multiple = equation(scenario.solve[path])
    got = float(question.catalogue.sizes[name](scenario.model, scenario.load))
    step = f", a multiple of {multiple:g}" if multiple else ""
    return f"solved: {name} = {figure(target)}{step}; {figure(got)} {'at the first point' if scenario.axes else 'here'}"


def _own_source(record: Any, path: str) -> str:
    """What the innermost record around ``path`` that names a source for it says."""
    keys = path.split(".")
    for depth in range(len(keys) - 1, -1, -1):
        holder = paths.get(record, ".".join(keys[:depth])) if depth else record
        source = getattr(holder, "source", "") if is_dataclass(holder) else ""
        if isinstance(source, Mapping):
            rest = keys[depth:]
            source = next((source[k] for n in range(len(rest), 0, -1) if (k := ".".join(rest[:n])) in source), "")
        if source:
            return str(source)
    return ""


def _text(path: str, value: Any, dimension: str) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"{_text(path, value[0], dimension)} ... {_text(path, value[-1], dimension)} ({len(value)} values)"
    if isinstance(value, tuple):
        return "[" + ", ".join(_text(path, v, dimension) for v in value) + "]"
    if isinstance(value, np.ndarray):
        return _text(path, tuple(value.tolist()), dimension)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return units.show(value, dimension)
    if isinstance(value, Mapping) and not value:
        return "{}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flow(value: Any) -> str:
    """``value`` as YAML on one line. Characters that YAML takes for line breaks are escaped."""
    text = json.dumps(value, ensure_ascii=False, default=lambda v: list(v) if isinstance(v, tuple) else dict(v))
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
