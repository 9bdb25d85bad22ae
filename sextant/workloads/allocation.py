"""The share of a model's sparse parameters that lies in n-gram tables instead of experts (Engram paper s3.1).

P_tot are all parameters, P_act those that a token uses, both without token embedding and head; P_sparse = P_tot - P_act
of the pure mixture of experts. Experts keep the share rho of P_sparse, tables get 1 - rho, ``engram_fraction`` of a
model. A choice has whole experts, as many as rho leaves, and tables of distinct prime sizes from what remains of P_tot
when everything else is paid, the Engram modules too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.types import Num
from sextant.workloads import parameters
from sextant.workloads.ops import engram
from sextant.workloads.sizes import sparse_parameters

#: Shares that floating point puts this close below a whole number of experts are that number.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is held equal: ``total`` is P_tot, ``experts`` the routed experts, not whole, of the mixture that has it.

    ``expert`` counts the parameters of one routed expert in all layers, with its column of the routers; ``rest``
    everything that is neither routed experts nor Engram.
    """

    total: Num
    experts: Num
    expert: Num
    rest: Num


def rho(model) -> Num:
    """The experts' share of what experts and tables hold unused, as Table 5 prints it: 74.3% of Engram-27B."""
    experts = sparse_parameters(replace(model, engram_layers=()))
    tables = len(model.engram_layers) * (engram.table_parameters(model) - model.engram_dim)
    return experts / (experts + tables)


def budget(model) -> Budget:
    """The budget that ``model`` as it stands uses, tables and Engram modules included."""
    plain = replace(model, engram_layers=(), engram_fraction=None)
    one, two = (parameters.backbone_parameters(replace(plain, n_routed_experts=n)) for n in (1.0, 2.0))
    total, expert = parameters.backbone_parameters(model), two - one
    if np.any(np.asarray(expert) <= 0):
        raise InputError(f"model.engram_fraction: no layer of {model.name} has experts; give it more layers")
    rest = one - expert
    return Budget(total=total, experts=(total - rest) / expert, expert=expert, rest=rest)


def allocated(model, given: Budget | None = None):
    """``model`` with the experts and rows that its ``engram_fraction`` leaves it, at equal P_tot; without one, itself.

    The budget is the model's own if none is given. A fraction of 0 is the pure mixture of experts, without Engram
    modules. ``engram_rows`` is the smallest of the prime sizes. The model returned has no fraction any more: it is
    what it says. Arrays give arrays, shape (n_points,). InputError where a model has no experts, no Engram layers or
    too few parameters, and where an array mixes 0 with other fractions.
    """
    fraction = model.engram_fraction
    if fraction is None:
        return model
    _possible(model)
    found = given or budget(model)
    routed = _experts(model, found, fraction)
    chosen = replace(model, engram_fraction=None, n_routed_experts=routed)
    none = np.asarray(fraction) == 0
    if none.all():
        return replace(chosen, engram_layers=())
    if none.any():
        raise InputError("model.engram_fraction: a sweep cannot mix 0 with other values; make two scenarios")
    return replace(chosen, engram_rows=_rows(chosen, _for_tables(chosen, found)))


def leftover_parameters(model, given: Budget) -> Num:
    """Parameters of ``given`` that an allocated ``model`` does not use, its tables counted with their prime sizes."""
    plain = replace(model, engram_layers=())
    used = parameters.backbone_parameters(plain)
    if model.engram_layers:
        used = used + len(model.engram_layers) * engram.gate_parameters(model) + prime_parameters(model)
    return given.total - used


def prime_parameters(model) -> Num:
    """Elements of all tables with their prime sizes, shape () or (n_points,)."""
    n, row = _tables(model)
    return _each(lambda rows, count: _sum_from(int(rows), int(count)), model.engram_rows, n) * row


def _possible(model) -> None:
    if np.any(np.asarray(model.n_routed_experts) <= 0):
        raise InputError(f"model.engram_fraction: {model.name} has no routed experts to take parameters from")
    fraction = np.asarray(model.engram_fraction)
    if np.any((fraction < 0) | (fraction >= 1)):
        raise InputError(f"model.engram_fraction: is at least 0 and below 1, got {fraction}; write 0.2, for example")
    if not model.engram_layers:
        raise InputError(
            f"model.engram_fraction: {model.name} has no Engram layers; set model.engram_layers, or choose a model "
            "that has some, such as engram-27b"
        )


def _experts(model, found: Budget, fraction: Num) -> Num:
    """Whole experts: those that a token uses, and of the others as many as the share of the experts pays for."""
    spare = found.experts - model.num_experts_per_tok
    kept = np.floor((1.0 - np.asarray(fraction)) * spare + _ROUNDING)
    return (model.num_experts_per_tok + kept)[()]


def _for_tables(model, found: Budget) -> Num:
    gates = len(model.engram_layers) * engram.gate_parameters(model)
    return found.total - found.rest - model.n_routed_experts * found.expert - gates


def _tables(model) -> tuple[Num, Num]:
    """Tables of all layers, and elements of a row."""
    per_layer = engram.n_rows(model)
    return len(model.engram_layers) * per_layer, model.engram_dim / per_layer


def _rows(model, elements: Num) -> Num:
    """The smallest table's rows, where all tables together hold at most ``elements``, as many as fit."""
    n, row = _tables(model)
    return _each(lambda rows, count: _first_prime(int(rows), int(count)), np.floor(elements / row), n)


def _each(found, *arrays: Num) -> Num:
    """``found`` of the elements of ``arrays``, shape () or (n_points,)."""
    whole = np.broadcast_arrays(*arrays)
    return np.array([found(*each) for each in zip(*(a.ravel() for a in whole), strict=True)], dtype=float).reshape(
        whole[0].shape
    )[()]


@lru_cache(maxsize=65_536)
def _first_prime(rows: int, n: int) -> int:
    """The first of the largest ``n`` successive primes whose sum is at most ``rows``; InputError if there are none."""
    mean = max(rows, 0) // n
    # Primes near x lie log(x) apart on average; windows grow until the answer lies inside.
    reach = int(4 * n * np.log(mean + 10) + 200)
    while True:
        low = max(2, mean - reach)
        primes = engram.primes(low, mean + reach)
        if len(primes) >= n:
            sums = np.convolve(primes, np.ones(n, dtype=np.int64), mode="valid")
            fits = int(np.searchsorted(sums, rows, side="right"))
            if 0 < fits < len(sums):
                return int(primes[fits - 1])
            if fits == 0 and low == 2:
                raise InputError(
                    "model.engram_fraction: what this fraction leaves is less than Engram modules and their smallest "
                    "tables take; raise it, or set it to 0"
                )
        reach *= 2


@lru_cache(maxsize=65_536)
def _sum_from(rows: int, n: int) -> int:
    """The sum of the first ``n`` primes from ``rows`` upwards."""
    return int(np.sum(engram.first_primes(rows, n)))
