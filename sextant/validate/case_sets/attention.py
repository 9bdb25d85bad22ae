"""Cases of attention: prefill, encoders of images, decode steps; ordinary heads and latent ones."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.validate.case_sets.systems import System
from sextant.validate.cases import Case

#: (sequences, tokens of each) of a prefill, and of a decode step with its cache: 256 to 32K tokens.
PREFILL = (
    (1, 256), (1, 512), (16, 512), (1, 1024), (8, 1024), (1, 2048), (4, 2048), (1, 4096), (4, 4096), (1, 8192),
    (2, 16384), (1, 32768),
)  # fmt: skip
DECODE = (
    (1, 1024), (1, 4096), (1, 32768), (4, 2048), (8, 8192), (16, 512), (16, 4096), (32, 2048), (64, 1024), (64, 4096),
    (128, 512), (128, 4096), (256, 1024),
)  # fmt: skip
IMAGES = (1, 2, 4, 8, 16, 32)
#: Work of a case: tokens squared times sequences and heads, and bytes of a cache.
MAX_SCORES, MAX_BACKWARD_SCORES, MAX_CACHE_BYTES = 6e10, 2e10, 8e9
_BF16: Case = {"format": "bf16"}


def _directions(scores: float) -> tuple[str, ...]:
    return ("forward", "backward") if scores <= MAX_BACKWARD_SCORES else ("forward",)


def prefill(system: System) -> Iterator[Case]:
    """Causal attention: flash over all shapes, cuDNN over every second."""
    for heads, kv_heads in system.heads:
        for i, (batch, length) in enumerate(PREFILL):
            scores = float(batch * heads) * length**2
            shape: Case = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": length, "kv_len": length}
            case: Case = {"op": "attention", "phase": "prefill"} | _BF16 | shape
            case |= {"head_dim": 128, "v_head_dim": 128, "causal": 1}
            for variant in ("flash", "cudnn") if i % 2 else ("flash",):
                for direction in _directions(scores) if scores <= MAX_SCORES else ():
                    yield case | {"direction": direction, "variant": variant}


def decode(system: System) -> Iterator[Case]:
    """One new token per sequence: split-KV over all shapes, torch's flash over every second, cuDNN over every third."""
    for heads, kv_heads in system.heads:
        for i, (batch, length) in enumerate(DECODE):
            if batch * length * kv_heads * 512 > MAX_CACHE_BYTES:
                continue
            shape: Case = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": 1, "kv_len": length}
            case: Case = {"op": "attention", "phase": "decode", "direction": "forward"} | _BF16 | shape
            case |= {"head_dim": 128, "v_head_dim": 128, "causal": 1}
            for variant, every in (("splitkv", 1), ("flash", 2), ("cudnn", 3)):
                if i % every == 0:
                    yield case | {"variant": variant}


def encoder(system: System) -> Iterator[Case]:
    """All tokens of an image see each other."""
    for e in system.encoders:
        for i, images in enumerate(IMAGES):
            shape: Case = {"batch": images * e.windows, "heads": e.heads, "kv_heads": e.heads, "q_len": e.tokens}
            case: Case = {"op": "attention", "phase": "encoder"} | _BF16 | shape | {"kv_len": e.tokens}
            case |= {"head_dim": e.head_dim, "v_head_dim": e.head_dim, "causal": 0}
            for variant in ("flash", "cudnn") if i % 2 == 0 else ("flash",):
                for direction in ("forward", "backward"):
                    yield case | {"direction": direction, "variant": variant}


def latent(system: System) -> Iterator[Case]:
    """Latent attention: expanded in a prefill (cuDNN), absorbed in a decode step (split-KV, some also bmm)."""
    ranks: Case = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    for heads in system.latent_heads:
        for batch, length in PREFILL:
            scores = float(batch * heads) * length**2
            case: Case = {"op": "mla", "phase": "prefill", "variant": "cudnn"} | _BF16 | ranks
            case |= {"batch": batch, "heads": heads, "q_len": length, "kv_len": length}
            for direction in _directions(scores) if scores <= MAX_SCORES else ():
                yield case | {"direction": direction}
        for i, (batch, length) in enumerate(DECODE):
            if batch * length * 1152 > MAX_CACHE_BYTES:
                continue
            case = {"op": "mla", "phase": "decode", "direction": "forward"} | _BF16 | ranks
            case |= {"batch": batch, "heads": heads, "q_len": 1, "kv_len": length}
            yield case | {"variant": "splitkv"}
            if i % 4 == 1:
                yield case | {"variant": "bmm"}
