"""The layer of ``pipeline`` as kernel cases: its dimensions, and what torch runs for it forward and backward.

Products, attention and norms are cases of their own kind; everything that torch runs one kernel at a time (activations,
concatenation, sums of gradients) is a ``copy`` of as many bytes as it reads and writes. A weight's gradient is a
product and an addition to what is there. Needs neither torch nor a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Kernel = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """Dimensions of a layer; ``pairs`` are (token, expert) pairs per token."""

    hidden: int
    heads: int
    query_rank: int
    rank: int
    nope: int
    rope: int
    value: int
    expert: int
    n_experts: int
    pairs: int


#: DeepSeek-V3's attention and shared expert; of its routed experts four, with two pairs per token.
V3 = Width(
    hidden=7168, heads=128, query_rank=1536, rank=512, nope=128, rope=64, value=128, expert=2048, n_experts=4, pairs=2
)
SMALL = Width(hidden=64, heads=2, query_rank=32, rank=16, nope=16, rope=8, value=16, expert=32, n_experts=4, pairs=2)


def _streamed(elements: float) -> Kernel:
    """A kernel that reads and writes so many bf16 values in all."""
    return {"op": "copy", "bytes": elements}


def _product(m: float, n: float, k: float) -> Kernel:
    return {"op": "gemm", "format": "bf16", "m": m, "n": n, "k": k}


def products(w: Width) -> list[tuple[int, int]]:
    """(outputs, inputs) of every dense product."""
    return [
        (w.query_rank, w.hidden), (w.heads * (w.nope + w.rope), w.query_rank), (w.rank + w.rope, w.hidden),
        (w.heads * (w.nope + w.value), w.rank), (w.hidden, w.heads * w.value), (2 * w.expert, w.hidden),
        (w.hidden, w.expert),
    ]  # fmt: skip


def _attention(w: Width, n: float, direction: str) -> Kernel:
    return {
        "op": "mla", "phase": "prefill", "format": "bf16", "direction": direction, "variant": "cudnn", "batch": 1,
        "heads": w.heads, "kv_len": n, "qk_nope_head_dim": w.nope, "qk_rope_head_dim": w.rope, "v_head_dim": w.value,
        "kv_lora_rank": w.rank, "causal": 1,
    }  # fmt: skip


def _grouped(w: Width, n: float, outputs: int, inputs: int, variant: str = "") -> Kernel:
    return {
        "op": "grouped_gemm", "format": "bf16", "variant": variant, "groups": w.n_experts,
        "tokens_per_group": n * w.pairs / w.n_experts, "n": outputs, "k": inputs,
    }  # fmt: skip


def forward(w: Width, n: float) -> list[Kernel]:
    """The kernels of one layer's forward pass over ``n`` tokens."""
    pairs = n * w.pairs
    norms = [
        {"op": "rmsnorm", "format": "bf16", "n_tokens": n, "hidden": width}
        for width in (w.hidden, w.query_rank, w.rank, w.hidden)
    ]
    return [
        *norms, *(_product(n, outputs, inputs) for outputs, inputs in products(w)),
        # keys put together, values made dense
        _streamed(2 * n * w.heads * (w.nope + w.rope)), _streamed(2 * n * w.heads * w.value),
        _attention(w, n, "forward"),
        # silu, and its product with the other half; of the shared expert and of the routed ones
        *(_streamed(part * tokens * w.expert) for tokens in (n, pairs) for part in (2, 3)),
        _streamed(2 * pairs * w.hidden), _streamed(2 * pairs * w.hidden), _streamed((pairs + n) * w.hidden),
        _grouped(w, n, 2 * w.expert, w.hidden), _grouped(w, n, w.hidden, w.expert),
        *(_streamed(3 * n * w.hidden) for _ in range(3)),
    ]  # fmt: skip


def backward(w: Width, n: float) -> list[Kernel]:
    """The kernels of one layer's backward pass: gradients of inputs, and of weights, which are added up."""
    pairs, sites = n * w.pairs, products(w)
    routed = [(2 * w.expert, w.hidden), (w.hidden, w.expert)]
    n_weights = [o * i for o, i in sites] + [w.n_experts * o * i for o, i in routed]
    whole = n * w.heads * (w.nope + w.value)
    norms = [
        {"op": "rmsnorm_backward", "format": "bf16", "n_tokens": n, "hidden": width, "direction": "backward"}
        for width in (w.hidden, w.query_rank, w.rank, w.hidden)
    ]
    return [
        *norms, *(_product(n, i, o) for o, i in sites), *(_product(o, i, n) for o, i in sites),
        *(_grouped(w, n, i, o) for o, i in routed), *(_grouped(w, n, o, i, "wgrad") for o, i in routed),
        *(_streamed(3 * weights) for weights in n_weights), _attention(w, n, "backward"),
        # two parts of the expanded latents, each put into zeros, and their sum; the part of the keys that heads share
        _streamed(2 * whole), _streamed(2 * whole), _streamed(3 * whole),
        _streamed(n * w.heads * w.rope),
        # product of the halves (twice), silu, and the halves put together
        *(_streamed(part * tokens * w.expert) for tokens in (n, pairs) for part in (3, 3, 3, 4)),
        _streamed(2 * pairs * w.hidden), _streamed(2 * pairs * w.hidden), _streamed((pairs + n) * w.hidden),
        # where a value was used twice its gradients are added: both residual streams, both normalised inputs
        *(_streamed(3 * n * w.hidden) for _ in range(4)),
    ]  # fmt: skip
