"""What must lie in a device's memory: weights, gradients, optimizer state, activations, cache, per layer kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sextant.simulator.kernels import BYTES
from sextant.simulator.types import Load, Num, Plan
from sextant.workloads.activations import attention_tensors, mlp_tensors
from sextant.workloads.formats import Recipe, recipe
from sextant.workloads.ops import engram, gpt, hyperconnection
from sextant.workloads.ops.scores import MASK_BYTES
from sextant.workloads.parameters import has_streams, kv_bytes_per_token, layer_counts, layer_parameters
from sextant.workloads.traffic import pipeline_stages, received_copies
from sextant.workloads.transformer import image_pixels, image_rows, sequence_tokens

#: Pieces that tensor parallelism leaves whole on every device.
_REPLICATED = ("norm", "router", "mtp_norm", "hyper_connection", "engram_gate", "position")

#: Parts that every tensor rank holds whole: they are small beside the language model.
_WHOLE = ("vision", "generation")

#: Parts that no recipe quantises.
_SIXTEEN_BITS = ("embedding", "head", "vision", "generation", "engram")

#: Bytes per weight where they differ from those of an activation: one FP32 scale per 128 x 128 block, not per 1 x 128
#: tile (DeepSeek-V3 report arXiv:2412.19437 s3.3.2).
_WEIGHT_BYTES = {"fp8_block": 1.0 + 4.0 / 128.0**2}


def device_parameters(model, plan: Plan) -> dict[str, dict[str, Num]]:
    """Parameters that one device holds of one occurrence of each part, ``{part: {"dense": n, "expert": n}}``.

    Routed experts are divided by the expert degree (and replicated by ``redundant_experts``, spread evenly), all
    other split pieces by the tensor degree; image encoders and generators stay whole. Engram tables are not counted
    here but by ``table_bytes``.
    """
    sizes: dict[str, dict[str, Num]] = {}
    occurring = layer_counts(model)
    for part, pieces in layer_parameters(model).items():
        dense: Num = 0.0
        for piece, size in pieces.items():
            if piece not in ("routed_experts", "engram_tables"):
                dense = dense + (size if piece in _REPLICATED or part in _WHOLE else size / plan.tensor)
        if part == "head" and model.tie_word_embeddings:
            # The last stage has a copy of its own of the table that it shares with the first one.
            copy = np.where(np.asarray(plan.pipeline) > 1, 1.0, 0.0)[()]
            dense = dense + copy * model.vocab_size * model.hidden_size / plan.tensor
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


def linear_parameters(model, plan: Plan) -> dict[str, dict[str, Num]]:
    """Of ``device_parameters`` those that products in the recipe's ``linear`` format read."""
    sizes = device_parameters(model, plan)
    pieces = layer_parameters(model)
    linear: dict[str, dict[str, Num]] = {}
    for part, groups in sizes.items():
        if part in _SIXTEEN_BITS:
            linear[part] = {group: 0.0 * n for group, n in groups.items()}
        else:
            rest = sum((size for piece, size in pieces[part].items() if piece in _REPLICATED), 0.0)
            linear[part] = {**groups, "dense": groups["dense"] - rest}
    return linear


def state_bytes(model, plan: Plan) -> dict[str, dict[str, Num]]:
    """Training state of one occurrence of each part on one device: weights, gradients, master, moments, in bytes.

    A weight lies there as operators read it: of a quantised product in ``weight_layouts`` copies (``fp8_weights``),
    else in ``weight_bytes`` (``weights``); master weights are the only other copy. ``ema`` is a moving average beside
    the master weights, where ``placement`` says where it lies. ZeRO 1 shards master weights, moments and averages over
    the replicas, 2 gradients as well, 3 weights too.
    """
    kind, copies = recipe(plan.formats), replicas(plan)
    held, linear = device_parameters(model, plan), linear_parameters(model, plan)
    quantised = kind.weight_layouts * _WEIGHT_BYTES.get(kind.linear, BYTES[kind.linear])
    per = {"gradients": (kind.gradient_bytes, 2.0), "master": (kind.master_bytes, 1.0),
           "moments": (kind.moment_bytes, 1.0)}  # fmt: skip
    if "ema" in plan.placement:
        per["ema"] = (kind.master_bytes, 1.0)
    # Over how many devices a state is divided that ZeRO shards from that stage on.
    among = {
        stage: {group: np.where(plan.zero_stage >= stage, n, 1.0)[()] for group, n in copies.items()}
        for stage in (1.0, 2.0, 3.0)
    }
    parts: dict[str, dict[str, Num]] = {}
    for part, sizes in held.items():
        split = linear[part] if kind.weight_layouts else {group: 0.0 for group in sizes}
        kept = {group: n - split[group] for group, n in sizes.items()}
        parts[part] = {"weights": _over(kept, kind.weight_bytes, among[3.0])}
        if kind.weight_layouts:
            parts[part]["fp8_weights"] = _over(split, quantised, among[3.0])
        for name, (element_bytes, from_stage) in per.items():
            parts[part][name] = _over(sizes, element_bytes, among[from_stage])
    return parts


def gathered_bytes(plan: Plan, whole: Mapping[str, Mapping[str, Num]], layers: Mapping[str, Num]) -> Num:
    """What ZeRO 2 and 3 hold of a layer whole while they work on it: its gradients until they are reduced, and under 3
    its weights and those of the next one, gathered ahead. Of the largest of the parts of which ``layers``
    has any, whose states without ZeRO are ``whole`` (``state_bytes``)."""
    there = [(np.where(np.asarray(n) > 0.0, 1.0, 0.0), whole[part]) for part, n in layers.items()]
    held = {
        2.0: [n * each["gradients"] for n, each in there],
        3.0: [n * 2.0 * (each["weights"] + each.get("fp8_weights", 0.0)) for n, each in there],
    }
    largest = {stage: np.max(np.stack(np.broadcast_arrays(*sizes)), axis=0)[()] for stage, sizes in held.items()}
    return sum((np.where(plan.zero_stage >= stage, size, 0.0)[()] for stage, size in largest.items()), 0.0)


def _over(sizes: Mapping[str, Num], element_bytes: float, copies: Mapping[str, Num]) -> Num:
    return sum((n * element_bytes / copies.get(group, 1.0) for group, n in sizes.items()), 0.0)


def weight_bytes(model, plan: Plan) -> dict[str, Num]:
    """Serving weights of one occurrence of each part on one device: linears in the recipe's format, the rest BF16."""
    kind = recipe(plan.formats)
    element = _WEIGHT_BYTES.get(kind.linear, BYTES[kind.linear])
    return {
        part: sizes["expert"] * element + sizes["dense"] * (2.0 if part in _SIXTEEN_BITS else element)
        for part, sizes in device_parameters(model, plan).items()
    }


def table_bytes(model, plan: Plan, phase: str, node_size: Num) -> dict[str, Num]:
    """Engram tables of the whole model as one device counts them, by memory tier.

    Training shards rows over all devices, with FP32 master weights and Adam's moments beside them. Serving keeps them
    whole in each device's HBM, or once per node in host memory or on its drives, of which a device counts its share.
    Caches of rows come on top: each device's own in HBM, one per node on the host. An MTP module is not counted.
    """
    elements = layer_counts(model).get("engram", 0.0) * layer_parameters(model)["engram"].get("engram_tables", 0.0)
    kind = recipe(plan.formats)
    if phase == "training":
        used = plan.tensor * plan.context * plan.pipeline * plan.data
        state = kind.weight_bytes + kind.master_bytes + kind.moment_bytes
        return {"hbm": elements * state / used, "host": 0.0 * elements, "nvme": 0.0 * elements}
    size, tier = BYTES["bf16"] * elements, plan.placement.get("engram", "hbm")
    if tier == "hbm":
        return {"hbm": size, "host": 0.0 * size, "nvme": 0.0 * size}
    near = np.minimum(plan.cache_bytes, size)
    if tier == "host":
        return {"hbm": near, "host": size / node_size, "nvme": 0.0 * size}
    return {"hbm": near, "host": np.minimum(plan.host_cache_bytes, size) / node_size, "nvme": size / node_size}


def activation_bytes(model, plan: Plan, load: Load) -> dict[str, Num]:
    """Activations that one micro-batch leaves behind in one occurrence of each part, until its backward pass.

    Inputs of linear layers are kept in the recipe's saved format, inputs of norms and of attention in BF16; what
    ``recompute`` names is made again instead: ``norm`` the normalised tensors, ``mla_up`` the expanded queries, keys
    and values, ``swiglu`` the product of gate and up, ``attention`` scores that are written out, ``full`` everything
    but the layer's input. What lies on the residual is split over the tensor group by sequence parallelism alone.
    """
    kind = recipe(plan.formats)
    m = plan.micro_batch * load.context_tokens / plan.tensor / plan.context
    residual = m if plan.sequence_parallel else m * plan.tensor
    h = model.hidden_size
    seen = _image_bytes(model, plan, load)
    if "full" in plan.recompute:
        layer = 2.0 * model.n_streams * h * residual
        full: dict[str, Num] = {part: layer for part in layer_counts(model)}
        return {**full, "vision": seen, "head": _head_bytes(model, m), "mtp": layer + _head_bytes(model, m)}
    if model.hidden_act == "gelu":
        return _gpt_bytes(model, plan, load, m, residual)
    attention = _attention_bytes(model, kind, plan.recompute)
    norms = 2 * _residual_bytes(model, plan)
    normed = 0.0 if _norm_again(plan.recompute) else BYTES[kind.saved] * h
    dense = attention + norms + _gated_bytes(kind, plan, model.intermediate_size, normed)
    parts: dict[str, Num] = {
        "vision": seen, "embedding": 0.0 * m, "dense_layer": dense * m, "head": _head_bytes(model, m),
        "engram": engram.kept_bytes(model) * m if model.engram_layers else 0.0 * m,
    }  # fmt: skip
    inner: Num = dense
    if "moe_layer" in layer_counts(model):
        inner = attention + norms + _expert_bytes(model, kind, plan)
        parts["moe_layer"] = inner * m
    parts["mtp"] = inner * m + 6.0 * h * m + _head_bytes(model, m)
    # Norms' inputs and outputs lie on the residual.
    whole = (residual - m) * (norms + 2.0 * normed)
    return {part: n + whole if part in ("dense_layer", "moe_layer", "mtp") else n for part, n in parts.items()}


def _gpt_bytes(model, plan: Plan, load: Load, m: Num, residual: Num) -> dict[str, Num]:
    """Activations of a GPT's parts; the embedding leaves its dropout mask."""
    scores = plan.attention == "unfused" and "attention" not in plan.recompute
    layer = gpt.kept_bytes(model, m, residual, load.context_tokens, scores=scores)
    mask = residual * model.hidden_size * (MASK_BYTES if bool(model.hidden_dropout > 0) else 0.0)
    parts = {part: 0.0 * m for part in layer_counts(model)}
    return {**parts, "embedding": mask, "dense_layer": layer, "head": _head_bytes(model, m)}


def block_bytes(model, plan: Plan, load: Load) -> Num:
    """What a micro-batch holds of mHC's recompute block while a layer runs backward, beside that layer itself."""
    if not has_streams(model) or "mhc" not in plan.recompute:
        return 0.0
    m = plan.micro_batch * load.context_tokens / plan.tensor / plan.context
    residual = m if plan.sequence_parallel else m * plan.tensor
    return hyperconnection.block_bytes(model, pipeline_stages(plan)) * residual


def _residual_bytes(model, plan: Plan) -> Num:
    """What a sublayer keeps of the residual for its backward pass, per token: the norm's input, or mHC's streams."""
    if has_streams(model):
        return hyperconnection.kept_bytes(model, plan.recompute, pipeline_stages(plan))
    return 2.0 * model.hidden_size


def _image_bytes(model, plan: Plan, load: Load) -> Num:
    if model.vision is None:
        return 0.0
    return model.vision.activation_bytes(plan.micro_batch * load.n_images, *image_pixels(model, load))


def cache_bytes(model, plan: Plan, load: Load) -> Num:
    """Key-value cache of one device while serving; the MLA latent cannot be split by heads.

    An autoregressive image generator ends with prompt and image in it, a flow generator keeps none between its steps.
    """
    split = plan.tensor if model.attention == "gqa" else 1.0
    rows, tokens = load.batch, sequence_tokens(model, load)
    if load.phase == "image_generation":
        grows = 1.0 if model.generation.kind == "autoregressive" else 0.0
        rows, tokens = grows * image_rows(load), tokens + model.generation.n_tokens
    cache = rows * tokens * kv_bytes_per_token(model) / split / plan.pipeline
    if not model.engram_layers:
        return cache
    return cache + rows * len(model.engram_layers) * engram.convolution_bytes_per_sequence(model)


def _attention_bytes(model, kind: Recipe, recompute: tuple[str, ...]) -> Num:
    heads, saved = model.num_attention_heads, BYTES[kind.saved]
    if model.attention == "gqa":
        inputs = 0.0 if _norm_again(recompute) else saved * model.hidden_size
        tensors = attention_tensors(
            heads=heads, kv_heads=model.num_key_value_heads, head_dim=model.head_dim, input_bytes=inputs,
            output_element_bytes=BYTES[kind.saved_attention],
        )  # fmt: skip
        return sum(tensors.values(), 0.0)
    latent = 2.0 * (model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim)
    dim = model.qk_nope_head_dim + model.qk_rope_head_dim
    expanded = 0.0 if "mla_up" in recompute else 2.0 * heads * (2 * dim + model.v_head_dim)
    # The attention output feeds both its own backward pass and o_proj's weight gradient: one copy serves both.
    output = BYTES[kind.saved_attention] * heads * model.v_head_dim + 4.0 * heads
    latents = 0.0 if "norm" in recompute else saved * (model.q_lora_rank + model.kv_lora_rank)
    inputs = 0.0 if _norm_again(recompute) else saved * model.hidden_size
    return latent + expanded + output + inputs + latents


def _norm_again(recompute: tuple[str, ...]) -> bool:
    """Whether a sublayer's normalised input is made again: mHC's recompute runs from the streams through the norm."""
    return "norm" in recompute or "mhc" in recompute


def _gated_bytes(kind: Recipe, plan: Plan, width: Num, input_bytes: Num) -> Num:
    made = "swiglu" in plan.recompute
    tensors = mlp_tensors(width=width, input_bytes=input_bytes, element_bytes=BYTES[kind.saved], recomputed=made)
    return sum(tensors.values(), 0.0)


def _expert_bytes(model, kind: Recipe, plan: Plan) -> Num:
    """Shared experts see the token itself; routed ones the tokens received, once per device, in the sent format."""
    hidden, width = model.hidden_size, model.moe_intermediate_size
    copies = received_copies(model, plan.expert, plan.redundant_experts)
    normed = 0.0 if _norm_again(plan.recompute) else BYTES[kind.saved] * hidden
    shared = _gated_bytes(kind, plan, model.n_shared_experts * width, normed)
    routed = model.num_experts_per_tok * _gated_bytes(kind, plan, width, 0.0)
    return shared + routed + copies * BYTES[kind.dispatch] * hidden + 4.0 * model.n_routed_experts


def _head_bytes(model, m: Num) -> Num:
    """Logits in FP32, overwritten by their gradient, and the head's input."""
    return m * (4.0 * model.vocab_size + 2.0 * model.hidden_size)


def working_bytes(model, plan: Plan, n_tokens: Num) -> Num:
    """Largest working set of one layer while serving ``n_tokens``: residual, expanded heads or expert activations."""
    h, heads = model.hidden_size * model.n_streams, model.num_attention_heads / plan.tensor
    dim = model.head_dim if model.attention == "gqa" else model.qk_nope_head_dim + model.qk_rope_head_dim
    attention = 2.0 * n_tokens * heads * 3.0 * dim
    if "moe_layer" not in layer_counts(model):
        return 4.0 * h * n_tokens + attention + 6.0 * n_tokens * model.intermediate_size / plan.tensor
    pairs = n_tokens * model.num_experts_per_tok
    experts = pairs * (3.0 * model.hidden_size + 6.0 * model.moe_intermediate_size)
    return 4.0 * h * n_tokens + attention + experts
