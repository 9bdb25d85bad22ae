"""Which number format each kind of operator computes, sends and saves in: the mixed-precision recipes."""

from __future__ import annotations

from dataclasses import dataclass

from sextant.simulator.errors import InputError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Formats by role. ``saved`` is what activations that a weight gradient needs are kept in until the backward pass;
    ``saved_attention`` the attention output, which DeepSeek-V3 keeps in E5M6 for precision. ``weight_bytes`` is what a
    weight takes where it travels and in an operator that is not quantised; in one that is, training keeps
    ``weight_layouts`` copies in ``linear``, one for each product that reads it along another dimension. Gradients of a
    ``loss_scaled`` recipe are divided by the scale and searched for infinities before the optimizer may use them."""

    linear: str
    attention: str
    head: str
    dispatch: str
    combine: str
    saved: str
    saved_attention: str
    weight_bytes: float
    gradient_bytes: float
    master_bytes: float
    moment_bytes: float
    source: str
    weight_layouts: float = 0.0
    loss_scaled: bool = False

    @property
    def quantised(self) -> bool:
        """Whether linear operators run in FP8, and so pay for casts."""
        return self.linear.startswith("fp8")


RECIPES = {
    "bf16": Recipe(
        linear="bf16", attention="bf16", head="bf16", dispatch="bf16", combine="bf16", saved="bf16",
        saved_attention="bf16", weight_bytes=2.0, gradient_bytes=4.0, master_bytes=4.0, moment_bytes=8.0,
        source="BF16 compute, FP32 master weights, gradients and Adam moments",
    ),
    "fp16": Recipe(
        linear="fp16", attention="fp16", head="fp16", dispatch="fp16", combine="fp16", saved="fp16",
        saved_attention="fp16", weight_bytes=2.0, gradient_bytes=4.0, master_bytes=4.0, moment_bytes=8.0,
        loss_scaled=True,
        source="Mixed precision with loss scaling, arXiv:1710.03740; FP32 main gradients as in Megatron-LM, whose "
        "18 bytes per parameter this is",
    ),
    "fp8": Recipe(
        linear="fp8_block", attention="bf16", head="bf16", dispatch="fp8_block", combine="bf16", saved="fp8_block",
        saved_attention="e5m6", weight_bytes=2.0, gradient_bytes=4.0, master_bytes=4.0, moment_bytes=4.0,
        source="DeepSeek-V3 report arXiv:2412.19437 s3.3: FP8 linears, BF16 attention and head, FP8 dispatch, "
        "BF16 combine, FP32 master and gradients, BF16 moments; forward and input-gradient products read the weight "
        "along different dimensions",
        weight_layouts=2.0,
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of that name; InputError offers the nearest."""
    if name not in RECIPES:
        raise InputError(f"plan.formats: unknown recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]
