"""Gated feed-forward (SwiGLU): dense, shared and routed experts, with router, permutation and expert exchange."""

from __future__ import annotations

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.kernels.imbalance import Skew
from sextant.simulator.types import Num, Op
from sextant.workloads.formats import Recipe
from sextant.workloads.ops.linear import cast, linear
from sextant.workloads.ops.memory import Place, moved
from sextant.workloads.traffic import BALANCED, groups


def swiglu(name: str, place: Place, m: Num, width: Num, recipe: Recipe, sharded: tuple[str, ...]) -> list[Op]:
    """SwiGLU of (m, 2 x width) to (m, width), fused with the cast of its output in an FP8 recipe.

    Training saves the input in the recipe's saved format, and the backward pass computes output and gradient at once.
    """
    out = BYTES["fp8_block"] if recipe.quantised else 2.0
    access = "swiglu_fp8" if recipe.quantised else "swiglu"
    ops = [moved(name, place, 4.0 * m * width, out * m * width, sharded=sharded, variant=access)]
    if place.training:
        saved = BYTES[recipe.saved] * 2.0 * m * width
        if recipe.quantised:
            ops.append(moved(name + "_save", place, 4.0 * m * width, saved, sharded=sharded, variant="cast"))
        read, write = saved + 2.0 * m * width, 4.0 * m * width + out * m * width
        ops.append(moved(name + "_backward", place, read, write, "backward_input", sharded, "swiglu_backward"))
    return ops


def gated(name: str, place: Place, m: Num, hidden: Num, width: Num, recipe: Recipe) -> list[Op]:
    """A dense gated feed-forward: up and gate in one product (2 x width, hidden), SwiGLU, down (hidden, width)."""
    ops = linear(name + "_up_gate", place, m, 2 * width, hidden, recipe, split="n")
    ops += swiglu(name + "_swiglu", place, m, width, recipe, ("tensor",))
    return ops + linear(name + "_down", place, m, hidden, width, recipe, split="k", quantised_input=recipe.quantised)


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
        shape = {"m": m, "n": hidden, "k": n_experts}
        ops.append(_router_gemm("router_dgrad", place, shape, "backward_input", ""))
        shape = {"m": n_experts, "n": hidden, "k": m}
        ops.append(_router_gemm("router_wgrad", place, shape, "backward_weight", "wgrad"))
    return ops


def exchange(
    place: Place, model, recipe: Recipe, m: Num, mode: float, n_slots: Num, n_sms: Num, skew: Skew = BALANCED
) -> list[Op]:
    """Dispatch and combine of ``m`` tokens per device; the backward pass of each is the other one.

    Backward of the combine sends output gradients to the experts (a dispatch, FP8 in an FP8 recipe); backward of the
    dispatch sums input gradients (a combine, BF16). In normal mode the devices first agree on sizes (``notify``);
    ``n_sms`` SMs copy. With a ``skew`` the operators are those of the most loaded GPU.
    """
    sends = [("dispatch", "dispatch", recipe.dispatch, "forward"), ("combine", "combine", recipe.combine, "forward")]
    if place.training:
        sends += [
            ("combine_backward", "dispatch", recipe.dispatch, "backward_input"),
            ("dispatch_backward", "combine", recipe.combine, "backward_input"),
        ]
    shape = {
        "n_tokens": m, "hidden": model.hidden_size, "top_k": model.num_experts_per_tok, "n_gpus": 1.0,
        "n_experts": model.n_routed_experts, "n_slots": n_slots, **groups(model), "mode": mode,
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
    ops += _grouped("expert_down", place, experts, pairs, hidden, width, recipe)
    ops.append(_pairs("unpermute", place, 2.0 * pairs * hidden, 2.0 * received * hidden))
    if place.training:
        ops.append(_pairs("unpermute_backward", place, pairs * inp, pairs * inp, "backward_input", "permute"))
        ops.append(_pairs("permute_backward", place, 2.0 * pairs * hidden, 2.0 * received * hidden, "backward_input"))
    return ops


def _pairs(name: str, place: Place, read: Num, write: Num, phase: str = "forward", variant: str = "") -> Op:
    """A kernel over (token, expert) pairs; gathering rows is a ``permute``, summing them streams."""
    return moved(name, place, read, write, phase, variant=variant)


def _grouped(name: str, place: Place, experts: Num, pairs: Num, n: Num, k: Num, recipe: Recipe) -> list[Op]:
    """A linear layer per expert: (pairs/experts, k) to (pairs/experts, n), three phases, casts as in ``linear``."""
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
            ops.append(cast(name + "_grad_cast", place, pairs * n, "backward_input", ("tensor",)))
        shape = {"groups": experts, "tokens_per_group": per, "n": k, "k": n}
        ops.append(product("_dgrad", "backward_input", shape))
        if fp8:
            ops.append(cast(name + "_grad_cast_transpose", place, pairs * n, "backward_input", ("tensor",)))
            size = BYTES["fp8_block"] * pairs * k
            ops.append(moved(name + "_requant_transpose", place, size, size, "backward_weight", variant="transpose"))
        shape = {"groups": experts, "tokens_per_group": n, "n": k, "k": per}
        ops.append(product("_wgrad", "backward_weight", shape, "wgrad"))
    return ops


def _router_gemm(name: str, place: Place, shape: dict[str, Num], phase: str, variant: str) -> Op:
    return operator(
        "gemm", name, "bf16", shape, variant=variant, part=place.part, block=place.block, phase=phase,
        count=place.count,
    )  # fmt: skip
