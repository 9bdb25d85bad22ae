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
from sextant.studies.fields import convert, find, quantity, shown
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
    """The model that a YAML file describes, whole or as changes to a ``base`` of the catalogue.

    Changes make another model: it is called as the file says, or as the file is; it has no published figures but those
    the file gives; and the source of each changed field is its line in the file.
    """
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
            record = paths.put(_unpublished(models.model(base)), "name", Path(path).stem)
        except InputError as error:
            raise InputError(*(_problem(source, ("base",), p.message) for p in error.problems)) from None
    for name in (n for n in _REQUIRED if base is None and n not in data):
        problems.append(_problem(source, (), "is missing; every model has it, or a `base`", name))
    # Sources come last: what the file says of them counts more than the lines of its fields.
    for key in sorted(data, key=lambda key: key == "source"):
        record = _put(record, key, data[key], source, problems)
        if base is not None and key not in ("name", "source", "official"):
            record = _from_line(record, key, data[key], source)
    if problems:
        raise InputError(*sorted(problems, key=lambda p: (p.line, p.column)))
    return record


def _unpublished(model: Transformer) -> Transformer:
    """``model`` without its publisher's figures and their sources."""
    kept = {key: text for key, text in model.source.items() if not key.startswith("official.")}
    return paths.put(paths.put(model, "official", {}), "source", kept)


def _from_line(record: Transformer, key: str, raw: Any, source: Source) -> Transformer:
    """``record`` whose sources name the line of the file for what ``key`` sets, in place of the base's."""
    for keys in [keys for keys, _ in _leaves(raw, (key,))] if isinstance(raw, Mapping) else [(key,)]:
        line, _ = source.where(keys)
        # A nested record's own sources are looked up before those of the model.
        nested = len(keys) > 1 and isinstance(getattr(getattr(record, key, None), "source", None), Mapping)
        path, field = (f"{key}.source", ".".join(keys[1:])) if nested else ("source", ".".join(keys))
        said = {**paths.get(record, path), field: f"{Path(source.path).name}:{line}"}
        record = paths.put(record, path, said)
    return record


def _put(record: Transformer, key: str, raw: Any, source: Source, problems: list[Problem]) -> Transformer:
    """``record`` with the field ``key`` set; a mapping sets the fields of a nested record."""
    if key in ("source", "official"):
        return _said(record, key, raw, source, problems)
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


def _said(record: Transformer, key: str, raw: Any, source: Source, problems: list[Problem]) -> Transformer:
    """``record`` with the sources (texts) or official figures (numbers) that a file gives added to its own."""
    if not isinstance(raw, Mapping):
        problems.append(_problem(source, (key,), f"expected `key: value` lines, got {shown(raw)}"))
        return record
    said = dict(getattr(record, key))
    for name, value in raw.items():
        try:
            if key == "official":
                said[name] = float(quantity(value, ""))
            elif isinstance(value, str):
                said[name] = value
            else:
                raise InputError(f"expected text, got {shown(value)}; put it in quotes")
        except InputError as error:
            problems += [_problem(source, (key, name), p.message) for p in error.problems]
    return paths.put(record, key, said)


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
    text = ""
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise InputError(Problem(message=f"{size:,} bytes are no config.json; give the model's config"))
        text = path.read_text(encoding="utf-8")
        config = json.loads(text, object_pairs_hook=_once)
    except InputError as error:
        raise InputError(*(_placed(p, path, text, last=True) for p in error.problems)) from None
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of ``pairs``; InputError for a key given twice, of which JSON would silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(Problem(key=twice, message="is given twice; keep one"))
    return found


def _placed(problem: Problem, path: Path, text: str, *, last: bool = False) -> Problem:
    """``problem`` at the first line that has its key, or at the ``last``."""
    lines = list(enumerate(text.splitlines(), start=1))
    for number, line in (reversed(lines) if last else lines) if problem.key else ():
        column = line.rfind(f'"{problem.key}"') if last else line.find(f'"{problem.key}"')
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
