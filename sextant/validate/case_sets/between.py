"""Shapes of no published system, spread evenly (on a logarithmic scale) over the range of all of them.

The dimensions of real systems are few and alike; a fit that shall answer for an invented one needs what lies between.
"""

from __future__ import annotations

from collections.abc import Iterator

from sextant.validate.cases import Case

#: Roots of the additive recurrence that spreads points evenly in up to five dimensions (Roberts 2018): 1 / phi_d ** i,
#: phi_d the root of x^(d+1) = x + 1.
_PHI = {1: 1.618034, 2: 1.324718, 3: 1.220744, 4: 1.167304, 5: 1.134724}
#: Outputs of a product, and elements of an operand, at most.
_MAX_ELEMENTS = 2**29
_TOKENS = (1, 32768)
_RANKS: Case = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def _points(n: int, *ranges: tuple[float, float, int]) -> Iterator[list[int]]:
    """``n`` points; a dimension is (low, high, multiple of)."""
    phi = _PHI[len(ranges)]
    for i in range(1, n + 1):
        point = []
        for d, (low, high, step) in enumerate(ranges):
            share = (0.5 + i / phi ** (d + 1)) % 1.0
            value = low * (high / low) ** share
            point.append(max(step, round(value / step) * step))
        yield point


def products() -> Iterator[Case]:
    """Dense products in three formats, and grouped ones in two."""
    site = ((512, 32768, 128), (512, 16384, 128))
    for fmt, n in (("fp8", 520), ("bf16", 360), ("fp8_block", 260)):
        for m, width, k in _points(n, (*_TOKENS, 1), *site):
            if m * width <= _MAX_ELEMENTS:
                yield {"op": "gemm", "format": fmt, "direction": "forward", "m": m, "n": width, "k": k}
    for fmt, n in (("bf16", 220), ("fp8", 120)):
        ranges = ((2, 64, 1), (4, 4096, 1), (512, 8192, 128), (512, 8192, 128))
        for groups, tokens, width, k in _points(n, *ranges):
            if groups * max(tokens, k) * width <= _MAX_ELEMENTS * 2 and groups * tokens <= 65536:
                case: Case = {"op": "grouped_gemm", "format": fmt, "direction": "forward", "n": width, "k": k}
                yield case | {"groups": groups, "tokens_per_group": tokens if fmt == "bf16" else -(-tokens // 16) * 16}


def attention() -> Iterator[Case]:
    """Prefill, encoders and decode steps of ordinary and latent heads."""
    for batch, length, kv_heads, group in _points(70, (1, 16, 1), (128, 16384, 64), (2, 32, 1), (1, 8, 1)):
        heads = kv_heads * group
        if float(batch * heads) * length**2 <= 1.5e10:
            shape: Case = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": length, "kv_len": length}
            case: Case = {"op": "attention", "format": "bf16"} | shape
            causal = case | {"phase": "prefill", "head_dim": 128, "v_head_dim": 128, "causal": 1}
            for variant in ("flash", "cudnn"):
                yield causal | {"direction": "forward", "variant": variant}
                yield causal | {"direction": "backward", "variant": variant}
    for batch, length, heads, head_dim in _points(40, (1, 64, 1), (64, 2048, 16), (8, 24, 1), (64, 128, 64)):
        shape = {"batch": batch, "heads": heads, "kv_heads": heads, "q_len": length, "kv_len": length}
        case = {"op": "attention", "format": "bf16", "phase": "encoder", "direction": "forward"} | shape
        for variant in ("flash", "cudnn"):
            yield case | {"head_dim": head_dim, "v_head_dim": head_dim, "causal": 0, "variant": variant}
    for batch, length, kv_heads, group in _points(120, (1, 256, 1), (128, 32768, 16), (1, 32, 1), (1, 16, 1)):
        if batch * length * kv_heads * 512 <= 8e9:
            shape = {"batch": batch, "heads": kv_heads * group, "kv_heads": kv_heads, "q_len": 1, "kv_len": length}
            case = {"op": "attention", "format": "bf16", "phase": "decode", "direction": "forward"} | shape
            yield case | {"head_dim": 128, "v_head_dim": 128, "causal": 1, "variant": "splitkv"}
    for batch, length, heads in _points(50, (1, 16, 1), (128, 16384, 64), (8, 128, 1)):
        if float(batch * heads) * length**2 <= 1.5e10:
            case = {"op": "mla", "format": "bf16", "phase": "prefill", "variant": "cudnn", "batch": batch} | _RANKS
            case |= {"heads": heads, "q_len": length, "kv_len": length}
            yield case | {"direction": "forward"}
            yield case | {"direction": "backward"}
    for batch, length, heads in _points(90, (1, 256, 1), (128, 32768, 16), (8, 128, 8)):
        if batch * length * 1152 <= 8e9:
            case = {"op": "mla", "format": "bf16", "phase": "decode", "direction": "forward", "variant": "splitkv"}
            yield case | _RANKS | {"batch": batch, "heads": heads, "q_len": 1, "kv_len": length}


def rows() -> Iterator[Case]:
    """Memory-bound operators over widths that are multiples of 128."""
    widths = (512, 16384, 128)
    plain = (
        ("rmsnorm", "bf16", "forward", "hidden"), ("add", "bf16", "forward", "hidden"),
        ("layernorm", "bf16", "forward", "hidden"), ("gelu", "bf16", "forward", "hidden"),
        ("cast", "fp8", "forward", "hidden"), ("swiglu", "bf16", "forward", "expert_ffn"),
        ("swiglu", "fp8", "forward", "expert_ffn"), ("rmsnorm_backward", "bf16", "backward", "hidden"),
        ("swiglu_backward", "bf16", "backward", "expert_ffn"),
    )  # fmt: skip
    for op, fmt, direction, column in plain:
        for n_tokens, width in _points(28, (*_TOKENS, 1), widths):
            if n_tokens * width <= _MAX_ELEMENTS:
                yield {"op": op, "format": fmt, "direction": direction, "n_tokens": n_tokens, column: width}
    for n_tokens, width in _points(18, (256, 16384, 128), widths):
        if n_tokens * width <= _MAX_ELEMENTS:
            case: Case = {"format": "fp8", "n_tokens": n_tokens, "hidden": width}
            yield {"op": "cast_transpose", "direction": "forward"} | case
            yield {"op": "requant_transpose", "direction": "backward"} | case
    for n_tokens, width, top_k in _points(24, (1, 16384, 1), (1024, 8192, 128), (2, 8, 1)):
        for op, fmt in (("permute", "bf16"), ("permute", "fp8"), ("unpermute", "bf16")):
            if n_tokens * width * top_k <= _MAX_ELEMENTS:
                case = {"op": op, "format": fmt, "direction": "forward", "n_tokens": n_tokens, "hidden": width}
                yield case | {"top_k": top_k}
    for n_tokens, power in _points(24, (*_TOKENS, 1), (3, 7, 1)):
        if n_tokens * 2**power * 128 <= _MAX_ELEMENTS:
            case = {"op": "rope", "format": "bf16", "direction": "forward", "n_tokens": n_tokens, "heads": 2**power}
            yield case | {"head_dim": 128 if n_tokens % 2 else 64}
    for exponent in range(25, 65):
        for variant in ("memcpy", "kernel"):
            yield {"op": "copy", "variant": variant, "bytes": round(2 ** (exponent / 2)) // 256 * 256}
    for exponent in range(24, 58):
        for op in ("h2d", "d2h"):
            yield {"op": op, "bytes": round(2 ** (exponent / 2)) // 256 * 256}


def streams() -> Iterator[Case]:
    """Residual streams and Engram's gate."""
    for n_tokens, width, n in _points(64, (1, 16384, 1), (1024, 8192, 128), (2, 8, 2)):
        shape: Case = {"direction": "forward", "n_tokens": n_tokens, "hidden": width, "n_streams": n, "format": "bf16"}
        if n_tokens * width * n <= _MAX_ELEMENTS:
            yield {"op": "mhc_pre"} | shape | {"sinkhorn_iters": 20}
            yield {"op": "mhc_post"} | shape
            yield {"op": "engram_gate"} | shape
    for n_tokens, n, iterations in _points(30, (1, 65536, 1), (2, 8, 2), (1, 40, 1)):
        case: Case = {"op": "sinkhorn", "format": "fp32", "direction": "forward", "n_tokens": n_tokens}
        yield case | {"n_streams": n, "sinkhorn_iters": iterations}


def tables() -> Iterator[Case]:
    """Rows of tables in device and host memory."""
    for lookups, dim, table in _points(90, (16, 1048576, 1), (32, 1280, 8), (2**26, 2**34, 2**20)):
        row: Case = {"op": "gather", "format": "bf16", "dim": dim, "rows": table // (2 * dim), "lookups": lookups}
        if 2 * dim * lookups <= 3e9:
            yield row | {"tier": "hbm"}
        if 2 * dim * lookups <= 4e8 and table <= 2**33:
            yield row | {"tier": "host"}
    for c_in, c_out, pixels, batch in _points(60, (32, 1024, 32), (32, 1024, 32), (12, 384, 12), (1, 16, 1)):
        if batch * pixels**2 * max(c_in, c_out) <= _MAX_ELEMENTS:
            case: Case = {"op": "conv2d", "format": "bf16", "direction": "forward", "batch": batch, "groups": 1}
            case |= {"in_channels": c_in, "out_channels": c_out, "height": pixels, "width": pixels}
            yield case | {"kernel_size": 3 if (c_in + c_out) % 64 else 1, "stride": 1}


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (products, attention, rows, streams, tables):
        yield from part()
