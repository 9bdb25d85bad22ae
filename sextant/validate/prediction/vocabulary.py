"""The vocabulary of kernel cases: which columns an operator needs, and what stands for those that a case leaves out.

``KINDS`` is keyed by operator, of attention by operator and phase. A default is a number, or the name of the column
whose value it takes. Formats are those that the models of time know; the first is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.errors import nearest
from sextant.validate.prediction.operators import MAX_NODES, PER_NODE

Array = NDArray[np.float64]

#: Columns of text that tell kernels of one operator apart. A cell is lower-cased.
TEXT = ("op", "phase", "format", "direction", "variant", "mode", "tier", "routing", "library")

MATRIX = ("bf16", "fp16", "fp8", "fp8_block")
HALF = ("bf16", "fp16")
PLAIN = ("bf16", "fp16", "fp32", "fp8")
MESSAGES = ("bf16", "fp16", "fp32", "fp8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseKind:
    """What a case of one operator says: ``needed`` columns, ``defaults`` of the others, and its formats, the first of
    them the default. ``variants`` and ``directions`` list what those columns may say; None: anything (the name of a
    back end, which the models do not tell apart)."""

    needed: tuple[str, ...]
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    formats: tuple[str, ...] = HALF
    variants: tuple[str, ...] | None = ("",)
    directions: tuple[str, ...] = ("", "forward")


_STREAMS = {"n_streams": 4.0, "sinkhorn_iters": 20.0}
#: Modes of an exchange of experts; the latter two are those of DeepEP's first version.
EXCHANGE_MODES = ("normal", "low_latency", "normal_2025_02", "low_latency_2025_02")

_EITHER = ("", "forward", "backward")
_LATENT = {"kv_lora_rank": 512.0, "qk_nope_head_dim": 128.0, "qk_rope_head_dim": 64.0, "v_head_dim": 128.0}
_HEADS = {"kv_heads": "heads", "v_head_dim": "head_dim"}


def _stream(*needed: str) -> CaseKind:
    return CaseKind(needed=needed, defaults=_STREAMS, formats=("bf16",), variants=None, directions=_EITHER)


def _rows(*needed: str, formats: tuple[str, ...] = HALF) -> CaseKind:
    return CaseKind(needed=needed, formats=formats, variants=None, directions=("", "forward"))


def _back(*needed: str, formats: tuple[str, ...] = HALF) -> CaseKind:
    return CaseKind(needed=needed, formats=formats, variants=None, directions=_EITHER)


_COLLECTIVE = CaseKind(
    needed=("n_gpus", "message_elements"), formats=MESSAGES, defaults={"n_gpus_per_node": PER_NODE}, variants=None
)
_EXCHANGE = CaseKind(
    needed=("n_gpus", "n_tokens", "hidden", "top_k", "n_experts"),
    # 20 SMs: DeepEP's own default.
    defaults={"n_nodes": 0.0, "n_sms": 20.0, "max_nodes": MAX_NODES}, variants=None,
    formats=("fp8_block", "bf16", "fp8"),
)  # fmt: skip

KINDS: Mapping[str, CaseKind] = {
    "gemm": CaseKind(
        needed=("m", "n", "k"), formats=MATRIX, directions=_EITHER,
        variants=("", "dgrad", "wgrad", "wgrad_bf16", "accumulate", "from_bf16", "quantised", "per_tensor"),
    ),
    "grouped_gemm": CaseKind(
        needed=("groups", "tokens_per_group", "n", "k"), formats=MATRIX, variants=("", "wgrad", "random"),
        directions=_EITHER,
    ),
    "attention:prefill": CaseKind(
        needed=("batch", "heads", "kv_len", "head_dim"), defaults={"q_len": "kv_len", **_HEADS, "causal": 1.0},
        variants=None, directions=_EITHER,
    ),
    "attention:encoder": CaseKind(
        needed=("batch", "heads", "kv_len", "head_dim"), defaults={"q_len": "kv_len", **_HEADS, "causal": 0.0},
        variants=None, directions=_EITHER,
    ),
    "attention:decode": CaseKind(
        needed=("batch", "heads", "kv_len", "head_dim"), defaults={"q_len": 1.0, **_HEADS, "causal": 1.0},
        variants=None,
    ),
    "mla:prefill": CaseKind(
        needed=("batch", "heads", "kv_len"), defaults={"q_len": "kv_len", **_LATENT, "causal": 1.0},
        variants=None, directions=_EITHER,
    ),
    "mla:decode": CaseKind(needed=("batch", "heads", "kv_len"), defaults={"q_len": 1.0, **_LATENT}, variants=None),
    "moe": CaseKind(
        needed=("n_tokens", "hidden", "expert_ffn", "top_k", "n_experts"), formats=MATRIX,
        defaults={"tensor_parallel": 1.0, "expert_parallel": 1.0}, variants=("", "layer", "ungated"),
    ),
    "rmsnorm": _rows("n_tokens", "hidden", formats=PLAIN), "layernorm": _rows("n_tokens", "hidden", formats=PLAIN),
    "gelu": _rows("n_tokens", "hidden", formats=PLAIN), "add": _rows("n_tokens", "hidden", formats=PLAIN),
    "swiglu": _rows("n_tokens", "expert_ffn", formats=("bf16", "fp16", "fp32", "fp8", "fp8_block")),
    "cast": _rows("n_tokens", "hidden", formats=("fp8", "fp8_block")),
    "cast_transpose": _rows("n_tokens", "hidden", formats=("fp8", "fp8_block")),
    "requant_transpose": _back("n_tokens", "hidden", formats=("fp8", "fp8_block")),
    "rmsnorm_backward": _back("n_tokens", "hidden"), "swiglu_backward": _back("n_tokens", "expert_ffn"),
    "rope": _rows("n_tokens", "heads", "head_dim"),
    "permute": _rows("n_tokens", "hidden", "top_k", formats=PLAIN), "unpermute": _rows("n_tokens", "hidden", "top_k"),
    "routing": CaseKind(
        needed=("n_tokens", "groups", "top_k"), formats=("fp32",), variants=("topk", "index"),
    ),
    "dropout": _rows("n_tokens", "hidden", formats=PLAIN), "dropout_backward": _back("n_tokens", "hidden"),
    "column_sum": _back("n_tokens", "hidden"),
    "softmax": CaseKind(needed=("batch", "heads", "kv_len"), defaults={"q_len": "kv_len"}),
    "softmax_backward": CaseKind(
        needed=("batch", "heads", "kv_len"), defaults={"q_len": "kv_len"}, directions=_EITHER
    ),
    "scale": CaseKind(needed=("n_elements",), formats=("fp32",)),
    "square_sum": CaseKind(needed=("n_elements",), formats=("fp32",)),
    "adam_fp32": CaseKind(needed=("n_elements",), formats=("fp32",)),
    "copy": CaseKind(needed=("bytes",), formats=(), variants=None),
    "h2d": CaseKind(needed=("bytes",), formats=(), variants=None),
    "d2h": CaseKind(needed=("bytes",), formats=(), variants=None),
    "adam": CaseKind(needed=("n_elements",), formats=("bf16",), variants=None),
    "gather": CaseKind(needed=("rows", "dim", "lookups"), formats=PLAIN, variants=("", "cpu_copy")),
    "mhc_pre": _stream("n_tokens", "hidden"), "mhc_post": _stream("n_tokens", "hidden"),
    "engram_gate": _stream("n_tokens", "hidden"),
    "sinkhorn": CaseKind(
        needed=("n_tokens",), defaults=_STREAMS, formats=("fp32",), variants=None, directions=_EITHER
    ),
    "conv2d": CaseKind(
        needed=("batch", "height", "width", "in_channels", "out_channels", "kernel_size"), directions=_EITHER,
        defaults={"stride": 1.0, "groups": 1.0}, variants=("", "dgrad", "wgrad"),
    ),
    "all_reduce": _COLLECTIVE, "all_gather": _COLLECTIVE, "reduce_scatter": _COLLECTIVE, "all_to_all": _COLLECTIVE,
    "broadcast": _COLLECTIVE, "send_recv": _COLLECTIVE, "ep_dispatch": _EXCHANGE, "ep_combine": _EXCHANGE,
}  # fmt: skip

#: Operators of measured files that are no kernel of their own.
NOT_ONE_KERNEL: Mapping[str, str] = {
    "contention": "two kernels at once are not one kernel; give its gemm or its copy as a row of its own",
}

#: Phases of the operators that have any, the default first.
PHASES: Mapping[str, tuple[str, ...]] = {
    "attention": ("prefill", "decode", "encoder"), "mla": ("prefill", "decode"),
}  # fmt: skip

#: Columns that need not hold whole numbers, and those that may be zero.
FRACTIONS, ZERO = ("tokens_per_group", "bytes"), ("causal", "sinkhorn_iters", "n_nodes")


def ops() -> tuple[str, ...]:
    """Every operator of the vocabulary, sorted."""
    return tuple(sorted({name.partition(":")[0] for name in KINDS}))


def kind_named(op: str, phase: str) -> tuple[CaseKind | None, str]:
    """The kind of a case and "", or None and why there is none."""
    if not op:
        return None, f"op: empty; choose one of {', '.join(ops())}"
    if op in NOT_ONE_KERNEL:
        return None, f"op: {op!r}: {NOT_ONE_KERNEL[op]}"
    phases = PHASES.get(op)
    if phases is None:
        found = KINDS.get(op)
        return found, "" if found else f"op: unknown {op!r}; {nearest(op, ops())}"
    phase = phase or phases[0]
    if phase not in phases:
        return None, f"phase: {phase!r} of {op}; choose one of {', '.join(phases)}"
    return KINDS[f"{op}:{phase}"], ""


def text_problem(kind: CaseKind, text: Mapping[str, str]) -> str:
    """Why a case of this kind cannot be with its columns of text, or ""."""
    op = text["op"]
    if kind.formats and text["format"] and text["format"] not in kind.formats:
        return f"format: unsupported {text['format']!r} of {op}; choose one of {', '.join(kind.formats)}"
    if text["direction"] not in kind.directions:
        known = ", ".join(d for d in kind.directions if d)
        return f"direction: {text['direction']!r} of {op} is not modelled; choose one of {known}"
    if kind.variants is not None and text["variant"] not in kind.variants:
        known = [v for v in kind.variants if v]
        remedy = nearest(text["variant"], known) if known else "leave it empty"
        return f"variant: {text['variant'] or 'empty'!r} of {op} is not modelled; {remedy}"
    if op.startswith("ep_") and text["mode"] not in ("", *EXCHANGE_MODES):
        return f"mode: unknown {text['mode']!r}; choose one of {', '.join(EXCHANGE_MODES)}"
    if op == "gather" and text["tier"] not in ("", "hbm", "host", "nvme"):
        return f"tier: unknown {text['tier']!r}; choose one of hbm, host, nvme"
    if text["variant"] == "cpu_copy" and text["tier"] not in ("", "host"):
        return f"tier: the CPU copies from host memory, not from {text['tier']!r}; write host"
    return ""


def filled(kind: CaseKind, column: Callable[[str], Array | None]) -> dict[str, Array]:
    """All columns of a kind with defaults in place, arrays of shape (n_rows,). ``column`` gives one with NaN where it
    says nothing, or None where it is absent. Needed columns must be whole."""
    found: dict[str, Array] = {}
    for name in kind.needed:
        values = column(name)
        if values is None:
            raise KeyError(name)
        found[name] = values
    n = len(found[kind.needed[0]])
    for name, default in kind.defaults.items():
        values = column(name)
        value = found[default] if isinstance(default, str) else np.full(n, default)
        found[name] = value if values is None else np.where(np.isnan(values), value, values)
    return found
