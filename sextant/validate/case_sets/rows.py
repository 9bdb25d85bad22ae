"""Cases of operators over rows of tokens: norms, activations, casts, permutations, residual streams, Engram's gate."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.validate.case_sets.products import spread
from sextant.validate.case_sets.systems import System
from sextant.validate.cases import Case

TRAINING_TOKENS = (1024, 4096, 16384)
STREAM_TOKENS = (1, 8, 64, 256, 1024, 4096, 8192, 16384)
#: Elements of one tensor stay below this, as the kernels' offsets of some operators are 32-bit.
MAX_ELEMENTS = 2**30
ITERATIONS = 20


def _rows(op: str, column: str, width: int, n: int, fmt: str = "bf16", direction: str = "forward") -> Iterator[Case]:
    for n_tokens in spread(f"{op}:{fmt}:{width}", n):
        if n_tokens * width <= MAX_ELEMENTS:
            yield {"op": op, "format": fmt, "direction": direction, "n_tokens": n_tokens, column: width}


def norms(system: System) -> Iterator[Case]:
    """Norms, residual adds and casts at the widths of the system, backward passes and transposing casts of training."""
    for width in system.norm_widths:
        yield from _rows("rmsnorm", "hidden", width, 7)
        if system.trained:
            yield from _rows("rmsnorm_backward", "hidden", width, 3, direction="backward")
    for width in system.layernorm_widths:
        yield from _rows("layernorm", "hidden", width, 7)
    yield from _rows("add", "hidden", system.hidden, 5)
    for width in system.norm_widths if system.fp8 else ():
        yield from _rows("cast", "hidden", width, 4, fmt="fp8")
        if system.trained and width % 128 == 0:
            for n_tokens in TRAINING_TOKENS:
                case: Case = {"format": "fp8", "n_tokens": n_tokens, "hidden": width}
                yield {"op": "cast_transpose", "direction": "forward"} | case
                yield {"op": "requant_transpose", "direction": "backward"} | case


def activations(system: System) -> Iterator[Case]:
    """Gated and plain activations, rotary embedding."""
    for width in system.gated_widths:
        yield from _rows("swiglu", "expert_ffn", width, 6)
        if system.fp8:
            yield from _rows("swiglu", "expert_ffn", width, 3, fmt="fp8")
        if system.trained:
            yield from _rows("swiglu_backward", "expert_ffn", width, 2, direction="backward")
    for width in system.gelu_widths:
        yield from _rows("gelu", "hidden", width, 6)
    rotated = [(heads, 128) for heads, _ in system.heads] + [(heads, 64) for heads in system.latent_heads]
    for heads, head_dim in rotated:
        if heads & (heads - 1) == 0:
            for case in _rows("rope", "heads", heads, 4):
                yield case | {"head_dim": head_dim}


def permutations(system: System) -> Iterator[Case]:
    """Rows to their experts and back, and the bookkeeping of routing."""
    e = system.experts
    if e is None:
        return
    for op, fmt in (("permute", "bf16"), ("permute", "fp8"), ("unpermute", "bf16")):
        for case in _rows(op, "hidden", e.hidden, 4, fmt=fmt):
            if int(case["n_tokens"]) * e.hidden * e.top_k <= MAX_ELEMENTS * 2:
                yield case | {"top_k": e.top_k}
    if e.n_experts % 8 == 0:
        for n_tokens in (16, 256, 4096):
            for variant in ("topk", "index"):
                case = {"op": "routing", "format": "fp32", "variant": variant, "groups": e.n_experts}
                yield case | {"n_tokens": n_tokens, "top_k": e.top_k}


def streams(system: System) -> Iterator[Case]:
    """mHC's kernels and Engram's gate over all token counts at the system's width."""
    for n in system.streams:
        for n_tokens in STREAM_TOKENS:
            shape: Case = {"direction": "forward", "n_tokens": n_tokens, "hidden": system.hidden, "n_streams": n}
            shape["format"] = "bf16"
            yield {"op": "mhc_pre"} | shape | {"sinkhorn_iters": ITERATIONS}
            yield {"op": "mhc_post"} | shape
            yield {"op": "engram_gate"} | shape
    if system.streams and system.hidden == 2560:
        yield from _other_streams()


def _other_streams() -> Iterator[Case]:
    """Two and eight streams, other numbers of iterations, widths between the published ones, the projection alone."""
    for n_tokens in (16, 512, 2048, 8192):
        for hidden, n in ((2560, 2), (2560, 8), (1280, 8), (4096, 2), (4096, 4), (5120, 4), (2048, 4), (7168, 8)):
            shape: Case = {"direction": "forward", "format": "bf16"}
            shape |= {"n_tokens": n_tokens, "hidden": hidden, "n_streams": n}
            yield {"op": "mhc_pre"} | shape | {"sinkhorn_iters": ITERATIONS}
            yield {"op": "mhc_post"} | shape
            yield {"op": "engram_gate"} | shape
        for iterations in (1, 5, 40):
            shape = {"direction": "forward", "format": "bf16", "n_tokens": n_tokens, "hidden": 2560, "n_streams": 4}
            yield {"op": "mhc_pre"} | shape | {"sinkhorn_iters": iterations}
    for n in (2, 4, 8):
        for n_tokens in (16, 256, 1024, 4096, 16384, 32768):
            for iterations in (20,) if n_tokens != 4096 else (5, 20, 40):
                case: Case = {"op": "sinkhorn", "format": "fp32", "direction": "forward"}
                yield case | {"n_tokens": n_tokens, "n_streams": n, "sinkhorn_iters": iterations}


def tile_kernels(system: System) -> Iterator[Case]:
    """DeepSeek's own kernels, where the package is installed: the published widths and four streams."""
    for n_tokens in STREAM_TOKENS if 4 in system.streams else ():
        shape: Case = {"direction": "forward", "format": "bf16", "variant": "tile_kernels"}
        shape |= {"n_tokens": n_tokens, "hidden": system.hidden, "n_streams": 4}
        yield {"op": "mhc_pre"} | shape | {"sinkhorn_iters": ITERATIONS}
        yield {"op": "mhc_post"} | shape
        yield {"op": "engram_gate"} | shape
