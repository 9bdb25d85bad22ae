"""Flows that share links: max-min fair rates, and when each flow is done.

A flow is a share of traffic on each link it uses: 1 on every link of a single path, fractions where it is spread over
several. Rates rise together until a link is full; what crosses it is fixed there, the rest rises on (progressive
filling, Bertsekas and Gallager, 1992, section 6.5). Pure numpy over three arrays, an entry per use of a link by a flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Links that fill within this share of each other fill together; what is left of a flow below it is done.
_TIE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uses:
    """``flow``, ``link`` and ``share``, each (n_uses,): the part of a flow's traffic that a link carries.
    ``bytes_per_s`` (n_links,) is what a link carries in one direction; ``n_flows`` counts flows, used or not."""

    flow: Ints
    link: Ints
    share: Floats
    bytes_per_s: Floats
    n_flows: int


def link_rates(uses: Uses, rates: Floats) -> Floats:
    """Bytes/s on every link, shape (n_links,), when the flows run at ``rates`` (n_flows,)."""
    carried = np.bincount(uses.link, weights=uses.share * rates[uses.flow], minlength=len(uses.bytes_per_s))
    return carried.astype(np.float64)


def max_min_rates(uses: Uses, active: NDArray[np.bool_] | None = None) -> Floats:
    """Bytes/s of every flow, shape (n_flows,): no flow could go faster without a slower one, or one as slow, going
    slower. Flows that are not ``active`` have 0, flows that use no link infinity. InputError for a link without
    capacity."""
    if len(uses.bytes_per_s) and not uses.bytes_per_s.min() > 0:
        raise InputError(f"bytes_per_s: every link needs a positive rate, got {uses.bytes_per_s.min():g}")
    rates = np.full(uses.n_flows, np.inf)
    moving = np.zeros(uses.n_flows, dtype=bool)
    moving[uses.flow] = True
    if active is not None:
        rates[~active], moving = 0.0, moving & active
    rates[moving] = 0.0
    counted = moving[uses.flow]
    flow, link, share = uses.flow[counted], uses.link[counted], uses.share[counted]
    left = uses.bytes_per_s.astype(float).copy()
    while len(flow):
        load = np.bincount(link, weights=share, minlength=len(left))
        level = np.full(len(left), np.inf)
        np.divide(left, load, out=level, where=load > 0)
        lowest = level.min()
        full = level <= lowest * (1.0 + _TIE)
        stopped = np.zeros(uses.n_flows, dtype=bool)
        stopped[flow[full[link]]] = True
        # All flows still moving have one rate; those that stop keep it, and what they take is gone.
        rates[stopped] = lowest
        gone = stopped[flow]
        left -= lowest * np.bincount(link[gone], weights=share[gone], minlength=len(left))
        left = np.maximum(left, 0.0)
        flow, link, share = flow[~gone], link[~gone], share[~gone]
    return rates


def completion_s(uses: Uses, flow_bytes: Floats) -> Floats:
    """When each flow has sent its ``flow_bytes`` (n_flows,), all starting together; rates are shared anew whenever one
    ends. Shape (n_flows,); 0 for a flow without bytes or without links."""
    rest = np.where(np.isin(np.arange(uses.n_flows), uses.flow), flow_bytes, 0.0).astype(float)
    size, ended, now = rest.copy(), np.zeros(uses.n_flows), 0.0
    while (active := rest > 0).any():
        rates = max_min_rates(uses, active)
        step = float((rest[active] / rates[active]).min())
        now += step
        rest[active] -= rates[active] * step
        done = active & (rest <= _TIE * size)
        rest[done], ended[done] = 0.0, now
    return ended
