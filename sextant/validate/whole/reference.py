"""What a pass must give: the same weights in plain FP32 formulas, attention as whole matrices, experts one by one.

Latent attention is always expanded here, whatever the pass does, and its cache is multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import streams
from sextant.validate.whole.experts import Experts
from sextant.validate.whole.kernels import EPS, Kernels, rotated
from sextant.validate.whole.language import GroupedAttention, Language
from sextant.validate.whole.latent import LatentAttention
from sextant.validate.whole.layers import Gated, Pass, Site, whole
from sextant.validate.whole.memory import Memory
from sextant.validate.whole.vision import EncoderLayer, Tower

#: Gives the FP32 tensor that stands for one of the model's.
Exact = Callable[[Tensor], Tensor]
#: How far below the last expert that the reference would choose a chosen one's score may lie, as a share of it.
ROUTING_TOLERANCE = 0.05


def exact(tensor: Tensor) -> Tensor:
    """The tensor in FP32."""
    return tensor.float()


def _norm(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """[batch, q, heads, dim], [batch, kv, heads, dim] to [batch, q, heads, value]."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril().logical_not()
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def _grouped(attention: GroupedAttention, y: Tensor, get: Exact) -> Tensor:
    at, heads, kv_heads = attention.at, attention.heads, attention.kv_heads
    qkv = (y @ get(attention.qkv).t()).view(at.batch, at.seq, heads + 2 * kv_heads, attention.dim)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=2)
    q, k = rotated(q, attention.cos, attention.sin), rotated(k, attention.cos, attention.sin)
    if at.phase == "decode":
        k = torch.cat((attention.keys[:, :-1].float(), k), dim=1)
        v = torch.cat((attention.values[:, :-1].float(), v), dim=1)
    out = _attention(q, k, v, causal=at.phase != "decode")
    return out.reshape(at.n_tokens, -1) @ get(attention.output).t()


def _latent(attention: LatentAttention, y: Tensor, get: Exact) -> Tensor:
    at, heads, nope, rank = attention.at, attention.heads, attention.nope, attention.rank
    of_query = _norm(y @ get(attention.query_down).t(), get(attention.query_norm)) if attention.query_rank else y
    q = (of_query @ get(attention.query).t()).view(at.batch, at.seq, heads, -1)
    q = torch.cat((q[..., :nope], rotated(q[..., nope:], attention.cos, attention.sin)), dim=-1)
    down = (y @ get(attention.down).t()).view(at.batch, at.seq, -1)
    latent = _norm(down[..., :rank], get(attention.norm))
    shared = rotated(down[..., None, rank:], attention.cos, attention.sin).squeeze(2)
    rows = torch.cat((latent, shared), dim=-1)
    if at.phase == "decode":
        rows = torch.cat((attention.cache[:, :-1].float(), rows), dim=1)
    kv = (rows[..., :rank] @ get(attention.up).t()).unflatten(-1, (heads, -1))
    k = torch.cat((kv[..., :nope], rows[:, :, None, rank:].expand(-1, -1, heads, -1)), dim=-1)
    out = _attention(q, k, kv[..., nope:], causal=at.phase != "decode")
    return out.reshape(at.n_tokens, -1) @ get(attention.output).t()


def _gated(mlp: Gated, y: Tensor, get: Exact) -> Tensor:
    gate, up = (y @ get(mlp.up_gate).t()).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ get(mlp.down).t()


def _experts(experts: Experts, y: Tensor, get: Exact) -> Tensor:
    """With the experts that the pass chose; ``ValueError`` where they are not the best ones, rounding aside."""
    scores = (y @ get(experts.router).t()).softmax(dim=-1)
    chosen = experts.chosen.long()
    weights = scores.gather(1, chosen)
    least = scores.topk(experts.top_k, dim=-1).values[:, -1]
    if bool((weights.amin(1) < least * (1.0 - ROUTING_TOLERANCE)).any()):
        raise ValueError("check: an expert was chosen whose score is not among the largest")
    weights = weights / weights.sum(dim=-1, keepdim=True)
    out = _gated(experts.shared, y, get) if experts.shared else torch.zeros_like(y)
    for expert in range(experts.n_experts):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        if len(token):
            gate, up = (y[token] @ experts.up_gate[expert].float().t()).chunk(2, dim=-1)
            part = (F.silu(gate) * up) @ experts.down[expert].float().t()
            out = out.index_add(0, token, part * weights[token, slot, None])
    return out


def _memory(memory: Memory, history: Tensor, x: Tensor, get: Exact) -> Tensor:
    """Rows, gate and convolution, one token and tap at a time."""
    at, (m, n, hidden) = memory.at, x.shape
    index = Kernels().hash(history, memory.primes, memory.starts, memory.orders)
    rows = memory.table[index.to(memory.table.device)].to(x.device).float().view(m, memory.dim)
    found = rows @ get(memory.projections).t()
    y = streams.gated(x, found[:, hidden:].view(m, n, hidden), found[:, :hidden], memory.gate_norm)[0].float()
    values = (y - x).view(at.batch, at.seq, n, hidden)
    reach = (len(memory.taps) - 1) * memory.dilation
    before = torch.zeros_like(values[:, :1]).expand(-1, reach, -1, -1)
    every = torch.cat((before if memory.earlier is None else memory.earlier.float(), values), dim=1)
    normed = _norm(every, memory.conv_norm)
    total = torch.zeros_like(values)
    for t in range(at.seq):
        for j, tap in enumerate(memory.taps):
            total[:, t] += tap * normed[:, reach + t - j * memory.dilation]
    return y + F.silu(total).flatten(0, 1)


def _mixed(x: Tensor, site: Site, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    y, post, res = streams.mixed_in(x, site.maps, site.scale, site.base, n_iterations=iterations)
    return y.float(), post, res


def language(lang: Language, get: Exact = exact, *, every_token: bool = False) -> Tensor:
    """Logits of the last tokens [batch, vocabulary], or of every token [m, vocabulary], after a pass of ``lang``."""
    n, iterations = whole(lang.model.n_streams), whole(lang.model.sinkhorn_iters)
    x = get(lang.embedding)[lang.ids.long()]
    x = x.unsqueeze(1).expand(-1, n, -1)
    for layer in lang.layers:
        if layer.memory is not None:
            x = _memory(layer.memory, lang.history, x, get)
        for site, sublayer in zip(layer.sites, (layer.attention, layer.mlp), strict=True):
            y, post, res = (x[:, 0], None, None) if n == 1 else _mixed(x, site, iterations)
            out = _sublayer(sublayer, _norm(y, get(site.norm)), get)
            x = x + out.unsqueeze(1) if post is None else streams.mixed_out(out, x, post, res)[0].float()  # type: ignore[arg-type]
    last = x.sum(1) if every_token else x[lang.at.seq - 1 :: lang.at.seq].sum(1)
    return _norm(last, get(lang.norm)) @ get(lang.head).t()


def _sublayer(sublayer: GroupedAttention | LatentAttention | Experts | Gated, y: Tensor, get: Exact) -> Tensor:
    if isinstance(sublayer, GroupedAttention):
        return _grouped(sublayer, y, get)
    if isinstance(sublayer, LatentAttention):
        return _latent(sublayer, y, get)
    return _experts(sublayer, y, get) if isinstance(sublayer, Experts) else _gated(sublayer, y, get)


def _encoder_layer(layer: EncoderLayer, at: Pass, x: Tensor) -> Tensor:
    (w, b), (w2, b2) = layer.norms
    y = F.layer_norm(x, w.shape, w.float(), b.float(), EPS)
    qkv = F.linear(y, layer.qkv.w.float(), layer.qkv.b.float()).view(at.batch, at.seq, 3, layer.heads, -1)
    out = _attention(*qkv.unbind(2), causal=False).reshape(x.shape)
    x = x + F.linear(out, layer.output.w.float(), layer.output.b.float())
    y = F.linear(F.layer_norm(x, w2.shape, w2.float(), b2.float(), EPS), layer.up.w.float(), layer.up.b.float())
    return x + F.linear(F.gelu(y, approximate="tanh"), layer.down.w.float(), layer.down.b.float())


def tower(encoder: Tower) -> Tensor:
    """Projected patches of all images [m, hidden]."""
    x = F.linear(encoder.images.float(), encoder.patches.w.float(), encoder.patches.b.float())
    x = (x.view(encoder.at.batch, encoder.at.seq, -1) + encoder.positions.float()).flatten(0, 1)
    for layer in encoder.layers:
        x = _encoder_layer(layer, encoder.at, x)
    w, b = encoder.norm
    y = F.linear(F.layer_norm(x, w.shape, w.float(), b.float(), EPS), encoder.up.w.float(), encoder.up.b.float())
    return F.linear(F.gelu(y, approximate="tanh"), encoder.down.w.float(), encoder.down.b.float())
