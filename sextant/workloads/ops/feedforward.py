"""Gated feed-forward (SwiGLU): dense, shared and routed experts, with router, permutation and expert exchange."""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.kernels.imbalance import Skew
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops.linear import cast, linear, requantised, scale_transpose, weight_transpose
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.traffic import BALANCED, groups

#: Elementwise passes over the scores of all experts that a training router makes besides its selection (sigmoid, limits
#: on groups, masks, normalisation, auxiliary loss, one operation of the library each), forward and backward: counted in
#: the published trace.
_ROUTER_PASSES, _ROUTER_PASSES_BACKWARD = 25.0, 13.0


def swiglu(
    name: str, place: Place, m: Num, width: Num, recipe: Recipe, sharded: tuple[str, ...], *, fused: bool = True
) -> list[Op]:
    """SwiGLU of (m, 2 x width) to (m, width), fused with the cast of its output in an FP8 recipe.

    Training saves the input in the recipe's saved format, and in an FP8 recipe makes BF16 of it again. Under recompute
    ``swiglu`` the backward pass makes the product again for the weight gradient that follows: the backward kernel
    itself where ``fused``, else one before it that also casts and transposes, as the published trace has for the
    shared expert. Kept, the product is what the forward kernel wrote.
    """
    out = BYTES["fp8_block"] if recipe.quantised else 2.0
    access = "swiglu_fp8" if recipe.quantised else "swiglu"
    size = m * width
    ops = [moved(name, place, 4.0 * size, out * size, sharded=sharded, variant=access)]
    if not place.training:
        return ops
    saved = BYTES[recipe.saved] * 2.0 * size
    if recipe.quantised:
        ops.append(moved(name + "_save", place, 4.0 * size, saved, sharded=sharded, variant="cast"))
        ops.append(moved(name + "_load", place, saved, 4.0 * size, "backward_input", sharded))
    made = "swiglu" in place.recompute
    if made and not fused:
        ops.append(moved(name + "_recompute", place, 4.0 * size, out * size, "backward_input", sharded, access))
    write = 4.0 * size + (2.0 * size if made and fused else 0.0)
    ops.append(moved(name + "_backward", place, 6.0 * size, write, "backward_input", sharded, "swiglu_backward"))
    return ops


def gated(
    name: str, place: Place, m: Num, hidden: Num, width: Num, recipe: Recipe, *, exchanged: bool = False
) -> list[Op]:
    """A dense gated feed-forward: up and gate in one product (2 x width, hidden), SwiGLU, down (hidden, width).

    A product that is made again in FP8 comes transposed, as the weight gradient reads it, and needs no re-quantisation.
    ``exchanged``: input and output gradient are those of routed experts too; training code that sends them in FP8 has
    cast them already.
    """
    sent = exchanged and place.training and recipe.quantised and recipe.dispatch == recipe.linear
    ops = linear(name + "_up_gate", place, m, 2 * width, hidden, recipe, split="n", quantised_input=sent)
    ops += swiglu(name + "_swiglu", place, m, width, recipe, ("tensor",), fused=not recipe.quantised)
    down = linear(
        name + "_down", place, m, hidden, width, recipe, split="k", quantised_input=recipe.quantised,
        quantised_gradient=sent,
    )  # fmt: skip
    made = "swiglu" in place.recompute
    return ops + [op for op in down if not (made and op.name == name + "_down_requant_transpose")]


def router(place: Place, m: Num, model) -> list[Op]:
    """Expert scores in BF16 (a plain product), then top-k selection over FP32 scores.

    Training code selects with library kernels (variant ``topk``), serving engines with one fused kernel.
    """
    hidden, n_experts = model.hidden_size, model.n_routed_experts
    ops = [_router_gemm("router", place, {"m": m, "n": n_experts, "k": hidden}, "forward", "")]
    selected = 12.0 * m * model.num_experts_per_tok
    variant = "topk" if place.training else ""
    ops.append(moved("router_topk", place, 4.0 * m * n_experts, selected, sharded=(), variant=variant))
    if place.training:
        scores = 4.0 * m * n_experts
        passes = replace(place, count=_ROUTER_PASSES * place.count)
        ops.append(moved("router_scores", passes, scores, scores, sharded=()))
        passes = replace(place, count=_ROUTER_PASSES_BACKWARD * place.count)
        ops.append(moved("router_topk_backward", passes, scores, scores, "backward_input", sharded=()))
        shape = {"m": m, "n": hidden, "k": n_experts}
        ops.append(_router_gemm("router_dgrad", place, shape, "backward_input", ""))
        shape = {"m": n_experts, "n": hidden, "k": m}
        ops.append(_router_gemm("router_wgrad", place, shape, "backward_weight", "wgrad"))
    return ops


def exchange(
    place: Place, model, recipe: Recipe, m: Num, mode: float, first: float, n_slots: Num, n_sms: Num,
    skew: Skew = BALANCED,
) -> list[Op]:  # fmt: skip
    """Dispatch and combine of ``m`` tokens per device; the backward pass of each is the other one.

    Backward of the combine sends output gradients to the experts (a dispatch, FP8 in an FP8 recipe); backward of the
    dispatch sums input gradients (a combine, BF16). In normal mode the devices first agree on sizes (``notify``);
    ``n_sms`` SMs copy; ``first`` (0 or 1): by the kernels of DeepEP's first version. With a ``skew`` the operators are
    those of the most loaded GPU.
    """
    sends = [("dispatch", "dispatch", recipe.dispatch, "forward"), ("combine", "combine", recipe.combine, "forward")]
    if place.training:
        sends += [
            ("combine_backward", "dispatch", recipe.dispatch, "backward_input"),
            ("dispatch_backward", "combine", recipe.combine, "backward_input"),
        ]
    shape = {
        "n_tokens": m, "hidden": model.hidden_size, "top_k": model.num_experts_per_tok, "n_gpus": 1.0,
        "n_experts": model.n_routed_experts, "n_slots": n_slots, **groups(model), "mode": mode, "first": first,
        "n_gpus_per_node": 1.0, "notify": 1.0 - mode, "n_sms": n_sms, "hot_gpu": skew.gpu, "hot_node": skew.node,
    }  # fmt: skip
    return [
        operator(
            "expert_exchange", name, fmt, shape, variant=variant, part=place.part, block=name, phase=phase,
            stream="communication", group="expert", count=place.count,
            shards={"expert": ("*n_gpus",), "tensor": ("n_tokens",)},
        )
        for name, variant, fmt, phase in sends
    ]  # fmt: skip


def routed(place: Place, model, recipe: Recipe, m: Num, copies: Num, n_slots: Num, skew: Skew = BALANCED) -> list[Op]:
    """The routed experts of one device: permutation, grouped products, SwiGLU, weighted sum back.

    ``m`` tokens per device make ``m x top_k`` (token, expert) pairs; expert parallelism pools the tokens of its group
    over fewer experts per device, so the number of pairs per device stays. A received token lies once on a device
    (``copies`` devices per token), a pair once per expert. ``n_slots`` counts redundant copies of experts too. With a
    ``skew`` the device is the most loaded one, and ``copies`` its own.
    """
    hidden, width, experts = model.hidden_size, model.moe_intermediate_size, n_slots * skew.hit
    pairs = m * model.num_experts_per_tok * skew.gpu
    received = m * copies
    inp = BYTES[recipe.dispatch] * hidden
    index = "index" if place.training else ""
    ops = [moved("expert_index", place, 8.0 * pairs, 16.0 * pairs, variant=index)]
    ops += [_pairs("permute", place, pairs * inp, pairs * inp, variant="permute")]
    ops += _grouped("expert_up_gate", place, experts, pairs, 2 * width, hidden, recipe)
    ops += swiglu("expert_swiglu", place, pairs, width, recipe, ("tensor",))
    ops += _grouped(
        "expert_down", place, experts, pairs, hidden, width, recipe, made="swiglu" in place.recompute,
        quantised_gradient=recipe.quantised and recipe.dispatch == recipe.linear,
    )  # fmt: skip
    ops.append(_pairs("unpermute", place, 2.0 * pairs * hidden, 2.0 * received * hidden))
    if place.training:
        # The gradient of a routing weight is a sum over the width of the product times the gradient behind it.
        ops.append(_pairs("expert_swiglu_weight_backward", place, 4.0 * pairs * width, 4.0 * pairs, "backward_input"))
        ops.append(_pairs("unpermute_backward", place, pairs * inp, pairs * inp, "backward_input", "permute"))
        ops.append(_pairs("permute_backward", place, 2.0 * pairs * hidden, 2.0 * received * hidden, "backward_input"))
    return [replace(op, follows="experts") for op in ops]


def _pairs(name: str, place: Place, read: Num, write: Num, phase: str = "forward", variant: str = "") -> Op:
    """A kernel over (token, expert) pairs; gathering rows is a ``permute``, summing them streams."""
    return moved(name, place, read, write, phase, variant=variant)


def _grouped(
    name: str,
    place: Place,
    experts: Num,
    pairs: Num,
    n: Num,
    k: Num,
    recipe: Recipe,
    *,
    made: bool = False,
    quantised_gradient: bool = False,
) -> list[Op]:
    """A linear layer per expert: (pairs/experts, k) to (pairs/experts, n), three phases, casts as in ``linear``.

    An input that the backward pass has ``made`` again is BF16 and cast column-wise at once, not the saved FP8 and with
    the weight gradient. Where the published trace has them: weights are transposed in the forward pass, and a
    ``quantised_gradient`` with its weight gradient.
    """
    split = {"expert": ("groups", "*tokens_per_group"), "tensor": ("tokens_per_group",)}
    fmt, per = recipe.linear, pairs / experts
    fp8 = recipe.quantised

    def product(suffix: str, phase: str, shape: dict[str, Num], variant: str = "") -> Op:
        shards = split if variant != "wgrad" else {"expert": ("groups", "*k"), "tensor": ("k",)}
        return operator(
            "grouped_gemm", name + suffix, fmt, shape, variant=variant, part=place.part, block=place.block,
            phase=phase, count=place.count, shards=shards,
        )  # fmt: skip

    ops = [product("", "forward", {"groups": experts, "tokens_per_group": per, "n": n, "k": k})]
    if place.training:
        if fp8:
            ops.append(scale_transpose(name, place, pairs * k, sharded=("tensor",)))
            ops.append(weight_transpose(name, place, 1.0 * experts * n * k, "forward", ("expert", "tensor")))
            ops.append(scale_transpose(name + "_grad", place, pairs * n, "backward_input", ("tensor",)))
        if fp8 and not quantised_gradient:
            ops.append(cast(name + "_grad_cast", place, pairs * n, "backward_input", ("tensor",)))
        shape = {"groups": experts, "tokens_per_group": per, "n": k, "k": n}
        ops.append(product("_dgrad", "backward_input", shape))
        if fp8 and quantised_gradient:
            grad = name + "_grad_requant_transpose"
            ops.append(requantised(grad, place, pairs * n, "backward_weight", ("tensor",)))
        elif fp8:
            ops.append(cast(name + "_grad_cast_transpose", place, pairs * n, "backward_input", ("tensor",)))
        if fp8:
            size = BYTES["fp8_block"] * pairs * k
            read, when = (2.0 * pairs * k, "backward_input") if made else (size, "backward_weight")
            ops.append(moved(name + "_requant_transpose", place, read, size, when, variant="transpose"))
        shape = {"groups": experts, "tokens_per_group": n, "n": k, "k": per}
        ops.append(product("_wgrad", "backward_weight", shape, "wgrad"))
    return ops


def _router_gemm(name: str, place: Place, shape: dict[str, Num], phase: str, variant: str) -> Op:
    return operator(
        "gemm", name, "bf16", shape, variant=variant, part=place.part, block=place.block, phase=phase,
        count=place.count,
    )  # fmt: skip
