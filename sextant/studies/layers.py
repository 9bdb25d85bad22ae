"""The files and ``--set`` words that a question is written in, merged to one entry per dotted path.

A scenario may inherit another through ``base:``; the child's entries win, each entry keeps the place it was written at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from sextant.simulator.errors import InputError, Problem, nearest
from sextant.simulator.types import Cluster, Device, Num
from sextant.studies import yaml_source
from sextant.studies.fields import shown
from sextant.studies.model_file import is_file
from sextant.studies.yaml_source import Keys, Source

#: The records whose fields are set by dotted paths.
BLOCKS = ("model", "cluster", "plan", "load")
#: The blocks that start from a named record of a catalogue.
BASED = ("model", "cluster")
_PLAIN = ("name", "description", "engine", "seed", "published", "study")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What names a scenario may use. The functions raise InputError for a name they do not know.

    ``metrics`` are the names that constraints and objectives may use, ``published`` the ids of published figures; an
    empty one is not checked against. ``choices`` lists, by dotted path, the texts that a field accepts. ``sizes`` are
    functions of a model and a load that ``solve`` may hold equal. ``studies`` are the names that ``study`` may say.
    """

    models: Callable[[str], object]
    model_names: Sequence[str]
    clusters: Callable[[str], Cluster]
    cluster_names: Sequence[str]
    gpus: Callable[[str], Device]
    gpu_names: Sequence[str]
    scenarios: Callable[[str], Path]
    scenario_names: Sequence[str] = ()
    metrics: Sequence[str] = ()
    published: Sequence[str] = ()
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sizes: Mapping[str, Callable[[Any, Any], Num]] = field(default_factory=dict)
    studies: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file, or one ``--set``, as a mapping of the outer shape; ``label`` is what errors call it."""

    label: str
    data: Mapping[str, Any]
    source: Source | None = None

    def problem(self, keys: Keys, message: str, *, value: bool = True, label: str = "") -> Problem:
        """``message`` at the place of the value (or of the key) at ``keys``."""
        line, column = self.source.where(keys, value) if self.source else (0, 0)
        name = label or ".".join(str(k) for k in keys)
        name = name if name.isprintable() else repr(name)
        return Problem(path=self.label, line=line, column=column, key=name, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one layer says at one dotted path: the raw value, and the keys under which the layer holds it."""

    path: str
    raw: Any
    layer: Layer
    keys: Keys

    @property
    def place(self) -> str:
        """``file:line`` or ``--set path=value``."""
        return f"{self.layer.label}:{self.layer.source.where(self.keys)[0]}" if self.layer.source else self.layer.label

    def problem(self, message: str, *more: str | int, value: bool = True) -> Problem:
        """``message`` at this entry's value, at an item inside it, or at its key."""
        return self.layer.problem((*self.keys, *more), message, value=value, label=self.path)


def collect(
    given: str | Path | Source, sets: Sequence[str], catalogue: Catalogue
) -> tuple[dict[str, Entry], list[Problem], Layer]:
    """Every entry of a scenario by its dotted path, in file order with the oldest ancestor first, and the problems.

    The layer returned is the scenario's own file, for problems about what it lacks.
    """
    problems: list[Problem] = []
    chain = _chain(given, catalogue, problems)
    layers = [*reversed(chain), *_settings(sets, problems)]
    entries: dict[str, Entry] = {}
    for layer in layers:
        problems += _outer_problems(layer)
        for path, entry in _flatten(layer, problems).items():
            entries[path] = entry
    return entries, problems, chain[0]


def _block(value: Any) -> Any:
    if not isinstance(value, str | dict):
        remedy = "write `key: name` or `key: {base: name, ...}`"
        message = f"expected a catalogue name or fields, got {shown(value)}; {remedy}"
        raise PydanticCustomError("block", "{text}", {"text": message})
    return value


class _Outer(BaseModel):
    """The outer shape of one file; what the blocks hold is checked against the records they change."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)] = ""
    base: str = ""
    description: str = ""
    model: Annotated[Any, AfterValidator(_block)] = None
    cluster: Annotated[Any, AfterValidator(_block)] = None
    plan: dict[str, Any] = {}
    load: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    solve: dict[str, Any] = {}
    search: dict[str, Any] = {}
    constraints: dict[str, Annotated[dict[Literal["min", "max"], Any], Field(min_length=1)]] = {}
    objectives: dict[str, Literal["min", "max"]] = {}
    engine: Literal["analytic", "event"] = "analytic"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    published: list[str] = []
    study: str = ""
    variants: dict[str, dict[str, Any]] = {}


def _outer_problems(layer: Layer) -> list[Problem]:
    try:
        _Outer.model_validate(dict(layer.data))
    except ValidationError as error:
        return [_translate(layer, dict(e)) for e in error.errors(include_url=False)]
    return []


def _translate(layer: Layer, error: dict[str, Any]) -> Problem:
    """A pydantic error as a Problem: what is wrong, the value, and what to do."""
    keys = tuple(k for k in error["loc"] if k != "[key]")
    got, kind = shown(error["input"]), error["type"]
    if kind == "extra_forbidden":
        return layer.problem(keys, f"unknown key; {nearest(str(keys[-1]), _Outer.model_fields)}", value=False)
    if error["input"] is None:
        return layer.problem(keys, "has no value; give it one or remove the key")
    if error["loc"][-1] == "[key]":
        return layer.problem(keys, f"unknown key; {nearest(str(keys[-1]), ('min', 'max'))}", value=False)
    if kind == "dict_type" and keys[0] == "constraints" and len(keys) == 2:
        return layer.problem(keys, f"expected a bound, got {got}; write {{max: value}} or {{min: value}}")
    messages = {
        "string_type": f"expected text, got {got}; put it in quotes",
        "string_too_short": "is empty; write a name or remove the key",
        "dict_type": f"expected a mapping, got {got}; write its fields below it, one `key: value` a line",
        "list_type": f"expected a list, got {got}; write [{got}]",
        "int_type": f"expected a whole number, got {got}; write one such as 0, without quotes",
        "greater_than_equal": f"must not be negative, got {got}; write 0 or more",
        "less_than": f"is too large, got {got}; write a number below 2**63",
        "too_short": "is empty; write {max: value} or {min: value}",
        "block": error["msg"],
    }
    if kind == "literal_error":
        known = ("analytic", "event") if keys == ("engine",) else ("min", "max")
        return layer.problem(keys, f"unknown value {got}; {nearest(str(error['input'])[:60], known)}")
    return layer.problem(keys, messages.get(kind, f"{error['msg']}, got {got}; correct the value"))


def _chain(given: str | Path | Source, catalogue: Catalogue, problems: list[Problem]) -> list[Layer]:
    """The scenario's own layer, then the one it inherits, and so on. The first must be readable."""
    layer = _layer(given if isinstance(given, Source) else _open(given, catalogue))
    chain, seen = [layer], [_identity(layer.label)]
    while isinstance(base := layer.data.get("base"), str):
        try:
            target = _base_path(base, layer, catalogue)
            if _identity(target) in seen:
                files = [*(c.label for c in chain[seen.index(_identity(target)) :]), target]
                circle = " -> ".join(Path(f).name for f in files)
                raise InputError(f"the bases go in a circle: {circle}; remove one `base:`")
            source = yaml_source.read(target)
        except InputError as error:
            problems += [_moved(p, layer, base) for p in error.problems]
            break
        try:
            layer = _layer(source)
        except InputError as error:
            problems += error.problems
            break
        chain.append(layer)
        seen.append(_identity(target))
    return chain


def _moved(problem: Problem, layer: Layer, base: str) -> Problem:
    """A problem of finding a base file belongs to the line that names it; a problem inside the file stays there."""
    if problem.line:
        return problem
    return layer.problem(("base",), f"{shown(base)}: {problem.message}" if problem.path else problem.message)


def _identity(path: str | Path) -> str:
    try:
        return str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):
        return str(path)


def _base_path(base: str, layer: Layer, catalogue: Catalogue) -> Path:
    if not base.strip():
        raise InputError("is empty; name a scenario file or remove the key")
    file = Path(layer.label).parent / base
    if base.endswith((".yaml", ".yml")) or "/" in base:
        return file
    if base in catalogue.scenario_names:
        return Path(catalogue.scenarios(base))
    offer = nearest(base[:60], catalogue.scenario_names)
    raise InputError(f"unknown scenario {shown(base)}; {offer} (or name a .yaml file)")


def _open(given: str | Path, catalogue: Catalogue) -> Source:
    if isinstance(given, str) and "\n" in given:
        return yaml_source.parse(given)
    if isinstance(given, str) and given in catalogue.scenario_names:
        return yaml_source.read(catalogue.scenarios(given))
    return yaml_source.read(given)


def _layer(source: Source) -> Layer:
    if not isinstance(source.data, dict):
        what = "a list" if isinstance(source.data, list) else shown(source.data)
        message = f"expected `key: value` lines at the top level, got {what}; start with `model:`, `cluster:`, `load:`"
        line, column = source.where(())
        raise InputError(Problem(path=source.path, line=line, column=column, message=message))
    return Layer(label=source.path, data=source.data, source=source)


def _settings(sets: Sequence[str], problems: list[Problem]) -> list[Layer]:
    """One layer per ``--set path=value``; the value is read as YAML."""
    layers: list[Layer] = []
    for word in sets:
        label = f"--set {word}" if len(word) <= 200 and word.isprintable() else f"--set {shown(word)}"
        path, equals, text = word.partition("=")
        top, _, rest = path.strip().partition(".")
        if not equals or not top:
            problems.append(Problem(path=label, message="expected path=value; write for example plan.pipeline=8"))
        elif top == "base":
            problems.append(Problem(path=label, message="base cannot be set here; run that scenario instead"))
        elif not text.strip():
            problems.append(Problem(path=label, message="no value after '='; write one"))
        else:
            try:
                raw = yaml_source.parse(text, label).data
            except InputError as error:
                problems += [Problem(path=label, key=path.strip(), message=p.message) for p in error.problems]
                continue
            for key in (
                reversed(rest.split(".") if top not in (*BLOCKS, "axes", "solve", "search") else [rest]) if rest else ()
            ):
                raw = {key: raw}
            layers.append(Layer(label=label, data={top: raw}))
    return layers


def _flatten(layer: Layer, problems: list[Problem]) -> dict[str, Entry]:
    """The entries of one layer. ``model: x`` is short for ``model: {base: x}`` and both are the entry ``model``."""
    entries: dict[str, Entry] = {}

    def add(path: str, raw: Any, keys: Keys) -> None:
        if split_variant(path)[1] in ("model", "axes.model"):
            raw = _beside(layer, raw)
        entry = Entry(path=path, raw=raw, layer=layer, keys=keys)
        if path in entries:
            line, column = layer.source.where(entries[path].keys) if layer.source else (0, 0)
            problems.append(entry.problem(f"given twice, first at line {line} column {column}; keep one", value=False))
        else:
            entries[path] = entry

    def walk(path: str, raw: Any, keys: Keys) -> None:
        if isinstance(raw, dict):
            for key, value in raw.items():
                walk(f"{path}.{key}", value, (*keys, key))
        else:
            add(_without_base(path), raw, keys)

    for top, raw in layer.data.items():
        if top in (*BLOCKS, "constraints", "objectives") and isinstance(raw, dict):
            walk(top, raw, (top,))
        elif top == "variants" and isinstance(raw, dict):
            for name, fields in raw.items():
                walk(f"variants.{name}", fields, (top, name))
        elif top in ("axes", "solve", "search") and isinstance(raw, dict):
            for key, value in raw.items():
                add(f"{top}.{_without_base(key)}", value, (top, key))
        elif (top in BASED and isinstance(raw, str)) or top in _PLAIN:
            add(top, raw, (top,))
    return entries


def _beside(layer: Layer, raw: Any) -> Any:
    """The name of a model, or the list of an axis, with model files found from the file that names them."""
    if isinstance(raw, list):
        return [_beside(layer, item) for item in raw]
    if layer.source is None or not isinstance(raw, str) or not is_file(raw):
        return raw
    return str(Path(layer.label).parent / raw)


def _without_base(path: str) -> str:
    variant, inner = split_variant(path)
    head = path.removesuffix(inner) if variant else ""
    based = inner in ("model.base", "cluster.base", "cluster.device.base")
    return head + (inner.removesuffix(".base") if based else inner)


def split_variant(path: str) -> tuple[str, str]:
    """The variant that a dotted path is of, and the path inside it; ("", path) for a path of the scenario itself."""
    top, _, rest = path.partition(".")
    name, dot, inner = rest.partition(".")
    return (name, inner) if top == "variants" and dot else ("", path)
