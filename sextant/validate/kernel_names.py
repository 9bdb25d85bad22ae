"""What a GPU kernel does, by its name in a profile.

Libraries name a kernel after its template, in full and mangled or not. The first pattern of ``PATTERNS`` that is found
in a name decides; what none of them knows is ``other``, and is listed by name and time wherever it appears.
"""

from __future__ import annotations

import re

OTHER = "other"

#: Classes that move data between devices, and those of them that carry it rather than agree on sizes.
TRANSFERS = ("dispatch", "combine", "collective")
MESSAGES = (*TRANSFERS, "notify", "layout")

#: Class and pattern, case ignored, in the order in which they are tried.
PATTERNS: tuple[tuple[str, str], ...] = (
    ("memcpy", r"^memcpy"),
    ("memset", r"^memset"),
    # DeepEP and kernels after its pattern: agreement on sizes first, since their names hold the others'.
    ("notify", r"\b(cached_)?notify(_dispatch|_combine)?\b|ep::.*barrier|clean_low_latency"),
    ("layout", r"get_dispatch_layout"),
    ("dispatch", r"(internode|intranode|internode_ll|ep)::dispatch\b"),
    ("combine", r"(internode|intranode|internode_ll|ep)::combine\b"),
    ("collective", r"nccl|rccl|all_?reduce_kernel|all_?gather_kernel|reduce_?scatter_kernel|nvshmem"),
    ("attention backward, before and after",
     r"bwd_?(preprocess|postprocess|convert)|flash_bwd_(dot_do_o|convert_dq)|compute_dot_do_o|convert_dq"),
    ("attention backward", r"(flash|fmha|attn|attention|sdpa|mha).*(bwd|backward|bprop)|mla.*bwd"),
    ("attention", r"flash_?(fwd|attn|mla|infer)|flash::|fmha|sdpa|mha_|compute_attn|mla_fwd|paged_attention|splitkv"),
    ("SwiGLU backward", r"(swiglu|silu|geglu)\w*(backward|bwd|grad)"),
    ("SwiGLU", r"swiglu|silu|geglu|act_and_mul"),
    ("preparation of products", r"fill_tensormaps|prepare_tma|group_?gemm.*prologue"),
    ("weight gradient product", r"wgrad\w*gemm|gemm\w*wgrad|fp8_dptp128c_acc"),
    ("cast and transpose", r"cast_(and_)?transpose|transpose_cast"),
    # A namespace grouped_gemm holds dense products too; DeepGEMM numbers its kinds, 1 and 2 are grouped.
    ("grouped product",
     r"[mk]_grouped|grouped(contiguous|masked)|gemmtype\)[12]|groupproblemshape|moe_gemm|fused_moe|group(ed)?_?gemm(?!::)"),
    ("transpose", r"transpose"),
    ("product", r"gemm|nvjet|cublas|cutlass|splitk|gemv|matmul|xmma|bmm"),
    ("cast", r"cast_to|cast_back|per_(token|channel|tensor)\w*(cast|quant)|quant"),
    ("norm backward", r"(layer_?norm|rms_?norm|ln_?)\w*(bwd|backward)|ln_bwd|(bwd|backward)\w*(layer_?norm|rms_?norm)"),
    ("norm", r"layer_?norm|rms_?norm|ln_fwd|welford"),
    ("RoPE", r"rotary|rope\b|rope_|_rope"),
    ("permutation",
     r"expand_to_fused|reduce_fused|permute|moe_(align|sum)|fused_mapping|count_expert|ep_(gather|scatter)"),
    ("routing", r"topk|top_k|group_indices|aux_fi|moe_gate|radix|bitonic|sort|histogram|bincount"),
    ("optimizer", r"adam|multi_tensor|foreach|clip_grad"),
    ("embedding", r"embedding"),
    ("loss", r"softmax|cross_entropy|nll_loss|logsumexp"),
    ("copy", r"copy|cat_?array|concat|clone"),
    ("elementwise",
     r"elementwise|reduce_kernel|fill|scatter|gather|index|_functor|functor|arange|scan|cumsum|triton_(poi|red|per)"),
)  # fmt: skip

_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in PATTERNS)


def classify(name: str) -> str:
    """The class of a kernel's name; ``OTHER`` where no pattern is found."""
    return next((found for found, pattern in _COMPILED if pattern.search(name)), OTHER)
