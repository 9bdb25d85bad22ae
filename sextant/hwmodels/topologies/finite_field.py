"""Finite fields GF(p^m) as tables: what the graphs of a Slim Fly are built from.

An element is an integer below q whose digits to the base p are the coefficients of a polynomial; products are taken
modulo the first monic polynomial of degree m that has no divisor (found by search; these fields are small).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """GF(q): tables ``add`` and ``multiply`` (q, q), and ``powers`` (q - 1,) of a primitive element."""

    q: int
    add: Ints
    multiply: Ints
    powers: Ints


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, m) with p prime and p^m = q, or None."""
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    m = 0
    rest = q
    while rest > 1 and rest % p == 0:
        rest, m = rest // p, m + 1
    return (p, m) if q > 1 and rest == 1 else None


@cache
def field(q: int) -> Field:
    """GF(q); InputError if q is no prime power."""
    found = prime_power(q)
    if found is None:
        raise InputError(f"there is no finite field of {q} elements; take a prime power")
    p, m = found
    digits = np.stack([np.arange(q) // p**i % p for i in range(m)], axis=1)
    weights = p ** np.arange(m)
    add = ((digits[:, None, :] + digits[None, :, :]) % p) @ weights
    multiply = _products(digits, p, m) @ weights
    for element in range(1, q):
        powers = [1]
        while len(powers) < q - 1 and (power := int(multiply[powers[-1], element])) != 1:
            powers.append(power)
        if len(powers) == q - 1:
            return Field(q=q, add=add, multiply=multiply, powers=np.array(powers))
    raise AssertionError(f"GF({q}) without a primitive element")


def _products(digits: Ints, p: int, m: int) -> Ints:
    """Coefficients (q, q, m) of all products modulo an irreducible polynomial."""
    q = len(digits)
    full = np.zeros((q, q, 2 * m - 1), dtype=np.int64)
    for i in range(m):
        for j in range(m):
            full[:, :, i + j] += digits[:, None, i] * digits[None, :, j]
    modulus = _irreducible(p, m)
    for high in range(2 * m - 2, m - 1, -1):  # x^m = -(lower terms of the modulus)
        for i in range(m):
            full[:, :, high - m + i] -= full[:, :, high] * modulus[i]
        full[:, :, high] = 0
    return full[:, :, :m] % p


def _irreducible(p: int, m: int) -> list[int]:
    """The lower coefficients of the first monic polynomial of degree ``m`` over GF(p) without a divisor."""
    for number in range(p**m):
        low = [number // p**i % p for i in range(m)]
        if not any(_divides(divisor, [*low, 1], p) for divisor in _monic(p, m // 2)):
            return low
    raise AssertionError("every degree has an irreducible polynomial")


def _monic(p: int, degree: int) -> list[list[int]]:
    return [
        [*(number // p**i % p for i in range(d)), 1] for d in range(1, degree + 1) for number in range(p**d)
    ]  # fmt: skip


def _divides(divisor: list[int], polynomial: list[int], p: int) -> bool:
    rest = list(polynomial)
    while len(rest) >= len(divisor):
        lead = rest[-1]
        for i, coefficient in enumerate(reversed(divisor)):
            rest[-1 - i] = (rest[-1 - i] - lead * coefficient) % p
        rest.pop()
    return not any(rest)
