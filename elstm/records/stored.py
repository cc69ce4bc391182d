"""Defines the interface through which a report reads a run, and implements it for run folders.

Rows of an archive implement it too (elstm/records/archive.py). Both hold plain data, so that
settings without an option in this version are read like any other.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from elstm.files.bounded import Config, Damaged, read_config, read_status, read_text
from elstm.records.status import in_folder

# The tables of a run folder, with the largest size that is read.
TABLES = {
    "metrics.csv": 64_000_000,  # 500,000 rows
    "norms.csv": 16_000_000,
    "over_time.csv": 16_000_000,
    "test_correct.csv": 1_000_000,  # about four million images
}
csv.field_size_limit(1_000_000)  # its cell; Python's limit of 131,072 is about 500,000 images


class StoredRun(Protocol):
    """Reads a run on disk. Each method raises `Damaged` if a file is missing or unusable."""

    @property
    def name(self) -> str:
        """Returns the path that a report shows, as one line."""

    @property
    def folder(self) -> Path:
        """Returns the run folder, or its place before it was archived."""

    def config(self) -> Config:
        """Returns all settings, flat."""

    def status(self) -> dict[str, Any]:
        """Returns the fields of status.json."""

    def lines(self, table: str) -> list[str]:
        """Returns the complete lines of one of `TABLES`; the first one names the columns."""


@dataclass(frozen=True)
class RunFolder:
    """Reads a run folder as elstm-train writes it."""

    name: str
    folder: Path

    def config(self) -> Config:
        if (self.folder / ".hydra").is_symlink():
            raise Damaged(".hydra is a link: only plain folders are read")
        return read_config(self.folder / ".hydra" / "config.yaml")

    def status(self) -> dict[str, Any]:
        try:
            status = read_status(self.folder / "status.json")
        except Damaged as error:
            if str(error) == "no status.json":
                raise Damaged("no status.json: not started yet, or killed at once") from None
            raise
        if isinstance(text := status.get("error"), str):  # of a run that stored its full path
            status["error"] = in_folder(text, self.folder)
        return status

    def lines(self, table: str) -> list[str]:
        # A last line without its end is being written at this moment.
        text = read_text(self.folder / table, TABLES[table])
        return text[: text.rfind("\n") + 1].splitlines()


def table_rows(run: StoredRun, table: str) -> list[dict[str, str]]:
    """Returns a table's rows by column name; none where the run has no such table."""
    try:
        return rows_of(run.lines(table))
    except Damaged:
        return []


def rows_of(lines: Iterable[str]) -> list[dict[str, str]]:
    """Parses the lines of a table; every row has exactly the columns of the first line."""
    try:
        header, *rows = csv.reader(lines)
    except (csv.Error, ValueError):  # a cell without an end; no line at all
        return []
    return [dict(zip(header, [*row, *[""] * len(header)], strict=False)) for row in rows if row]
