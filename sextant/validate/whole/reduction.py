"""Smaller models of the same structure: to check a pass against its reference, and to try every case in seconds."""

from __future__ import annotations

from dataclasses import replace

from sextant.validate.whole.cases import WholeCase
from sextant.workloads.parameters import has_experts
from sextant.workloads.transformer import Transformer

#: The check's largest batch, context and number of images.
BATCH, CONTEXT, IMAGES = 2, 320, 1


def _few_layers(model: Transformer) -> Transformer:
    """One layer of every kind; with Engram, up to its first layer."""
    layers = 1.0 + float(model.first_k_dense_replace) if has_experts(model) else 1.0
    if model.engram_layers:
        layers = max(layers, model.engram_layers[0])
    model = replace(model, num_hidden_layers=layers, engram_layers=model.engram_layers[:1])
    if model.vision is not None:
        encoders = {name: replace(each, num_hidden_layers=2.0) for name, each in model.vision.encoders.items()}
        model = replace(model, vision=replace(model.vision, encoders=encoders))
    return model


def checked(case: WholeCase) -> WholeCase:
    """The case with few layers and tokens, all widths as they are."""
    model = _few_layers(case.model)
    if model.engram_layers:
        model = replace(model, engram_rows=10_007.0)
    batch = min(case.batch, IMAGES if case.phase == "vision" else BATCH)
    return replace(case, model=model, batch=batch, context_tokens=min(case.context_tokens, CONTEXT))


def tiny(case: WholeCase) -> WholeCase:
    """The case with few layers, tokens and narrow widths that all kernels still take."""
    model = _few_layers(case.model)
    latent = model.attention == "mla"
    heads = 4.0
    model = replace(
        model, hidden_size=256.0, num_attention_heads=heads, num_key_value_heads=heads, head_dim=64.0, vocab_size=512.0,
        intermediate_size=320.0, kv_lora_rank=64.0 if latent else 0.0, qk_nope_head_dim=64.0 if latent else 0.0,
        qk_rope_head_dim=32.0 if latent else 0.0, v_head_dim=64.0 if latent else 0.0, sinkhorn_iters=4.0,
        engram_dim=256.0, engram_rows=1000.0,
    )  # fmt: skip
    if has_experts(model):
        model = replace(model, n_routed_experts=10.0, moe_intermediate_size=128.0, num_experts_per_tok=3.0)
    if model.vision is not None:
        encoders = {
            name: replace(
                each, hidden_size=128.0, num_attention_heads=2.0, intermediate_size=256.0, image_size=64.0,
                patch_size=16.0,
            )
            for name, each in model.vision.encoders.items()
        }  # fmt: skip
        model = replace(model, vision=replace(model.vision, encoders=encoders))
    return replace(case, model=model, batch=min(case.batch, 3), context_tokens=min(case.context_tokens, 48))
