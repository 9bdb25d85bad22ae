"""Builds the network of a case on a device, and checks it against the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sextant.validate.kernels import Target, relative_error
from sextant.validate.whole import reference
from sextant.validate.whole.backward import Backward
from sextant.validate.whole.cases import WholeCase
from sextant.validate.whole.kernels import Kernels
from sextant.validate.whole.language import Language
from sextant.validate.whole.layers import Pass
from sextant.validate.whole.memory import host_table
from sextant.validate.whole.training import Training
from sextant.validate.whole.vision import Tower

Network = Language | Tower | Training
#: Relative error (norm over norm) that BF16 may leave in logits, projected patches and gradients.
TOLERANCE = 0.05


def kernels_of(target: Target) -> tuple[Kernels, Backward]:
    """Triton and library kernels where they run, else plain torch."""
    if not target.fused:
        return Kernels(), Backward()
    from sextant.validate.whole.fused import FusedKernels
    from sextant.validate.whole.fused_backward import FusedBackward

    return FusedKernels(n_sms=target.n_sms), FusedBackward(n_sms=target.n_sms)


def network(case: WholeCase, target: Target, *, dtype: torch.dtype = torch.bfloat16) -> Network:
    """The network of a case with random weights."""
    kernels, backward = kernels_of(target)
    at = Pass(
        kernels=kernels, device=target.device, phase=case.phase, batch=case.batch, seq=case.seq, context=case.context,
        dtype=dtype,
    )  # fmt: skip
    if case.phase == "vision":
        return Tower(case.model, at)
    if case.phase == "training":
        return Training(case.model, at, backward)
    table: Callable[[int, int], Tensor] | None = None
    if target.cuda and case.plan.placement.get("engram") == "host":
        table = host_table
    return Language(case.model, at, table=table, prefetch=case.prefetch)


def check(net: Network) -> float:
    """Relative error of a pass against the reference, the largest of gradients in training; ``ValueError`` if large."""
    with torch.no_grad():
        if isinstance(net, Training):
            error = _check_training(net)
        elif isinstance(net, Tower):
            error = relative_error(net(), reference.tower(net))
        else:
            error = relative_error(net(), reference.language(net))
    if not error < TOLERANCE:
        raise ValueError(f"check: off by {error:.3g} (relative norm), allowed {TOLERANCE:g}")
    return error


def _check_training(net: Training) -> float:
    """The loss, and the gradient of every weight."""
    leaves: dict[int, Tensor] = {}

    def leaf(weight: Tensor) -> Tensor:
        return leaves.setdefault(weight.data_ptr(), weight.float().requires_grad_())

    loss = net.differentiate()
    with torch.enable_grad():
        logits = reference.language(net.language, leaf, every_token=True)
        expected = torch.nn.functional.cross_entropy(logits, net.targets.long())
        expected.backward()
    errors = [float((loss - expected.detach()).abs() / expected.detach())]
    for pointer, gradient in net.gradient_of.items():
        exact = leaves[pointer].grad
        assert exact is not None, "every weight has a gradient"
        errors.append(relative_error(gradient, exact))
    net.gradients.zero_()
    return max(errors)
