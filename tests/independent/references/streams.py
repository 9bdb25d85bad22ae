"""Residual streams (mHC) and n-gram memory (Engram) around the decoder layers of transformers.

No package has them. Written after mHC (arXiv:2512.24880, eq. 7 to 10) and after Engram (arXiv:2601.07372, s2.2 to 2.4,
and the module that its authors published, engram_demo_v1.py): what is a parameter there is a parameter here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from references.language import language_model, visible
from sextant.workloads.transformer import Transformer


class HyperConnection(nn.Module):
    """One site: mappings from the flattened residual, streams mixed to one input, one output spread over streams.

    The norm of the flattened residual has no weight: the paper's kernel folds it into the mappings' weights (s4.3.1).
    """

    def __init__(self, n: int, width: int, iterations: int) -> None:
        super().__init__()
        self.n, self.iterations = n, iterations
        self.norm = nn.RMSNorm(n * width, elementwise_affine=False)
        self.maps = nn.Linear(n * width, n * n + 2 * n)  # its bias are b_pre, b_post and b_res
        self.scales = nn.Parameter(torch.empty(3))  # alpha_pre, alpha_post, alpha_res

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, s, n, C) to the layer's input (b, s, C), H_post (b, s, n, 1) and H_res (b, s, n, n)."""
        n = self.n
        maps = self.maps(self.norm(streams.flatten(2)))
        before, after, among = maps.split([n, n, n * n], dim=-1)
        first = torch.sigmoid(self.scales[0] * before).unsqueeze(-2)
        last = 2 * torch.sigmoid(self.scales[1] * after).unsqueeze(-1)
        mixing = torch.exp(self.scales[2] * among).unflatten(-1, (n, n))
        for _ in range(self.iterations):
            mixing = mixing / mixing.sum(-2, keepdim=True)
            mixing = mixing / mixing.sum(-1, keepdim=True)
        return (first @ streams).squeeze(-2), last, mixing

    @staticmethod
    def back(streams: Tensor, output: Tensor, last: Tensor, mixing: Tensor) -> Tensor:
        """H_res streams + H_post output."""
        return mixing @ streams + last @ output.unsqueeze(-2)


class ShortConvolution(nn.Module):
    """Depthwise causal convolution over the tokens of every stream, behind a norm of each stream, then SiLU."""

    def __init__(self, n: int, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.norms = nn.Parameter(torch.empty(n, width))
        self.conv = nn.Conv1d(n * width, n * width, kernel, groups=n * width, dilation=dilation, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """(b, s, n, C) to the same shape."""
        normed = nn.functional.rms_norm(values, values.shape[-1:]) * self.norms
        by_channel = nn.functional.pad(normed.flatten(2).transpose(1, 2), (self.reach, 0))
        return nn.functional.silu(self.conv(by_channel)).transpose(1, 2).unflatten(-1, values.shape[-2:])


class Engram(nn.Module):
    """The memory in front of one layer: tables of hashed n-grams, a value and a key per stream, a gate, a convolution.

    Tables have the paper's round number of rows (Table 5); its published module takes the primes above it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.n, self.width = int(model.n_streams), int(model.hidden_size)
        n_tables = len(model.engram_orders) * int(model.engram_heads)
        row, rest = divmod(int(model.engram_dim), n_tables)
        assert rest == 0
        self.tables = nn.ModuleList(nn.Embedding(int(model.engram_rows), row) for _ in range(n_tables))
        self.value = nn.Linear(n_tables * row, self.width)
        self.keys = nn.ModuleList(nn.Linear(n_tables * row, self.width) for _ in range(self.n))
        self.key_norms = nn.Parameter(torch.empty(self.n, self.width))
        self.stream_norms = nn.Parameter(torch.empty(self.n, self.width))
        self.short_conv = ShortConvolution(
            self.n, self.width, int(model.engram_conv_kernel), int(max(model.engram_orders))
        )

    def forward(self, streams: Tensor) -> Tensor:
        """(b, s, n, C) to what is added to it."""
        rows = torch.zeros(*streams.shape[:2], dtype=torch.long, device="meta")
        memory = torch.cat([table(rows) for table in self.tables], dim=-1)
        keys = torch.stack([key(memory) for key in self.keys], dim=-2)
        keys = nn.functional.rms_norm(keys, (self.width,)) * self.key_norms
        queries = nn.functional.rms_norm(streams, (self.width,)) * self.stream_norms
        gates = torch.sigmoid((keys * queries).sum(-1, keepdim=True) / math.sqrt(self.width))
        values = gates * self.value(memory).unsqueeze(-2)
        return values + self.short_conv(values)


class StreamedModel(nn.Module):
    """A language model of transformers whose layers read from and write to n residual streams, with Engram layers."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        n, width, iterations = int(model.n_streams), int(model.hidden_size), int(model.sinkhorn_iters)
        self.language = language_model(model)
        with torch.device("meta"):
            n_sites = 2 * int(model.num_hidden_layers) if n > 1 else 0
            self.sites = nn.ModuleList(HyperConnection(n, width, iterations) for _ in range(n_sites))
            self.memories = nn.ModuleDict({str(int(layer)): Engram(model) for layer in model.engram_layers})
        self.n = n

    def forward(self, ids: Tensor, *, every: bool = False) -> Tensor:
        """Logits of the last token of each prompt, or of ``every`` token."""
        inner, (batch, tokens) = self.language.model, ids.shape
        embedded = inner.embed_tokens(ids)
        positions = torch.arange(tokens, device="meta")[None]
        shared = {
            "attention_mask": visible(batch, tokens), "position_ids": positions,
            "position_embeddings": inner.rotary_emb(embedded, position_ids=positions),
        }  # fmt: skip
        streams = embedded.unsqueeze(-2).repeat(1, 1, self.n, 1)
        for i, layer in enumerate(inner.layers):
            if str(i + 1) in self.memories:
                streams = streams + self.memories[str(i + 1)](streams)
            for site, norm, function in (
                (2 * i, layer.input_layernorm, lambda x, layer=layer: layer.self_attn(hidden_states=x, **shared)[0]),
                (2 * i + 1, layer.post_attention_layernorm, layer.mlp),
            ):
                streams = self._sublayer(site, norm, function, streams)
        return self.language.lm_head(inner.norm(streams.sum(-2) if every else streams[:, -1:].sum(-2)))

    def _sublayer(self, site: int, norm: nn.Module, function, streams: Tensor) -> Tensor:
        if self.n == 1:
            return streams + function(norm(streams.squeeze(-2))).unsqueeze(-2)
        into, last, mixing = self.sites[site](streams)
        return HyperConnection.back(streams, function(norm(into)), last, mixing)


def needs_streams(model: Transformer) -> bool:
    """Whether a record has what the classes of transformers lack."""
    return model.n_streams > 1 or bool(model.engram_layers)


def table_parameters(module: nn.Module) -> int:
    """Elements of all Engram tables of ``module``."""
    return sum(p.numel() for name, p in module.named_parameters() if ".tables." in name)
