"""From the columns of kernel cases to the operators of the simulator: the one place where that is said.

Columns are arrays of shape (n_rows,) with defaults filled in (``vocabulary.filled``). Fits and predictions share these
functions, so that coefficients are judged on the operators they were fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.kernels import BYTES, operator
from sextant.simulator.kernels.attention import visible_pairs
from sextant.simulator.types import Num, Op

Columns = Mapping[str, Num]
Array = NDArray[np.float64]

#: Libraries whose FP8 products take FP8 operands. A case that names none is a library call as serving engines make it:
#: it takes BF16 activations and converts them first.
BARE = ("cublas", "cublaslt", "cutlass", "deepgemm", "deep_gemm")

#: How the modes of an exchange by DeepEP's first version end.
FIRST = "_2025_02"

#: GPUs of one node in every cluster of the catalogue.
PER_NODE = 8.0

#: Nodes that a token of DeepSeek-V3 may spread over, and what DeepEP's own tests allow.
MAX_NODES = 4.0

#: Bytes that AdamW reads and writes per parameter: FP32 weight and gradient, two BF16 moments in; FP32 weight, both
#: moments and the BF16 weight out.
ADAM_READ_BYTES, ADAM_WRITE_BYTES = 12.0, 10.0

#: Columns of attention with materialised heads.
ATTENTION = ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_head_dim", "causal")

#: Elements read and written per element of the width, of operators whose tensors all have the case's format.
STREAMED: Mapping[str, tuple[float, float]] = {
    "rmsnorm": (1, 1), "layernorm": (1, 1), "gelu": (1, 1), "add": (2, 1), "swiglu": (2, 1),
    "rmsnorm_backward": (2, 1), "swiglu_backward": (3, 2), "column_sum": (1, 0),
}  # fmt: skip

#: Bytes read and written per FP32 element by the steps of an optimizer of a loss-scaled recipe.
OPTIMIZER: Mapping[str, tuple[float, float]] = {"scale": (4, 4), "square_sum": (4, 0), "adam_fp32": (16, 12)}

#: Bytes of an element of a dropout mask.
_MASK_BYTES = 1.0

#: Operators that work on whole rows of tokens, one block of threads each; values of a row that one block sums.
BY_ROW, PIECE = ("rmsnorm", "layernorm", "rmsnorm_backward"), 1024.0

#: The kind of access that the ``memory`` kernel tells apart, where it is not called as the operator.
_ACCESS: Mapping[str, str] = {
    "copy": "", "requant_transpose": "transpose", "rmsnorm_backward": "norm_backward", "routing:topk": "topk",
    "routing:index": "index", "copy:memcpy": "memcpy", "swiglu:fp8": "swiglu_fp8", "swiglu:fp8_block": "swiglu_fp8",
}  # fmt: skip


def access(op: str, format: str, variant: str = "") -> str:
    """The kind of access (variant of ``simulator.kernels.memory``) of a memory-bound operator."""
    for name in (f"{op}:{variant}", f"{op}:{format}", op):
        if name in _ACCESS:
            return _ACCESS[name]
    return op


def gemm(c: Columns, format: str, variant: str = "", library: str = "") -> Op:
    """A dense product. Variants: ``from_bf16`` converts x to FP8 first, ``quantised`` does not; with neither, FP8 does
    unless ``library`` is one of ``BARE``. ``wgrad`` in scaled blocks writes FP32, otherwise (and ``wgrad_bf16``) BF16.
    ``dgrad`` and ``accumulate`` (FP8 with exact accumulation) are plain products of FP8 or BF16 operands."""
    shape = {name: c[name] for name in ("m", "n", "k")}
    if variant.startswith("wgrad"):
        names = {"wgrad": "wgrad_fresh", "wgrad_bf16": "wgrad_bf16"}
        return operator("gemm", "gemm", format, shape, variant=names[variant] if format == "fp8_block" else "")
    converts = variant == "from_bf16" or (not variant and library not in BARE)
    return operator("gemm", "gemm", format, shape, variant="from_bf16" if converts and format.startswith("fp8") else "")


def grouped_gemm(c: Columns, format: str, variant: str = "") -> Op:
    """One product per group, each of as many tokens as the case says; ``random``: that many on average. ``wgrad``:
    n x k weight gradients that sum over the tokens of each group, written in BF16."""
    shape = {name: c[name] for name in ("groups", "tokens_per_group", "n", "k")}
    if variant == "wgrad":
        shape = {"groups": c["groups"], "tokens_per_group": c["n"], "n": c["k"], "k": c["tokens_per_group"]}
    return operator("grouped_gemm", "grouped_gemm", format, shape, variant="" if variant == "random" else "exact")


def attention(c: Columns, format: str = "bf16", direction: str = "forward", library: str = "") -> Op:
    """Attention with materialised heads, of a library (``flash``, ``cudnn`` ...) or of the default one."""
    variant = f"{direction}_{library}" if library else direction
    return operator("attention", "attention", format, {name: c[name] for name in ATTENTION}, variant=variant)


def latent_prefill(c: Mapping[str, Array]) -> dict[str, Array]:
    """The columns of ``attention`` for latent attention with keys and values expanded to every head."""
    width = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    return {**c, "head_dim": width, "kv_heads": c["heads"]}


def latent_decode(c: Columns, format: str = "bf16", library: str = "") -> Op:
    """Latent attention in its absorbed form, against a cache of latent rows, of a library or of the default one."""
    names = ("batch", "heads", "q_len", "kv_len", "kv_lora_rank", "qk_rope_head_dim")
    variant = f"decode_{library}" if library else "decode"
    return operator("mla", "mla_decode", format, {name: c[name] for name in names}, variant=variant)


def streams(op: str, c: Columns, direction: str = "forward") -> Op:
    """A kernel over residual streams: ``mhc_pre``, ``mhc_post``, ``engram_gate``, ``sinkhorn``."""
    shape = {name: c[name] for name in ("n_tokens", "hidden", "n_streams", "sinkhorn_iters") if name in c}
    return operator(op, op, "bf16", shape, variant="backward" if direction == "backward" else "")


def gather(c: Columns, tier: str, format: str = "bf16", variant: str = "") -> Op:
    """Random rows of ``dim`` values from a table of ``rows``, by a kernel or (``cpu_copy``) by the CPU and a copy."""
    row_bytes = BYTES[format] * c["dim"]
    shape = {"lookups": c["lookups"], "row_bytes": row_bytes, "table_bytes": c["rows"] * row_bytes}
    return operator("gather", "gather", format, shape, variant=variant or tier)


def host_copy(op: str, c: Columns) -> Op:
    """A copy between pinned host and device memory: ``h2d`` or ``d2h``."""
    return operator("host_copy", op, "bf16", {"bytes": c["bytes"]}, variant=op)


def convolution(c: Columns, format: str, variant: str = "") -> Op:
    """A convolution of the columns' input size; as many groups as channels make it depthwise (one kind per call)."""
    shape = {name: c[name] for name in ("in_channels", "out_channels", "stride")}
    shape |= {"n_images": c["batch"], "kernel": c["kernel_size"]}
    shape |= {side: np.ceil(c[side] / c["stride"]) for side in ("height", "width")}
    deep = bool(np.all(np.asarray(c["groups"]) > 1))
    return operator("conv2d", "conv2d", format, shape, variant="depthwise" if deep else variant)


def message_bytes(format: str) -> float:
    """Bytes of one element of a message (int8: one)."""
    return 1.0 if format == "int8" else BYTES[format]


def collective(op: str, c: Columns, element_bytes: Num, format: str = "bf16") -> Op:
    """A collective of ``message_elements`` elements of so many bytes each; ``format`` says what switches may add."""
    shape = {
        "n_gpus": c["n_gpus"], "n_gpus_per_node": c["n_gpus_per_node"],
        "message_bytes": c["message_elements"] * element_bytes,
    }  # fmt: skip
    return operator("collective", "collective", format, shape, variant=op)


def exchange(op: str, c: Columns, mode: str | NDArray[np.str_], format: str = "") -> Op:
    """``ep_dispatch`` (FP8 with a scale per 128 unless ``format`` says otherwise) or ``ep_combine`` (BF16).

    ``mode`` is normal or low_latency, one for all rows or one each, or normal_2025_02 or low_latency_2025_02, for all,
    the kernels of DeepEP's first version. Groups fill whole nodes of eight where ``n_nodes``
    is zero; the wait in which devices agree on sizes is not included.
    """
    n_nodes = np.where(np.asarray(c["n_nodes"]) > 0, c["n_nodes"], np.ceil(c["n_gpus"] / PER_NODE))
    shape = {name: c[name] for name in ("n_tokens", "hidden", "top_k", "n_experts", "n_gpus", "n_sms")}
    fast = np.zeros_like(c["n_gpus"]) + np.char.startswith(mode, "low_latency")
    first = 1.0 if np.all(np.char.endswith(mode, FIRST)) else 0.0
    shape |= {"n_gpus_per_node": c["n_gpus"] / n_nodes, "mode": fast, "first": first}
    # DeepEP's benchmark ranks as many groups of experts as there are nodes, and its low-latency one none.
    shape["n_group"] = np.where(fast > 0, 1.0, n_nodes)
    shape["topk_group"] = np.minimum(c["max_nodes"], shape["n_group"])
    variant = op.removeprefix("ep_")
    return operator(
        "expert_exchange", variant, format or ("fp8_block" if variant == "dispatch" else "bf16"), shape, variant=variant
    )


def moved(op: str, c: Columns, format: str, variant: str = "") -> Op:
    """A memory-bound operator, with the kind of access that it makes and the rows that it works on."""
    read, write = moved_bytes(op, c, format, variant)
    shape = {"read_bytes": read, "write_bytes": write, **moved_rows(op, c)}
    return operator("memory", op, "bf16", shape, variant=access(op, format, variant))


def moved_rows(op: str, c: Columns) -> dict[str, Num]:
    """``rows`` and ``width`` of a memory-bound operator whose blocks of threads each take one row; else none.

    ``permute`` writes each token ``top_k`` times; ``unpermute`` sums pieces of ``PIECE`` values of a token."""
    if op in BY_ROW:
        return {"rows": c["n_tokens"], "width": c["hidden"]}
    if op == "permute":
        return {"rows": c["n_tokens"] * c["top_k"], "width": c["hidden"]}
    if op == "unpermute":
        return {"rows": c["n_tokens"] * np.ceil(c["hidden"] / PIECE)}
    if op == "rope":
        return {"rows": c["n_tokens"], "width": c["heads"] * c["head_dim"]}
    if op.startswith("softmax"):
        return {"rows": c["batch"] * c["heads"] * c["q_len"], "width": c["kv_len"]}
    return {"rows": c["n_tokens"]} if op == "routing" else {}


def moved_bytes(op: str, c: Columns, format: str, variant: str = "") -> tuple[Num, Num]:
    """Bytes that a memory-bound operator reads and writes, each tensor once; KeyError for an operator that is none.

    Weights of norms, a few rows, are left out. ``cast`` makes FP8 with a scale per 128 of BF16, ``swiglu`` in FP8 too;
    ``rope`` reads FP32 tables of sines and cosines; ``permute`` copies each row to ``top_k`` places, ``unpermute`` sums
    them.
    """
    scaled = BYTES["fp8_block"]
    if op == "copy":
        return c["bytes"], c["bytes"]
    if op == "adam":
        return ADAM_READ_BYTES * c["n_elements"], ADAM_WRITE_BYTES * c["n_elements"]
    if op in OPTIMIZER:
        read, write = OPTIMIZER[op]
        return read * c["n_elements"], write * c["n_elements"]
    if op.startswith("softmax"):
        # Causal: a query's own key and those before it are read, zeros written over the others.
        scores = BYTES[format] * c["batch"] * c["heads"] * c["q_len"] * c["kv_len"]
        seen = visible_pairs(c["q_len"], c["kv_len"], 1.0) / (c["q_len"] * c["kv_len"])
        return (2.0 if op.endswith("backward") else 1.0) * scores * seen, scores
    if op == "routing":
        pairs = c["n_tokens"] * c["top_k"]
        if variant == "topk":
            return 4.0 * c["n_tokens"] * c["groups"], 12.0 * pairs
        return 8.0 * pairs, 16.0 * pairs
    if op == "rope":
        size = 2.0 * c["n_tokens"] * c["heads"] * c["head_dim"]
        return size + 4.0 * c["n_tokens"] * c["head_dim"], size
    elements = c["n_tokens"] * c["expert_ffn" if op.startswith("swiglu") else "hidden"]
    if op in ("cast", "cast_transpose"):
        return 2.0 * elements, scaled * elements
    if op == "requant_transpose":
        return scaled * elements, scaled * elements
    if op == "swiglu" and format.startswith("fp8"):
        return 4.0 * elements, scaled * elements
    size = BYTES[format]
    if op == "dropout":
        return size * elements, (size + _MASK_BYTES) * elements
    if op == "dropout_backward":
        return (size + _MASK_BYTES) * elements, size * elements
    if op == "permute":
        return size * elements + 4.0 * c["n_tokens"] * c["top_k"], size * elements * c["top_k"]
    if op == "unpermute":
        return size * elements * c["top_k"] + 8.0 * c["n_tokens"] * c["top_k"], size * elements
    read, write = STREAMED[op]
    return read * size * elements, write * size * elements
