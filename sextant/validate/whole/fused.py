"""The operators of a pass on a GPU: measured kernels of ``validate.kernels``, and Triton kernels of whole layers."""

# pyright: reportIndexIssue=false
# (a jitted function is launched by subscripting it with its grid)
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sextant.validate.kernels import (
    triton_decode,
    triton_gather,
    triton_moves,
    triton_rows,
    triton_streams,
    triton_vision,
)
from sextant.validate.kernels.streams import CLAMP
from sextant.validate.whole import triton_convolution, triton_layers
from sextant.validate.whole.kernels import EPS, HASH_FACTORS, Kernels

#: Heads of one program, columns of one program of SwiGLU, pairs of one step of ``place``, tokens of one of ``hash``.
HEADS, COLUMNS, PAIRS, TOKENS = 16, 1024, 4096, 32
#: Programs that fetch rows beside other kernels: enough reads in flight, and few that others wait behind.
FETCHING = 8


def _heads(n: int, most: int = HEADS) -> tuple[int, int]:
    """Heads per program, and programs."""
    per = min(most, triton.next_power_of_2(n))
    return per, triton.cdiv(n, per)


def _warps(block: int) -> int:
    return 8 if block > 2048 else 4


class FusedKernels(Kernels):
    """Triton and library kernels; cuDNN attention."""

    library = "triton"

    def __init__(self, *, n_sms: int) -> None:
        self.n_sms = n_sms

    # ---- rows -----------------------------------------------------------------------------------------------------
    def rows(self, table: Tensor, index: Tensor) -> Tensor:
        return triton_moves.gather_rows(table, index)[0]

    def _normed(self, x: Tensor, delta: Tensor | None, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        m, hidden = x.shape
        y = torch.empty((m, hidden), dtype=x.dtype, device=x.device)
        total = y if delta is None else torch.empty_like(y)
        d = x if delta is None else delta
        block = triton.next_power_of_2(hidden)
        triton_layers.add_norm[(m,)](
            x, d, w, w if b is None else b, total, y, x.stride(0), d.stride(0), EPS,
            HIDDEN=hidden, BLOCK=block, ADD=delta is not None, CENTRE=b is not None, num_warps=_warps(block),
        )  # fmt: skip
        return total, y

    def norm(self, x: Tensor, w: Tensor) -> Tensor:
        return triton_rows.rmsnorm(x, w)[0] if x.is_contiguous() else self._normed(x, None, w, None)[1]

    def add_norm(self, x: Tensor, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return self._normed(x, delta, w, None)

    def layernorm(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return triton_vision.layernorm(x, w, b, eps=EPS)[0]

    def add_layernorm(self, x: Tensor, delta: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self._normed(x, delta, w, b)

    def swiglu(self, x: Tensor) -> Tensor:
        width = x.shape[1] // 2
        if width % 128 == 0:
            return triton_rows.swiglu(x)[0]
        y = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
        triton_layers.swiglu[(x.shape[0], triton.cdiv(width, COLUMNS))](x, y, width, BLOCK=COLUMNS, num_warps=4)
        return y

    def gelu(self, x: Tensor) -> Tensor:
        return triton_vision.gelu(x)[0]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return triton_moves.add(a, b)[0]

    # ---- attention ------------------------------------------------------------------------------------------------
    def rope(self, qkv: Tensor, cos: Tensor, sin: Tensor, *, n_rotated: int) -> None:
        batch, seq, heads, dim = qkv.shape
        per, blocks = _heads(n_rotated)
        triton_layers.rope[(batch * seq, blocks)](
            qkv, cos, sin, heads * dim, seq, n_rotated, HEADS=per, HALF=dim // 2, num_warps=4
        )

    def rope_append(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, *, position: int
    ) -> Tensor:
        batch, all_heads, dim = qkv.shape
        kv_heads = keys.shape[2]
        q = torch.empty((batch, all_heads - 2 * kv_heads, dim), dtype=qkv.dtype, device=qkv.device)
        per, blocks = _heads(all_heads)
        triton_layers.rope_append[(batch, blocks)](
            qkv, cos, sin, q, keys[:, position], values[:, position], q.shape[1], kv_heads,
            keys.stride(0), values.stride(0), HEADS=per, HALF=dim // 2, num_warps=4,
        )  # fmt: skip
        return q

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    def decode(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        k, v = keys.transpose(1, 2), values.transpose(1, 2)
        return triton_decode.grouped(q.unsqueeze(2), k, v, n_sms=self.n_sms)[0].squeeze(2)

    def query_rope(self, q: Tensor, cos: Tensor, sin: Tensor, *, nope: int) -> Tensor:
        batch, seq, heads, dim = q.shape
        out = torch.empty_like(q)
        per, blocks = _heads(heads)
        triton_layers.rope_tail[(batch * seq, blocks)](
            q, cos, sin, out, heads, seq, heads * dim, dim, nope, heads * dim, dim, nope,
            HEADS=per, HALF=(dim - nope) // 2, COPY=nope, num_warps=4,
        )  # fmt: skip
        return out

    def key_concat(self, kv: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, *, nope: int) -> Tensor:
        batch, seq, heads, wide = kv.shape
        rope = shared.shape[-1]
        out = torch.empty((batch, seq, heads, nope + rope), dtype=kv.dtype, device=kv.device)
        per, blocks = _heads(heads)
        triton_layers.key_concat[(batch * seq, blocks)](
            kv, shared, cos, sin, out, heads, seq, wide, shared.stride(1),
            HEADS=per, NOPE=nope, HALF=rope // 2, num_warps=4,
        )  # fmt: skip
        return out

    def value_copy(self, kv: Tensor, *, nope: int) -> Tensor:
        width = kv.shape[-1] - nope
        out = torch.empty((*kv.shape[:3], width), dtype=kv.dtype, device=kv.device)
        n_rows = out.numel() // width
        triton_layers.copy_heads[(triton.cdiv(n_rows, HEADS),)](
            kv[..., nope:], out, n_rows, kv.stride(2), ROWS=HEADS, WIDTH=width, num_warps=4
        )
        return out

    def latent_rope(self, q: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, nope: int, rank: int) -> None:
        batch, heads, dim = q.shape
        per, blocks = _heads(heads)
        triton_layers.rope_tail[(batch, blocks)](
            q, cos, sin, out, heads, 1, heads * dim, dim, nope, out.stride(0), out.stride(1), rank,
            HEADS=per, HALF=(dim - nope) // 2, COPY=0, num_warps=4,
        )  # fmt: skip

    def latent_append(
        self, latent: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, *, position: int
    ) -> None:
        batch, rank = latent.shape
        triton_layers.latent_append[(batch,)](
            latent, shared, cos, sin, cache[:, position], shared.stride(0), cache.stride(0),
            RANK=rank, HALF=shared.shape[1] // 2, num_warps=4,
        )  # fmt: skip

    def latent(self, q: Tensor, cache: Tensor, *, rank: int, scale: float) -> Tensor:
        return triton_decode.latent(q, cache, rank=rank, scale=scale, n_sms=self.n_sms)[0]

    # ---- experts --------------------------------------------------------------------------------------------------
    def select(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        m, n_experts = logits.shape
        weights = torch.empty((m, top_k), dtype=torch.float32, device=logits.device)
        experts = torch.empty((m, top_k), dtype=torch.int32, device=logits.device)
        triton_layers.select[(m,)](
            logits, weights, experts, n_experts, TOP_K=top_k, SLOTS=triton.next_power_of_2(top_k),
            BLOCK=triton.next_power_of_2(n_experts), num_warps=1,
        )  # fmt: skip
        return weights, experts

    def place(self, experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
        m, top_k = experts.shape
        ends = torch.empty(n_experts, dtype=torch.int32, device=experts.device)
        tokens, place = torch.empty(m * top_k, dtype=torch.int32, device=experts.device), torch.empty_like(experts)
        block = min(PAIRS, max(128, triton.next_power_of_2(m * top_k)))
        triton_layers.place[(n_experts,)](
            experts, ends, tokens, place, m * top_k, TOP_K=top_k, BLOCK=block, num_warps=max(1, min(16, block // 256))
        )
        return ends, tokens, place

    def grouped(self, x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
        return torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)  # pyright: ignore[reportPrivateImportUsage]

    def weighted_sum(self, x: Tensor, place: Tensor, weight: Tensor) -> Tensor:
        return triton_moves.weighted_sum(x, place, weight)[0]

    # ---- streams and memory ---------------------------------------------------------------------------------------
    def mix_in(self, x: Tensor, w: Tensor, scale: Tensor, base: Tensor, *, iterations: int) -> tuple[Tensor, ...]:
        return triton_streams.mhc_pre(x, w, scale, base, n_iterations=iterations, eps=EPS, n_sms=self.n_sms)

    def mix_out(self, f: Tensor, x: Tensor, post: Tensor, res: Tensor) -> Tensor:
        return triton_streams.mhc_post(f, x, post, res)[0]

    def hash(self, ids: Tensor, primes: Tensor, starts: Tensor, orders: Tensor) -> Tensor:
        earlier, tables = len(HASH_FACTORS) - 1, len(primes)
        batch, seq = ids.shape[0], ids.shape[1] - earlier
        rows = torch.empty((batch * seq, tables), dtype=torch.int64, device=ids.device)
        triton_layers.hashed[(triton.cdiv(batch * seq, TOKENS),)](
            ids, primes, starts, orders, rows, batch * seq, seq, earlier,
            FACTOR_0=HASH_FACTORS[0], FACTOR_1=HASH_FACTORS[1], FACTOR_2=HASH_FACTORS[2],
            TABLES=tables, TOKENS=TOKENS, num_warps=4,
        )  # fmt: skip
        return rows

    def fetch(self, table: Tensor, index: Tensor, out: Tensor, *, beside: bool, in_turn: int = 0) -> None:
        most = FETCHING if beside else 0
        triton_gather.gather(table, index, out, n_sms=self.n_sms, most=most, in_turn=in_turn)

    def gate(self, x: Tensor, keys: Tensor, value: Tensor, w: Tensor) -> Tensor:
        m, n, hidden = x.shape
        y = torch.empty_like(x)
        block = triton.next_power_of_2(hidden)
        triton_layers.gate[(m, n)](
            x, keys, value, w, y, hidden, keys.stride(0), value.stride(0), EPS, CLAMP,
            N=n, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        return y

    def convolve(
        self, x: Tensor, y: Tensor, w: Tensor, taps: Tensor, earlier: Tensor | None, *, seq: int, dilation: int
    ) -> Tensor:
        return triton_convolution.convolved(x, y, w, taps, earlier, seq=seq, dilation=dilation, eps=EPS)
