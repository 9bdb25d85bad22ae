"""A decoder-only transformer with MLA or GQA attention, dense or mixture-of-experts feed-forward, optional MTP.

Fields carry the names of a Hugging Face config.json. What a field does not say (biases, rotary details) does not
change sizes or times here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sextant.simulator.errors import InputError
from sextant.simulator.kernels.expert_exchange import N_SMS
from sextant.simulator.types import Load, Num, Plan, Step
from sextant.workloads import blocks
from sextant.workloads.formats import recipe
from sextant.workloads.parameters import layer_counts
from sextant.workloads.traffic import received_copies

PHASES = ("training", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """Dimensions of one model. ``official`` holds the publisher's own figures, ``source`` where fields come from."""

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
    num_nextn_predict_layers: Num = 0.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    official: Mapping[str, Num] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    def step(self, load: Load, plan: Plan) -> Step:
        """Operators of one micro-batch (training) or one engine step (prefill, decode) of one data-parallel rank,
        before ``shard`` divides them; ``layers`` says how often each part occurs in the model."""
        shape = _shape(self, load, plan)
        builders = {
            "embedding": blocks.embedding, "dense_layer": blocks.dense_layer, "moe_layer": blocks.moe_layer,
            "mtp": blocks.mtp, "head": blocks.head,
        }  # fmt: skip
        layers = layer_counts(self)
        if load.phase != "training":
            layers = {part: n for part, n in layers.items() if part != "mtp"}
        ops = tuple(op for part in layers for op in builders[part](self, shape))
        return Step(phase=load.phase, ops=ops, n_tokens=shape.n_tokens, layers=layers)


def _exchange_sms(plan: Plan) -> Num:
    """SMs that run the exchange: those set aside, or where none are the kernel's default, between other kernels."""
    return np.where(np.asarray(plan.n_comm_sms) > 0, plan.n_comm_sms, N_SMS)[()]


def _shape(model: Transformer, load: Load, plan: Plan) -> blocks.Shape:
    if load.phase not in PHASES:
        raise InputError(f"load.phase: expected one of {', '.join(PHASES)}, got {load.phase!r}")
    moe = bool(np.all(np.asarray(model.n_routed_experts) > 0))
    if not moe and bool(np.any(np.asarray(model.n_routed_experts) > 0)):
        raise InputError("model.n_routed_experts: a sweep cannot mix 0 with other values; make two scenarios")
    copies = received_copies(model, plan.expert) if moe else 1.0
    slots = model.n_routed_experts + plan.redundant_experts
    sizes = {
        "training": (plan.micro_batch, load.context_tokens, load.context_tokens),
        "prefill": (load.batch, load.context_tokens, load.context_tokens),
        "decode": (load.batch, 1.0, load.context_tokens),
    }
    batch, seq, kv_len = sizes[load.phase]
    return blocks.Shape(
        phase=load.phase, batch=batch, seq=seq, kv_len=kv_len, recipe=recipe(plan.formats), recompute=plan.recompute,
        copies=copies, n_slots=slots, n_comm_sms=_exchange_sms(plan),
    )  # fmt: skip
