"""A decoder-only transformer with MLA or GQA attention, dense or mixture-of-experts feed-forward, and what may be added
to it: MTP modules, residual streams (mHC), n-gram memory (Engram), image encoders, an image generator.

Fields carry the names of a Hugging Face config.json. What a field does not say (rotary details) does not change sizes
or times here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.kernels.expert_exchange import N_SMS
from sextant.simulator.types import Load, Num, Plan, Step
from sextant.workloads import blocks
from sextant.workloads.formats import recipe
from sextant.workloads.generation import Generation
from sextant.workloads.ops.table_rows import access
from sextant.workloads.parameters import has_experts, layer_counts
from sextant.workloads.traffic import NODE_SIZE, pipeline_stages, received_copies, skew
from sextant.workloads.vision import Vision

PHASES = ("training", "prefill", "decode", "image_understanding", "image_generation")

#: Parts that a phase leaves out: serving does not speculate, text phases encode no image, only one makes images.
_LEFT_OUT = {
    "training": ("generation",),
    "prefill": ("vision", "mtp", "generation"),
    "decode": ("vision", "mtp", "generation"),
    "image_understanding": ("mtp", "generation"),
    "image_generation": ("vision", "mtp", "embedding", "head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """Dimensions of one model. ``official`` holds the publisher's own figures, ``source`` where fields come from.

    ``hidden_act`` silu is a gated feed-forward behind RMSNorm; gelu a plain one, with biases everywhere and LayerNorm.
    ``max_position_embeddings`` counts learned positions (0: rotary). A dropout of 0 runs no kernel.
    ``engram_fraction`` of the sparse parameters moves from experts to tables before anything is built
    (``workloads.allocation``); None leaves both as the other fields say.
    """

    name: str
    system: str
    attention: str
    hidden_size: Num
    num_hidden_layers: Num
    num_attention_heads: Num
    num_key_value_heads: Num
    vocab_size: Num
    intermediate_size: Num
    head_dim: Num = 128.0
    q_lora_rank: Num = 0.0
    kv_lora_rank: Num = 0.0
    qk_nope_head_dim: Num = 0.0
    qk_rope_head_dim: Num = 0.0
    v_head_dim: Num = 0.0
    first_k_dense_replace: Num = 0.0
    moe_intermediate_size: Num = 0.0
    n_routed_experts: Num = 0.0
    n_shared_experts: Num = 0.0
    num_experts_per_tok: Num = 0.0
    n_group: Num = 1.0
    topk_group: Num = 1.0
    topk_method: str = "greedy"
    num_nextn_predict_layers: Num = 0.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    hidden_act: str = "silu"
    max_position_embeddings: Num = 0.0
    attention_dropout: Num = 0.0
    hidden_dropout: Num = 0.0
    n_streams: Num = 1.0
    sinkhorn_iters: Num = 20.0
    engram_layers: tuple[float, ...] = ()
    engram_orders: tuple[float, ...] = (2.0, 3.0)
    engram_heads: Num = 8.0
    engram_dim: Num = 1280.0
    engram_rows: Num = 2262400.0
    engram_conv_kernel: Num = 4.0
    engram_fraction: Num | None = None
    vision: Vision | None = None
    generation: Generation | None = None
    official: Mapping[str, Num] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    def step(self, load: Load, plan: Plan, node_size: Num = NODE_SIZE) -> Step:
        """Operators of one micro-batch (training), engine step (prefill, decode, image_understanding) or sampling step
        (image_generation) of one data-parallel rank, before ``shard`` divides them; ``layers`` says how often each part
        occurs. ``imaging.passes`` has all steps that make an image. InputError where the model lacks the phase.
        ``node_size`` devices make a node: redundant experts and skewed routing depend on it.
        """
        return build(self, _shape(self, load, plan, node_size), load.phase)


def build(model: Transformer, shape: blocks.Shape, phase: str) -> Step:
    """The step of ``phase`` in which every layer processes ``shape``."""
    builders = {
        "vision": blocks.vision, "embedding": blocks.embedding, "engram": blocks.engram_module,
        "dense_layer": blocks.dense_layer, "moe_layer": blocks.moe_layer, "mtp": blocks.mtp, "head": blocks.head,
        "generation": blocks.generation,
    }  # fmt: skip
    layers = {part: n for part, n in layer_counts(model).items() if part not in _LEFT_OUT[phase]}
    if not np.any(np.asarray(shape.n_images) > 0):
        layers.pop("vision", None)
    ops = tuple(op for part in layers for op in builders[part](model, shape))
    return Step(phase=phase, ops=ops, n_tokens=shape.n_tokens, layers=layers)


def sequence_tokens(model: Transformer, load: Load) -> Num:
    """Tokens of one sequence: ``context_tokens``, in image_understanding with the visual tokens of its images."""
    if load.phase != "image_understanding":
        return load.context_tokens
    if model.vision is None:
        raise InputError(f"load.phase: {model.name} has no image encoder; choose a phase of text")
    return load.context_tokens + load.n_images * model.vision.n_tokens(*image_pixels(model, load))


def image_pixels(model: Transformer, load: Load) -> tuple[Num, Num]:
    """Height and width at which the model's encoder looks at the images of a sequence."""
    if model.vision is None:
        return load.image_height, load.image_width
    return model.vision.seen_pixels(load.n_images, load.image_height, load.image_width)


def generator_of(model: Transformer) -> Generation:
    """The model's image generator; InputError where it has none."""
    if model.generation is None:
        raise InputError(f"load.phase: {model.name} has no image generator; choose another phase")
    return model.generation


def image_rows(load: Load) -> Num:
    """Sequences in the batch of an image generator: guidance runs each image with and without its prompt."""
    return load.batch * (2.0 if load.guidance else 1.0)


def _exchange_sms(plan: Plan) -> Num:
    """SMs that run the exchange: those set aside, or where none are the kernel's default, between other kernels."""
    return np.where(np.asarray(plan.n_comm_sms) > 0, plan.n_comm_sms, N_SMS)[()]


def _shape(model: Transformer, load: Load, plan: Plan, node_size: Num) -> blocks.Shape:
    if load.phase not in PHASES:
        raise InputError(f"load.phase: expected one of {', '.join(PHASES)}, got {load.phase!r}")
    tokens = sequence_tokens(model, load)
    sizes = {
        "training": (plan.micro_batch, tokens, tokens),
        "prefill": (load.batch, tokens, tokens),
        "decode": (load.batch, 1.0, tokens),
        "image_understanding": (load.batch, tokens, tokens),
        "image_generation": _sampling_size(model, load),
    }
    batch, seq, kv_len = sizes[load.phase]
    seen = load.phase in ("training", "image_understanding") and model.vision is not None
    phase = {"image_understanding": "prefill", "image_generation": _sampling_phase(model)}.get(load.phase, load.phase)
    height, width = image_pixels(model, load)
    found = shape_of(
        model, plan, phase, batch, seq, kv_len, n_images=load.n_images if seen else 0.0, image_height=height,
        image_width=width,
    )  # fmt: skip
    found = replace(found, access=access(plan, load))
    if not has_experts(model):
        return found
    uneven = skew(model, plan, load, batch * seq, node_size)
    copies = received_copies(model, plan.expert, plan.redundant_experts, node_size, uneven)
    return replace(found, copies=copies, skew=uneven)


def shape_of(
    model: Transformer, plan: Plan, phase: str, batch: Num, seq: Num, kv_len: Num, **images: Any
) -> blocks.Shape:
    """The shape of a pass over ``batch`` sequences of ``seq`` new tokens that see ``kv_len``; ``images`` as Shape's."""
    copies = received_copies(model, plan.expert, plan.redundant_experts) if has_experts(model) else 1.0
    return blocks.Shape(
        phase=phase, batch=batch, seq=seq, kv_len=kv_len, recipe=recipe(plan.formats), recompute=plan.recompute,
        copies=copies, n_slots=model.n_routed_experts + plan.redundant_experts, n_comm_sms=_exchange_sms(plan),
        exchange=plan.exchange,
        engram_tier=plan.placement.get("engram", "hbm"),
        n_devices=plan.tensor * plan.context * plan.pipeline * plan.data, fused=plan.attention == "fused",
        streams=plan.hyper_connections, n_stages=pipeline_stages(plan), **images,
    )  # fmt: skip


def _sampling_phase(model: Transformer) -> str:
    return "decode" if model.generation is not None and model.generation.kind == "autoregressive" else "prefill"


def _sampling_size(model: Transformer, load: Load) -> tuple[Num, Num, Num]:
    """Rows, new tokens and visible tokens of a sampling step; of an autoregressive one half-way through the image."""
    if load.phase != "image_generation":
        return 0.0, 0.0, 0.0
    generator = generator_of(model)
    rows, tokens = image_rows(load), generator.n_tokens
    if generator.kind == "autoregressive":
        return rows, 1.0, load.context_tokens + tokens / 2.0
    return rows, load.context_tokens + tokens, load.context_tokens + tokens
