"""A language with something to remember, something to copy and something to compute, drawn from a seed.

Documents of segments follow each other. Words are drawn from a Zipf law. A segment is one of

fact   two words, which are one of ``N_FACTS`` names, drawn from a Zipf law, and its four words, always the same
copy   a mark, then a span of the last tokens again
sum    a mark, three digits of base ``BASE``, their sum modulo ``BASE``
words  free words

so that a table of n-grams can hold the facts, attention find the copy, and only a network do the sum.
"""

from __future__ import annotations

import numpy as np
import torch

from sextant.validate.allocation.corpus import Corpus

VOCAB, BASE, N_FACTS, FACT_WORDS = 2048, 31, 200_000, 4
#: Shares of segments: facts, copies, sums, words; lengths of copies and of free words.
SHARES, COPIED, FREE, REACH = (0.45, 0.15, 0.15, 0.25), 12, 6, 64
#: Exponents of the Zipf laws of words and of facts.
WORD_EXPONENT, FACT_EXPONENT = 1.0, 0.9
_COPY, _SUM, _FIRST_DIGIT = 0, 1, 2
_FIRST_WORD = _FIRST_DIGIT + BASE


def zipf(n: int, exponent: float, rng: np.random.Generator, size: int | tuple[int, ...]) -> np.ndarray:
    """Numbers from 0 on, the r-th with a chance of (r + 1)^-exponent."""
    total = np.cumsum(np.arange(1, n + 1, dtype=float) ** -exponent)
    return np.minimum(np.searchsorted(total, rng.random(size) * total[-1]), n - 1)


def synthetic(*, n_train: int = 60_000_000, n_held_out: int = 1_000_000, seed: int = 1) -> Corpus:
    """Training and held-out tokens of one language: the same facts, other draws."""
    rng = np.random.default_rng(seed)
    words = VOCAB - _FIRST_WORD
    names = _FIRST_WORD + rng.integers(0, words, (N_FACTS, 2))
    facts = np.concatenate((names, _FIRST_WORD + zipf(words, WORD_EXPONENT, rng, (N_FACTS, FACT_WORDS))), axis=1)
    train, held_out = (torch.from_numpy(_tokens(n, facts, rng)) for n in (n_train, n_held_out))
    about = (
        f"seed {seed}, {N_FACTS} facts, shares of facts, copies, sums, words {SHARES}, Zipf exponents "
        f"{WORD_EXPONENT:g} (words) and {FACT_EXPONENT:g} (facts)"
    )
    return Corpus(name="synthetic", train=train, held_out=held_out, vocab_size=VOCAB, about={"corpus": about})


def _tokens(n: int, facts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``n`` tokens: kinds are drawn first, every kind is filled at once, copies from left to right in rounds."""
    lengths = np.array([facts.shape[1], 1 + COPIED, 5, FREE])
    n_segments = int(n / (lengths @ np.array(SHARES)) * 1.05) + 100
    kinds = rng.choice(4, n_segments, p=SHARES)
    kinds[:REACH] = 3
    ends = np.cumsum(lengths[kinds])
    starts = ends - lengths[kinds]
    found = np.empty(ends[-1], dtype=np.int32)

    def fill(kind: int, values: np.ndarray) -> None:
        found[starts[kinds == kind][:, None] + np.arange(values.shape[1])] = values

    def count(kind: int) -> int:
        return int((kinds == kind).sum())

    fill(0, facts[zipf(N_FACTS, FACT_EXPONENT, rng, count(0))])
    digits = rng.integers(0, BASE, (count(2), 3))
    marks = np.full((count(2), 1), _SUM)
    fill(2, np.hstack((marks, _FIRST_DIGIT + digits, _FIRST_DIGIT + digits.sum(1, keepdims=True) % BASE)))
    fill(3, _FIRST_WORD + zipf(VOCAB - _FIRST_WORD, WORD_EXPONENT, rng, (count(3), FREE)))
    return _copied(found, starts[kinds == 1], rng)[:n]


def _copied(found: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill the copies: each repeats ``COPIED`` tokens that end at most ``REACH`` tokens before its mark.

    A source may lie in an earlier copy, so sources are followed back until they lie outside of copies.
    """
    found[marks] = _COPY
    back = rng.integers(COPIED, REACH, len(marks))
    source = np.arange(len(found), dtype=np.int64)
    places = (marks[:, None] + 1 + np.arange(COPIED)).ravel()
    source[places] = (marks[:, None] - back[:, None] + np.arange(COPIED)).ravel()
    while True:
        further = source[source[places]]
        if np.array_equal(further, source[places]):
            break
        source[places] = further
    found[places] = found[source[places]]
    return found
