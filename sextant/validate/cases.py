"""Which kernels to measure: deterministic lists of cases over the shapes of published models.

``case_set(name)`` gives the list; ``write_cases`` and ``read_cases`` keep it as a CSV. Columns are those of the
kernel-case files, and: ``variant`` (wgrad, dgrad, accumulate; the back end of attention; memcpy or kernel),
``direction`` (forward, backward), ``n_elements`` (adam). Needs neither torch nor a GPU.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Case = dict[str, str | int]

#: What names a case: rows equal in all of these are the same measurement.
CASE_COLUMNS = (
    "op",
    "phase",
    "format",
    "direction",
    "variant",
    "m",
    "n",
    "k",
    "groups",
    "tokens_per_group",
    "batch",
    "heads",
    "kv_heads",
    "q_len",
    "kv_len",
    "head_dim",
    "v_head_dim",
    "causal",
    "n_tokens",
    "hidden",
    "expert_ffn",
    "top_k",
    "bytes",
    "n_elements",
    "tier",
    "rows",
    "dim",
    "lookups",
)

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 32768)
GEMM_ROWS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TRAINING_TOKENS = 4096
GROUPS = (2, 4, 8, 16, 32, 64)
GROUP_TOKENS = (16, 64, 256, 1024, 4096, 8192)
#: Rows of all groups together stay below this: larger products repeat what smaller ones show.
MAX_GROUPED_ROWS = 131072
SEQUENCES = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The dimensions of a model that decide its kernels: sites are (outputs n, inputs k) of its products."""

    sites: Mapping[str, tuple[int, int]]
    expert_sites: Sequence[str]
    hidden: int
    norm_widths: Sequence[int]
    ffn_widths: Sequence[int]
    top_k: int
    heads: int
    rope_dim: int
    mla: bool


def _mla_sites(*, hidden: int, heads: int, q_rank: int, dense: int, expert: int, experts: int, vocab: int) -> dict:
    """Sites of a DeepSeek-V2 / V3 layer: latent rank 512, head parts 128 and 64, values 128."""
    query = {"q": (heads * 192, hidden)} if q_rank == 0 else {"q_a": (q_rank, hidden), "q_b": (heads * 192, q_rank)}
    return query | {
        "kv_a": (576, hidden),
        "kv_b": (heads * 256, 512),
        "o": (hidden, heads * 128),
        "dense_up": (2 * dense, hidden),
        "dense_down": (hidden, dense),
        "expert_up": (2 * expert, hidden),
        "expert_down": (hidden, expert),
        "router": (experts, hidden),
        "head": (vocab, hidden),
    }


def _dense_sites(*, hidden: int, qkv: int, ffn: int, vocab: int) -> dict[str, tuple[int, int]]:
    return {
        "qkv": (qkv, hidden),
        "o": (hidden, hidden),
        "up": (2 * ffn, hidden),
        "down": (hidden, ffn),
        "head": (vocab, hidden),
    }


#: Dimensions as published: DeepSeek-V3 and V2 (and Coder-V2) configurations of the DeepSeek-V3 repository and reports;
#: DeepSeek-Coder arXiv:2401.14196 Table 2.
MODELS: dict[str, Shapes] = {
    "deepseek-v3": Shapes(
        sites=_mla_sites(hidden=7168, heads=128, q_rank=1536, dense=18432, expert=2048, experts=256, vocab=129280),
        expert_sites=("expert_up", "expert_down"),
        hidden=7168,
        norm_widths=(1536, 7168),
        ffn_widths=(2048, 18432),
        top_k=8,
        heads=128,
        rope_dim=64,
        mla=True,
    ),
    "deepseek-v2": Shapes(
        sites=_mla_sites(hidden=5120, heads=128, q_rank=1536, dense=12288, expert=1536, experts=160, vocab=102400),
        expert_sites=("expert_up", "expert_down"),
        hidden=5120,
        norm_widths=(1536, 5120),
        ffn_widths=(1536, 12288),
        top_k=6,
        heads=128,
        rope_dim=64,
        mla=True,
    ),
    "deepseek-coder-v2-lite": Shapes(
        sites=_mla_sites(hidden=2048, heads=16, q_rank=0, dense=10944, expert=1408, experts=64, vocab=102400),
        expert_sites=("expert_up", "expert_down"),
        hidden=2048,
        norm_widths=(512, 2048),
        ffn_widths=(1408,),
        top_k=6,
        heads=16,
        rope_dim=64,
        mla=True,
    ),
    "deepseek-coder-6.7b": Shapes(
        sites=_dense_sites(hidden=4096, qkv=3 * 4096, ffn=11008, vocab=32256),
        expert_sites=(),
        hidden=4096,
        norm_widths=(4096,),
        ffn_widths=(11008,),
        top_k=0,
        heads=32,
        rope_dim=128,
        mla=False,
    ),
}


def _gemm(shapes: Shapes) -> Iterator[Case]:
    for site, (n, k) in shapes.sites.items():
        rows = GEMM_ROWS[:-1] if site == "head" else GEMM_ROWS
        for m in rows + ((32768,) if site in shapes.expert_sites else ()):
            for fmt in ("bf16", "fp8"):
                yield {"op": "gemm", "format": fmt, "direction": "forward", "m": m, "n": n, "k": k}
        for m in (64, 512, TRAINING_TOKENS, 16384):
            if site not in ("head", "router"):
                yield {"op": "gemm", "format": "fp8_block", "direction": "forward", "m": m, "n": n, "k": k}
        backward: Case = {"op": "gemm", "direction": "backward"}
        yield backward | {"format": "bf16", "variant": "wgrad", "m": n, "n": k, "k": TRAINING_TOKENS}
        yield backward | {"format": "bf16", "variant": "dgrad", "m": TRAINING_TOKENS, "n": k, "k": n}
        yield backward | {"format": "fp8", "variant": "wgrad", "m": n, "n": k, "k": TRAINING_TOKENS}
        yield {
            "op": "gemm",
            "format": "fp8",
            "direction": "forward",
            "variant": "accumulate",
            "m": TRAINING_TOKENS,
            "n": n,
            "k": k,
        }


def _grouped(shapes: Shapes) -> Iterator[Case]:
    for site in shapes.expert_sites:
        n, k = shapes.sites[site]
        for groups in GROUPS:
            for tokens in GROUP_TOKENS:
                case: Case = {
                    "op": "grouped_gemm",
                    "format": "bf16",
                    "direction": "forward",
                    "groups": groups,
                    "tokens_per_group": tokens,
                    "n": n,
                    "k": k,
                }
                if groups * tokens > MAX_GROUPED_ROWS:
                    continue
                yield case
                if groups in (4, 16) and tokens in (64, 1024, 4096):
                    yield case | {"format": "fp8"}
                if groups in (4, 16) and tokens in (1024, 4096):
                    yield case | {"direction": "backward", "variant": "wgrad"}


def _attention(shapes: Shapes) -> Iterator[Case]:
    """MLA's expanded core (192 / 128) for shards of the heads, and 128 / 128 with and without grouped keys."""
    settings: list[tuple[str, int, int, int, int]] = []
    if shapes.mla:
        settings += [
            ("cudnn", heads, heads, 192, batch) for heads in sorted({16, 32, 64, shapes.heads}) for batch in (1, 4)
        ]
    settings += [("flash", heads, kv_heads, 128, 1) for heads in (16, 32, 64) for kv_heads in sorted({8, heads})]
    for variant, heads, kv_heads, head_dim, batch in settings:
        for length in SEQUENCES:
            if batch * heads * length > 128 * 8192:
                continue
            for direction in ("forward", "backward"):
                yield {
                    "op": "attention",
                    "phase": "prefill",
                    "format": "bf16",
                    "direction": direction,
                    "variant": variant,
                    "batch": batch,
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "q_len": length,
                    "kv_len": length,
                    "head_dim": head_dim,
                    "v_head_dim": 128,
                    "causal": 1,
                }


def _rows(shapes: Shapes) -> Iterator[Case]:
    """Elementwise operators over tokens; transposing ones only where a training step has them."""
    for n_tokens in TOKENS:
        for width in shapes.norm_widths:
            row: Case = {"format": "bf16", "direction": "forward", "n_tokens": n_tokens, "hidden": width}
            yield {"op": "rmsnorm"} | row
            yield {"op": "rmsnorm_backward"} | row | {"direction": "backward"}
            yield {"op": "cast"} | row | {"format": "fp8"}
            if n_tokens >= 256:
                yield {"op": "cast_transpose"} | row | {"format": "fp8"}
                yield {"op": "requant_transpose"} | row | {"format": "fp8", "direction": "backward"}
        for width in shapes.ffn_widths:
            gated: Case = {"direction": "forward", "n_tokens": n_tokens, "expert_ffn": width}
            yield {"op": "swiglu", "format": "fp8"} | gated
            yield {"op": "swiglu_backward", "format": "bf16"} | gated | {"direction": "backward"}
        yield {
            "op": "swiglu",
            "format": "bf16",
            "direction": "forward",
            "n_tokens": n_tokens,
            "expert_ffn": shapes.ffn_widths[0],
        }
        yield {"op": "add", "format": "bf16", "direction": "forward", "n_tokens": n_tokens, "hidden": shapes.hidden}
        yield {
            "op": "rope",
            "format": "bf16",
            "direction": "forward",
            "n_tokens": n_tokens,
            "heads": shapes.heads,
            "head_dim": shapes.rope_dim,
        }
        if shapes.top_k:
            routed: Case = {
                "direction": "forward",
                "n_tokens": n_tokens,
                "hidden": shapes.hidden,
                "top_k": shapes.top_k,
            }
            for op, fmt in (("permute", "bf16"), ("permute", "fp8"), ("unpermute", "bf16")):
                yield {"op": op, "format": fmt} | routed


def _machine() -> Iterator[Case]:
    """What depends on no model: copies, the optimizer, table rows, two streams at once."""
    for exponent in range(12, 31, 2):
        for variant in ("memcpy", "kernel"):
            yield {"op": "copy", "variant": variant, "bytes": 2**exponent}
    for op in ("h2d", "d2h"):
        for exponent in range(12, 29, 2):
            yield {"op": op, "bytes": 2**exponent}
    for n_elements in (10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9):
        yield {"op": "adam", "format": "bf16", "n_elements": n_elements}
    for tier, rows in (("hbm", 2**20), ("host", 2**18)):
        for dim in (128, 1024):
            for lookups in (256, 4096, 65536):
                yield {
                    "op": "gather",
                    "format": "bf16",
                    "tier": tier,
                    "rows": rows * 1024 // dim,
                    "dim": dim,
                    "lookups": lookups,
                }
    for variant in ("gemm_alone", "gemm_beside_copy", "copy_alone", "copy_beside_gemm"):
        yield {
            "op": "contention",
            "format": "bf16",
            "variant": variant,
            "m": 4096,
            "n": 4096,
            "k": 7168,
            "bytes": 2**30,
        }


def case_key(case: Mapping[str, str | int]) -> tuple[str, ...]:
    """What identifies a case: its case columns as text, absent ones empty."""
    return tuple(str(case.get(column, "")) for column in CASE_COLUMNS)


def case_set(name: str) -> list[Case]:
    """The cases of a model by name, each once; raises ``ValueError`` for an unknown name.

    The machine's own cases (copies, optimizer, contention) are part of every list.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=2) or list(MODELS)
        raise ValueError(f"cases: no list is named {name!r}; nearest: {', '.join(near)}")
    shapes = MODELS[name]
    cases: dict[tuple[str, ...], Case] = {}
    for source in (_machine(), _rows(shapes), _gemm(shapes), _grouped(shapes), _attention(shapes)):
        for case in source:
            cases.setdefault(case_key(case), case)
    return list(cases.values())


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
