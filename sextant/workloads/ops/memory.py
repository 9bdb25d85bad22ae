"""Memory-bound operators: each input read once, each output written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sextant.simulator.kernels import operator
from sextant.simulator.types import Num, Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an operator sits: its layer kind, the block inside it, whether a training step needs its gradients."""

    part: str
    block: str
    training: bool = False
    count: Num = 1.0
    recompute: tuple[str, ...] = field(default_factory=tuple)


def moved(
    name: str,
    place: Place,
    read_bytes: Num,
    write_bytes: Num,
    phase: str = "forward",
    sharded: Sequence[str] = ("tensor",),
    variant: str = "",
) -> Op:
    """One memory-bound kernel that reads and writes so many bytes; by default tensor parallelism divides it.

    What lies on the residual is divided by ``sequence``: by tensor parallelism too, if that is sequence parallel.
    ``variant`` is a kind of access that the ``memory`` kernel tells apart.
    """
    shards = {degree: ("read_bytes", "write_bytes") for degree in sharded}
    return operator(
        "memory", name, "bf16", {"read_bytes": read_bytes, "write_bytes": write_bytes}, variant=variant,
        part=place.part, block=place.block, phase=phase, count=place.count, shards=shards,
    )  # fmt: skip


def residual_norm(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """RMSNorm fused with the residual addition before it: (n_tokens, width) BF16, two tensors in, two out.

    Backward reads the saved input and both gradients and writes one; under ``recompute`` ``norm`` the normalised
    tensor is made again in the backward pass.
    """
    size, split = 2.0 * n_tokens * width, ("sequence",)
    ops = [moved(name, place, 2 * size, 2 * size, sharded=split)]
    if place.training:
        if "norm" in place.recompute:
            ops.append(moved(name + "_recompute", place, size, size, "backward_input", split))
        ops.append(moved(name + "_backward", place, 3 * size, size, "backward_input", split, "norm_backward"))
    return ops


def norm(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """Plain RMSNorm of (n_tokens, width) in BF16, e.g. of the compressed query or key-value latent."""
    size = 2.0 * n_tokens * width
    ops = [moved(name, place, size, size, sharded=())]
    if place.training:
        if "norm" in place.recompute:
            ops.append(moved(name + "_recompute", place, size, size, "backward_input", sharded=()))
        ops.append(moved(name + "_backward", place, 2 * size, size, "backward_input", (), "norm_backward"))
    return ops
