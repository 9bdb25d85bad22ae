"""Files of rows that grow while they are measured, so that the same command continues an interrupted run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One family's file: ``case_columns`` name a row, ``result_columns`` and ``error`` follow."""

    path: Path
    case_columns: tuple[str, ...]
    result_columns: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns in the order of the file."""
        return (*self.case_columns, *self.result_columns, "error")

    def key(self, row: Mapping[str, Cell]) -> tuple[str, ...]:
        """What names a row, as text; absent columns are empty."""
        return tuple(str(row.get(column, "")) for column in self.case_columns)

    def read(self) -> tuple[dict[str, str], list[dict[str, str]]]:
        """Header and rows; ``ValueError`` where the file has other columns."""
        with self.path.open(newline="", encoding="utf-8") as file:
            lines = file.readlines()
        header = dict(line[2:].rstrip("\n").split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
        reader = csv.DictReader(line for line in lines if not line.startswith("#"))
        if tuple(reader.fieldnames or ()) != self.columns:
            raise ValueError(f"{self.path}: columns are not those of this version; write to another folder")
        return header, list(reader)

    def start(self, header: Mapping[str, str], *, retry: bool) -> set[tuple[str, ...]]:
        """The rows that are there, after making the file where there is none; ``retry`` drops those with an error.

        ``ValueError`` where the file was measured on another device.
        """
        if not self.path.exists():
            self._write(header, [])
            return set()
        before, rows = self.read()
        if before.get("device") != header["device"]:
            raise ValueError(
                f"{self.path}: was measured on {before.get('device')!r}, this is {header['device']!r}; "
                "write to another folder"
            )
        if retry:
            rows = [row for row in rows if not row["error"]]
            self._write(before, rows)
        return {self.key(row) for row in rows}

    def append(self, row: Mapping[str, Cell]) -> None:
        """Put one row on disk."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, fieldnames=list(self.columns), lineterminator="\n").writerow(row)

    def _write(self, header: Mapping[str, str], rows: Sequence[Mapping[str, Cell]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            file.writelines(f"# {key}: {value}\n" for key, value in header.items())
            writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=list(self.columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
