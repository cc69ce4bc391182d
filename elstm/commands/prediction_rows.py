"""Writes rows of predictions as CSV, or as Parquet with the extra of that name.

A row has texts, such as a file or an id and a label, then the predicted class, its probability, and
the probability of every class.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from elstm.errors import UserError
from elstm.files.bounded import starts_formula

GROUP = 10_000  # rows that are held in memory and written together

Shown = Callable[[str, bool], str]


def shown_text(text: str, terminal: bool) -> str:
    """Returns text for a cell that no spreadsheet reads as a formula; a negative number is none.

    Args:
        terminal: whether control characters would be executed.
    """
    shown = f"'{text}" if starts_formula(text) else text
    return "".join(c if c.isprintable() else "?" for c in shown) if terminal else shown


class Rows(Protocol):
    """Receives predictions."""

    def start(self, names: Sequence[str], classes: Sequence[str], shown: Shown) -> None:
        """Starts a table.

        Args:
            names: the names of the texts of each row.
            classes: the classes of the probabilities.
            shown: converts a text to a cell that a spreadsheet only shows, as does a terminal if
                its second argument is True.
        """

    def add(self, texts: Sequence[str], probabilities: Sequence[float]) -> None: ...


class CsvRows:
    """Writes rows as CSV."""

    def __init__(self, out: TextIO) -> None:
        self.terminal = out.isatty()
        self.writer = csv.writer(_Lines(out))
        self.classes: Sequence[str] = ()
        self.shown: Shown

    def start(self, names: Sequence[str], classes: Sequence[str], shown: Shown) -> None:
        self.classes, self.shown = classes, shown
        self.writer.writerow(shown_text(cell, self.terminal) for cell in _header(names, classes))

    def add(self, texts: Sequence[str], probabilities: Sequence[float]) -> None:
        best = _best(probabilities)
        cells = [self.shown(text, self.terminal) for text in texts]
        cells.append(shown_text(self.classes[best], self.terminal))
        numbers = [probabilities[best], *probabilities]
        self.writer.writerow([*cells, *(f"{value:.6f}" for value in numbers)])


class ParquetRows:
    """Writes rows as Parquet: texts as they are, null for an empty one, and float32 numbers."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.columns: list[list[Any]] = []
        self.classes: Sequence[str] = ()
        self.writer: Any = None

    def start(self, names: Sequence[str], classes: Sequence[str], shown: Shown) -> None:
        pyarrow, parquet = _pyarrow()
        self.classes = classes
        header = _header(names, classes)
        texts = len(names) + 1
        kinds = [pyarrow.string()] * texts + [pyarrow.float32()] * (len(header) - texts)
        self.schema = pyarrow.schema(list(zip(header, kinds, strict=True)))
        self.writer = parquet.ParquetWriter(self.file, self.schema)
        self.columns = [[] for _ in header]

    def add(self, texts: Sequence[str], probabilities: Sequence[float]) -> None:
        best = _best(probabilities)
        cells = [*(text or None for text in texts), self.classes[best]]
        row = [*cells, probabilities[best], *probabilities]
        for column, value in zip(self.columns, row, strict=True):
            column.append(value)
        if len(self.columns[0]) == GROUP:
            self._flush()

    def _flush(self) -> None:
        pyarrow, _ = _pyarrow()
        if self.columns and self.columns[0]:
            self.writer.write_table(pyarrow.table(self.columns, schema=self.schema))
            self.columns = [[] for _ in self.columns]

    def close(self) -> None:
        self._flush()
        self.writer.close()


@contextmanager
def rows_for(path: Path, file: IO[bytes]) -> Iterator[Rows]:
    """Returns a writer of rows to an open file, in the format of the ending of its name."""
    if is_parquet(path):
        table = ParquetRows(file)
        yield table
        table.close()
        return
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield CsvRows(text)
        text.flush()
    finally:
        with suppress(ValueError, OSError):
            text.detach()


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def check_output(path: Path | None) -> None:
    """Raises UserError where the output is a Parquet file and pyarrow is missing."""
    if path is not None and is_parquet(path):
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # an extra: most installs have none
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow: pip install 'elstm[parquet]', or name the output .csv"
        ) from error
    return pyarrow, parquet


def _header(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    return [*names, "predicted", "probability", *(f"p({name})" for name in classes)]


def _best(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


class _Lines:
    """Receives the rows of a csv.writer; its encoding's missing characters are escaped.

    The writer quotes cells that hold a part of its line end. Its own is CR LF, so that a CR in a
    name is quoted; the rows written end with LF.
    """

    def __init__(self, out: TextIO) -> None:
        self.out, self.encoding = out, getattr(out, "encoding", None) or "utf-8"

    def write(self, row: str) -> None:
        row = f"{row.removesuffix(csv.excel.lineterminator)}\n"
        self.out.write(row.encode(self.encoding, "backslashreplace").decode(self.encoding))
