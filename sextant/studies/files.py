"""Results on disk: every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sextant.simulator.errors import InputError


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file that takes the place of ``path`` when the block ends well, and leaves it alone when it does not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        text = "b" not in mode
        with os.fdopen(handle, mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def folder(path: str | Path) -> Path:
    """``path`` as an existing, writable directory; InputError otherwise."""
    place = Path(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {place}: cannot be made a folder ({error.strerror}); name another one") from None
    if not os.access(place, os.W_OK):
        raise InputError(f"--out {place}: cannot be written; name another folder")
    return place


def save(path: Path, write: Callable[[IO], object], mode: str = "w") -> Path:
    """Write ``path`` through ``write``, atomically; returns the path. InputError if the disk refuses it."""
    try:
        with replacing(path, mode) as file:
            write(file)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path}: cannot be written ({why}); make room or name another folder") from None
    return path
