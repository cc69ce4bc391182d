"""Reads the rows of CSV and Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elstm.errors import UserError

# The first bytes of files that users take for tables.
PACKED = {b"PK\x03\x04": "a .zip archive or an Excel file", b"\x1f\x8b": "compressed by gzip"}


def rows_of(path: Path, separator: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields number and cells of each row, the header first.

    Args:
        path: a CSV or Parquet file.
        separator: between the cells of CSV.

    Raises:
        UserError: the file cannot be read as a table.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    packed = next((what for mark, what in PACKED.items() if start.startswith(mark)), None)
    if packed is not None:
        raise UserError(f"{path} is {packed}: unpack it, or save the table as CSV or Parquet")
    is_parquet = path.suffix.lower() == ".parquet" or start == b"PAR1"
    return _parquet_rows(path) if is_parquet else _csv_rows(path, separator)


def _csv_rows(path: Path, separator: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields line number and cells, the header first; a BOM and CRLF make no difference."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Blanks after a separator would make the quotes behind them a part of the text.
            blanks = separator != " "
            reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=blanks)
            width = 0
            for cells in reader:
                if not cells or (len(cells) == 1 and not cells[0].strip()):
                    continue  # an empty line, or one of blanks
                if not width:
                    width = len(cells)
                    cells = [cell.strip() for cell in cells]
                elif len(cells) != width:
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, and the header has "
                        f"{width}"
                    )
                yield reader.line_num, cells
            if not width:
                raise UserError(f"{path} is empty")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields row number and cells, the header first, a batch of rows in memory at a time."""
    try:
        from pyarrow import ArrowException, parquet  # an extra: most installs have none
    except ImportError as error:
        raise UserError(
            f"{path}: Parquet files need pyarrow: pip install 'elstm[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            yield 0, names
            number = 0
            for batch in file.iter_batches():
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, cells
    except (OSError, ArrowException, ValueError) as error:
        # ValueError: of nanoseconds without pandas, which the message names.
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a Parquet file: {reason}") from error
