"""The optimizer's step: one fused AdamW kernel over fp32 master weights and gradients and bf16 moments.

Traffic per element: read 4 (weight) + 4 (gradient) + 2 + 2 (moments), write 4 + 2 + 2 and 2 for the new bf16 weight.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import CPU_LIBRARY, Case, Prepared, Target, require_close, sizes

READ_BYTES_PER_ELEMENT = 12.0
WRITE_BYTES_PER_ELEMENT = 10.0
#: Elements compared at either end of the arrays: an overflowing offset shows at the far one.
N_CHECKED = 1 << 18
CONSTANTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.1, "fix1": 0.5, "fix2": 0.25}


def eager_adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """The same step in plain torch, in place, returning (p, m, v, w)."""
    c = CONSTANTS
    new_m = c["beta1"] * m.float() + (1 - c["beta1"]) * g
    new_v = c["beta2"] * v.float() + (1 - c["beta2"]) * g * g
    new_p = p * (1 - c["lr"] * c["decay"]) - c["lr"] * (new_m / c["fix1"]) / ((new_v / c["fix2"]).sqrt() + c["eps"])
    return p.copy_(new_p), m.copy_(new_m), v.copy_(new_v), w.copy_(new_p)


def _inputs(n_elements: int, target: Target) -> tuple[Tensor, ...]:
    def draw(dtype: torch.dtype) -> Tensor:
        return torch.randn(n_elements, dtype=dtype, device=target.device)

    p, g, m, v = draw(torch.float32), draw(torch.float32), draw(torch.bfloat16), draw(torch.bfloat16).abs_()
    return p, g, m, v, torch.full_like(m, float("nan"))


def build_adam(case: Case, target: Target) -> Prepared:
    """One step over ``n_elements`` parameters."""
    (n_elements,) = sizes(case, "n_elements")
    read_bytes, write_bytes = READ_BYTES_PER_ELEMENT * n_elements, WRITE_BYTES_PER_ELEMENT * n_elements
    sets = [_inputs(n_elements, target) for _ in range(target.n_sets(READ_BYTES_PER_ELEMENT * n_elements))]
    step = eager_adamw
    if target.fused:
        from sextant.validate.kernels import triton_moves

        step = partial(triton_moves.adamw, **CONSTANTS)

    def check() -> float:
        ends = [slice(0, N_CHECKED), slice(max(0, n_elements - N_CHECKED), n_elements)]
        expected = [eager_adamw(*(tensor[end].clone() for tensor in sets[0])) for end in ends]
        before = sets[0][0][ends[0]].clone()
        outputs = step(*sets[0])
        change = outputs[0][ends[0]] - before
        errors = [require_close(change, expected[0][0] - before, what="the change of the weights")]
        for end, references in zip(ends, expected, strict=True):
            for i, (out, reference) in enumerate(zip(outputs, references, strict=True)):
                # bf16 rounds to 0.2% at most, or truncates to 0.4%
                errors.append(require_close(out[end], reference, what=f"output {i}", tolerance=5e-3))
        return max(errors)

    return Prepared(
        calls=tuple(partial(step, *one) for one in sets),
        check=check,
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        library="triton" if target.fused else CPU_LIBRARY,
    )


BUILDERS = {"adam": build_adam}
