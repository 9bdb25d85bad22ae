"""YAML text to plain data that remembers where every key and every value stood.

Only what a scenario needs is read: mappings with text keys, lists, text, numbers, ``true``/``false`` and nothing
(``null``, ``~``, empty). Three faults of PyYAML are mended: ``1e9`` and ``1_000`` are numbers, a key given twice is an
error, and positions are kept. ``yes``, ``no``, ``on``, ``off``, dates and ``1:30`` stay text. Tags, anchors, aliases
and merge keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sextant.simulator.errors import InputError, Problem, nearest

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
#: PyYAML takes about 50 us per node: the limit keeps the slowest accepted file near one second.
MAX_NODES = 20_000
#: The longest run of digits that is still a number: beyond it a float overflows.
MAX_DIGITS = 300

Keys = tuple[str | int, ...]
Position = tuple[int, int]

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Plain data and the places it came from.

    ``places`` maps the keys from the top (text keys and list indexes) to the positions of the key and of its value.
    """

    path: str
    data: Any
    places: Mapping[Keys, tuple[Position, Position]]

    def where(self, keys: Keys, value: bool = False) -> Position:
        """Line and column, from 1, of the key at ``keys`` (its value if ``value``), or of the nearest one around."""
        while keys and keys not in self.places:
            keys, value = keys[:-1], False
        return self.places[keys][value] if keys in self.places else (1, 1)


def read(path: str | Path) -> Source:
    """The data of the YAML file at ``path``; InputError if it is absent, unreadable, no text, too large or no YAML."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _fault(path, f"there is no such file{_neighbours(file)}") from None
    except NotADirectoryError:
        raise _fault(path, "a part of this path is a file, not a directory; correct the path") from None
    except IsADirectoryError:
        raise _fault(path, f"is a directory, not a file; name a file in it{_inside(file)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _fault(path, f"cannot be read ({reason}); check the path and its permissions") from None
    if len(data) > MAX_BYTES:
        raise _fault(path, _too_large())
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _fault(path, "the file is UTF-16; save it as UTF-8", 1, 1)
    try:
        return parse(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        message = f"byte 0x{data[error.start]:02x} is not UTF-8: the file is binary or in another encoding; "
        raise _fault(path, message + "save it as UTF-8 text", *_position(before)) from None


def parse(text: str, path: str = "<text>") -> Source:
    """The data of YAML ``text``; ``path`` is what errors call it. InputError lists every fault that can be told."""
    if len(text) > MAX_BYTES:
        raise _fault(path, _too_large())
    if text.startswith("\ufeff"):
        raise _fault(path, "the file starts with a byte order mark; save it as UTF-8 without BOM", 1, 1)
    if "\0" in text:
        place = _position(text[: text.index("\0")])
        raise _fault(path, "the file is binary (it holds a NUL byte); a scenario is UTF-8 text", *place)
    loader: _Loader | None = None
    try:
        loader = _Loader(text, path)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        place = _position(text[: error.position])
        message = f"character U+{ord(text[error.position]):04X} is not allowed; remove it"
        raise _fault(path, message, *place) from None
    except yaml.MarkedYAMLError as error:
        raise InputError(_syntax(error, path)) from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, InputError) or loader is None:
            raise
        # PyYAML lets chr() and int() fail on escapes and directives out of range.
        message = f"an escape or a number in a directive is out of range ({error}); correct this line"
        raise _fault(path, message, loader.line + 1, loader.column + 1) from None
    if node is None:
        what = "holds only comments" if text.strip() else "is empty"
        raise _fault(path, f"the file {what}; a scenario needs at least model, cluster and load", 1, 1)
    reader = _Reader(path)
    data = reader.value(node, ())
    if reader.problems:
        raise InputError(*reader.problems)
    return Source(path=path, data=data, places=reader.places)


def is_number(text: str) -> bool:
    """Whether unquoted ``text`` would be read as a number."""
    return _FLOAT.fullmatch(text) is not None


class _Loader(yaml.SafeLoader):
    """Composes nodes, and stops at the first thing that a scenario must not hold."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self.path, self.depth, self.n_nodes = path, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            self._refuse(event, f"'{sign}{event.anchor}': anchors and aliases are not read; use `base:` to inherit")
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(event, f"the tag {shown[:60]!r} is not read; write plain text, numbers, lists and mappings")
        self.depth += 1
        self.n_nodes += 1
        if self.depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels; check the brackets and the indentation")
        if self.n_nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES:,} values; use linspace or logspace instead of long lists")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, event: yaml.Event, message: str) -> None:
        mark = event.start_mark
        raise _fault(self.path, message, mark.line + 1, mark.column + 1)


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("float", _FLOAT.pattern, "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


class _Reader:
    """Turns nodes into plain data, gathering places and problems on the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.places: dict[Keys, tuple[Position, Position]] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, keys: Keys, key: Position | None = None) -> Any:
        """The plain data of ``node``, which stands at ``keys``; ``key`` is the position of its own key."""
        place = _start(node)
        self.places[keys] = (key or place, place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*keys, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _start(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
                shown = repr(key_node.value)[:40] if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
                self._report(place, f"a key must be a name, got {shown}; name a field, in quotes if need be", keys)
                continue
            key = self._scalar(key_node, keys)
            if key == "<<":
                self._report(place, "merge keys are not read; use `base:` to inherit another scenario", keys)
            elif key in data:
                line, column = self.places[(*keys, key)][0]
                message = f"given twice, first at line {line} column {column}; keep one of them"
                self._report(place, message, (*keys, key))
            else:
                data[key] = self.value(value_node, (*keys, key), place)
        return data

    def _scalar(self, node: yaml.Node, keys: Keys) -> Any:
        text, kind = node.value, node.tag.rpartition(":")[2]
        if kind == "float" and sum(map(str.isdigit, text)) > MAX_DIGITS:
            self._report(_start(node), f"a number of more than {MAX_DIGITS} digits; write it shorter", keys)
            return 0
        if kind == "float":
            return number(text)
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        if _UNPRINTABLE.search(text):
            self._report(_start(node), "the text holds a control character; remove it", keys)
        return text

    def _report(self, place: Position, message: str, keys: Keys) -> None:
        label = ".".join(str(k) for k in keys)
        self.problems.append(
            Problem(path=self.path, line=place[0], column=place[1], key=label if label.isprintable() else repr(label),
                    message=message)
        )  # fmt: skip


def number(text: str) -> int | float:
    """The number that ``text`` (``is_number`` holds) spells; an int where it has neither point nor exponent."""
    plain = text.replace("_", "")
    if _INT.fullmatch(text):
        return int(plain)
    return float(re.sub(r"\.(?=[iInN])", "", plain))


def _start(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _position(before: str) -> Position:
    """Line and column of the character that follows ``before``."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _fault(path: str | Path, message: str, line: int = 0, column: int = 0) -> InputError:
    return InputError(Problem(path=str(path), line=line, column=column, message=message))


def _too_large() -> str:
    return f"larger than {MAX_BYTES // 1_000_000} MB, which no scenario is; check that this is the file you meant"


def _syntax(error: yaml.MarkedYAMLError, path: str) -> Problem:
    mark, what = error.problem_mark or error.context_mark, error.problem or "invalid YAML"
    if "'\\t'" in what:
        what = "a tab cannot indent YAML; use spaces"
    elif "<stream end>" in what and error.context_mark:
        mark, what = error.context_mark, "the bracket opened here is never closed; add the closing one"
    elif "single document" in str(error.context):
        what = "a second document starts here; a scenario is one document: remove the line `---`"
    elif error.context_mark:
        what = f"{what} {error.context} that starts at line {error.context_mark.line + 1}; correct the YAML here"
    else:
        what = f"{what}; correct the YAML here, or put the text in quotes"
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    return Problem(path=path, line=line, column=column, message=what)


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(f.name for f in folder.iterdir() if f.suffix in (".yaml", ".yml"))[:1000]
    except OSError:
        return []


def _neighbours(file: Path) -> str:
    if not file.parent.is_dir():
        return f", and no directory {str(file.parent)!r} either; correct the path"
    known = _yaml_files(file.parent)
    return f"; {nearest(file.name, known)}" if known else f"; {str(file.parent)!r} holds no YAML file: correct the path"


def _inside(folder: Path) -> str:
    known = _yaml_files(folder)
    return f", such as {known[0]!r}" if known else " (it holds no YAML file)"
