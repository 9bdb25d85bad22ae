"""The kernels that are measured: one module per operator, found by its name, registered nowhere.

A module offers ``BUILDERS``, a mapping from the ``op`` of a kernel case to a function ``build(case, target)`` that
draws random inputs and returns a ``Prepared``. Modules named ``triton_*`` hold device code and are imported only where
Triton can run.
"""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from sextant.validate.timer import Call, Sampler

#: One kernel call: ``op`` and the shape columns of a kernel-case file, numbers as int.
Case = Mapping[str, str | int]

CPU_LIBRARY = "torch_eager_cpu"
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
#: Rotated input sets cover this many times the L2 cache ...
L2_TIMES = 4.0
#: ... unless that takes more sets than this; such tiny inputs stay in the cache, as they would behind their producer.
MAX_SETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where kernels run: the device, its multiprocessors and L2 cache, and whether Triton kernels can run there."""

    device: torch.device
    n_sms: int
    l2_bytes: int
    fused: bool

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def n_sets(self, footprint_bytes: float) -> int:
        """How many input sets to rotate when one call touches ``footprint_bytes``."""
        if not self.cuda:
            return 2
        return max(1, min(MAX_SETS, math.ceil(L2_TIMES * self.l2_bytes / max(footprint_bytes, 1.0))))

    def library(self, name: str) -> str:
        """The name to record: the given one on a GPU, the plain fall-back's on the CPU."""
        return name if self.cuda else CPU_LIBRARY


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A kernel case with its inputs drawn: equal calls over rotated inputs, and a check against a reference.

    ``check`` compares with a reference of higher precision and returns the largest relative error (norm of the
    difference over the norm of the reference); it raises ``ValueError`` when a result is wrong. ``before`` draws what
    must be new for every sample. ``read_bytes`` and ``write_bytes`` are the least traffic:
    every input read once, every output written once. ``sampler`` replaces the ordinary way of timing.
    """

    calls: tuple[Call, ...]
    check: Callable[[], float]
    library: str
    read_bytes: float
    write_bytes: float
    sampler: Callable[[], Sampler] | None = None
    before: Call | None = None


Builder = Callable[[Case, Target], Prepared]


@lru_cache(maxsize=1)
def builders() -> dict[str, Builder]:
    """Every operator that can be measured, by name."""
    found: dict[str, Builder] = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("triton_"):
            found.update(importlib.import_module(f"{__name__}.{info.name}").BUILDERS)
    return found


def prepare(case: Case, target: Target) -> Prepared:
    """Draw the inputs of a case; raises ``ValueError`` for an unknown operator or a shape it cannot take."""
    op = str(case["op"])
    known = builders()
    if op not in known:
        near = difflib.get_close_matches(op, known, n=3) or sorted(known)
        raise ValueError(f"op: no kernel is named {op!r}; nearest: {', '.join(near)}")
    return known[op](case, target)


def sizes(case: Case, *names: str) -> tuple[int, ...]:
    """The named whole numbers of a case; raises ``ValueError`` naming the one that is missing or not a number >= 1."""
    found = []
    for name in names:
        value = case.get(name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: op {case.get('op')} needs a whole number of at least 1, got {value!r}")
        found.append(value)
    return tuple(found)


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference; raises ``ValueError`` where the shapes differ."""
    if out.shape != reference.shape:
        raise ValueError(f"check: shape {tuple(out.shape)}, the reference has {tuple(reference.shape)}")
    exact = reference.double() if reference.dtype == torch.float64 else reference.float()
    return float((out.to(exact.dtype) - exact).norm() / exact.norm().clamp(min=1e-30))


def require_close(out: Tensor, reference: Tensor, *, what: str, tolerance: float = 1e-2) -> float:
    """The relative error; raises ``ValueError`` unless it is below ``tolerance`` (NaN never is)."""
    error = relative_error(out, reference)
    if not error < tolerance:
        raise ValueError(f"check: {what} is off by {error:.3g} (relative norm), allowed {tolerance:g}")
    return error


def rotated(
    target: Target,
    *,
    inputs: Callable[[], tuple[Tensor, ...]],
    fused: Callable[..., Sequence[Tensor]],
    eager: Callable[..., Sequence[Tensor]],
    read_bytes: float,
    write_bytes: float,
    library: str = "triton",
    reference: Callable[..., Sequence[Tensor]] | None = None,
    checked: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple,
    tolerance: float = 1e-2,
) -> Prepared:
    """Prepare a function of tensors: ``fused`` where Triton runs, else ``eager``; ``reference`` (or ``eager``) checks.

    ``inputs`` draws one set; all three take a set; ``checked`` picks what of the outputs has the reference's shapes.
    """
    reference = reference or eager
    sets = [inputs() for _ in range(target.n_sets(read_bytes + write_bytes))]
    run = fused if target.fused else eager

    def check() -> float:
        pairs = zip(checked(run(*sets[0])), reference(*sets[0]), strict=True)
        return max(
            require_close(out, exact, what=f"output {i}", tolerance=tolerance) for i, (out, exact) in enumerate(pairs)
        )

    return Prepared(
        calls=tuple(partial(run, *one) for one in sets),
        check=check,
        library=library if target.fused else CPU_LIBRARY,
        read_bytes=read_bytes,
        write_bytes=write_bytes,
    )
