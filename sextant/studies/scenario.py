"""A scenario file to a question: validated records, the values its axes take, and where every field came from.

Whatever is wrong with a file is found in one reading and raised as one InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sextant.simulator import paths, units
from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Load, Plan, Scenario
from sextant.studies import allocated, search_space, solve
from sextant.studies import axes as sweep
from sextant.studies.equations import equations
from sextant.studies.fields import Field, convert, find, quantity, shown
from sextant.studies.layers import BASED, BLOCKS, Catalogue, Entry, Layer, collect, split_variant
from sextant.studies.model_file import is_file
from sextant.studies.yaml_source import Source

__all__ = ["Catalogue", "Check", "Question", "load"]

#: Looks at a scenario and yields (path, message); a tuple of paths if several fields are at odds, the first is blamed.
Check = Callable[[Scenario], Iterable[tuple[str | tuple[str, ...], str]]]

_DEVICE = "cluster.device"
_PHASES = ("training", "prefill", "decode", "image_understanding", "image_generation")
_REQUIRED_LOAD = {"load.phase": "decode", "load.batch": "128", "load.context_tokens": "4096"}
_EMPTY_LOAD = Load(phase=_PHASES[0], batch=1.0, context_tokens=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a scenario file asks: ``scenario`` is its first point (axes hold all values, in SI; solved fields
    their value there), the rest is about it.

    ``entries`` is everything the files and ``--set`` say, by dotted path. ``published`` are ids of published figures to
    compare the answer with. ``study`` is who answers it ("": its phase). ``variants`` are the same question with some
    entries changed, on the same axes; what a variant sets itself is ``held`` there, whatever an axis says.
    """

    scenario: Scenario
    entries: Mapping[str, Entry]
    catalogue: Catalogue
    description: str = ""
    published: tuple[str, ...] = ()
    study: str = ""
    variants: Mapping[str, Question] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    def at(self, point: Mapping[str, Any]) -> Scenario:
        """The scenario, not yet solved, in which each path of ``point`` has that value; ``model`` is a path too.

        What the file sets below a base is set on the new base too. InputError if that base lacks such a field.
        """
        problems: list[Problem] = []
        first = {p: v[0] for p, v in self.scenario.axes.items()}
        moved = {p: v for p, v in {**first, **point}.items() if p not in self.held}
        records = _build(self.entries, moved, self.catalogue, problems)
        if problems:
            raise InputError(*problems)
        return replace(self.scenario, **records)

    def unchanged(self, point: Mapping[str, Any]) -> Any:
        """The model that ``point`` is based on, as the catalogue has it: nothing that the file sets is set."""
        bases = {p: e for p, e in self.entries.items() if p == "model"}
        swept = {p: v for p, v in point.items() if p == "model"}
        return _build(bases, swept, self.catalogue, [])["model"]


def load(
    given: str | Path | Source,
    *,
    sets: Sequence[str] = (),
    catalogue: Catalogue,
    checks: Sequence[Check] = (),
    max_points: int = sweep.MAX_POINTS,
) -> Question:
    """The question that a file asks, after ``sets`` (``path=value`` words) changed it.

    ``given`` is a path, the name of a shipped scenario, YAML text (a str with a line break) or a ``Source``.
    ``checks`` see the first point; what they yield about a field that is swept or solved is not an error but a
    point that does not fit.
    Raises one InputError with every problem: ``path:line:column: key: what is wrong; what to do``.
    """
    entries, problems, own = collect(given, sets, catalogue)
    whole, changes = _variants(entries, catalogue, problems)
    question = _question(whole, own, catalogue, problems, checks, max_points)
    variants = {}
    for name, changed in changes.items():
        held = frozenset(path for path in changed if f"axes.{path}" in whole)
        variants[name] = _question({**whole, **changed}, own, catalogue, problems, checks, max_points, held)
    if problems:
        raise InputError(*_in_order(problems))
    assert question is not None and all(variants.values())
    return replace(question, variants=variants)


def _question(
    entries: dict[str, Entry],
    own: Layer,
    catalogue: Catalogue,
    problems: list[Problem],
    checks: Sequence[Check],
    max_points: int,
    held: frozenset[str] = frozenset(),
) -> Question | None:
    """The question that ``entries`` ask; None where there are ``problems``, to which it adds its own."""
    axes = _axes({p: e for p, e in entries.items() if p not in held}, own, catalogue, problems, max_points)
    _required(entries, own, problems)
    header = _header(entries, own, catalogue, problems)
    records = _records(entries, {p: v for p, v in axes.items() if p not in held}, catalogue, problems)
    solving = equations(entries, records, catalogue, problems)
    searched = search_space.given(entries, catalogue, problems)
    problems += allocated.problems(entries)
    asked = {key: entries[key].raw for key in ("description", "study") if key in entries}
    if problems:
        return None
    scenario = Scenario(axes=axes, solve=solving, search=searched, **header, **records)
    question = Question(scenario=scenario, entries=entries, catalogue=catalogue, held=held)
    try:
        scenario = allocated.first(solve.first(question) if solving else scenario, entries)
    except InputError as error:
        problems += error.problems
        return None
    problems += [p for check in checks for p in _checked(check, scenario, entries, own)]
    published = entries.get("published")
    return replace(question, scenario=scenario, published=tuple(published.raw) if published else (), **asked)


def _variants(
    entries: Mapping[str, Entry], catalogue: Catalogue, problems: list[Problem]
) -> tuple[dict[str, Entry], dict[str, dict[str, Entry]]]:
    """The entries of the scenario itself, and by name what each variant changes; the study's name is checked too."""
    whole: dict[str, Entry] = {}
    changes: dict[str, dict[str, Entry]] = {}
    for path, entry in entries.items():
        name, inner = split_variant(path)
        if not name:
            whole[path] = entry
        elif inner.partition(".")[0] not in BLOCKS:
            top = inner.partition(".")[0]
            problems.append(entry.problem(f"a variant changes fields; {nearest(top[:60], BLOCKS)}", value=False))
        else:
            changes.setdefault(name, {})[inner] = entry
    study = whole.get("study")
    if study is not None and isinstance(study.raw, str) and study.raw not in catalogue.studies:
        problems.append(
            study.problem(f"unknown study {shown(study.raw)}; {nearest(study.raw[:60], catalogue.studies)}")
        )
    for name, changed in changes.items():
        for path in changed:
            fixed = whole.get(path)
            if fixed is not None and fixed.layer.source is None and changed[path].layer.source is not None:
                remedy = f"write --set 'variants.{name}.{path}={fixed.raw}' too"
                problems.append(fixed.problem(f"the variant {name} has a value of its own here; {remedy}"))
    return whole, changes


def base_names(entries: Mapping[str, Entry], point: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue names that the records start from at ``point``: model, cluster and, if given, cluster.device."""
    given = {p: entries[p].raw for p in (*BASED, _DEVICE) if p in entries}
    return {**given, **{p: v for p, v in point.items() if p in (*BASED, _DEVICE)}}


def _build(
    entries: Mapping[str, Entry], point: Mapping[str, Any], catalogue: Catalogue, problems: list[Problem]
) -> dict[str, Any]:
    """The four records at ``point``; a record is absent if its base is, or cannot be had."""
    names = base_names(entries, point)
    records: dict[str, Any] = {"plan": Plan(), "load": _EMPTY_LOAD}
    for path, name in ((p, names[p]) for p in (*BASED, _DEVICE) if p in names):
        try:
            if path != _DEVICE:
                records[path] = _base(path, name, catalogue)
            elif "cluster" in records:
                records["cluster"] = paths.put(records["cluster"], "device", _base(path, name, catalogue))
        except InputError as error:
            place = entries.get(f"axes.{path}") if path in point else entries.get(path)
            # A fault inside a model file stays at its place there.
            problems += [place.problem(p.message) if place and not p.path else p for p in error.problems]
    edits = {p: e for p, e in entries.items() if p.partition(".")[0] in BLOCKS and p not in (*BASED, _DEVICE)}
    for path, entry in edits.items():  # also what an axis then replaces: a wrong value is told wherever it stands
        _edit(records, path, entry.raw, entry, catalogue, problems)
    for path, value in point.items():
        if path not in (*BASED, _DEVICE):
            _edit(records, path, value, entries.get(f"axes.{path}", entries.get(path)), catalogue, problems)
    return records


def _base(path: str, name: Any, catalogue: Catalogue) -> Any:
    getters = {
        "model": (catalogue.models, catalogue.model_names, "model"),
        "cluster": (catalogue.clusters, catalogue.cluster_names, "cluster"),
        _DEVICE: (catalogue.gpus, catalogue.gpu_names, "GPU"),
    }
    getter, known, kind = getters[path]
    if not isinstance(name, str):
        raise InputError(f"expected the name of a {kind}, got {shown(name)}; {nearest('', known)}")
    if name not in known and not (path == "model" and is_file(name)):
        raise InputError(f"unknown {kind} {shown(name)}; {nearest(name[:60], known)}")
    return getter(name)


def _field(records: Mapping[str, Any], path: str, catalogue: Catalogue) -> Field:
    top, _, rest = path.partition(".")
    field = find(records[top], rest, top)
    parent, _, key = path.rpartition(".")
    siblings = [known.rpartition(".")[2] for known in catalogue.choices if known.rpartition(".")[0] == parent]
    if siblings and key not in siblings and parent.count(".") and isinstance(paths.get(records, parent), Mapping):
        raise InputError(f"{parent!r} has no field {key!r}; {nearest(key, siblings)}")
    choices = _PHASES if path == "load.phase" else catalogue.choices.get(path, ())
    return replace(field, choices=tuple(choices)) if choices else field


def _edit(
    records: dict[str, Any], path: str, raw: Any, entry: Entry | None, catalogue: Catalogue, problems: list[Problem]
) -> None:
    """Set the field at ``path`` in its record, or add what is wrong to ``problems``."""
    top, _, rest = path.partition(".")
    if top not in records:
        return
    known = False
    try:
        field = _field(records, path, catalogue)
        known = True
        records[top] = _set(records[top], rest, convert(raw, field))
    except InputError as error:
        problems += [_blamed(entry, path, p.message, known) for p in error.problems]
    except ValueError as error:  # a record's own check of its fields
        problems.append(_blamed(entry, path, f"{error}, got {shown(raw)}; correct the value", known))


def _blamed(entry: Entry | None, path: str, message: str, value: bool) -> Problem:
    return entry.problem(message, value=value) if entry else Problem(key=path, message=message)


def _set(record: Any, path: str, value: Any) -> Any:
    """As ``paths.put``, but a key that an open mapping does not hold yet is added."""
    parent, _, key = path.rpartition(".")
    holder = paths.get(record, parent) if parent else record
    if isinstance(holder, Mapping) and key not in holder:
        return paths.put(record, parent, {**holder, key: value})
    return paths.put(record, path, value)


def _axes(
    entries: dict[str, Entry], own: Layer, catalogue: Catalogue, problems: list[Problem], max_points: int
) -> dict[str, tuple[Any, ...]]:
    """The values of every axis, by its dotted path; axes with problems are left out."""
    lengths: dict[str, int] = {}
    given = {p.removeprefix("axes."): e for p, e in entries.items() if p.startswith("axes.")}
    for path, entry in given.items():
        top, dot, _ = path.partition(".")
        fixed = entries.get(path)
        if top not in BLOCKS or (not dot and top not in BASED):
            remedy = nearest(top, BLOCKS) if top not in BLOCKS else f"name one of its fields, as in {top}.field"
            message = f"an axis is a dotted path into model, cluster, plan or load; {remedy}"
            problems.append(entry.problem(message, value=False))
        elif fixed is not None and fixed.layer.source is None:
            message = f"an axis sweeps this field; write --set 'axes.{path}=[{fixed.raw}]' to hold it fixed"
            problems.append(fixed.problem(message))
        else:
            try:
                lengths[path] = sweep.length(entry)
            except InputError as error:
                problems += error.problems
    if too_many := sweep.count_problem(lengths, max_points):
        layer = next(iter(given.values())).layer if len({id(e.layer) for e in given.values()}) == 1 else own
        problems.append(layer.problem(("axes",), too_many, value=False))
        lengths = {p: n for p, n in lengths.items() if isinstance(given[p].raw, list)}
    return _axis_values({p: given[p] for p in lengths}, entries, catalogue, problems)


def _axis_values(
    given: Mapping[str, Entry], entries: Mapping[str, Entry], catalogue: Catalogue, problems: list[Problem]
) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for path, entry in sorted(given.items(), key=lambda item: item[0] not in (*BASED, _DEVICE)):
        if path in (*BASED, _DEVICE):
            known = {"model": catalogue.model_names, "cluster": catalogue.cluster_names}.get(path, catalogue.gpu_names)
            files = [raw for raw in entry.raw if path == "model" and isinstance(raw, str) and is_file(raw)]
            choices = (*known, *files)
            field = Field(path=path, name="", kind="text", optional=False, current=None, choices=choices)
        else:
            # The field's type follows from the records before any edit; a swept base counts by its first value.
            bases = {p: v[0] for p, v in found.items() if p in (*BASED, _DEVICE)}
            only = {p: e for p, e in entries.items() if p in (*BASED, _DEVICE)}
            records = _build(only, bases, catalogue, [])
            if path.partition(".")[0] not in records:
                continue
            try:
                field = _field(records, path, catalogue)
            except InputError as error:
                problems += [entry.problem(p.message, value=False) for p in error.problems]
                continue
        try:
            found[path] = sweep.values(entry, lambda raw, field=field: convert(raw, field), field.whole)
        except InputError as error:
            problems += error.problems
    return {path: found[path] for path in given if path in found}


def _required(entries: Mapping[str, Entry], own: Layer, problems: list[Problem]) -> None:
    """Add a problem for every base and every field of ``load`` that neither a file nor an axis gives."""
    named = {p.key for p in problems if p.path == own.label}
    for path in (p for p in BASED if p not in entries and f"axes.{p}" not in entries and p not in named):
        message = f"no base is given; write `{path}: NAME` or `{path}: {{base: NAME, ...}}`"
        problems.append(_layer_of(path, entries, own).problem((path,), message, value=False))
    missing = [p for p in _REQUIRED_LOAD if p not in entries and f"axes.{p}" not in entries]
    if missing and "load" not in named:
        example = ", ".join(f"{p.partition('.')[2]}: {_REQUIRED_LOAD[p]}" for p in missing)
        message = f"the load needs more; add {example}"
        problems.append(_layer_of("load", entries, own).problem(("load",), message, value=False))


def _layer_of(top: str, entries: Mapping[str, Entry], own: Layer) -> Layer:
    """The layer that writes the block ``top``, or the scenario's own."""
    return next((e.layer for p, e in entries.items() if p.startswith(top + ".")), own)


def _header(entries: Mapping[str, Entry], own: Layer, catalogue: Catalogue, problems: list[Problem]) -> dict[str, Any]:
    """Everything of the scenario but its records and axes."""
    header: dict[str, Any] = {k: entries[k].raw for k in ("engine", "seed") if k in entries}
    header["name"] = entries["name"].raw if "name" in entries else Path(own.label).stem
    constraints: dict[str, dict[str, float]] = {}
    objectives: dict[str, str] = {}
    for path, entry in entries.items():
        top, _, rest = path.partition(".")
        if top not in ("constraints", "objectives"):
            continue
        metric = rest.split(".")[0]
        if catalogue.metrics and metric not in catalogue.metrics:
            message = f"unknown metric {shown(metric)}; {nearest(metric[:60], catalogue.metrics)}"
            problems.append(entry.layer.problem(entry.keys[:2], message, value=False))
        elif top == "objectives":
            objectives[metric] = entry.raw
        elif entry.path.endswith((".min", ".max")):
            try:
                bound = quantity(entry.raw, units.dimension(metric))
                constraints.setdefault(metric, {})[rest.rpartition(".")[2]] = bound
            except InputError as error:
                problems += [entry.problem(p.message) for p in error.problems]
    for metric, limits in constraints.items():
        if limits.get("min", float("-inf")) > limits.get("max", float("inf")):
            low, high = (units.show(limits[side], units.dimension(metric)) for side in ("min", "max"))
            message = f"min {low} is above max {high}, so no point can meet both; exchange them"
            problems.append(entries[f"constraints.{metric}.min"].problem(message))
    published = entries.get("published")
    for i, name in enumerate(published.raw if published and isinstance(published.raw, list) else ()):
        if published and catalogue.published and isinstance(name, str) and name not in catalogue.published:
            message = f"unknown figure {shown(name)}; {nearest(name[:60], catalogue.published)}"
            problems.append(published.problem(message, i))
    return {**header, "constraints": constraints, "objectives": objectives}


def _records(
    entries: Mapping[str, Entry], axes: Mapping[str, tuple[Any, ...]], catalogue: Catalogue, problems: list[Problem]
) -> dict[str, Any]:
    """The records of the first point, after every swept base was tried with all that is set below it."""
    first = {p: v[0] for p, v in axes.items()}
    records = _build(entries, first, catalogue, problems)
    others = [{"model": name} for name in axes.get("model", ())[1:]]
    devices = axes.get(_DEVICE, (None,))
    others += [
        {p: v for p, v in (("cluster", cluster), (_DEVICE, device)) if v is not None}
        for cluster in axes.get("cluster", (None,))
        for device in devices
        if "cluster" in axes or _DEVICE in axes
    ]
    for point in others:
        found: list[Problem] = []
        _build(entries, {**first, **point}, catalogue, found)
        problems += [p for p in found if p not in problems]
    return records


def _checked(check: Check, scenario: Scenario, entries: Mapping[str, Entry], own: Layer) -> Iterable[Problem]:
    """What ``check`` finds, at the place of the path that it blames, unless a path it names is swept or solved."""
    for blamed, message in check(scenario):
        names = (blamed,) if isinstance(blamed, str) else blamed
        moving = (*scenario.axes, *scenario.solve, *allocated.moving(entries))
        if any(n == axis or n.startswith(axis + ".") for n in names for axis in moving):
            continue
        path = names[0]
        if path in entries:
            yield entries[path].problem(message)
        else:
            yield own.problem(tuple(path.split(".")), message, value=False, label=path)


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """By file in order of appearance, then by place, each once."""
    unique = list(dict.fromkeys(problems))
    files = list(dict.fromkeys(p.path for p in unique))
    return sorted(unique, key=lambda p: (files.index(p.path), p.line, p.column))
