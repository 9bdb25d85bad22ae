"""A linear layer y[m, n] = x[m, k] W[n, k]^T in its three phases, with the casts that an FP8 recipe pays for."""

from __future__ import annotations

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops.memory import Place, moved

#: The dimension of the input-gradient and of the weight-gradient product that a forward dimension turns into.
_INPUT_GRADIENT = {"m": "m", "n": "k", "k": "n"}
_WEIGHT_GRADIENT = {"m": "k", "n": "m", "k": "n"}


def cast(name: str, place: Place, elements: Num, phase: str = "forward", sharded: tuple[str, ...] = ()) -> Op:
    """BF16 to FP8 with one scale per 128 elements: 2 bytes read, 1 byte and a scale written per element."""
    return moved(name, place, 2.0 * elements, BYTES["fp8_block"] * elements, phase, sharded, "cast")


def linear(
    name: str,
    place: Place,
    m: Num,
    n: Num,
    k: Num,
    recipe: Recipe,
    *,
    split: str = "",
    quantised_input: bool = False,
    quantised_gradient: bool = False,
    format: str = "",
) -> list[Op]:
    """Operators of a linear layer with ``m`` tokens; ``split`` is the weight dimension tensor parallelism divides.

    FP8: the input is cast before the product (unless ``quantised_input``), the output gradient is cast row-wise for
    the input gradient and column-wise for the weight gradient, and the saved input is re-quantised column-wise, since
    scales run along the reduction (DeepSeek-V3 report s3.5.2). A gradient that arrives in FP8 (``quantised_gradient``)
    is re-quantised column-wise instead. Weights lie in memory for the forward product and are transposed for the input
    gradient in every pass, and so are the scales of both inputs, as in the published DualPipe trace. ``format``
    overrides the recipe's.
    """
    fmt = format or recipe.linear
    fp8 = fmt == "fp8_block"
    ops: list[Op] = []
    rows = ("tensor",) if split == "k" else ()
    cols = ("tensor",) if split == "n" else ()
    if fp8 and not quantised_input:
        ops.append(cast(name + "_cast", place, m * k, sharded=rows))
    if fp8 and place.training:
        ops.append(scales(name + "_scales", place, m * k, sharded=rows))
    ops.append(_gemm(name, place, fmt, {"m": m, "n": n, "k": k}, "forward", split, ""))
    if place.training:
        if fp8:
            if quantised_gradient:
                size = BYTES["fp8_block"] * m * n
                again = moved(name + "_grad_requant_transpose", place, size, size, "backward_input", cols, "transpose")
                ops.append(again)
            else:
                ops.append(cast(name + "_grad_cast", place, m * n, "backward_input", cols))
                ops.append(cast(name + "_grad_cast_transpose", place, m * n, "backward_input", cols))
            ops.append(scales(name + "_grad_scales", place, m * n, "backward_input", cols))
            ops.append(weight_transpose(name, place, n * k, "backward_input", (rows or cols)))
            size = BYTES["fp8_block"] * m * k
            ops.append(moved(name + "_requant_transpose", place, size, size, "backward_input", rows, "transpose"))
        grads = _INPUT_GRADIENT.get(split, "")
        ops.append(_gemm(name + "_dgrad", place, fmt, {"m": m, "n": k, "k": n}, "backward_input", grads, ""))
        grads = _WEIGHT_GRADIENT.get(split, "")
        ops.append(_gemm(name + "_wgrad", place, fmt, {"m": n, "n": k, "k": m}, "backward_weight", grads, "wgrad"))
    return ops


def scales(
    name: str, place: Place, elements: Num, phase: str = "forward", sharded: tuple[str, ...] = (), access: str = ""
) -> Op:
    """The FP32 scales of an FP8 operand, one per 128 elements, brought into the order in which a product reads them."""
    size = 4.0 / 128.0 * elements
    return moved(name, place, size, size, phase, sharded, access)


def weight_transpose(name: str, place: Place, elements: Num, phase: str, sharded: tuple[str, ...] = ()) -> Op:
    """FP8 weights written along their other dimension: one byte read and one written per element."""
    return moved(name + "_weight_transpose", place, 1.0 * elements, 1.0 * elements, phase, sharded, "transpose")


def _gemm(name: str, place: Place, fmt: str, shape: dict[str, Num], phase: str, split: str, variant: str) -> Op:
    return operator(
        "gemm", name, fmt, shape, variant=variant, part=place.part, block=place.block, phase=phase, count=place.count,
        shards={"tensor": (split,)} if split else {},
    )  # fmt: skip
