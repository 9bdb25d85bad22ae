"""Cases of training code that is not compiled: dropout, masked softmax, sums over tokens, a loss-scaled optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from sextant.validate.cases import Case

WIDTHS = (1024, 1536, 2048, 2560, 3072, 4096, 6144, 8192, 12288)
TOKENS = (256, 1024, 4096, 16384)
LENGTHS = (256, 512, 768, 1024, 1536, 2048, 3072, 4096)
ELEMENTS = (2**20, 2**22, 2**24, 2**25, 3 * 2**24, 2**26, 3 * 2**25, 2**27, 2**28)
#: Scores of one call.
_SCORES = (2**23, 2**25, 2**27)


def cases() -> Iterator[Case]:
    """Every operator over its sizes."""
    for op in ("dropout", "dropout_backward", "column_sum"):
        for width in WIDTHS:
            for n_tokens in TOKENS:
                yield {"op": op, "format": "fp16", "n_tokens": n_tokens, "hidden": width}
    for op in ("softmax", "softmax_backward"):
        for length in LENGTHS:
            for scores in _SCORES:
                heads = max(1, scores // length**2)
                yield {"op": op, "format": "fp16", "batch": 1, "heads": heads, "q_len": length, "kv_len": length}
    for op in ("scale", "square_sum", "adam_fp32"):
        for n in ELEMENTS:
            yield {"op": op, "format": "fp32", "n_elements": n}
