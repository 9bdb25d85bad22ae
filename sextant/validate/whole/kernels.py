"""The operators of a pass in plain torch: what runs on the CPU, and what ``fused`` replaces by Triton kernels.

One method is one operator of ``sextant.workloads`` (or one that a case lists under ``differs``). Tensors are BF16 (or
FP32 throughout) with rows innermost; ``m`` is tokens. Results of sums and norms are computed in FP32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import streams

EPS = 1e-6
#: Row numbers of an Engram table: factors of the token ids of an n-gram, the newest first.
HASH_FACTORS = (1_000_003, 998_244_353, 2_147_483_629)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Halves of the last dimension rotated; x [..., heads, dim], cos and sin [..., dim / 2] without the heads."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Kernels:
    """Plain torch."""

    library = "torch"

    # ---- rows -----------------------------------------------------------------------------------------------------
    def rows(self, table: Tensor, index: Tensor) -> Tensor:
        """table[index], index int32 (n,)."""
        return table[index.long()]

    def norm(self, x: Tensor, w: Tensor) -> Tensor:
        """RMSNorm of rows [m, width]; rows may lie apart."""
        exact = x.float()
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPS) * w.float()).to(x.dtype)

    def add_norm(self, x: Tensor, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The residual with ``delta`` added, and its RMSNorm."""
        total = x.float() + delta.float()
        return total.to(x.dtype), self.norm(total, w).to(x.dtype)

    def layernorm(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """Layer normalisation of rows with weight and bias."""
        return F.layer_norm(x.float(), w.shape, w.float(), b.float(), EPS).to(x.dtype)

    def add_layernorm(self, x: Tensor, delta: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The residual with ``delta`` added, and its layer normalisation."""
        total = x.float() + delta.float()
        return total.to(x.dtype), self.layernorm(total, w, b).to(x.dtype)

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [m, 2 width] = gate | up."""
        gate, up = x.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU by its tanh approximation."""
        return F.gelu(x.float(), approximate="tanh").to(x.dtype)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b."""
        return a + b

    # ---- attention ------------------------------------------------------------------------------------------------
    def rope(self, qkv: Tensor, cos: Tensor, sin: Tensor, *, n_rotated: int) -> None:
        """The first ``n_rotated`` heads of qkv [batch, seq, heads, dim] rotated in place; tables [seq, dim / 2]."""
        part = qkv[:, :, :n_rotated]
        part.copy_(rotated(part, cos, sin))

    def rope_append(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, *, position: int
    ) -> Tensor:
        """Rotated queries [batch, heads, dim] of qkv [batch, heads + 2 kv_heads, dim]; the rotated key and the value go
        to ``position`` of the caches [batch, tokens, kv_heads, dim]. Tables [dim / 2]."""
        kv_heads = keys.shape[2]
        heads = qkv.shape[1] - 2 * kv_heads
        keys[:, position] = rotated(qkv[:, heads : heads + kv_heads], cos, sin)
        values[:, position] = qkv[:, heads + kv_heads :]
        return rotated(qkv[:, :heads], cos, sin)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """[batch, heads, seq, dim] of queries, keys and values over memory [batch, seq, heads, dim]."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    def decode(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One query token q [batch, heads, dim] against caches [batch, tokens, kv_heads, dim]; out as q."""
        k, v = keys.transpose(1, 2), values.transpose(1, 2)
        return self.attention(q.unsqueeze(2), k, v, causal=False).squeeze(2)

    def query_rope(self, q: Tensor, cos: Tensor, sin: Tensor, *, nope: int) -> Tensor:
        """q [batch, seq, heads, nope + rope] with its last ``rope`` dimensions rotated."""
        return torch.cat((q[..., :nope], rotated(q[..., nope:], cos, sin)), dim=-1)

    def key_concat(self, kv: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, *, nope: int) -> Tensor:
        """Keys [batch, seq, heads, nope + rope]: each head's own part of kv [batch, seq, heads, nope + value], and the
        rotated ``shared`` [batch, seq, rope]."""
        turned = rotated(shared.unsqueeze(2), cos, sin).expand(*kv.shape[:3], -1)
        return torch.cat((kv[..., :nope], turned), dim=-1)

    def value_copy(self, kv: Tensor, *, nope: int) -> Tensor:
        """Values [batch, seq, heads, value] of kv [batch, seq, heads, nope + value]."""
        return kv[..., nope:].contiguous()

    def latent_rope(self, q: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, nope: int, rank: int) -> None:
        """The last dimensions of q [batch, heads, nope + rope], rotated, to those of out [batch, heads, rank + rope];
        tables [rope / 2]."""
        out[..., rank:] = rotated(q[..., nope:], cos, sin)

    def latent_append(
        self, latent: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, *, position: int
    ) -> None:
        """latent [batch, rank] and the rotated ``shared`` [batch, rope] to ``position`` of cache [batch, tokens, rank +
        rope]."""
        rank = latent.shape[1]
        cache[:, position, :rank] = latent
        cache[:, position, rank:] = rotated(shared.unsqueeze(1), cos, sin).squeeze(1)

    def latent(self, q: Tensor, cache: Tensor, *, rank: int, scale: float) -> Tensor:
        """Absorbed attention of q [batch, heads, rank + rope] and cache [batch, tokens, rank + rope]: [batch, heads,
        rank]."""
        p = torch.softmax(torch.bmm(q.float(), cache.float().transpose(1, 2)) * scale, dim=-1)
        return torch.bmm(p, cache[..., :rank].float()).to(q.dtype)

    # ---- experts --------------------------------------------------------------------------------------------------
    def select(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Weights (FP32, adding up to 1) and experts (int32), both [m, top_k], of the largest softmax scores."""
        found = logits.float().softmax(dim=-1).topk(top_k, dim=-1)
        return found.values / found.values.sum(dim=-1, keepdim=True), found.indices.to(torch.int32)

    def place(self, experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the pairs of each expert end (n_experts,), the token of every pair in the order of experts (m top_k,),
        and each pair's place there [m, top_k]; int32."""
        flat = experts.flatten().long()
        order = flat.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(flat), device=flat.device)
        ends = torch.bincount(flat, minlength=n_experts).cumsum(0)
        token = order // experts.shape[1]
        return ends.to(torch.int32), token.to(torch.int32), place.view(experts.shape).to(torch.int32)

    def grouped(self, x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
        """x [pairs, k] times w [experts, n, k]^T, rows of an expert up to its end."""
        starts = [0, *ends.tolist()]
        return torch.cat([x[a:b] @ w[g].t() for g, (a, b) in enumerate(zip(starts, starts[1:], strict=False))])

    def weighted_sum(self, x: Tensor, place: Tensor, weight: Tensor) -> Tensor:
        """Sum over a token's pairs of weight times x[place]; [m, hidden]."""
        return (x[place.long()].float() * weight.unsqueeze(2)).sum(1).to(x.dtype)

    # ---- streams and memory ---------------------------------------------------------------------------------------
    def mix_in(self, x: Tensor, w: Tensor, scale: Tensor, base: Tensor, *, iterations: int) -> tuple[Tensor, ...]:
        """Layer input [m, hidden], H_post and H_res of a residual x [m, n, hidden]."""
        y, post, res = streams.mixed_in(x, w, scale, base, n_iterations=iterations)
        return y.to(x.dtype), post.float(), res.float()

    def mix_out(self, f: Tensor, x: Tensor, post: Tensor, res: Tensor) -> Tensor:
        """The layer's output written back into the residual [m, n, hidden]."""
        return streams.mixed_out(f, x, post, res)[0].to(x.dtype)

    def hash(self, ids: Tensor, primes: Tensor, starts: Tensor, orders: Tensor) -> Tensor:
        """Row numbers int64 [batch seq, tables] of ids int32 [batch, earlier + seq], whose ``earlier`` columns are one
        fewer than the largest order. A table has ``primes`` rows from ``starts`` on and takes n-grams of ``orders``."""
        earlier = int(orders.max()) - 1
        seq = ids.shape[1] - earlier
        mixed = torch.zeros((ids.shape[0], seq, len(primes)), dtype=torch.int64, device=ids.device)
        for back, factor in zip(range(earlier + 1), HASH_FACTORS, strict=False):
            token = ids[:, earlier - back : earlier - back + seq].long() * factor
            mixed = torch.where((orders > back), mixed ^ token.unsqueeze(2), mixed)
        return (starts + mixed % primes).flatten(0, 1)

    def fetch(self, table: Tensor, index: Tensor, out: Tensor, *, beside: bool, in_turn: int = 0) -> None:
        """out[i] = table[index[i]], the table in device or in pinned host memory; ``beside`` other kernels, a program
        reading ``in_turn`` rows at once (0: as many as it likes), or alone."""
        out.copy_(table[index.to(table.device)])

    def gate(self, x: Tensor, keys: Tensor, value: Tensor, w: Tensor) -> Tensor:
        """x [m, n, hidden] plus the gated value [m, hidden]; keys [m, n, hidden], w [n, hidden] in FP32."""
        return streams.gated(x, keys, value, w)[0].to(x.dtype)

    def convolve(
        self, x: Tensor, y: Tensor, w: Tensor, taps: Tensor, earlier: Tensor | None, *, seq: int, dilation: int
    ) -> Tensor:
        """y plus SiLU of the causal depthwise convolution of the normalised gated values y - x, [m, n, hidden].

        w [n, hidden] of the norm, taps [kernel, n, hidden], the newest token's first. ``earlier`` [batch, (kernel - 1)
        dilation, n, hidden] holds gated values before a decode step's token; None: before the first there are none.
        """
        gated = (y.float() - x.float()).unflatten(0, (-1, seq))
        reach = (taps.shape[0] - 1) * dilation
        before = gated.new_zeros(gated.shape[0], reach, *gated.shape[2:]) if earlier is None else earlier.float()
        every = torch.cat((before, gated), dim=1)
        normed = every * torch.rsqrt(every.square().mean(-1, keepdim=True) + EPS) * w.float()
        total = sum(
            taps[j].float() * normed[:, reach - j * dilation : reach - j * dilation + seq] for j in range(len(taps))
        )
        return (y.float() + F.silu(torch.as_tensor(total)).flatten(0, 1)).to(x.dtype)
