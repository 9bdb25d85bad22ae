"""How long an inference engine's host takes to make text of token ids, measured: the tokenizer's ``decode``.

    python -m sextant.validate.engine_text [--out FILE] [--seconds S]

The tokenizer has the vocabulary's size of Qwen3 and random byte-level tokens of two to ten bytes: decoding looks every
id up and joins bytes, whatever they say. Needs torch, tokenizers and transformers, no GPU. Rows as those of
``engine_loop``: work (detokenise), n (tokens), us, us_p10, us_p90, n_repeats.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import tokenizers
import transformers

from sextant.validate.engine_loop import processor

VOCABULARY = 151_936
TOKENS = (64, 100, 128, 256, 512, 768, 1024)
COLUMNS: tuple[str, ...] = ("work", "n", "us", "us_p10", "us_p90", "n_repeats")


def tokenizer(n_tokens: int = VOCABULARY, seed: int = 0) -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer of so many random tokens, as an engine loads one."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    found = dict.fromkeys(sorted(alphabet))
    draw = random.Random(seed)
    letters = list(found)
    while len(found) < n_tokens:
        found["".join(draw.choices(letters, k=draw.randint(2, 10)))] = None
    vocabulary = {token: i for i, token in enumerate(found)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    core.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def measured(
    made: transformers.PreTrainedTokenizerFast, seconds: float, sizes: Sequence[int]
) -> list[dict[str, object]]:
    """A row per number of tokens; every call decodes other tokens."""
    draw = random.Random(1)
    rows: list[dict[str, object]] = []
    for n in sizes:
        texts = [[draw.randrange(len(made)) for _ in range(n)] for _ in range(64)]
        us = _timed([lambda ids=ids: made.decode(ids) for ids in texts], seconds)
        tenths = statistics.quantiles(us, n=10)
        ends = {"us": statistics.median(us), "us_p10": tenths[0], "us_p90": tenths[-1]}
        rows.append({"work": "detokenise", "n": n, **{k: f"{v:.2f}" for k, v in ends.items()}, "n_repeats": len(us)})
    return rows


def _timed(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Microseconds of the calls, in turn, for so many seconds."""
    found: list[float] = []
    for call in calls:
        call()
    stop = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < stop:
        call = calls[len(found) % len(calls)]
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e6)
    return found


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="engine_text.csv")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--device", default="", help="the GPU of the host that this is, for the file's header")
    asked = parser.parse_args()
    about = {
        "device": asked.device or "none", "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(), "host": processor(),
        "cores": os.cpu_count(), "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": "python -m sextant.validate.engine_text",
    }  # fmt: skip
    rows = measured(tokenizer(), asked.seconds, TOKENS)
    with Path(asked.out).open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in about.items())
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
