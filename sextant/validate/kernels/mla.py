"""Multi-head latent attention: the expanded core of a prefill, and the absorbed core of a decode step.

``prefill``  keys and values expanded: heads of qk_nope_head_dim + qk_rope_head_dim, values of v_head_dim, causal; cuDNN
             through torch (the flash back end of torch refuses unequal dimensions). Forward and backward.
``decode``   one query token against latent rows of kv_lora_rank + qk_rope_head_dim, the key's projection absorbed in
             the query. ``variant`` splitkv: this package's Triton kernels (a part per program, then a join). Variant
             bmm: batched products of cuBLAS with a softmax in between, as a plain implementation has it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sextant.validate.kernels import CPU_LIBRARY, Case, Prepared, Target, rotated, sizes
from sextant.validate.kernels.attention import build_attention

#: Sequences of a batch compared with the reference.
N_CHECKED = 2


def _scores(q: Tensor, cache: Tensor, scale: float) -> Tensor:
    return torch.bmm(q, cache.transpose(1, 2)).mul_(scale)


def composed(q: Tensor, cache: Tensor, *, rank: int, scale: float) -> tuple[Tensor]:
    """Products and softmax one by one, in the dtype of q: scores, probabilities, output [batch, heads, rank]."""
    return (torch.bmm(torch.softmax(_scores(q, cache, scale), dim=-1), cache[..., :rank]),)


def _decode(case: Case, target: Target) -> Prepared:
    batch, heads, q_len, kv_len, rank, nope, rope = sizes(
        case, "batch", "heads", "q_len", "kv_len", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"
    )
    variant = str(case.get("variant"))
    if q_len != 1 or variant not in ("splitkv", "bmm"):
        raise ValueError(f"mla: decode takes q_len 1 and variant splitkv or bmm, got {q_len} and {variant!r}")
    scale = (nope + rope) ** -0.5
    plain = partial(composed, rank=rank, scale=scale)

    def inputs() -> tuple[Tensor, ...]:
        return tuple(
            torch.randn((batch, length, rank + rope), dtype=torch.bfloat16, device=target.device)
            for length in (heads, kv_len)
        )

    fused = plain
    if target.fused and variant == "splitkv":
        from sextant.validate.kernels import triton_decode

        fused = partial(triton_decode.latent, rank=rank, scale=scale, n_sms=target.n_sms)
    library = {"splitkv": "triton_splitkv", "bmm": target.library("cublas_bmm")}[variant]
    prepared = rotated(
        target,
        inputs=inputs,
        fused=fused,
        eager=plain,
        reference=lambda q, cache: plain(q[:N_CHECKED].float(), cache[:N_CHECKED].float()),
        checked=lambda out: (out[0][:N_CHECKED],),
        read_bytes=2.0 * batch * (rank + rope) * (kv_len + heads),
        write_bytes=2.0 * batch * heads * rank,
        library=library if target.fused else CPU_LIBRARY,
        tolerance=3e-2 if variant == "bmm" else 1e-2,  # bf16 scores between the products
    )
    return prepared


def build_mla(case: Case, target: Target) -> Prepared:
    """One call for a batch of equally long sequences; raises ``ValueError`` for a phase it does not know."""
    phase = case.get("phase")
    if phase == "decode":
        return _decode(case, target)
    if phase != "prefill":
        raise ValueError(f"phase: mla is measured in prefill and decode, got {phase!r}")
    heads, nope, rope = sizes(case, "heads", "qk_nope_head_dim", "qk_rope_head_dim")
    return build_attention(dict(case) | {"kv_heads": heads, "head_dim": nope + rope, "causal": 1}, target)


BUILDERS = {"mla": build_mla}
