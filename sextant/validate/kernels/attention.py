"""Scaled dot-product attention of torch, forward and backward, with one back end allowed at a time.

``phase`` prefill is causal (``causal`` 1), encoder is not, decode has one query token (``q_len`` 1) that sees the whole
cache. ``variant`` names the back end: cudnn or flash; for decode also splitkv, this package's Triton kernels. Only that
one is enabled, and the autograd node of the result must carry its name, so a silent substitute cannot be measured.
Queries, keys and values lie in memory as [batch, tokens, heads, head_dim], as projections leave them. The backward pass
is autograd's, with the graph of the forward pass kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sextant.validate.kernels import Case, Prepared, Target, require_close, rotated, sizes

_BACKENDS = {"cudnn": (SDPBackend.CUDNN_ATTENTION, "cudnn"), "flash": (SDPBackend.FLASH_ATTENTION, "flash")}
#: Queries compared with the reference: the last ones, which see every key; without a mask this many of them ...
N_CHECKED = 64
#: ... which makes the gradients of all keys exact too.
N_CHECKED_UNMASKED = 4096


def _draw(case: Case, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the output's gradient, each [batch, heads, tokens, dim] over memory [batch, tokens, heads, dim]."""
    batch, heads, kv_heads, q_len, kv_len, head_dim, v_head_dim = sizes(
        case, "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_head_dim"
    )

    def one(n_heads: int, length: int, dim: int) -> Tensor:
        return torch.randn((batch, length, n_heads, dim), dtype=torch.bfloat16, device=target.device).transpose(1, 2)

    return (
        one(heads, q_len, head_dim),
        one(kv_heads, kv_len, head_dim),
        one(kv_heads, kv_len, v_head_dim),
        one(heads, q_len, v_head_dim),
    )


def reference_tail(q: Tensor, k: Tensor, v: Tensor, do: Tensor, *, causal: bool) -> dict[str, Tensor]:
    """The last queries' output and gradients in fp32, of the first batch element and the first key head.

    Under a causal mask of equal lengths the last keys are seen by the last queries only, so dk and dv of those are
    exact too; without a mask, dk and dv of all keys are if all queries are compared.
    Shapes: out, dq [queries per key head, n, dim]; dk, dv [n, dim].
    """
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    n = min(N_CHECKED if causal else N_CHECKED_UNMASKED, length)
    tail = slice(length - n, length)
    queries, grads = q[0, :group, tail].float(), do[0, :group, tail].float()
    keys, values = k[0, 0].float(), v[0, 0].float()
    scale = q.shape[3] ** -0.5
    scores = queries @ keys.t() * scale
    if causal:
        hidden = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[2] - n).logical_not()
        scores = scores.masked_fill(hidden, float("-inf"))
    p = scores.softmax(-1)
    out = p @ values
    ds = p * (grads @ values.t() - (grads * out).sum(-1, keepdim=True)) * scale
    found = {"out": out, "dq": ds @ keys}
    if causal or n == length == k.shape[2]:
        last = slice(k.shape[2] - n, k.shape[2])
        found["dk"] = (ds[:, :, last].transpose(1, 2) @ queries).sum(0)
        found["dv"] = (p[:, :, last].transpose(1, 2) @ grads).sum(0)
    return found


def _forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def _with_graph(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, context: Callable, node: str) -> tuple[Tensor, ...]:
    """Leaves and output with an autograd graph; raises ``ValueError`` when another back end made it."""
    leaves = tuple(tensor.detach().requires_grad_(True) for tensor in (q, k, v))
    with context():
        out = _forward(*leaves, causal=causal)
    made_by = out.grad_fn.name() if out.grad_fn is not None else "nothing"
    if node and node not in made_by.lower():
        raise ValueError(f"variant: the back end {node} was asked for, {made_by} ran")
    return *leaves, out


def _masked(case: Case) -> bool:
    """Whether keys are hidden: torch aligns its causal mask at the first key, so lengths must be equal or q_len 1."""
    q_len, kv_len = sizes(case, "q_len", "kv_len")
    if case.get("causal") != 1 or q_len == 1:
        return False
    if q_len != kv_len:
        raise ValueError(f"q_len: a causal mask is measured for q_len = kv_len or q_len 1, got {q_len} and {kv_len}")
    return True


def _split(case: Case, target: Target) -> Prepared:
    """A decode step by this package's Triton kernels, plain torch where they cannot run."""

    def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (_forward(q, k, v, causal=False),)

    fused = plain
    if target.fused:
        from sextant.validate.kernels import triton_decode

        fused = partial(triton_decode.grouped, n_sms=target.n_sms)
    batch, heads, kv_heads, kv_len, head_dim, v_head_dim = sizes(
        case, "batch", "heads", "kv_heads", "kv_len", "head_dim", "v_head_dim"
    )
    return rotated(
        target,
        inputs=lambda: _draw(case, target)[:3],
        fused=fused,
        eager=plain,
        reference=lambda q, k, v: (
            reference_tail(q, k, v, v.new_zeros(*q.shape[:3], v.shape[3]), causal=False)["out"],
        ),
        checked=lambda outputs: (outputs[0][0, : heads // kv_heads],),
        read_bytes=2.0 * batch * (kv_heads * kv_len * (head_dim + v_head_dim) + heads * head_dim),
        write_bytes=2.0 * batch * heads * v_head_dim,
        library="triton_splitkv",
    )


def build_attention(case: Case, target: Target) -> Prepared:
    """Prepare one attention call of a batch; ``direction`` forward or backward."""
    variant, backward = str(case.get("variant")), case.get("direction") == "backward"
    causal = _masked(case)
    if variant == "splitkv" and case.get("q_len") == 1 and not backward:
        return _split(case, target)
    if variant not in _BACKENDS:
        raise ValueError(
            f"variant: attention is measured with {', '.join(_BACKENDS)}, splitkv (decode), got {variant!r}"
        )
    backend, name = _BACKENDS[variant]
    context = partial(sdpa_kernel, [backend]) if target.cuda else nullcontext
    graph_of = partial(_with_graph, causal=causal, context=context, node=name if target.cuda else "")
    q, k, v, do = first = _draw(case, target)
    moved = 2.0 * (q.numel() + k.numel() + v.numel())
    read_bytes, write_bytes = moved, 2.0 * do.numel()
    if backward:  # reads q, k, v, the output and its gradient; writes dq, dk, dv
        read_bytes, write_bytes = moved + 4.0 * do.numel(), moved
    sets = [first, *(_draw(case, target) for _ in range(target.n_sets(read_bytes + write_bytes) - 1))]

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with context():
            return _forward(q, k, v, causal=causal)

    def check() -> float:
        # one query token has no backward pass to ask who made it
        *leaves, out = graph_of(q, k, v) if q.shape[2] > 1 else (q, k, v, forward(q, k, v))
        grads = torch.autograd.grad(out, leaves, do) if backward else ()
        expected = reference_tail(q, k, v, do, causal=causal)
        n, group = expected["out"].shape[1], expected["out"].shape[0]
        errors = [require_close(out[0, :group, -n:].detach(), expected["out"], what="the output")]
        for what, grad in zip(("dq", "dk", "dv"), grads, strict=False):
            if what in expected:
                got = grad[0, :group, -n:] if what == "dq" else grad[0, 0, -n:]
                errors.append(require_close(got, expected[what], what=what, tolerance=2e-2))
        return max(errors)

    if backward:
        graphs = [(*graph_of(*one[:3]), one[3]) for one in sets]
        calls = tuple(partial(torch.autograd.grad, out, (a, b, c), g, retain_graph=True) for a, b, c, out, g in graphs)
    else:
        calls = tuple(partial(forward, *one[:3]) for one in sets)
    library = {"cudnn": "cudnn_sdpa", "flash": "flash_attention_2_torch"}[variant]
    return Prepared(
        calls=calls, check=check, library=target.library(library), read_bytes=read_bytes, write_bytes=write_bytes
    )


BUILDERS = {"attention": build_attention}
