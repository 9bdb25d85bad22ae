"""MLA of one new token on the latent cache, with the up-projections absorbed into query and output.

Written as einsums over the weights of an attention module of transformers, so that the same weights give the same
numbers in both forms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb


def latent(attention: nn.Module, hidden: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """What the cache holds of (b, s, hidden): normalised latents (b, s, rank) and rotated keys (b, s, rope)."""
    down = attention.kv_a_proj_with_mqa(hidden)
    compressed, rope = down.split([attention.kv_lora_rank, attention.qk_rope_head_dim], dim=-1)
    _, rotated = apply_rotary_emb(rope[:, None], rope[:, None], angles)
    return attention.kv_a_layernorm(compressed), rotated[:, 0]


def decode(attention: nn.Module, hidden: Tensor, cache: tuple[Tensor, Tensor], angles: Tensor) -> Tensor:
    """Output (b, hidden) for one new token (b, hidden) whose latent is already the last of ``cache``."""
    compressed, rope_keys = cache
    nope_dim, value_dim = attention.qk_nope_head_dim, attention.v_head_dim
    up = attention.kv_b_proj.weight.view(attention.num_heads, nope_dim + value_dim, attention.kv_lora_rank)
    to_keys, to_values = up.split([nope_dim, value_dim], dim=1)
    query = _query(attention, hidden).unflatten(-1, (attention.num_heads, -1))
    nope, rope = query.split([nope_dim, attention.qk_rope_head_dim], dim=-1)
    rotated, _ = apply_rotary_emb(rope[:, :, None], rope[:, :, None], angles)
    absorbed = torch.einsum("bhd,hdr->bhr", nope, to_keys)
    scores = torch.einsum("bhr,btr->bht", absorbed, compressed)
    scores = scores + torch.einsum("bhr,btr->bht", rotated[:, :, 0], rope_keys)
    weights = torch.softmax(scores * attention.scaling, dim=-1)
    mixed = torch.einsum("bht,btr->bhr", weights, compressed)
    values = torch.einsum("bhr,hdr->bhd", mixed, to_values)
    return attention.o_proj(values.flatten(1))


def _query(attention: nn.Module, hidden: Tensor) -> Tensor:
    if attention.q_lora_rank is None:
        return attention.q_proj(hidden)
    return attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden)))
