"""Slim Fly and Dragonfly: few hops at a high number of ports.

Slim Fly (Besta and Hoefler, 2014) is the graph of McKay, Miller and Siran over GF(q), q = 4w + d a prime power with d
in -1, 0, 1: switches (0, x, y) and (1, m, c), joined where y - y' lies in X, c - c' in X', or y = m x + c. Any two are
at most two cables apart.

Dragonfly (Kim, Dally, Scott and Abts, 2008): groups of 2p fully joined switches, p endpoints and p global cables each.
"""

from __future__ import annotations

import numpy as np

from sextant.hwmodels.topologies.fabric import Fabric, Ints, Network, built
from sextant.hwmodels.topologies.fat_trees import PER_NODE
from sextant.hwmodels.topologies.finite_field import Field, field, prime_power
from sextant.simulator.errors import InputError


def slim_fly(q: int) -> Network:
    """Counts of a Slim Fly for q = 4w + d: 2 q^2 switches with (3q - d) / 2 cables each.

    Endpoints per switch are half the network ports, rounded up. The graph exists where q is a prime power; the counts
    are also published for q = 28, which is none.
    """
    ports = (3 * q - _delta(q)) // 2
    return Network(n_endpoints=2 * q**2 * -(-ports // 2), n_switches=2 * q**2, n_links=q**2 * ports)


def dragonfly(n_endpoints_per_switch: int, n_groups: int | None = None) -> Network:
    """Counts of a balanced Dragonfly. ``n_groups`` is 2 p^2 + 1 when every pair of groups is joined by exactly one
    cable; fewer groups use the spare ports."""
    p = n_endpoints_per_switch
    groups = _groups(p, n_groups)
    switches, local = 2 * p * groups, groups * p * (2 * p - 1)
    return Network(
        n_endpoints=p * switches, n_switches=switches, n_links=local + switches * p // 2, n_local_links=local
    )


def slim_fly_fabric(n_endpoints: int | None = None, radix: int = 64, q: int | None = None) -> Fabric:
    """The graph for ``q``, else the smallest that carries ``n_endpoints``, else the largest that ``radix`` ports allow.

    Endpoints are spread evenly over all switches, first come one more.
    """
    fits = [each for each in range(3, radix) if _exists(each) and _slim_ports(each) <= radix]
    if not fits:
        raise InputError(f"slim-fly: radix: no Slim Fly has switches of {radix} ports; 7 is the least")
    if q is None:
        enough = [each for each in fits if slim_fly(each).n_endpoints >= (n_endpoints or 0)]
        if not enough:
            most = slim_fly(fits[-1]).n_endpoints
            raise InputError(f"slim-fly: n_endpoints: at most {most} on switches of {radix} ports, got {n_endpoints}")
        q = enough[0] if n_endpoints else enough[-1]
    delta, whole = _delta(q), slim_fly(q).n_endpoints
    n = whole if n_endpoints is None else n_endpoints
    if not 1 <= n <= whole:
        raise InputError(f"slim-fly: n_endpoints: 1 to {whole} for q = {q}, got {n}; take a larger q")
    ends = _mms(field(q), delta)
    switch = np.sort(np.arange(n) % (2 * q**2))
    layer = np.zeros(2 * q**2, dtype=np.int64)
    return built("slim-fly", radix, switch, np.arange(n) // PER_NODE, layer, ends, notes=(f"q = {q}",))


def dragonfly_fabric(n_endpoints: int | None = None, radix: int = 64, n_groups: int | None = None) -> Fabric:
    """A balanced Dragonfly on switches of 4p - 1 ports or one more, p = radix / 4; as many groups as needed, else all.

    Group G's j-th global cable goes to group G + j: the same picture from every group.
    """
    p = (radix + 1) // 4
    if p < 1:
        raise InputError(f"dragonfly: radix: at least 3 ports are needed, got {radix}")
    wanted = n_groups if n_groups or n_endpoints is None else max(2, -(-n_endpoints // (2 * p * p)))
    groups = _groups(p, wanted)
    whole = 2 * p * p * groups
    n = whole if n_endpoints is None else n_endpoints
    if not 1 <= n <= whole:
        raise InputError(f"dragonfly: n_endpoints: 1 to {whole} in {groups} groups, got {n}; take more groups")
    size = 2 * p
    inside = np.argwhere(np.triu(np.ones((size, size), dtype=bool), 1))
    local = (np.arange(groups)[:, None, None] * size + inside[None]).reshape(-1, 2)
    ends = np.concatenate([local, _global(p, groups)])
    is_local = np.arange(len(ends)) < len(local)
    switch, layer = np.arange(n) // p, np.zeros(groups * size, dtype=np.int64)
    notes = (f"{groups} groups of {size} switches, {p} endpoints each",)
    return built(
        "dragonfly", radix, switch, np.arange(n) // PER_NODE, layer, ends, is_local, notes, orbit=np.arange(size)
    )


def _global(p: int, groups: int) -> Ints:
    """Global cables (groups p^2, 2). A group's 2 p^2 ports go round the other groups, nearest first, until all are
    used; offset o of one group meets offset groups - o of the other."""
    n_ports = 2 * p * p
    base, spare = divmod(n_ports, groups - 1)
    # Spare ports go to offsets in pairs, o and groups - o, so that both ends have one; an odd one to the middle.
    times = np.full(groups, base)
    times[0] = 0
    half = groups // 2
    if groups % 2 == 0 and spare % 2:
        times[half] += 1
    for o in range(1, spare // 2 + 1):
        times[o] += 1
        times[groups - o] += 1
    rounds = np.concatenate([np.flatnonzero(times > r) for r in range(times.max())])
    turn = np.concatenate([np.full((times > r).sum(), r) for r in range(times.max())])
    place = {(int(o), int(r)): i // p for i, (o, r) in enumerate(zip(rounds, turn, strict=True))}
    cables = []
    for (o, r), switch in place.items():
        for group in range(groups):
            other = (group + o) % groups
            if 2 * o < groups or (2 * o == groups and group < other):
                cables.append((group * 2 * p + switch, other * 2 * p + place[groups - o, r]))
    return np.array(cables, dtype=np.int64)


def _mms(f: Field, delta: int) -> Ints:
    """Cables of the graph; switch (s, x, y) has number s q^2 + x q + y."""
    q = f.q
    first, second = _connection_sets(f, delta)
    x, y = np.divmod(np.arange(q * q), q)
    cables = []
    for part, chosen in ((0, first), (1, second)):
        for step in chosen:
            other = part * q * q + x * q + f.add[y, step]
            cables.append(np.stack([part * q * q + x * q + y, other], axis=1))
    difference = np.argsort(f.add, axis=1)  # difference[a, b] is b - a: rows of the sum are permutations
    for slope in range(q):  # (0, x, y) meets (1, m, c) where y = m x + c
        constant = difference[f.multiply[slope, x], y]
        cables.append(np.stack([x * q + y, q * q + slope * q + constant], axis=1))
    return np.unique(np.sort(np.concatenate(cables), axis=1), axis=0)


def _connection_sets(f: Field, delta: int) -> tuple[Ints, Ints]:
    """The sets X and X' of the construction; each is its own negative, so that the graph has no direction."""
    w, powers, even = (f.q - delta) // 4, f.powers, np.arange(0, f.q - 1, 2)
    if delta == 1:
        return powers[even], powers[even + 1]
    if delta == 0:
        exponents = np.arange(0, f.q, 2)
        return powers[exponents % (f.q - 1)], powers[(exponents + 1) % (f.q - 1)]
    lower, upper = np.arange(0, 2 * w - 1, 2), np.arange(2 * w - 1, 4 * w - 2, 2)
    first = np.concatenate([lower, upper])
    return powers[first], powers[(first + 1) % (f.q - 1)]


def _delta(q: int) -> int:
    delta = {0: 0, 1: 1, 3: -1}.get(q % 4)
    if delta is None or q < 3:
        raise InputError(f"a Slim Fly needs q = 4w - 1, 4w or 4w + 1, got {q}")
    return delta


def _exists(q: int) -> bool:
    return q >= 3 and q % 4 != 2 and prime_power(q) is not None


def _slim_ports(q: int) -> int:
    ports = (3 * q - _delta(q)) // 2
    return ports + -(-ports // 2)


def _groups(p: int, n_groups: int | None) -> int:
    most = 2 * p**2 + 1
    groups = most if n_groups is None else n_groups
    if not 2 <= groups <= most:
        raise InputError(f"a Dragonfly with {p} endpoints per switch has 2 to {most} groups, got {groups}")
    return groups
