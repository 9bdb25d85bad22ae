"""Memory-bound operators: each input read once, each output written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sextant.simulator.kernels import operator
from sextant.simulator.types import Num, Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an operator sits: its layer kind, the block inside it, whether a training step needs its gradients.

    ``streams``: which kernels mHC runs as, of ``Plan.hyper_connections``. ``n_stages`` is the pipeline's, whose bounds
    its recompute keeps to.
    """

    part: str
    block: str
    training: bool = False
    count: Num = 1.0
    recompute: tuple[str, ...] = field(default_factory=tuple)
    streams: str = "fused"
    n_stages: Num = 1.0


def moved(
    name: str,
    place: Place,
    read_bytes: Num,
    write_bytes: Num,
    phase: str = "forward",
    sharded: Sequence[str] = ("tensor",),
    variant: str = "",
    *,
    whole_waves: bool = False,
) -> Op:
    """One memory-bound kernel that reads and writes so many bytes; by default tensor parallelism divides it.

    What lies on the residual is divided by ``sequence``: by tensor parallelism too, if that is sequence parallel.
    ``variant`` is a kind of access that the ``memory`` kernel tells apart; ``whole_waves`` says that it is launched as
    one wave of blocks over all SMs.
    """
    shards = {degree: ("read_bytes", "write_bytes") for degree in sharded}
    shape = {"read_bytes": read_bytes, "write_bytes": write_bytes, **({"whole_waves": 1.0} if whole_waves else {})}
    return operator(
        "memory", name, "bf16", shape, variant=variant, part=place.part, block=place.block,
        phase=phase, count=place.count, shards=shards,
    )  # fmt: skip


def residual_norm(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """RMSNorm fused with the residual addition before it: (n_tokens, width) BF16, two tensors in, two out.

    Backward reads the saved input and both gradients and writes one; under ``recompute`` ``norm`` the normalised
    tensor is made again in the backward pass. In training the forward kernel is launched as whole waves, 396 blocks on
    132 SMs in the published DualPipe trace. So is the backward kernel there; ours, as measured, takes as long as that
    one with two waves.
    """
    size, split = 2.0 * n_tokens * width, ("sequence",)
    ops = [moved(name, place, 2 * size, 2 * size, sharded=split, whole_waves=place.training)]
    if place.training:
        if "norm" in place.recompute:
            again = moved(name + "_recompute", place, size, size, "backward_input", split, whole_waves=True)
            ops.append(again)
        ops.append(moved(name + "_backward", place, 3 * size, size, "backward_input", split, "norm_backward"))
    return ops


def norm(name: str, place: Place, n_tokens: Num, width: Num) -> list[Op]:
    """Plain RMSNorm of (n_tokens, width) in BF16, e.g. of the compressed query or key-value latent."""
    size = 2.0 * n_tokens * width
    ops = [moved(name, place, size, size, sharded=(), whole_waves=place.training)]
    if place.training:
        if "norm" in place.recompute:
            again = moved(name + "_recompute", place, size, size, "backward_input", (), whole_waves=True)
            ops.append(again)
        ops.append(moved(name + "_backward", place, 2 * size, size, "backward_input", (), "norm_backward"))
    return ops
