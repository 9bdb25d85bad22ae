"""How a collective may be carried out: the bytes each rank sends and the steps whose latencies add, per algorithm.

    hierarchical   a ring inside every node; between nodes every rank moves its own part, halving and doubling where
                   values are added or spread, in a ring where parts are gathered
    ring           one ring through all ranks, turned so that every network card carries an equal part of it
    tree           a chain inside every node, two complementary binary trees between nodes
    switch         the NVSwitches add and copy: one node, values that they can add
    direct         every rank sends to its peers (all_to_all, send_recv)

N nodes of g ranks, n = g N, a buffer of S bytes. Sources of the volumes: Thakur, Rabenseifner and Gropp (2005) for
rings and halving and doubling, Sanders, Speck and Traeff (2009) for two trees, Klenk et al. (2020) for the switch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sextant.simulator.errors import InputError, nearest
from sextant.simulator.kernels.hops import nodes
from sextant.simulator.types import Num

VARIANTS = ("all_gather", "all_reduce", "all_to_all", "broadcast", "reduce_scatter", "send_recv")

#: Which algorithms a collective may run, in the order in which ties are decided.
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "all_gather": ("hierarchical", "ring"), "reduce_scatter": ("hierarchical", "ring"),
    "all_reduce": ("hierarchical", "ring", "tree", "switch"), "broadcast": ("hierarchical", "ring", "tree"),
    "all_to_all": ("direct",), "send_recv": ("direct",),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one rank does: bytes sent within its node and over its own network card, steps over either link."""

    inner_bytes: Num
    outer_bytes: Num
    inner_steps: Num
    outer_steps: Num


def plan(shape: Mapping[str, Num], variant: str, algorithm: str) -> Plan:
    """The plan of ``algorithm`` for a collective of ``message_bytes`` among ``n_gpus`` in nodes of ``n_gpus_per_node``.

    InputError for an unknown collective, or an algorithm that it cannot run.
    """
    if variant not in ALGORITHMS:
        raise InputError(f"collective: unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
    if algorithm not in ALGORITHMS[variant]:
        raise InputError(f"{variant}: no algorithm {algorithm!r}; {nearest(algorithm, ALGORITHMS[variant])}")
    return _PLANS[algorithm](shape, variant)


def _passes(variant: str) -> float:
    return 2.0 if variant == "all_reduce" else 1.0


def _several(n_nodes: Num) -> Num:
    return np.where(np.asarray(n_nodes) > 1, 1.0, 0.0)


def _hierarchical(shape: Mapping[str, Num], variant: str) -> Plan:
    """(g - 1) / g of the buffer inside the node and, of the rank's 1 / g part, (N - 1) / N between nodes; a broadcast
    within one node is passed on whole."""
    size, passes = shape["message_bytes"], _passes(variant)
    n_nodes, local = nodes(shape)
    doublings = np.ceil(np.log2(n_nodes))
    inner_bytes = passes * size * (1.0 - 1.0 / local)
    outer_bytes = passes * size / local * (1.0 - 1.0 / n_nodes)
    outer_steps: Num = n_nodes - 1.0
    if variant == "broadcast":
        outer_bytes, outer_steps = size / local * _several(n_nodes), doublings
        # In one node nothing comes by other cards: the root's buffer passes every link whole.
        inner_bytes = np.where(np.asarray(n_nodes) > 1, inner_bytes, size * np.where(np.asarray(local) > 1, 1.0, 0.0))
    elif variant == "all_reduce":
        outer_steps = 2.0 * doublings
    return Plan(
        inner_bytes=inner_bytes, outer_bytes=outer_bytes, inner_steps=passes * (local - 1.0), outer_steps=outer_steps
    )


def _ring(shape: Mapping[str, Num], variant: str) -> Plan:
    """Every rank passes on (n - 1) / n of the buffer; of its g rings one leaves the node through its own card."""
    size, passes = shape["message_bytes"], _passes(variant)
    n_nodes, local = nodes(shape)
    share = 1.0 if variant == "broadcast" else 1.0 - 1.0 / (local * n_nodes)
    leaving = _several(n_nodes) / local
    inside = np.where(np.asarray(local) > 1, 1.0, 0.0) * (1.0 - leaving)
    if variant == "broadcast":
        share = np.where(np.asarray(local) > 1, 1.0, _several(n_nodes))
    return Plan(
        inner_bytes=passes * size * share * inside, outer_bytes=passes * size * share * leaving,
        inner_steps=passes * n_nodes * (local - 1.0), outer_steps=passes * (n_nodes - 1.0),
    )  # fmt: skip


def _tree(shape: Mapping[str, Num], variant: str) -> Plan:
    """The whole buffer up and, in all_reduce, down again: along the chain of a node and through the two trees."""
    size, passes = shape["message_bytes"], _passes(variant)
    n_nodes, local = nodes(shape)
    chain = np.where(np.asarray(local) > 1, 1.0, 0.0)
    return Plan(
        inner_bytes=passes * size * chain, outer_bytes=passes * size / local * _several(n_nodes),
        inner_steps=passes * (local - 1.0), outer_steps=passes * np.ceil(np.log2(n_nodes)),
    )  # fmt: skip


def _switch(shape: Mapping[str, Num], variant: str) -> Plan:
    """A rank's buffer goes to the switches once, which add; its own 1 / g part of the sum goes back to be copied.

    Infinite for a group that spans nodes: their switches do not meet.
    """
    n_nodes, local = nodes(shape)
    reach = np.where(np.asarray(n_nodes) > 1, np.inf, 1.0)
    several = np.where(np.asarray(local) > 1, 1.0, 0.0)
    sent = shape["message_bytes"] * (1.0 + 1.0 / local) * several
    return Plan(
        inner_bytes=np.where(np.isinf(reach), np.inf, sent),
        outer_bytes=0.0 * sent,
        inner_steps=2.0 * several,
        outer_steps=0.0 * several,
    )


def _direct(shape: Mapping[str, Num], variant: str) -> Plan:
    """all_to_all: a part to each peer; send_recv: the message to one peer, outside the node if there is one outside."""
    size = shape["message_bytes"]
    n_nodes, local = nodes(shape)
    crosses, several = _several(n_nodes), np.where(np.asarray(shape["n_gpus"]) > 1, 1.0, 0.0)
    if variant == "all_to_all":
        inner_bytes, outer_bytes = size * (local - 1.0) / shape["n_gpus"], size * (1.0 - 1.0 / n_nodes)
    else:
        inner_bytes, outer_bytes = size * several * (1.0 - crosses), size * crosses
    return Plan(inner_bytes=inner_bytes, outer_bytes=outer_bytes, inner_steps=1.0 - crosses, outer_steps=crosses)


_PLANS: Mapping[str, Callable[[Mapping[str, Num], str], Plan]] = {
    "hierarchical": _hierarchical, "ring": _ring, "tree": _tree, "switch": _switch, "direct": _direct,
}  # fmt: skip
