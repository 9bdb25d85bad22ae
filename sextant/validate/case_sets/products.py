"""Cases of matrix products: single, grouped by expert, and whole layers of experts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from sextant.validate.case_sets.systems import System
from sextant.validate.cases import Case

#: Token counts from one to 32K; every site takes some of them, another choice for each, so that all are covered.
TOKENS = (
    1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 12288, 16384,
    32768,
)  # fmt: skip
TRAINING_TOKENS = 4096
#: Outputs of a product stay below this many elements: no vocabulary for 32K tokens at once.
MAX_OUTPUTS = 2**30
GROUPED = (
    (2, 64), (4, 16), (4, 512), (8, 128), (8, 2048), (16, 256), (16, 4096), (32, 32), (32, 1024), (64, 8), (64, 128),
)  # fmt: skip
GROUPED_FP8 = ((4, 256), (8, 1024), (32, 64))
LAYER_TOKENS = (1, 16, 128, 1024, 4096, 16384)


def spread(name: str, n: int, grid: tuple[int, ...] = TOKENS) -> list[int]:
    """``n`` of the grid's values, evenly apart, from a start that the name decides; ascending."""
    start = zlib.crc32(name.encode()) % len(grid)
    return sorted({grid[(start + i * len(grid) // n) % len(grid)] for i in range(n)})


def gemm(system: System) -> Iterator[Case]:
    """Every site over eight token counts in bf16, four in FP8, two in scaled blocks; gradients of training."""
    for n, k in dict.fromkeys(system.sites.values()):
        yield from _site(n, k, trained=system.trained, fp8=system.fp8)
    for n, k in system.expert_sites:
        yield from _site(n, k, trained=system.trained, fp8=system.fp8)


def per_tensor(system: System) -> Iterator[Case]:
    """FP8 with one scale per operand, at every site over six token counts: what serving engines call without blocks."""
    for n, k in dict.fromkeys(system.sites.values()):
        for m in spread(f"per_tensor:{n}x{k}", 6) if n % 16 == 0 and k % 16 == 0 else ():
            if m * n <= MAX_OUTPUTS:
                case: Case = {"op": "gemm", "format": "fp8", "direction": "forward", "variant": "per_tensor"}
                yield case | {"m": m, "n": n, "k": k}


def _site(n: int, k: int, *, trained: bool, fp8: bool) -> Iterator[Case]:
    name = f"{n}x{k}"

    def forward(fmt: str, count: int) -> Iterator[Case]:
        for m in spread(f"{fmt}:{name}", count):
            if m * n <= MAX_OUTPUTS:
                yield {"op": "gemm", "format": fmt, "direction": "forward", "m": m, "n": n, "k": k}

    yield from forward("bf16", 8)
    if fp8 and n % 16 == 0 and k % 16 == 0:
        yield from forward("fp8", 4)
    if fp8 and n % 64 == 0 and k % 128 == 0:
        yield from forward("fp8_block", 2)
    if trained and n * k < 2**28 and min(n, k) >= 512:
        backward: Case = {"op": "gemm", "direction": "backward", "format": "bf16"}
        yield backward | {"variant": "wgrad", "m": n, "n": k, "k": TRAINING_TOKENS}
        yield backward | {"variant": "dgrad", "m": TRAINING_TOKENS, "n": k, "k": n}
        if k % 16 == 0 and n % 16 == 0:
            yield backward | {"format": "fp8", "variant": "wgrad", "m": n, "n": k, "k": TRAINING_TOKENS}


def grouped(system: System) -> Iterator[Case]:
    """Equal groups of both products of the experts: bf16, FP8 and the gradient of the weights."""
    for n, k in system.expert_sites:
        case: Case = {"op": "grouped_gemm", "direction": "forward", "n": n, "k": k}
        for groups, tokens in GROUPED:
            yield case | {"format": "bf16", "groups": groups, "tokens_per_group": tokens}
        for groups, tokens in GROUPED_FP8:
            yield case | {"format": "fp8", "groups": groups, "tokens_per_group": tokens}
        for groups, tokens in ((4, 1024), (16, 4096)) if system.trained else ():
            sizes: Case = {"groups": groups, "tokens_per_group": tokens}
            yield case | sizes | {"format": "bf16", "direction": "backward", "variant": "wgrad"}


def moe(system: System) -> Iterator[Case]:
    """The experts of one device, balanced and not, and of a whole layer with its router where one device holds it."""
    e = system.experts
    if e is None:
        return
    for parallel in e.expert_parallel:
        case: Case = {"op": "moe", "format": "bf16", "hidden": e.hidden, "expert_ffn": e.expert_ffn, "top_k": e.top_k}
        case |= {"n_experts": e.n_experts, "tensor_parallel": 1, "expert_parallel": parallel, "direction": "forward"}
        for n_tokens in LAYER_TOKENS:
            yield case | {"n_tokens": n_tokens * parallel, "routing": "balanced"}
        for n_tokens in (128, 4096):
            yield case | {"n_tokens": n_tokens * parallel, "routing": "power_law_1.2"}
        for n_tokens in (16, 1024, 8192) if parallel == 1 else ():
            yield case | {"n_tokens": n_tokens, "routing": "balanced", "variant": "layer"}
