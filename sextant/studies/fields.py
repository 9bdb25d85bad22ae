"""What may stand in a field: from what a YAML file says to the value a record holds, by the field's type and name.

The type comes from the record's annotations, the unit from the end of the name (``units.dimension``), and so does
whether a number counts something (then it is whole) and whether zero or more than one makes sense.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from sextant.simulator import paths, units
from sextant.simulator.errors import InputError, nearest
from sextant.studies.yaml_source import is_number

Kind = Literal["number", "integer", "flag", "text", "list", "mapping", "record"]

_DEGREES = {"tensor", "expert", "pipeline", "data", "context", "virtual_stages", "micro_batch", "batch"}
_COUNTS = _DEGREES | {
    "context_tokens",
    "redundant_experts",
    "zero_stage",
    "layers_per_stage",
    "first_k_dense_replace",
    "topk_group",
    "image_height",
    "image_width",
}
_COUNTS |= {"stragglers", "engram_layers", "engram_orders", "engram_rows", "engram_conv_kernel", "sinkhorn_iters"}
_COUNT_STARTS = ("n_", "num_")
_COUNT_ENDS = ("_size", "_dim", "_rank", "_heads", "_layers", "_experts", "_len")
_POSITIVE = _DEGREES | {
    "n_devices", "n_sms", "layers_per_stage", "context_tokens", "efficiency", "clock_under_load", "straggler_slowdown",
    "image_height", "image_width", "n_streams", "engram_rows", "engram_dim", "engram_heads", "engram_layers",
    "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
}  # fmt: skip
_SHARES = ("fraction", "efficiency", "share")
#: Shares that leave something.
_BELOW_ONE = {"engram_fraction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record: the name its unit and its rules follow from, its kind, and what it holds now."""

    path: str
    name: str
    kind: Kind
    optional: bool
    current: Any
    item: Kind = "text"
    choices: tuple[str, ...] = ()

    @property
    def dimension(self) -> str:
        """The unit's dimension, as ``units.parse`` wants it; "" for a bare number."""
        return units.dimension(self.name)

    @property
    def whole(self) -> bool:
        """Whether the field counts something, so that only whole numbers make sense."""
        if self.kind == "integer" or (self.kind == "list" and self.item == "integer"):
            return True
        counts = self.name in _COUNTS or self.name.startswith(_COUNT_STARTS) or self.name.endswith(_COUNT_ENDS)
        return counts and not self.dimension and not _is_fraction(self.current)


def find(record: Any, path: str, within: str = "") -> Field:
    """The field at dotted ``path`` of ``record``, called ``within.path`` in full; InputError offers the nearest names.

    A mapping is open, so that any key may be set in it, where it is empty or holds texts. A key of a mapping takes its
    unit from the mapping's own field (``peak_flops_per_s.bf16``) unless its name ends in a unit itself.
    """
    holder, hint, name, full = record, Any, "", within
    for key in path.split("."):
        known = paths.names(holder)
        if key in known or (isinstance(holder, Mapping) and hint is not Any and (not holder or _element(hint) is str)):
            hint = _hints(type(holder)).get(key, Any) if is_dataclass(holder) else _element(hint)
            if is_dataclass(holder) or units.dimension(key) or not units.dimension(name):
                name = key
            holder = paths.get(holder, key) if key in known else _NEW
            full = f"{full}.{key}" if full else key
            continue
        inside = full or "this record"
        if not known:
            raise InputError(f"{inside!r} has no fields of its own, so no {key!r}; set {inside!r} itself")
        raise InputError(f"{inside!r} has no field {key!r}; {nearest(key, known)}")
    return _describe(full, name, hint, holder)


def convert(raw: Any, field: Field) -> Any:
    """What ``field`` holds if a file says ``raw``: SI numbers, text, tuples. InputError says what is wrong with it."""
    if isinstance(raw, np.ndarray):
        return raw
    if raw is None:
        if field.optional:
            return None
        raise InputError("has no value; give it one or remove the key")
    if field.kind == "list":
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise InputError(f"expected a list, got {shown(raw)}; write [{shown(raw)}]")
        return tuple(_single(item, field, field.item) for item in raw)
    if field.kind in ("record", "mapping"):
        some = ", ".join(paths.names(field.current)[:6])
        raise InputError(f"expected fields, got {shown(raw)}; set one of its own fields{f' ({some})' if some else ''}")
    return _single(raw, field, field.kind)


def quantity(raw: Any, dimension: str) -> float | int:
    """The SI value of ``raw``, a number or text with a unit of ``dimension``; InputError for anything else."""
    if isinstance(raw, str):
        if is_number(raw):
            raise InputError(f"expected a number, got the text {shown(raw)}; remove the quotes")
        return units.parse(raw, dimension)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise InputError(f"expected a number, got {shown(raw)}; write one such as {_example(dimension)}")
    if not math.isfinite(raw):
        raise InputError(f"expected a finite number, got {raw}; write a value such as {_example(dimension)}")
    return raw


def check(value: float | int, field: Field) -> None:
    """InputError if ``value`` is a number that makes no sense in ``field``: negative, zero, fractional, over 1."""
    if field.whole and value != int(value):
        raise InputError(f"counts something and must be a whole number, got {value:g}; write {max(1, round(value))}")
    if value < 0 and not _is_negative(field.current):
        raise InputError(f"must not be negative, got {units.show(value, field.dimension)}; write a positive value")
    if value == 0 and (field.name in _POSITIVE or field.name.endswith("_per_s")) and not _is_zero(field.current):
        raise InputError(f"must be more than zero, got {value:g}; write {_remedy(field)}")
    if value >= 1 and field.name in _BELOW_ONE:
        raise InputError(f"is a share of at least 0 and below 1, got {value:g}; write 0.2 or 20 %, for example")
    if value > 1 and field.name.endswith(_SHARES) and not field.name.startswith(_COUNT_STARTS):
        raise InputError(f"is a share between 0 and 1, got {value:g}; write 0.5 or 50 %, for example")


def shown(raw: Any) -> str:
    """``raw`` in an error message: short, on one line, as YAML spells it."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if raw is None:
        return "nothing"
    if isinstance(raw, dict):
        return "a mapping"
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


_NEW = object()


def _single(raw: Any, field: Field, kind: Kind) -> Any:
    if kind == "text":
        if not isinstance(raw, str):
            alike = f"; write {shown(str(raw))} in quotes" if isinstance(raw, int | float) else "; write a name"
            raise InputError(f"expected text, got {shown(raw)}{alike if not field.choices else _offer(raw, field)}")
        if field.choices and raw not in field.choices:
            raise InputError(f"unknown value {shown(raw)}{_offer(raw, field)}")
        return raw
    if kind == "flag":
        if not isinstance(raw, bool):
            raise InputError(f"expected true or false, got {shown(raw)}; write one of the two")
        return raw
    if kind not in ("number", "integer"):
        raise InputError(f"cannot be set from a file, got {shown(raw)}; remove the key")
    value = quantity(raw, field.dimension)
    check(value, field)
    if kind == "integer":
        return int(value)
    return float(value)


def _offer(raw: Any, field: Field) -> str:
    return f"; {nearest(str(raw)[:60], field.choices)}"


def _remedy(field: Field) -> str:
    return "1 or more" if field.whole else _example(field.dimension)


def _example(dimension: str) -> str:
    examples = {"bytes": "80 GiB", "bytes_per_s": "4.8 TB/s", "s": "2 us", "flops_per_s": "989 TFLOP/s"}
    return examples.get(dimension, "1")


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value != int(value)


def _is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


@cache
def _hints(record: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(record)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve: the value decides
        return {}


def _element(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    return arguments[1] if len(arguments) == 2 and arguments[1] is not Ellipsis else Any


def _describe(path: str, name: str, hint: Any, current: Any) -> Field:
    members = [m for m in _members(hint)]
    optional = type(None) in members or current is None
    members = [m for m in members if m is not type(None)]
    kind, item, choices = _kind(members, current), "text", ()
    for member in members:
        if typing.get_origin(member) is Literal:
            choices = tuple(str(c) for c in typing.get_args(member))
        if kind == "list" and typing.get_args(member):
            item = _kind([m for m in _members(typing.get_args(member)[0]) if m is not type(None)], _first(current))
    return Field(path=path, name=name, kind=kind, optional=optional, current=None if current is _NEW else current,
                 item=item, choices=choices)  # fmt: skip


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and value else _NEW


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _kind(members: Sequence[Any], current: Any) -> Kind:
    """The kind that an annotation's members spell, or the current value where they say nothing."""
    origins = [typing.get_origin(m) or m for m in members]
    if is_dataclass(current) or any(is_dataclass(o) for o in origins):
        return "record"
    if isinstance(current, Mapping) or Mapping in origins or dict in origins:
        return "mapping"
    for kind, spellings in _SPELLINGS:
        if any(o in spellings for o in origins):
            return kind
    for kind, spellings in _SPELLINGS:
        if isinstance(current, tuple(s for s in spellings if isinstance(s, type))):
            return kind
    return "text"


_SPELLINGS: tuple[tuple[Kind, tuple[Any, ...]], ...] = (
    ("flag", (bool,)),
    ("number", (float, np.ndarray)),
    ("integer", (int,)),
    ("text", (str, Literal)),
    ("list", (tuple, list, Sequence)),
)
