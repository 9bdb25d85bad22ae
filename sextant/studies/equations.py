"""The equations of a scenario's ``solve``: which field follows from which size, equal to what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sextant.simulator import units
from sextant.simulator.errors import InputError, Problem, nearest
from sextant.studies.fields import Field, find, quantity, shown
from sextant.studies.layers import Catalogue, Entry

#: Takes an equation out that the scenario inherits: ``--set 'solve.model.n_routed_experts=off'``.
OFF = "off"
#: The target that is the size of the model as the catalogue has it.
BASE = "base"
#: The solved field is a multiple of this number.
MULTIPLE = "multiple_of"
#: The largest value that a solved field may take.
MOST = 1e9

#: The records that sizes follow from.
_RECORDS = ("model", "load")


def equations(
    entries: Mapping[str, Entry], records: Mapping[str, Any], catalogue: Catalogue, problems: list[Problem]
) -> dict[str, dict[str, float | str]]:
    """``{path: {size: target, multiple_of: number}}`` in file order; equations with problems are left out."""
    found: dict[str, dict[str, float | str]] = {}
    for key, entry in entries.items():
        path = key.removeprefix("solve.")
        if path == key or entry.raw == OFF:
            continue
        wrong = _place_problems(path, entry, entries)
        try:
            field = _field(path, entry, records) if not wrong else None
            if field is not None:
                found[path] = _read(entry, field, catalogue)
        except InputError as error:
            wrong += error.problems
        problems += wrong
    return found


def equation(given: Mapping[str, float | str]) -> tuple[str, float | str, float]:
    """The size, its target, and the ``multiple_of`` (0 if there is none) of one equation of ``Scenario.solve``."""
    ((name, target),) = ((k, v) for k, v in given.items() if k != MULTIPLE)
    return name, target, float(given.get(MULTIPLE, 0.0))


def figure(value: float | str) -> str:
    """A size as people write it, six digits and a power of a thousand: 26.7e9. Text as it is."""
    if isinstance(value, str):
        return value
    power = 3 * int(math.log10(abs(value)) // 3) if abs(value) >= 1e6 else 0
    text = f"{value / 10**power:.6g}"
    return f"{text}e{power}" if power else text


def _place_problems(path: str, entry: Entry, entries: Mapping[str, Entry]) -> list[Problem]:
    """What is wrong with solving the field at ``path``, whatever the equation says."""
    top, dot, _ = path.partition(".")
    if top not in _RECORDS or not dot:
        example = f"{top}.field" if top in _RECORDS else "model.n_routed_experts"
        message = f"sizes follow from fields of model and load only, got {shown(path)}; name one, such as {example}"
        return [entry.problem(message, value=False)]
    fixed, axis = entries.get(path), entries.get(f"axes.{path}")
    if axis is not None:
        by_set = axis.layer.source is None
        message = f"this field is solved; write --set 'solve.{path}={OFF}' too to sweep it"
        if not by_set:
            message = "this field is an axis, so it cannot follow from a size; remove it from axes or from solve"
        return [(axis if by_set else entry).problem(message, value=False)]
    if fixed is not None and fixed.layer.source is None:
        return [fixed.problem(f"this field is solved; write --set 'solve.{path}={OFF}' too to hold it fixed")]
    return []


def _field(path: str, entry: Entry, records: Mapping[str, Any]) -> Field | None:
    """The field at ``path``, None where its record could not be had; InputError if it holds no number."""
    top, _, rest = path.partition(".")
    if top not in records:
        return None
    try:
        field = find(records[top], rest, top)
    except InputError as error:
        raise InputError(*(entry.problem(p.message, value=False) for p in error.problems)) from None
    if field.kind not in ("number", "integer"):
        message = f"expected a field that holds a number, got {field.kind}; solve another"
        raise InputError(entry.problem(message, value=False))
    return field


def _read(entry: Entry, field: Field, catalogue: Catalogue) -> dict[str, float | str]:
    """One equation; InputError with the place of what is wrong in it."""
    raw = entry.raw
    if not isinstance(raw, dict):
        remedy = "write {n_parameters: base} or {n_parameters: 26.7e9}"
        raise InputError(entry.problem(f"expected a size and its target, got {shown(raw)}; {remedy}"))
    known = (*catalogue.sizes, MULTIPLE)
    unknown = [k for k in raw if k not in known]
    if unknown:
        raise InputError(*(entry.problem(f"unknown size {shown(k)}; {nearest(str(k)[:60], known)}", k, value=False)
                           for k in unknown))  # fmt: skip
    names = [k for k in raw if k != MULTIPLE]
    if len(names) != 1:
        got = " and ".join(names) or "none"
        raise InputError(entry.problem(f"one field follows from one size, got {got}; write one, such as n_parameters"))
    (name,) = names
    given: dict[str, float | str] = {name: _target(entry, name, raw[name])}
    if MULTIPLE in raw:
        given[MULTIPLE] = _multiple(entry, field, raw[MULTIPLE])
    return given


def _target(entry: Entry, name: str, raw: Any) -> float | str:
    if raw == BASE:
        return BASE
    remedy = f"write a number or {BASE}"
    if isinstance(raw, str) and not raw[:1].isdigit():
        raise InputError(entry.problem(f"expected a size, got {shown(raw)}; {remedy}", name))
    return _positive(entry, name, raw, units.dimension(name), remedy)


def _multiple(entry: Entry, field: Field, raw: Any) -> float:
    value = _positive(entry, MULTIPLE, raw, field.dimension, "write a number such as 8")
    if field.whole and value != int(value):
        rest = f"got {value:g}; write {max(1, round(value))}"
        raise InputError(entry.problem(f"the field counts something, so it is a whole number, {rest}", MULTIPLE))
    if value > MOST:
        raise InputError(entry.problem(f"a solved field is at most {MOST:g}, got {value:g}; write less", MULTIPLE))
    return value


def _positive(entry: Entry, key: str, raw: Any, dimension: str, remedy: str) -> float:
    try:
        value = float(quantity(raw, dimension))
    except InputError as error:
        raise InputError(*(entry.problem(p.message, key) for p in error.problems)) from None
    except OverflowError:
        raise InputError(entry.problem(f"is too large, got {shown(raw)}; {remedy}", key)) from None
    if value <= 0:
        raise InputError(entry.problem(f"must be more than zero, got {value:g}; {remedy}", key))
    return value
