"""The routed experts of one device in one layer: index, permutation, both grouped products, SwiGLU, weighted sum.

Columns: n_tokens (of the whole expert-parallel group), hidden, expert_ffn, top_k, n_experts, expert_parallel, routing.
A device holds n_experts / expert_parallel experts; its pairs of token and expert are those that ``routing`` sends
there:
``balanced`` (each expert as many, to one) or ``power_law_A`` (experts drawn with rank^-A). ``variant`` layer adds the
router: its product, softmax and selection, whose ids are then replaced so that the load stays the stated one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sextant.validate.kernels import CPU_LIBRARY, Case, Prepared, Target, require_close, sizes
from sextant.validate.kernels.routing import index

BF16 = torch.bfloat16
N_CHECKED = 8


def local_experts(n_tokens: int, n_experts: int, n_local: int, top_k: int, routing: str, target: Target) -> Tensor:
    """Local expert of every pair that this device gets, in random order, int64 of shape (n_pairs,)."""
    pairs = max(1, n_tokens * top_k * n_local // n_experts)
    if routing == "balanced":
        first = torch.arange(pairs, device=target.device) % n_local
        return first[torch.randperm(pairs, device=target.device)]
    if not routing.startswith("power_law_"):
        raise ValueError(f"routing: balanced or power_law_A, got {routing!r}")
    share = torch.arange(1, n_local + 1, device=target.device, dtype=torch.float64) ** -float(
        routing[len("power_law_") :]
    )
    return torch.multinomial(share, pairs, replacement=True)


def _moved(x: Tensor, order: Tensor, target: Target) -> Tensor:
    if not target.fused:
        return x[order]
    from sextant.validate.kernels import triton_moves

    return triton_moves.gather_rows(x, order.to(torch.int32))[0]


def _activated(x: Tensor, target: Target) -> Tensor:
    if not target.fused:
        gate, up = x.chunk(2, dim=1)
        return F.silu(gate) * up
    from sextant.validate.kernels import triton_rows

    return triton_rows.swiglu(x)[0]


def _summed(x: Tensor, place: Tensor, weight: Tensor, target: Target) -> Tensor:
    if not target.fused:
        return (x[place].float() * weight.unsqueeze(2)).sum(1).to(BF16)
    from sextant.validate.kernels import triton_moves

    return triton_moves.weighted_sum(x, place.to(torch.int32), weight)[0]


def _product(x: Tensor, w: Tensor, counts: Tensor, target: Target) -> Tensor:
    ends = counts.cumsum(0).to(torch.int32)
    if target.cuda:
        return torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)  # pyright: ignore[reportPrivateImportUsage]
    starts = [0, *ends.tolist()]
    return torch.cat([x[a:b] @ w[g].t() for g, (a, b) in enumerate(zip(starts, starts[1:], strict=False))])


def _experts(
    x: Tensor, ids: Tensor, weight: Tensor, up: Tensor, down: Tensor, *, per_token: int, target: Target
) -> Tensor:
    """x [n_rows, hidden]; pair i is row i // per_token at expert ids[i]; sums of per_token pairs [n_rows, hidden]."""
    counts, order, place = index(ids, up.shape[0])
    h = _activated(_product(_moved(x, order // per_token, target), up, counts, target), target)
    return _summed(_product(h, down, counts, target), place.view(-1, per_token), weight, target)


def _router(x: Tensor, w: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    found = F.linear(x, w).float().softmax(dim=-1).topk(top_k, dim=-1)
    return found.values / found.values.sum(dim=-1, keepdim=True), found.indices


def _prepared(
    case: Case, target: Target
) -> tuple[list[tuple[Tensor, ...]], Callable[..., Tensor], tuple[Tensor, ...], int]:
    n_tokens, hidden, width, top_k, n_experts = sizes(case, "n_tokens", "hidden", "expert_ffn", "top_k", "n_experts")
    parallel = int(case.get("expert_parallel", 1))
    if int(case.get("tensor_parallel", 1)) != 1 or n_experts % parallel:
        raise ValueError("tensor_parallel, expert_parallel: moe is measured with whole experts, evenly many per device")
    layer = case.get("variant") == "layer"
    if layer and parallel != 1:
        raise ValueError("variant: a layer with its router is measured for expert_parallel 1")
    n_local = n_experts // parallel
    # rows arrive once for every pair where experts are spread, else one row serves its top_k pairs
    per_token = top_k if parallel == 1 else 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=BF16, device=target.device)

    up, down = draw(n_local, 2 * width, hidden) * hidden**-0.5, draw(n_local, hidden, width) * width**-0.5
    gate = draw(n_experts, hidden)

    def inputs() -> tuple[Tensor, ...]:
        ids = local_experts(n_tokens, n_experts, n_local, top_k, str(case.get("routing", "balanced")), target)
        rows = ids.numel() // per_token
        return draw(rows, hidden), ids[: rows * per_token], torch.rand((rows, per_token), device=target.device)

    def run(x: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
        if layer:
            weight, _ = _router(x, gate, top_k)
        return _experts(x, ids, weight, up, down, per_token=per_token, target=target)

    first = inputs()
    # few tokens take few experts: other ones for every set, or the cache would hold them
    used = min(n_local, first[1].numel()) / n_local
    n_sets = min(16, target.n_sets(2.0 * used * (up.numel() + down.numel()) + 4.0 * first[0].numel()))
    return [first, *(inputs() for _ in range(n_sets - 1))], run, (up, down, gate), per_token


def build_moe(case: Case, target: Target) -> Prepared:
    """Prepare one layer's experts; traffic counts weights of the experts that get tokens, rows in and rows out."""
    (top_k,) = sizes(case, "top_k")
    sets, run, (up, down, gate), per_token = _prepared(case, target)
    layer = case.get("variant") == "layer"

    def check() -> float:
        x, ids, weight = sets[0]
        out = run(x, ids, weight)
        rows = min(N_CHECKED, len(x))
        if layer:
            weight = _router(x, gate, top_k)[0]
        expected = torch.zeros((rows, x.shape[1]), dtype=torch.float32, device=x.device)
        for i in range(rows):
            for j in range(per_token):
                expert = int(ids[i * per_token + j])
                a, b = (up[expert].float() @ x[i].float()).chunk(2)
                expected[i] += weight[i, j] * (down[expert].float() @ (F.silu(a) * b))
        return require_close(out[:rows], expected, what="the experts' sum", tolerance=2e-2)

    x, ids, _ = sets[0]
    used = len(ids.unique())
    return Prepared(
        calls=tuple(partial(run, *one) for one in sets),
        check=check,
        library="cutlass_grouped_mm_triton" if target.cuda else CPU_LIBRARY,
        read_bytes=2.0 * used * (up[0].numel() + down[0].numel()) + 2.0 * x.numel(),
        write_bytes=2.0 * x.numel(),
    )


BUILDERS = {"moe": build_moe}
