"""Kernel cases: their columns, their identity, their files, and which of them a fit may see.

Columns are those of the kernel-case files, and: ``variant`` (wgrad, dgrad, accumulate; the back end of attention;
memcpy or kernel ...), ``direction`` (forward, backward), ``n_elements`` (adam), those of a convolution. ``case_sets``
holds the lists. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

Case = dict[str, str | int]

#: What names a case: rows equal in all of these are the same measurement.
CASE_COLUMNS = (
    "op", "phase", "format", "direction", "variant", "m", "n", "k", "groups", "tokens_per_group", "batch", "heads",
    "kv_heads", "q_len", "kv_len", "head_dim", "v_head_dim", "causal", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "n_tokens", "hidden", "expert_ffn", "top_k", "n_experts", "tensor_parallel", "expert_parallel",
    "routing", "n_streams", "sinkhorn_iters", "bytes", "n_elements", "tier", "rows", "dim", "lookups", "in_channels",
    "out_channels", "height", "width", "kernel_size", "stride", "n_gpus", "message_elements",
)  # fmt: skip

#: Share of shapes that no fit may see, and what makes their choice. Both were set before anything was measured, the
#: salt so that of the list ``all`` every operator has between a seventh and 36% of its cases held out.
HELD_OUT_SHARE, SALT = 0.25, "sextant-2022"


def case_key(case: Mapping[str, str | int]) -> tuple[str, ...]:
    """What identifies a case: its case columns as text, absent ones empty."""
    return tuple(str(case.get(column, "")) for column in CASE_COLUMNS)


def shapes_of(case: Mapping[str, str | int]) -> tuple[str, ...]:
    """The whole shapes that a case belongs to; it is held out if any of them is.

    Products: the site (outputs, inputs), whatever the tokens, format or direction; grouped products and layers of
    experts: the same site. Attention: the configuration of heads, and the (sequences, length) pair. Operators over
    rows: the width. Residual streams: width and number of streams; Sinkhorn: tokens. Tables: tier and row.
    Convolutions: channels and kernel. Copies, optimizer, collectives: the size. Two streams of work at once
    (contention): none.
    """
    op = str(case["op"])

    def text(*columns: str) -> str:
        return "x".join(str(case.get(column, "")) for column in columns)

    if op == "contention":
        return ()
    if op == "gemm":
        sites = {"wgrad": ("m", "n"), "wgrad_bf16": ("m", "n"), "dgrad": ("k", "n")}
        return (f"site:{text(*sites.get(str(case.get('variant', '')), ('n', 'k')))}",)
    if op == "grouped_gemm":
        return (f"site:{text('n', 'k')}",)
    if op == "moe":
        return (f"site:{2 * int(case['expert_ffn'])}x{case['hidden']}",)
    if op in ("attention", "mla"):
        heads = text("heads", "kv_heads", "head_dim", "v_head_dim", "kv_lora_rank")
        return (f"half:{op}:{case.get('phase')}:{heads}", f"half:{op}:{case.get('phase')}:{text('batch', 'kv_len')}")
    if op in ("mhc_pre", "mhc_post", "engram_gate"):
        return (f"streams:{text('hidden', 'n_streams')}",)
    columns = {
        "swiglu": "expert_ffn", "swiglu_backward": "expert_ffn", "rope": "heads", "routing": "groups", "copy": "bytes",
        "h2d": "bytes", "d2h": "bytes", "adam": "n_elements", "sinkhorn": "n_tokens",
        "softmax": "kv_len", "softmax_backward": "kv_len", "scale": "n_elements", "square_sum": "n_elements",
        "adam_fp32": "n_elements",
    }  # fmt: skip
    if op in columns:
        return (f"{columns[op]}:{text(columns[op])}",)
    if op == "gather":
        return (f"gather:{text('tier', 'dim')}",)
    if op == "conv2d":
        return (f"conv2d:{text('in_channels', 'out_channels', 'kernel_size')}",)
    if case.get("message_elements"):
        return (f"message:{op}:{text('n_gpus', 'message_elements')}",)
    return (f"width:{text('hidden')}",)


def split(case: Mapping[str, str | int]) -> Literal["fit", "held_out"]:
    """Whether a fit may see a case; decided once and for all by a hash of whole shapes (``shapes_of``).

    About a quarter of the shapes is held out; of attention, an eighth of the configurations and an eighth of the
    lengths.
    """
    for shape in shapes_of(case):
        share = HELD_OUT_SHARE / 2.0 if shape.startswith("half:") else HELD_OUT_SHARE
        drawn = int.from_bytes(hashlib.sha256(f"{SALT}:{shape}".encode()).digest()[:8], "big") / 2.0**64
        if drawn < share:
            return "held_out"
    return "fit"


def select(
    cases: Sequence[Case], *, ops: str = "", every: int = 1, shard: str = "1/1", order: str = "listed"
) -> list[Case]:
    """Cases of the named operators, in the order named (no names: all, as they come), every n-th of each operator.

    ``shard`` i/n takes every n-th of what is left, from the i-th on; order ``spread`` sorts by a hash of the case, so
    that the first part of the list is a sample of all. Raises ``ValueError`` for a shard that is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard: i/n with i from 1 to n, got {shard!r}")
    wanted = [op.strip() for op in ops.split(",") if op.strip()] or list(dict.fromkeys(str(c["op"]) for c in cases))
    chosen = [case for op in wanted for case in [c for c in cases if c["op"] == op][::every]]
    if order == "spread":
        chosen.sort(key=lambda case: hashlib.sha256("|".join(case_key(case)).encode()).digest())
    return chosen[int(found[1]) - 1 :: int(found[2])]


def smallest_of_each(cases: Sequence[Case]) -> list[Case]:
    """One case of every kernel (operator, phase, format, direction, variant, tier), the smallest."""

    def size(case: Case) -> float:
        return math.prod(float(value) for value in case.values() if isinstance(value, int) and value > 0)

    found: dict[tuple[str, ...], Case] = {}
    for case in sorted(cases, key=size):
        kind = tuple(str(case.get(c, "")) for c in ("op", "phase", "format", "direction", "variant", "tier"))
        found.setdefault(kind, case)
    return list(found.values())


def read_cases(path: Path) -> list[Case]:
    """Cases from a CSV of case columns (others are dropped, lines starting with # skipped); digits become int.

    Raises ``ValueError`` where the file has no ``op`` column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(line for line in file if not line.startswith("#"))
        if "op" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: a kernel-case file needs a column op, got {reader.fieldnames}")
        return [
            {
                column: int(value) if value.isdigit() else value
                for column, value in row.items()
                if column in CASE_COLUMNS and value
            }
            for row in reader
        ]


def write_cases(path: Path, cases: Sequence[Mapping[str, str | int]]) -> None:
    """Write cases as a CSV with all case columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=list(CASE_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cases)
