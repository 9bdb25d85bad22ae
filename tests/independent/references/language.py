"""Language models: the class of transformers that has a record's architecture, from its dimensions alone.

Rotary details, routing scores and norms' epsilon change neither sizes nor products and keep the classes' defaults.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sextant.workloads.parameters import has_experts
from sextant.workloads.transformer import Transformer


def language_model(model: Transformer, n_mtp: int = 0) -> torch.nn.Module:
    """The language model of ``model`` on the meta device, ready for a forward pass; ``n_mtp`` MTP modules if asked."""
    kind, config = _choose(model)
    config._attn_implementation = "eager"
    if hasattr(config, "num_mtp_layers"):
        config.num_mtp_layers = n_mtp
    # One product per (token, expert) pair: what the published top-k routing costs, whichever experts are chosen.
    config._experts_implementation = "batched_mm"
    with torch.device("meta"):
        return kind(config).eval()


def llama_config(model: Transformer) -> LlamaConfig:
    """The language model's configuration inside a multimodal class of transformers."""
    return LlamaConfig(**_sizes(model))


def n_parameters(model: Transformer, module: torch.nn.Module) -> int:
    """Parameters of the checkpoint that ``module`` stands for.

    The correction bias of a noaux_tc router is a buffer in transformers, but a weight in the published checkpoints
    (``e_score_correction_bias``, counted in their sizes): buffers of that name are added.
    """
    n = sum(p.numel() for p in module.parameters())
    if model.topk_method == "noaux_tc":
        n += sum(b.numel() for name, b in module.named_buffers() if name.endswith("e_score_correction_bias"))
    return n


def n_activated(model: Transformer, module: torch.nn.Module) -> int:
    """Parameters that one token uses, without the input embedding: all but the experts that are not chosen."""
    total = n_parameters(model, module)
    tables = ("embed_tokens.weight", "wte.weight", "wpe.weight")
    embedding = sum(p.numel() for name, p in module.named_parameters() if name.endswith(tables))
    experts = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    idle = 0
    if experts:
        each, rest = divmod(experts, int(model.n_routed_experts))
        assert rest == 0
        idle = each * int(model.n_routed_experts - model.num_experts_per_tok)
    return total - embedding - idle


def prefill(module: torch.nn.Module, batch: int, tokens: int) -> object:
    """A forward pass of ``batch`` prompts that makes the logits of their last tokens."""
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    return module(input_ids=ids, attention_mask=visible(batch, tokens), logits_to_keep=1, use_cache=False)


def visible(batch: int, tokens: int) -> torch.Tensor:
    """A ready attention mask: making one looks into tensors, which have no values here."""
    return torch.zeros(batch, 1, tokens, tokens, device="meta")


def _choose(model: Transformer) -> tuple[Any, Any]:
    sizes, sparse = _sizes(model), has_experts(model)
    if model.attention == "mla":
        return _latent(model, sizes | _experts(model), sparse)
    if model.hidden_act == "gelu":
        return GPT2LMHeadModel, GPT2Config(
            n_embd=int(model.hidden_size), n_layer=int(model.num_hidden_layers), n_head=int(model.num_attention_heads),
            n_positions=int(model.max_position_embeddings), n_inner=int(model.intermediate_size),
            vocab_size=int(model.vocab_size), tie_word_embeddings=model.tie_word_embeddings,
        )  # fmt: skip
    if sparse:
        # DeepSeek's mixture of experts with ordinary attention has no class of its own; GLM-4.5's has both.
        assert not model.attention_bias
        return Glm4MoeForCausalLM, Glm4MoeConfig(
            **sizes, **_experts(model), head_dim=int(model.head_dim), use_qk_norm=model.qk_norm, attention_bias=False,
        )  # fmt: skip
    if model.qk_norm:
        return Qwen3ForCausalLM, Qwen3Config(
            **sizes, head_dim=int(model.head_dim), attention_bias=model.attention_bias,
        )  # fmt: skip
    if model.attention_bias:
        return Qwen2ForCausalLM, Qwen2Config(**sizes)
    return LlamaForCausalLM, LlamaConfig(**sizes, head_dim=int(model.head_dim))


def _latent(model: Transformer, sizes: dict[str, Any], sparse: bool) -> tuple[Any, Any]:
    """DeepSeek-V2's class, or V3's where the router has a correction bias or no layer has experts."""
    ranks = {
        "q_lora_rank": int(model.q_lora_rank) or None, "kv_lora_rank": int(model.kv_lora_rank),
        "qk_nope_head_dim": int(model.qk_nope_head_dim), "qk_rope_head_dim": int(model.qk_rope_head_dim),
        "v_head_dim": int(model.v_head_dim),
    }  # fmt: skip
    if not sparse:
        # A model without experts: every layer is one of the leading dense ones.
        sizes = {**_sizes(model), "first_k_dense_replace": int(model.num_hidden_layers)}
    if sparse and model.topk_method != "noaux_tc":
        return DeepseekV2ForCausalLM, DeepseekV2Config(**sizes, **ranks, topk_method=model.topk_method)
    return DeepseekV3ForCausalLM, DeepseekV3Config(**sizes, **ranks)


def _sizes(model: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": int(model.hidden_size), "num_hidden_layers": int(model.num_hidden_layers),
        "num_attention_heads": int(model.num_attention_heads), "vocab_size": int(model.vocab_size),
        "num_key_value_heads": int(model.num_key_value_heads), "intermediate_size": int(model.intermediate_size),
        "tie_word_embeddings": model.tie_word_embeddings,
    }  # fmt: skip


def _experts(model: Transformer) -> dict[str, Any]:
    return {
        "first_k_dense_replace": int(model.first_k_dense_replace),
        "moe_intermediate_size": int(model.moe_intermediate_size), "n_routed_experts": int(model.n_routed_experts),
        "n_shared_experts": int(model.n_shared_experts), "num_experts_per_tok": int(model.num_experts_per_tok),
        "n_group": int(model.n_group), "topk_group": int(model.topk_group),
    }  # fmt: skip
