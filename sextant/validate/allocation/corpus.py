"""Text that every Python installation carries: the Python source of its packages and of its standard library.

Files are read in the order of their names; a file is left out when most of its lines stood in earlier ones, so that
copies do not make a memory of n-grams look better than it is. Whole files are held out, chosen by a hash of their
names. Tokens are those of a byte-level BPE trained on a part of the training files.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Of every so many files one is held out; of every so many training files the tokenizer sees one.
HELD_OUT, TOKENIZER_SAMPLE = 100, 6
#: Files above these bytes are generated tables rather than source; shorter lines than this are no sign of a copy.
MAX_BYTES, MIN_LINE = 400_000, 12
#: Share of a file's lines that earlier files may have.
MAX_SEEN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Token ids, int32, on the device that trains; ``about`` says where they come from, for a header."""

    name: str
    train: Tensor
    held_out: Tensor
    vocab_size: int
    about: Mapping[str, str]

    def to(self, device: torch.device) -> Corpus:
        """The same tokens on ``device``."""
        return Corpus(
            name=self.name, train=self.train.to(device), held_out=self.held_out.to(device), about=self.about,
            vocab_size=self.vocab_size,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file: its name below its root, its text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the file is for evaluation alone."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") % HELD_OUT == 0


def roots() -> dict[str, Path]:
    """Where this Python keeps its packages and its standard library."""
    return {name: Path(sysconfig.get_path(key)) for name, key in (("packages", "purelib"), ("stdlib", "stdlib"))}


def sources(folders: Mapping[str, Path]) -> Iterator[Source]:
    """Python files below ``folders``, without copies; a folder of packages below the other root is read once."""
    seen: set[int] = set()
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            below = path.relative_to(folder).as_posix()
            if name == "stdlib" and below.startswith(("site-packages/", "dist-packages/")):
                continue
            if not 0 < path.stat().st_size <= MAX_BYTES:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            lines = {hash(line) for part in text.splitlines() if len(line := part.strip()) >= MIN_LINE}
            if lines and len(lines & seen) <= MAX_SEEN * len(lines):
                seen |= lines
                yield Source(name=f"{name}/{below}", text=text)


def python_source(folders: Mapping[str, Path] | None = None, *, vocab_size: int = 4096) -> Corpus:
    """The corpus of the files below ``folders`` (default: ``roots``); ValueError without the package tokenizers."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ValueError("corpus python: needs the package tokenizers; pip install tokenizers") from error
    files = list(sources(roots() if folders is None else folders))
    training = [file for file in files if not file.held_out]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<file>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((file.text for file in training[::TOKENIZER_SAMPLE]), trainer)

    def tokens(chosen: Sequence[Source]) -> Tensor:
        found = [np.zeros(0, dtype=np.int32)]
        for i in range(0, len(chosen), 512):
            for encoding in tokenizer.encode_batch_fast([file.text for file in chosen[i : i + 512]]):
                found.append(np.array([0, *encoding.ids], dtype=np.int32))
        return torch.from_numpy(np.concatenate(found))

    held_out = [file for file in files if file.held_out]
    return Corpus(
        name="python", train=tokens(training), held_out=tokens(held_out), vocab_size=vocab_size,
        about=_about(files) | {"corpus_split": f"{len(training)} files to train on, {len(held_out)} held out whole"},
    )  # fmt: skip


def _about(files: Sequence[Source]) -> dict[str, str]:
    """What was read: how much, one hash of all names and texts, and the packages with their versions."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + hashlib.sha256(file.text.encode()).digest())
    n_bytes = sum(len(file.text.encode()) for file in files)
    tops = {file.name.split("/")[1].removesuffix(".py") for file in files if file.name.startswith("packages/")}
    owners = metadata.packages_distributions()
    names = sorted({name for top in tops for name in owners.get(top, ())})
    return {
        "corpus": f"Python source of the installed packages and the standard library: {len(files)} files, "
        f"{n_bytes} bytes, without files most of whose lines stood in earlier ones",
        "corpus_sha256": total.hexdigest(),
        "corpus_packages": " ".join(f"{name}=={metadata.version(name)}" for name in names),
    }


def entropies(corpus: Corpus) -> tuple[float, float]:
    """Held-out loss in nats per token of the unigrams and of the bigrams of the training tokens.

    Both are smoothed: one is added to each unigram's count, one unigram's worth to each bigram's.
    """
    n, train, held_out = corpus.vocab_size, corpus.train.long(), corpus.held_out.long()
    unigram = torch.bincount(train, minlength=n).double() + 1.0
    p_unigram = unigram / unigram.sum()
    pairs = torch.bincount(train[:-1] * n + train[1:], minlength=n * n)
    firsts = torch.bincount(train[:-1], minlength=n).double()
    a, b = held_out[:-1], held_out[1:]
    p_bigram = (pairs[a * n + b].double() + p_unigram[b]) / (firsts[a] + 1.0)
    return float(-p_unigram[held_out].log().mean()), float(-p_bigram.log().mean())
