"""What must lie in a device's memory: weights, gradients, optimizer state, activations, cache, per layer kind."""

from __future__ import annotations

from sextant.simulator.kernels import BYTES
from sextant.simulator.types import Load, Num, Plan
from sextant.workloads.formats import Recipe, recipe
from sextant.workloads.parameters import kv_bytes_per_token, layer_counts, layer_parameters
from sextant.workloads.traffic import received_copies

#: Pieces that tensor parallelism leaves whole on every device.
_REPLICATED = ("norm", "router", "mtp_norm")

#: Bytes per weight where they differ from those of an activation: one FP32 scale per 128 x 128 block, not per 1 x 128
#: tile (DeepSeek-V3 report arXiv:2412.19437 s3.3.2).
_WEIGHT_BYTES = {"fp8_block": 1.0 + 4.0 / 128.0**2}


def device_parameters(model, plan: Plan) -> dict[str, dict[str, Num]]:
    """Parameters that one device holds of one occurrence of each part, ``{part: {"dense": n, "expert": n}}``.

    Routed experts are divided by the expert degree (and replicated by ``redundant_experts``, spread evenly), all
    other split pieces by the tensor degree.
    """
    sizes: dict[str, dict[str, Num]] = {}
    occurring = layer_counts(model)
    for part, pieces in layer_parameters(model).items():
        dense: Num = 0.0
        for piece, size in pieces.items():
            if piece != "routed_experts":
                dense = dense + (size if piece in _REPLICATED else size / plan.tensor)
        routed = pieces.get("routed_experts", 0.0)
        if "routed_experts" in pieces and "moe_layer" in occurring:
            routed = routed * (1.0 + plan.redundant_experts / model.n_routed_experts) / plan.expert
        sizes[part] = {"dense": dense, "expert": routed}
    return sizes


def replicas(plan: Plan) -> dict[str, Num]:
    """Over how many devices each kind of parameter is replicated by data parallelism (DualPipe keeps every stage on
    two pipeline ranks, which doubles it)."""
    twice = 2.0 if plan.schedule == "dualpipe" else 1.0
    return {
        "dense": plan.data * plan.context * twice,
        "expert": plan.data * plan.context * plan.tensor / plan.expert * twice,
    }


def state_bytes(model, plan: Plan) -> dict[str, dict[str, Num]]:
    """Training state of one occurrence of each part on one device: weights, gradients, master, moments, in bytes.

    ZeRO 1 shards master weights and moments over the replicas, 2 gradients as well, 3 weights too.
    """
    kind, copies = recipe(plan.formats), replicas(plan)
    per = {
        "weights": (kind.weight_bytes, 3.0), "gradients": (kind.gradient_bytes, 2.0),
        "master": (kind.master_bytes, 1.0), "moments": (kind.moment_bytes, 1.0),
    }  # fmt: skip
    parts: dict[str, dict[str, Num]] = {}
    for part, sizes in device_parameters(model, plan).items():
        parts[part] = {}
        for name, (element_bytes, from_stage) in per.items():
            total: Num = 0.0
            for group, n in sizes.items():
                shared = copies[group] if plan.zero_stage >= from_stage else 1.0
                total = total + n * element_bytes / shared
            parts[part][name] = total
    return parts


def weight_bytes(model, plan: Plan) -> dict[str, Num]:
    """Serving weights of one occurrence of each part on one device: linears in the recipe's format, the rest BF16."""
    kind = recipe(plan.formats)
    element = _WEIGHT_BYTES.get(kind.linear, BYTES[kind.linear])
    return {
        part: sizes["expert"] * element + sizes["dense"] * (2.0 if part in ("embedding", "head") else element)
        for part, sizes in device_parameters(model, plan).items()
    }


def activation_bytes(model, plan: Plan, load: Load) -> dict[str, Num]:
    """Activations that one micro-batch leaves behind in one occurrence of each part, until its backward pass.

    Inputs of linear layers are kept in the recipe's saved format, inputs of norms and of attention in BF16; what
    ``recompute`` names is made again instead: ``norm`` the normalised tensors, ``mla_up`` the expanded queries, keys
    and values, ``swiglu`` the product of gate and up, ``full`` everything but the layer's input.
    """
    kind = recipe(plan.formats)
    m = plan.micro_batch * load.context_tokens / plan.tensor / plan.context
    h = model.hidden_size
    if "full" in plan.recompute:
        layer = 2.0 * h * m
        full: dict[str, Num] = {part: layer for part in layer_counts(model)}
        return {**full, "head": _head_bytes(model, m), "mtp": layer + _head_bytes(model, m)}
    attention = _attention_bytes(model, kind, plan.recompute)
    norms = 2 * 2.0 * h
    normed = 0.0 if "norm" in plan.recompute else BYTES[kind.saved] * h
    dense = attention + norms + _gated_bytes(kind, plan, model.intermediate_size, normed)
    parts: dict[str, Num] = {"embedding": 0.0 * m, "dense_layer": dense * m, "head": _head_bytes(model, m)}
    inner: Num = dense
    if "moe_layer" in layer_counts(model):
        inner = attention + norms + _expert_bytes(model, kind, plan)
        parts["moe_layer"] = inner * m
    parts["mtp"] = inner * m + 6.0 * h * m + _head_bytes(model, m)
    return parts


def cache_bytes(model, plan: Plan, load: Load) -> Num:
    """Key-value cache of one device while decoding; the MLA latent cannot be split by heads."""
    split = plan.tensor if model.attention == "gqa" else 1.0
    return load.batch * load.context_tokens * kv_bytes_per_token(model) / split / plan.pipeline


def _attention_bytes(model, kind: Recipe, recompute: tuple[str, ...]) -> Num:
    heads, saved = model.num_attention_heads, BYTES[kind.saved]
    if model.attention == "gqa":
        width = (heads + 2 * model.num_key_value_heads) * model.head_dim
        inputs = 0.0 if "norm" in recompute else saved * model.hidden_size
        return inputs + 2.0 * width + BYTES[kind.saved_attention] * heads * model.head_dim + 4.0 * heads
    latent = 2.0 * (model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim)
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    expanded = 0.0 if "mla_up" in recompute else 2.0 * heads * (2 * dim + model.v_head_dim)
    # The attention output feeds both its own backward pass and o_proj's weight gradient: one copy serves both.
    output = BYTES[kind.saved_attention] * heads * model.v_head_dim + 4.0 * heads
    inputs = 0.0 if "norm" in recompute else saved * (model.hidden_size + model.q_lora_rank + model.kv_lora_rank)
    return latent + expanded + output + inputs


def _gated_bytes(kind: Recipe, plan: Plan, width: Num, input_bytes: Num) -> Num:
    product = 0.0 if "swiglu" in plan.recompute else BYTES[kind.saved] * width
    return input_bytes + BYTES[kind.saved] * 2.0 * width + product


def _expert_bytes(model, kind: Recipe, plan: Plan) -> Num:
    """Shared experts see the token itself; routed ones the tokens received, once per device, in the sent format."""
    hidden, width = model.hidden_size, model.moe_intermediate_size
    copies = received_copies(model, plan.expert)
    normed = 0.0 if "norm" in plan.recompute else BYTES[kind.saved] * hidden
    shared = _gated_bytes(kind, plan, model.n_shared_experts * width, normed)
    routed = model.num_experts_per_tok * _gated_bytes(kind, plan, width, 0.0)
    return shared + routed + copies * BYTES[kind.dispatch] * hidden + 4.0 * model.n_routed_experts


def _head_bytes(model, m: Num) -> Num:
    """Logits in FP32, overwritten by their gradient, and the head's input."""
    return m * (4.0 * model.vocab_size + 2.0 * model.hidden_size)


def working_bytes(model, plan: Plan, n_tokens: Num) -> Num:
    """Largest working set of one layer while serving ``n_tokens``: residual, expanded heads or expert activations."""
    h, heads = model.hidden_size, model.num_attention_heads / plan.tensor
    dim = model.head_dim if model.attention == "gqa" else model.qk_nope_head_dim + model.qk_rope_head_dim
    attention = 2.0 * n_tokens * heads * 3.0 * dim
    if "moe_layer" not in layer_counts(model):
        return 4.0 * h * n_tokens + attention + 6.0 * n_tokens * model.intermediate_size / plan.tensor
    pairs = n_tokens * model.num_experts_per_tok
    experts = pairs * (3.0 * h + 6.0 * model.moe_intermediate_size)
    return 4.0 * h * n_tokens + attention + experts
