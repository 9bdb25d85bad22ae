"""Named lists of kernel cases, the same on every machine: one per published system, their union and special ones.

``all`` is every system and the machine's own cases, each once: tokens from one to 32K, every operator that one GPU can
run. ``machine`` is what belongs to no model, ``tile-kernels`` DeepSeek's own kernels, ``per-tensor`` FP8 products with
one scale per operand, ``between`` shapes of no system, ``eager`` kernels of training code that is not compiled,
``collectives-N`` those of N GPUs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from sextant.validate.case_sets import attention, between, eager, machine, products, rows
from sextant.validate.case_sets.systems import ALIASES, SYSTEMS, System
from sextant.validate.cases import Case, case_key

_COLLECTIVES = re.compile(r"collectives-(\d+)")


def names() -> list[str]:
    """Every name that ``case_set`` takes."""
    return [
        *SYSTEMS,
        *ALIASES,
        "machine",
        "tile-kernels",
        "per-tensor",
        "between",
        "eager",
        "collectives-2",
        "collectives-8",
        "all",
    ]


def _of(system: System) -> Iterator[Case]:
    for source in (
        rows.norms, rows.activations, rows.permutations, rows.streams, products.gemm, products.grouped, products.moe,
        attention.prefill, attention.decode, attention.encoder, attention.latent, machine.convolutions, machine.tables,
    ):  # fmt: skip
        yield from source(system)


def _cases(name: str) -> Iterator[Case]:
    name = ALIASES.get(name, name)
    if name in SYSTEMS:
        yield from _of(SYSTEMS[name])
    elif name == "machine":
        yield from machine.copies()
    elif name == "tile-kernels":
        for system in SYSTEMS.values():
            yield from rows.tile_kernels(system)
    elif name == "per-tensor":
        for system in SYSTEMS.values():
            yield from products.per_tensor(system)
    elif name == "between":
        yield from between.cases()
    elif name == "eager":
        yield from eager.cases()
    elif name == "all":
        for part in ("machine", *SYSTEMS):
            yield from _cases(part)
    elif (found := _COLLECTIVES.fullmatch(name)) and int(found[1]) > 1:
        yield from machine.collectives(int(found[1]))
    else:
        near = difflib.get_close_matches(name, names(), n=2) or names()
        raise ValueError(f"cases: no list is named {name!r}; nearest: {', '.join(near)}")


def case_set(name: str) -> list[Case]:
    """The cases of one name, or of several joined by commas, each once; raises ``ValueError`` for an unknown name."""
    found: dict[tuple[str, ...], Case] = {}
    for part in name.split(","):
        for case in _cases(part.strip()):
            found.setdefault(case_key(case), case)
    return list(found.values())
