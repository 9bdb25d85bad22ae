"""The bookkeeping of mixture-of-experts routing, in the plain library kernels that training code runs.

``routing`` variant topk: sigmoid scores with a correction bias, the best groups by the sum of their two best experts,
the top-k experts within them, normalised weights (``groups`` experts in 8 groups, 4 chosen). Variant index: tokens per
expert, the order that sorts (token, expert) pairs by expert, and where every pair goes. Library kernels are launched
one by one; a fused kernel would be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import Case, Prepared, Target, sizes

N_GROUPS, TOP_GROUPS = 8, 4


def select(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Expert ids and weights, (n_tokens, top_k), of node-limited top-k routing over (n_tokens, n_experts) logits."""
    scores = logits.float().sigmoid()
    biased = scores + bias
    grouped = biased.view(len(logits), N_GROUPS, -1)
    best = grouped.topk(2, dim=-1).values.sum(dim=-1).topk(TOP_GROUPS, dim=-1).indices
    mask = torch.zeros((len(logits), N_GROUPS), dtype=torch.bool, device=logits.device).scatter_(1, best, True)
    allowed = grouped.masked_fill(~mask.unsqueeze(-1), float("-inf")).flatten(1)
    ids = allowed.topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    return ids, weights / weights.sum(dim=-1, keepdim=True)


def index(ids: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs per expert, the pairs in the order of their expert, and each pair's place in that order."""
    flat = ids.flatten()
    counts = torch.zeros(n_experts, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(flat), device=ids.device)
    return counts, order, place


def build_routing(case: Case, target: Target) -> Prepared:
    """One layer's selection or index; traffic counts FP32 scores read and 64-bit ids written."""
    n_tokens, n_experts, top_k = sizes(case, "n_tokens", "groups", "top_k")
    variant = str(case.get("variant"))
    n_sets = target.n_sets(4.0 * n_tokens * n_experts)
    logits = [torch.randn((n_tokens, n_experts), device=target.device) for _ in range(n_sets)]
    bias = 0.01 * torch.randn(n_experts, device=target.device)
    calls: list[Callable[[], object]]
    if variant == "topk":
        calls = [partial(select, each, bias, top_k) for each in logits]
    elif variant == "index":
        calls = [partial(index, select(each, bias, top_k)[0], n_experts) for each in logits]
    else:
        raise ValueError(f"variant: routing is topk or index, got {variant!r}")

    def check() -> float:
        ids, weights = select(logits[0], bias, top_k)
        groups = ids // (n_experts // N_GROUPS)
        if any(len(row.unique()) > TOP_GROUPS for row in groups[:64]) or any(len(r.unique()) < top_k for r in ids[:64]):
            raise ValueError("check: a token has too many groups or an expert twice")
        if not torch.allclose(weights.sum(dim=-1), torch.ones(n_tokens, device=weights.device), atol=1e-4):
            raise ValueError("check: the weights of a token do not add up to 1")
        counts, order, place = index(ids, n_experts)
        flat = ids.flatten()
        if int(counts.sum()) != flat.numel() or not bool((flat[order].diff() >= 0).all()):
            raise ValueError("check: the pairs are not sorted by expert")
        if not torch.equal(order[place], torch.arange(len(flat), device=ids.device)):
            raise ValueError("check: the places do not invert the order")
        return float((weights.sum(dim=-1) - 1.0).abs().max())

    read = 4.0 * n_tokens * n_experts if variant == "topk" else 8.0 * n_tokens * top_k
    write = (8.0 + 4.0) * n_tokens * top_k if variant == "topk" else 16.0 * n_tokens * top_k
    return Prepared(
        calls=tuple(calls), check=check, library=target.library("torch_eager"), read_bytes=read, write_bytes=write
    )


BUILDERS = {"routing": build_routing}
