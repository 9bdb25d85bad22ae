"""A language model's prefill or decode step: grouped-query or latent attention, dense or expert layers, head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.whole.experts import Experts
from sextant.validate.whole.latent import LatentAttention
from sextant.validate.whole.layers import ADDED, Gated, Pass, Residual, Single, Site, Streams, whole
from sextant.validate.whole.memory import Memory
from sextant.workloads.parameters import has_experts, has_streams
from sextant.workloads.transformer import Transformer


class GroupedAttention:
    """Query, key and value in one product; rotary embedding where they lie; in decode a cache of keys and values."""

    def __init__(self, model: Transformer, at: Pass) -> None:
        self.at, self.dim = at, whole(model.head_dim)
        self.heads, self.kv_heads = whole(model.num_attention_heads), whole(model.num_key_value_heads)
        hidden = whole(model.hidden_size)
        self.qkv = at.matrix((self.heads + 2 * self.kv_heads) * self.dim, hidden)
        self.output = at.matrix(hidden, self.heads * self.dim, gain=2 * ADDED)
        self.cos, self.sin = at.tables(self.dim)
        if at.phase == "decode":
            self.keys, self.values = (at.normal(at.batch, at.context, self.kv_heads, self.dim) for _ in range(2))

    def __call__(self, y: Tensor) -> Tensor:
        core = self.decode if self.at.phase == "decode" else self.prefill
        return F.linear(core(F.linear(y, self.qkv)), self.output)

    def prefill(self, qkv: Tensor) -> Tensor:
        """Causal attention of whole sequences."""
        rotated = self.heads + self.kv_heads
        parts = qkv.view(self.at.batch, self.at.seq, rotated + self.kv_heads, self.dim)
        self.at.kernels.rope(parts, self.cos, self.sin, n_rotated=rotated)
        q, k, v = (part.transpose(1, 2) for part in parts.split((self.heads, self.kv_heads, self.kv_heads), dim=2))
        return self.at.kernels.attention(q, k, v, causal=True).transpose(1, 2).reshape(len(qkv), -1)

    def decode(self, qkv: Tensor) -> Tensor:
        """One token per sequence, the last of the context."""
        q = self.at.kernels.rope_append(
            qkv.view(self.at.batch, -1, self.dim), self.cos[0], self.sin[0], self.keys, self.values,
            position=self.at.context - 1,
        )  # fmt: skip
        return self.at.kernels.decode(q, self.keys, self.values).reshape(len(qkv), -1)


class Layer:
    """Attention and feed-forward with their sites; in front, where the model has one there, an Engram memory."""

    def __init__(self, model: Transformer, at: Pass, *, experts: bool, memory: Memory | None) -> None:
        self.memory = memory
        self.sites = (Site(model, at), Site(model, at))
        attention = GroupedAttention if model.attention == "gqa" else LatentAttention
        self.attention: GroupedAttention | LatentAttention = attention(model, at)
        hidden = whole(model.hidden_size)
        self.mlp: Experts | Gated = Experts(model, at) if experts else Gated(hidden, whole(model.intermediate_size), at)

    def __call__(self, residual: Residual) -> None:
        if self.memory is not None:
            assert isinstance(residual, Streams), "an Engram memory reads residual streams"
            residual.x = self.memory(residual.x)
        residual.leave(self.attention(residual.enter(self.sites[0])))
        residual.leave(self.mlp(residual.enter(self.sites[1])))


class Language:
    """A whole model: calling it runs the pass over its own token ids and gives the last tokens' logits."""

    def __init__(
        self, model: Transformer, at: Pass, *, table: Callable[[int, int], Tensor] | None = None, prefetch: bool = True
    ) -> None:
        self.model, self.at = model, at
        hidden, vocabulary = whole(model.hidden_size), whole(model.vocab_size)
        self.embedding = at.normal(vocabulary, hidden)
        self.head = self.embedding if model.tie_word_embeddings else at.matrix(vocabulary, hidden)
        if model.tie_word_embeddings:
            self.embedding.mul_(hidden**-0.5)
        # A token and those before it, of which an Engram memory makes n-grams.
        self.earlier = whole(max(model.engram_orders)) - 1 if model.engram_layers else 0
        self.history = torch.zeros((at.batch, self.earlier + at.seq), dtype=torch.int32, device=at.device)
        self.ids = torch.zeros(at.n_tokens, dtype=torch.int32, device=at.device)
        self.memories = {
            i: Memory(model, at, table or _table_on_device(at), index=j, prefetch=prefetch)
            for j, i in enumerate(whole(layer) - 1 for layer in model.engram_layers)
        }
        dense = whole(model.first_k_dense_replace) if has_experts(model) else whole(model.num_hidden_layers)
        self.layers = [
            Layer(model, at, experts=i >= dense, memory=self.memories.get(i))
            for i in range(whole(model.num_hidden_layers))
        ]
        self.norm = at.scales(hidden)
        self.refresh()

    def refresh(self) -> None:
        """New random tokens, so that every replay looks other rows up."""
        self.history.random_(0, whole(self.model.vocab_size))
        self.ids.copy_(self.history[:, self.earlier :].reshape(-1))

    def residual(self) -> Residual:
        """The embedded tokens, as one stream or several."""
        x = self.at.kernels.rows(self.embedding, self.ids)
        if not has_streams(self.model):
            return Single(x, self.at)
        return Streams(x, self.at, n=whole(self.model.n_streams), iterations=whole(self.model.sinkhorn_iters))

    def __call__(self) -> Tensor:
        residual = self.residual()
        # Not before the embedding: its random rows would wait for the same page walks as the rows from the host.
        for memory in self.memories.values():
            memory.start(self.history)
        for layer in self.layers:
            layer(residual)
        return F.linear(residual.last(self.norm), self.head)

    def expert_load(self) -> str:
        """Over the layers of experts of the last pass: experts that got tokens (mean), and the largest load over the
        mean (mean of layers); empty without experts."""
        loads = [layer.mlp.load() for layer in self.layers if isinstance(layer.mlp, Experts)]
        if not loads:
            return ""
        used = sum(float((load > 0).sum()) for load in loads) / len(loads)
        peak = sum(float(load.max() / load.float().mean()) for load in loads) / len(loads)
        return f"experts used {used:.1f} of {loads[0].numel()}, largest load {peak:.2f} of the mean"


def _table_on_device(at: Pass) -> Callable[[int, int], Tensor]:
    return lambda rows, dim: at.normal(rows, dim)
