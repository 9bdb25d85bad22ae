"""Quantities as people write them ("4.8 TB/s", "80 GiB", "400 Gbit/s", "2 us") to SI numbers and back.

Inside, everything is SI: bytes (never bits), seconds, FLOP, watts, joules, USD. GB is 1e9 and GiB 2**30 bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sextant.simulator.errors import InputError, nearest

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "\u00b5": 1e-6, "\u03bc": 1e-6, "n": 1e-9, "p": 1e-12}


def _table() -> dict[str, tuple[float, str]]:
    units: dict[str, tuple[float, str]] = {}
    for prefix, factor in {**_DECIMAL, **_BINARY}.items():
        units[prefix + "B"] = (factor, "bytes")
        units[prefix + "bit"] = (factor / 8, "bytes")
        units[prefix + "B/s"] = (factor, "bytes_per_s")
        units[prefix + "bit/s"] = (factor / 8, "bytes_per_s")
    for prefix, factor in _DECIMAL.items():
        for spelling in ("FLOP", "FLOPs"):
            units[prefix + spelling] = (factor, "flops")
        for spelling in ("FLOP/s", "FLOPS"):
            units[prefix + spelling] = (factor, "flops_per_s")
        for name, dimension in (("W", "w"), ("J", "j"), ("Hz", "hz"), ("rows/s", "rows_per_s"), ("USD", "usd")):
            units[prefix + name] = (factor, dimension)
    for prefix, factor in _SMALL.items():
        units[prefix + "s"] = (factor, "s")
        units[prefix + "J/B"] = (factor, "j_per_byte")
        units[prefix + "J"] = (factor, "j")
    units.update({"min": (60.0, "s"), "h": (3600.0, "s"), "day": (86400.0, "s"), "days": (86400.0, "s")})
    units.update({"USD/h": (1.0, "usd_per_h"), "%": (0.01, ""), "tokens": (1.0, ""), "token": (1.0, "")})
    return units


UNITS = _table()
#: A comma may only separate thousands: "1,5 GB" is refused, since it would read as 15.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+(?:_[0-9]+)*)"
_QUANTITY = re.compile(rf"([-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9,._].*)?")
_LONGEST = 100
_BITS_OR_BYTES = re.compile(r"[kKMGTP]i?b(/s|ps)?|[kKMGTP]i?Bps")
_SUFFIXES = (
    "bytes_per_s", "flops_per_s", "rows_per_s", "j_per_byte", "usd_per_h", "flops", "bytes", "usd", "hz", "s", "w", "j",
)  # fmt: skip


def dimension(field: str) -> str:
    """The dimension that a field's name ends in (``capacity_bytes`` -> ``bytes``), "" for a count or a fraction.

    A rate that is not among the units (``tokens_per_s``) has none: its ``_s`` is a divisor, not seconds.
    """
    if field.startswith("n_"):
        return ""
    found = next((s for s in _SUFFIXES if field == s or field.endswith("_" + s)), "")
    return "" if field.removesuffix(found).endswith("per_") else found


def parse(text: str, want: str) -> float:
    """The SI value of ``text``, which must be of dimension ``want`` ("" for a bare number).

    Refuses an unknown unit, a unit of another dimension, and "Gb", which some mean as bits and some as bytes.
    """
    match = _QUANTITY.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        got = repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."
        remedy = "write it so" if _example(want) else "write digits only"
        raise InputError(f"expected a number{_example(want)}, got {got}; {remedy}")
    number, unit = float(match[1].replace(",", "").replace("_", "")), match[2] or ""
    if not unit:
        return _finite(number, text)
    if _BITS_OR_BYTES.fullmatch(unit):
        clear = unit.replace("ps", "/s").replace("b", "").replace("B", "").replace("/s", "")
        raise InputError(
            f"{unit!r} may mean bits or bytes, got {text!r}; write {clear}bit/s or {clear}B/s ({clear}bit or {clear}B)"
        )
    if unit not in UNITS:
        alike = [u for u, (_, d) in UNITS.items() if d == want]
        raise InputError(f"unknown unit {unit!r} in {text!r}; {nearest(unit, alike or UNITS)}")
    factor, found = UNITS[unit]
    if found != want:
        raise InputError(f"expected {_name(want)}, got {text!r}, which is {_name(found)}{_hint(want)}")
    return _finite(number * factor, text)


def _finite(value: float, text: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"expected a finite number, got {text!r}; write a smaller one")
    return value


def _name(dim: str) -> str:
    names: Mapping[str, str] = {"": "a bare number", "s": "seconds", "w": "watts", "j": "joules", "usd": "USD"}
    return names.get(dim, dim.replace("_per_", "/"))


def _example(dim: str) -> str:
    examples = {
        "bytes": "80 GiB", "bytes_per_s": "4.8 TB/s", "s": "2 us", "flops_per_s": "989 TFLOP/s", "w": "700 W",
        "usd": "30000 USD", "usd_per_h": "2 USD/h", "rows_per_s": "1e9 rows/s", "hz": "1.8 GHz",
    }  # fmt: skip
    return f' such as "{examples[dim]}"' if dim in examples else ""


def _hint(dim: str) -> str:
    return f"; write it{_example(dim)}" if _example(dim) else "; write the number without a unit"


def show(value: float, dim: str, digits: int = 4) -> str:
    """``value`` for a person, with the prefix that leaves 1 to 999 before the point: 3.35e12 bytes_per_s: 3.35 TB/s."""
    symbols = {
        "bytes": "B", "bytes_per_s": "B/s", "flops": "FLOP", "flops_per_s": "FLOP/s", "s": "s", "w": "W", "j": "J",
        "hz": "Hz", "rows_per_s": "rows/s", "usd": "USD", "usd_per_h": "USD/h", "j_per_byte": "J/B",
    }  # fmt: skip
    symbol = symbols.get(dim, "")
    if not symbol or dim.startswith("usd") or value == 0 or not math.isfinite(value):
        whole = abs(value) >= 1e5 or (math.isfinite(value) and value == int(value))
        return (f"{value:,.0f} {symbol}" if whole else f"{value:.{digits}g} {symbol}").strip()
    scale = {"s": _SMALL, "j_per_byte": _SMALL}.get(dim, _DECIMAL)
    usual = [(f, p) for p, f in scale.items() if p not in ("K", "\u00b5", "\u03bc")]
    least = 1 - 0.5 * 10.0**-digits  # what rounds up to 1 takes the larger prefix
    factor, prefix = max((f, p) for f, p in usual if abs(value) >= f * least or f == min(usual)[0])
    return f"{value / factor:.{digits}g} {prefix}{symbol}"
