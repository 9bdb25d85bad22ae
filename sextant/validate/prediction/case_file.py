"""Files of kernel cases: a header, one case per line, lines starting with # before the header kept, a chunk at a time.

A file that is none (no header, no column ``op``, not text) is one error with path, line and column; what is wrong with
one row is that row's affair.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from sextant.simulator.errors import InputError, Problem
from sextant.validate.prediction.vocabulary import KINDS, PHASES, ops

#: Rows that are read, predicted and written at once.
CHUNK_ROWS = 65_536

_REMEDY = "give a CSV whose first line names the columns, e.g. op,format,m,n,k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows, each as long as the header. ``problems`` says, by index, which rows had another number of cells."""

    rows: Sequence[Sequence[str]]
    problems: dict[int, str] = field(default_factory=dict)


class CaseFile:
    """An open file of kernel cases: ``comments`` and ``header`` are read at once, ``chunks`` reads on.

    Plain or, by its name, gzipped. InputError for a file that cannot be read or is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.comments: list[str] = []
        self._line = 0
        self._file = self._opened()
        try:
            self._reader = csv.reader(self._lines(), strict=True)
            self.header = self._checked_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> CaseFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def chunks(self, n_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """The rows in their order, at most ``n_rows`` at once; blank lines are no rows. InputError if there is none."""
        width, rows, problems, any_row = len(self.header), [], {}, False
        for row in self._rows():
            if not row:
                continue
            if len(row) != width:
                problems[len(rows)] = f"{len(row)} cells where the header names {width} columns; add or remove cells"
                row = [*row, *[""] * (width - len(row))][:width]
            rows.append(row)
            if len(rows) == n_rows:
                yield Chunk(rows=rows, problems=problems)
                rows, problems, any_row = [], {}, True
        if rows:
            yield Chunk(rows=rows, problems=problems)
        elif not any_row:
            raise self._problem("no case below the header; add one per line")

    def _opened(self) -> TextIO:
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder; name a CSV file in it")
        try:
            if self.path.suffix == ".gz":
                return gzip.open(self.path, "rt", encoding="utf-8-sig", newline="")
            return self.path.open(encoding="utf-8-sig", newline="")
        except FileNotFoundError:
            raise InputError(f"{self.path}: there is no such file; name a CSV of kernel cases") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}); name a CSV of kernel cases") from None

    def _lines(self) -> Iterator[str]:
        """Lines without comments; those before the header are kept."""
        started = False
        for line in self._file:
            self._line += 1
            if "\0" in line:
                raise self._problem(f"a NUL byte: not text; {_REMEDY}", column=line.index("\0") + 1)
            if line.startswith("#"):
                if not started:
                    self.comments.append(line.rstrip("\r\n"))
                continue
            started = started or bool(line.strip())
            yield line

    def _rows(self) -> Iterator[list[str]]:
        """Rows of cells; what the reader stumbles over becomes an error that says where."""
        try:
            yield from self._reader
        except UnicodeDecodeError:
            line, column = self._undecodable()
            raise self._problem(f"not UTF-8 text; {_REMEDY}", line=line, column=column) from None
        except csv.Error as error:
            raise self._problem(f"not a CSV: {error}; close or remove the quotes") from None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path}: cannot be read ({error}); name a whole file") from None

    def _undecodable(self) -> tuple[int, int]:
        """Line and column of the first byte that is not UTF-8."""
        read = gzip.open if self.path.suffix == ".gz" else open
        with contextlib.suppress(OSError, EOFError, zlib.error), read(self.path, "rb") as raw:
            for number, line in enumerate(raw, 1):
                try:
                    bytes(line).decode("utf-8")
                except UnicodeDecodeError as error:
                    return number, error.start + 1
        return self._line + 1, 1

    def _checked_header(self) -> list[str]:
        names = next((row for row in self._rows() if row), None)
        if names is None:
            self._line = max(self._line, 1)
            raise self._problem(f"no header: the file is empty; {_REMEDY}")
        names = [name.strip() for name in names]
        twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if twice is not None and "op" in names:
            raise self._problem(f"the column {twice!r} is named twice; rename one")
        if "op" in names:
            return names
        for separator in ";\t|":
            if "op" in [name.strip() for name in ",".join(names).split(separator)]:
                raise self._problem(f"columns are separated by {separator!r}; separate them by commas")
        if names[0].lower() in {*ops(), *KINDS, *PHASES}:
            raise self._problem(f"no header: the first line is a case already; {_REMEDY}")
        shown = ", ".join(repr(name[:24]) for name in names[:6]) + (" ..." if len(names) > 6 else "")
        raise self._problem(f"the header has no column 'op' but {shown}; {_REMEDY}")

    def _problem(self, message: str, *, line: int = 0, column: int = 1) -> InputError:
        place = {"path": str(self.path), "line": line or self._line, "column": column}
        return InputError(Problem(message=message, **place))
