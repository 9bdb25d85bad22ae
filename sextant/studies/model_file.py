"""Models from files: a YAML file of a model's fields, or a Hugging Face config.json, where a scenario names a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sextant.simulator import paths
from sextant.simulator.errors import InputError, Problem, nearest
from sextant.studies import yaml_source
from sextant.studies.fields import convert, find, shown
from sextant.studies.files import save
from sextant.studies.yaml_source import Source
from sextant.workloads import models
from sextant.workloads.huggingface import Imported, import_config
from sextant.workloads.transformer import Transformer

#: File names that stand for a model; anything else is a name of the catalogue.
SUFFIXES = (".yaml", ".yml", ".json")

#: A config.json larger than this is not one.
_MOST_BYTES = 2**22

_BLANK = Transformer(
    name="", system="", attention="gqa", hidden_size=1.0, num_hidden_layers=1.0, num_attention_heads=1.0,
    num_key_value_heads=1.0, vocab_size=1.0, intermediate_size=1.0,
)  # fmt: skip
_REQUIRED = tuple(f.name for f in fields(Transformer) if f.default is MISSING and f.default_factory is MISSING)
_CHOICES = {"attention": ("mla", "gqa"), "topk_method": ("greedy", "group_limited_greedy", "noaux_tc")}


def is_file(name: str) -> bool:
    """Whether ``name`` is a model file rather than a name of the catalogue."""
    return name.lower().endswith(SUFFIXES)


def named(name: str) -> Transformer:
    """The model of a file or of the catalogue; InputError with everything wrong."""
    if not is_file(name):
        return models.model(name)
    path = Path(name)
    return imported(path).model if path.suffix.lower() == ".json" else load(path)


def load(path: str | Path) -> Transformer:
    """The model that a YAML file describes, whole or as changes to a ``base`` of the catalogue."""
    source = yaml_source.read(path)
    if not isinstance(source.data, dict):
        raise InputError(_problem(source, (), f"expected `field: value` lines, got {shown(source.data)}"))
    data, problems = dict(source.data), []
    base = data.pop("base", None)
    record = _BLANK
    if base is not None:
        try:
            if not isinstance(base, str):
                raise InputError(f"expected the name of a model, got {shown(base)}")
            record = models.model(base)
        except InputError as error:
            raise InputError(*(_problem(source, ("base",), p.message) for p in error.problems)) from None
    for name in (n for n in _REQUIRED if base is None and n not in data):
        problems.append(_problem(source, (), "is missing; every model has it, or a `base`", name))
    for key, raw in data.items():
        record = _put(record, key, raw, source, problems)
    if problems:
        raise InputError(*sorted(problems, key=lambda p: (p.line, p.column)))
    return paths.put(record, "official", {}) if base is not None and "official" not in data else record


def _put(record: Transformer, key: str, raw: Any, source: Source, problems: list[Problem]) -> Transformer:
    """``record`` with the field ``key`` set; a mapping sets the fields of a nested record."""
    if key in ("source", "official"):
        if isinstance(raw, Mapping):
            return paths.put(record, key, {str(k): v if key == "official" else str(v) for k, v in raw.items()})
        problems.append(_problem(source, (key,), f"expected `key: value` lines, got {shown(raw)}"))
        return record
    leaves = _leaves(raw, (key,)) if isinstance(raw, Mapping) else [((key,), raw)]
    for keys, value in leaves:
        path = ".".join(keys)
        try:
            found = find(record, path, "")
            converted = convert(value, found)
            if path in _CHOICES and converted not in _CHOICES[path]:
                raise InputError(f"unknown value {shown(value)}; {nearest(str(value)[:60], _CHOICES[path])}")
            record = paths.put(record, path, converted)
        except InputError as error:
            problems += [_problem(source, keys, p.message) for p in error.problems]
    return record


def _leaves(raw: Mapping[Any, Any], keys: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in raw.items():
        inner = (*keys, str(key))
        found += _leaves(value, inner) if isinstance(value, Mapping) else [(inner, value)]
    return found


def _problem(source: Source, keys: tuple[str, ...], message: str, key: str = "") -> Problem:
    line, column = source.where(keys, value=True)
    return Problem(path=str(source.path), line=line, column=column, key=key or ".".join(keys), message=message)


def imported(path: str | Path, name: str = "") -> Imported:
    """The model of a Hugging Face config.json; faults carry the line of their key."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path}: {size:,} bytes are no config.json; give the model's config")
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a config.json") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text; give a config.json") from None
    except json.JSONDecodeError as error:
        place = Problem(path=str(path), line=error.lineno, column=error.colno, message=f"is not JSON: {error.msg}")
        raise InputError(place) from None
    except (RecursionError, ValueError):
        raise InputError(f"{path}: is not a config.json: nested too deeply, or a number of too many digits") from None
    try:
        return import_config(config, name or _name(path), source=f"Hugging Face {path.name}")
    except InputError as error:
        raise InputError(*(_placed(p, path, text) for p in error.problems)) from None


def _placed(problem: Problem, path: Path, text: str) -> Problem:
    """``problem`` at the first line that has its key."""
    for number, line in enumerate(text.splitlines(), start=1) if problem.key else ():
        column = line.find(f'"{problem.key}"')
        if column >= 0:
            return Problem(
                path=str(path), line=number, column=column + 1, key=problem.key, message=problem.message
            )  # fmt: skip
    return Problem(path=str(path), key=problem.key, message=problem.message)


def _name(path: Path) -> str:
    """A catalogue-like name from a file's: Qwen--Qwen3-32B_config.json becomes qwen3-32b."""
    stem = re.sub(r"[._-]?config$", "", path.stem, flags=re.IGNORECASE) or path.resolve().parent.name
    return re.sub(r"[^a-z0-9.]+", "-", stem.rpartition("--")[2].lower()).strip("-") or "imported"


def text(found: Imported) -> str:
    """A model file of an imported model: what differs from a field's default, in the order of the record."""
    lines = [f"# A {found.family} model, imported from a Hugging Face config."]
    for each in fields(Transformer):
        value, default = getattr(found.model, each.name), each.default
        if each.name in _REQUIRED or (default is not MISSING and value != default) or (each.name == "source" and value):
            lines.append(f"{each.name}: {_yaml(value)}")
    return "\n".join(lines) + "\n"


def write(found: Imported, out: str, *, force: bool) -> Path:
    """The model file at ``out``, whole or not at all; InputError where one stands there and ``force`` is not given."""
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES[:2]:
        raise InputError(f"--out {out}: a model file ends in .yaml; name it so")
    if path.exists() and not force:
        raise InputError(f"--out {out}: exists; add --force to replace it, or name another file")
    if not path.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {path.parent}; make it first")
    return save(path, lambda file: file.write(text(found)))


def _yaml(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=dict)
