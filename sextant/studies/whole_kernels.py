"""Kernels of a profile and operators of a step under the same few names, so that their times can stand side by side.

A library names a kernel after its template, a compiler after the operations that it fused: one table of patterns says
what each computes. A kernel that fuses several operators counts for the first that matches, so single rows of the
comparison may exchange time; their sum does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sextant.simulator.types import Op

#: What a kernel computes, by its name in a profile: the first pattern found decides.
KERNELS: tuple[tuple[str, str], ...] = (
    ("host copy", r"memcpy.*(htod|dtoh|host)|memcpy (h2d|d2h)"),
    # Names of the kernels of this package, whole: some are words that libraries use otherwise.
    ("attention", r"^_join$|^_(grouped|latent)_(part|one)|^void cudnn::fusion::(compute_dot|convert_dq)"),
    ("streams (mHC)", r"^_?(mix_in|mix_out|mappings)"),
    ("Engram", r"^(_gather|_gather_in_turn|hashed|gate|norms|convolve(_step)?)$"),
    ("routing", r"^(place|select|_weighted_sum|_gather_rows)$"),
    ("loss", r"^(row_max|row_loss|softmax_gradient)$"),
    ("norm", r"^(add_norm|norm_backward|_rmsnorm|_layernorm)$"),
    ("optimizer", r"NormTwoOps"),
    ("attention", r"flash|fmha|sdpa|mha_|attention|splitkv|mla_|cudnn.*(fprop|bprop|dgrad).*attn"),
    ("expert products", r"group(ed)?_?(gemm|mm|problem)|moe_gemm|sm9x.*gemm.*group"),
    ("convolution", r"conv\d?d|implicit_convolve|convolve|fprop_implicit|cudnn.*conv"),
    ("streams (mHC)", r"mhc|sinkhorn|hyper_?conn"),
    ("Engram", r"engram"),
    ("optimizer", r"adam|multi_tensor_apply|foreach|optimizer|clip_grad"),
    ("loss", r"log_softmax|nll_loss|cross_entropy|logsumexp"),
    ("routing", r"topk|softmax|sort|scatter|gather_|index_(put|add|select)|cumsum|histogram|bincount|radix|scan"),
    ("embedding", r"embedding"),
    ("products", r"gemm|nvjet|cublas|cutlass|splitk|gemv|matmul|xmma|_mm_|addmm|bmm"),
    ("norm", r"rsqrt|rms_?norm|layer_?norm|native_layer_norm|var_mean|welford"),
    ("activation", r"silu|sigmoid|gelu|swiglu|erf|tanh"),
    ("rotary, cache, copies",
     r"cos|sin|rope|rotary|cat|copy|clone|memcpy|memset|fill|_to_copy|transpose|slice|cache|append"),
)  # fmt: skip

#: The same for the operators of a step, by kind and then by name.
_KINDS: Mapping[str, str] = {
    "attention": "attention", "mla": "attention", "conv2d": "convolution", "mhc_pre": "streams (mHC)",
    "mhc_post": "streams (mHC)", "sinkhorn": "streams (mHC)", "engram_gate": "Engram", "gather": "Engram",
    "collective": "messages", "expert_exchange": "messages", "gemm": "products",
}  # fmt: skip
_NAMES: tuple[tuple[str, str], ...] = (
    ("Engram", r"^engram"),
    ("streams (mHC)", r"^streams_"),
    ("optimizer", r"adamw|gradient_(norm|reset)|weight_cast"),
    ("loss", r"cross_entropy"),
    ("routing", r"router_topk|expert_index|permute"),
    ("embedding", r"^embedding"),
    ("norm", r"norm"),
    ("activation", r"swiglu|gelu"),
    ("rotary, cache, copies", r"."),
)
#: The same for kernel cases, by operator; norms and memory-bound ones by their names.
_CASES: Mapping[str, str] = {
    "gemm": "products", "grouped_gemm": "expert products", "moe": "expert products", "attention": "attention",
    "mla": "attention", "swiglu": "activation", "gelu": "activation", "adam": "optimizer", "routing": "routing",
    "permute": "routing", "unpermute": "routing", "h2d": "host copy", "d2h": "host copy", "gather": "Engram",
    "engram_gate": "Engram", "mhc_pre": "streams (mHC)", "mhc_post": "streams (mHC)", "sinkhorn": "streams (mHC)",
    "conv2d": "convolution",
}  # fmt: skip
OTHER = "other"
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in KERNELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel of a profiled step: its name, how often it ran and the microseconds of all its runs."""

    name: str
    count: float
    us: float


def of_kernel(name: str) -> str:
    """What a kernel of a profile computes; ``OTHER`` where no pattern knows it."""
    return next((found for found, pattern in _COMPILED if pattern.search(name)), OTHER)


def of_operator(op: Op) -> str:
    """What an operator of a step computes, in the same words."""
    if op.kind == "grouped_gemm":
        # One product per head is a batched product of the dense libraries.
        return "products" if op.variant == "exact" else "expert products"
    if op.kind in _KINDS:
        return _KINDS[op.kind]
    return next(found for found, pattern in _NAMES if re.search(pattern, op.name))


def of_case(op: str) -> str:
    """What a kernel case computes, by its operator."""
    return _CASES.get(op, "norm" if "norm" in op else "rotary, cache, copies")


def by_class(kernels: Iterable[Kernel]) -> dict[str, tuple[float, float]]:
    """(executions, microseconds) of a profiled step by what its kernels compute, the longest first."""
    sums: dict[str, tuple[float, float]] = {}
    for kernel in kernels:
        name = of_kernel(kernel.name)
        count, us = sums.get(name, (0.0, 0.0))
        sums[name] = (count + kernel.count, us + kernel.us)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))
