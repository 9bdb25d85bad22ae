"""Latent attention (MLA): keys and values expanded in prefill, projections absorbed in decode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.layers import ADDED, Pass, whole
from sextant.workloads.transformer import Transformer


class LatentAttention:
    """The products, norms and copies of ``workloads.ops.attention``; in decode a cache of latent rows."""

    def __init__(self, model: Transformer, at: Pass) -> None:
        self.at = at
        self.heads, self.rank = whole(model.num_attention_heads), whole(model.kv_lora_rank)
        self.nope, self.rope = whole(model.qk_nope_head_dim), whole(model.qk_rope_head_dim)
        self.value, hidden = whole(model.v_head_dim), whole(model.hidden_size)
        self.query_rank = whole(model.q_lora_rank)
        if self.query_rank:
            self.query_down, self.query_norm = at.matrix(self.query_rank, hidden), at.scales(self.query_rank)
        self.query = at.matrix(self.heads * (self.nope + self.rope), self.query_rank or hidden)
        self.down, self.norm = at.matrix(self.rank + self.rope, hidden), at.scales(self.rank)
        self.up = at.matrix(self.heads * (self.nope + self.value), self.rank)
        self.output = at.matrix(hidden, self.heads * self.value, gain=2 * ADDED)
        self.cos, self.sin = at.tables(self.rope)
        if at.phase == "decode":
            self.cache = at.normal(at.batch, at.context, self.rank + self.rope)

    def __call__(self, y: Tensor) -> Tensor:
        kernels = self.at.kernels
        of_query = y
        if self.query_rank:
            of_query = kernels.norm(F.linear(y, self.query_down), self.query_norm)
        down = F.linear(y, self.down)
        latent = kernels.norm(down[:, : self.rank], self.norm)
        q = F.linear(of_query, self.query)
        core = self.absorbed if self.at.phase == "decode" else self.expanded
        return F.linear(core(q, latent, down[:, self.rank :]), self.output)

    def expanded(self, q: Tensor, latent: Tensor, shared: Tensor) -> Tensor:
        """Whole sequences: q [m, heads x 192], latent [m, rank], the key part that heads share [m, rope]."""
        kernels, sizes = self.at.kernels, (self.at.batch, self.at.seq)
        kv = F.linear(latent, self.up).view(*sizes, self.heads, self.nope + self.value)
        query = kernels.query_rope(q.view(*sizes, self.heads, -1), self.cos, self.sin, nope=self.nope)
        keys = kernels.key_concat(kv, shared.unflatten(0, sizes), self.cos, self.sin, nope=self.nope)
        values = kernels.value_copy(kv, nope=self.nope)
        out = kernels.attention(query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), causal=True)
        return out.transpose(1, 2).reshape(len(q), -1)

    def absorbed(self, q: Tensor, latent: Tensor, shared: Tensor) -> Tensor:
        """One token per sequence against the cache of latents."""
        kernels, batch = self.at.kernels, self.at.batch
        q, cos, sin = q.view(batch, self.heads, -1), self.cos[0], self.sin[0]
        folded = torch.empty((batch, self.heads, self.rank + self.rope), dtype=q.dtype, device=q.device)
        kernels.latent_rope(q, cos, sin, folded, nope=self.nope, rank=self.rank)
        kernels.latent_append(latent, shared, cos, sin, self.cache, position=self.at.context - 1)
        up = self.up.view(self.heads, self.nope + self.value, self.rank)
        per_head = folded[..., : self.rank].transpose(0, 1)
        torch.bmm(q[..., : self.nope].transpose(0, 1), up[:, : self.nope], out=per_head)
        mixed = kernels.latent(folded, self.cache, rank=self.rank, scale=(self.nope + self.rope) ** -0.5)
        out = torch.empty((batch, self.heads, self.value), dtype=q.dtype, device=q.device)
        torch.bmm(mixed.transpose(0, 1), up[:, self.nope :].transpose(1, 2), out=out.transpose(0, 1))
        return out.flatten(1)
