"""Attention that is not fused: scores written out, masked, normalised and dropped by kernels of their own.

This is how training code ran before fused attention kernels: products batched over heads compute every pair of query
and key, also the masked ones; the softmax reads the visible ones only and writes zeros over the others.
"""

from __future__ import annotations

from dataclasses import replace

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.kernels.attention import visible_pairs
from sextant.simulator.types import Num, Op
from sextant.workloads.ops.memory import Place, moved

#: Bytes of an element of a dropout mask.
MASK_BYTES = 1.0


def unfused(
    place: Place, format: str, batch: Num, heads: Num, q_len: Num, kv_len: Num, dim: Num, dropout: Num,
    causal: float = 1.0,
) -> list[Op]:  # fmt: skip
    """Scores, masked softmax, dropout and the weighted sum of ``batch`` x ``heads`` heads, forward and (training)
    backward, where 0 < ``dropout`` runs a kernel. Under recompute ``attention`` the forward part runs again in the
    backward pass, so that nothing of (q_len, kv_len) is kept (arXiv:2205.05198 s5, selective recomputation)."""
    groups = batch * heads
    scores = groups * q_len * kv_len
    size, visible = BYTES[format] * scores, BYTES[format] * groups * visible_pairs(q_len, kv_len, causal)
    mask = MASK_BYTES * scores

    def product(name: str, m: Num, n: Num, k: Num, phase: str = "forward") -> Op:
        return operator(
            "batched_gemm", name, format, {"groups": groups, "m": m, "n": n, "k": k}, part=place.part,
            block=place.block, phase=phase, count=place.count, shards={"tensor": ("groups",)},
        )  # fmt: skip

    def softmax(name: str, n_read: Num, phase: str = "forward") -> Op:
        shape = {"read_bytes": n_read * visible, "write_bytes": size, "rows": groups * q_len, "width": kv_len}
        return operator(
            "memory", name, "bf16", shape, variant=name, part=place.part, block=place.block, phase=phase,
            count=place.count, shards={"tensor": ("read_bytes", "write_bytes", "rows")},
        )  # fmt: skip

    back = "backward_input"
    dropped = bool(dropout > 0)
    ops = [product("scores", q_len, kv_len, dim), softmax("softmax", 1.0)]
    if dropped:
        ops.append(moved("attention_dropout", place, size, size + mask, variant="dropout"))
    ops.append(product("weighted_sum", q_len, dim, kv_len))
    # Heads lie outermost in the batched products, tokens in the linear layers.
    output = BYTES[format] * groups * q_len * dim
    ops.append(moved("heads_to_tokens", place, output, output))
    if not place.training:
        return ops
    if "attention" in place.recompute and "full" not in place.recompute:
        ops += [replace(op, name=f"{op.name}_recompute", phase=back) for op in ops]
    ops += [product("value_dgrad", kv_len, dim, q_len, back), product("weights_dgrad", q_len, kv_len, dim, back)]
    if dropped:
        ops.append(moved("attention_dropout_backward", place, size + mask, size, back, variant="dropout_backward"))
    ops.append(softmax("softmax_backward", 2.0, back))
    return [*ops, product("query_dgrad", q_len, dim, kv_len, back), product("key_dgrad", kv_len, dim, q_len, back)]
