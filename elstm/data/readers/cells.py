"""Converts the cells of tables, text of CSV and values of Parquet."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np

from elstm.data.labelled import MISSING_CELLS, MissingLabelError, group_text, number_of
from elstm.errors import UserError


def id_cell(where: str, column: str, cell: Any) -> str:
    """Returns the name of the sequence to which a row belongs."""
    if isinstance(cell, bytes):  # text without a type in Parquet
        cell = cell.decode("utf-8", "backslashreplace")
    name = "" if cell is None or cell != cell else str(cell).strip()  # NaN equals nothing
    if name.lower() in MISSING_CELLS:
        given = f"holds {name!r}, which stands for a missing value" if name else "is empty"
        raise UserError(f"{where}: the column {column!r} {given}")
    return name


def group_cell(where: str, column: str, cell: Any) -> str:
    """Returns the group of a row."""
    try:
        return group_text(cell)  # 3 and 3.0 are one group
    except MissingLabelError as error:
        raise UserError(f"{where}: the column {column!r} (data.group): {error}") from error
    except ValueError:
        return str(cell)  # a date, say


def time_cell(where: str, column: str, cell: Any, decimal: str = ".") -> Any:
    """Returns what a row is sorted by: a number, or what Parquet has for dates and times.

    A whole number stays one: nanoseconds since 1970 need more than the 53 bits of a float. Dates,
    in CSV those of ISO 8601, are compared as they are, so that the time zone of the machine has no
    influence.

    Args:
        decimal: see `number_cell`.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if re.fullmatch("[+-]?[0-9]{1,4000}", text):
            return int(text)
        try:
            cell = math.nan if text.lower() in MISSING_CELLS else _moment(text, decimal)
        except ValueError:
            raise UserError(
                f"{where}: the column {column!r} (data.time) holds {text[:40]!r}, which is no "
                "time: write it as a number or as 2024-05-31 13:45:00, or in Parquet as a time "
                "stamp"
            ) from None
    if cell is None or cell != cell:  # NaN and NaT equal nothing
        raise UserError(f"{where}: the column {column!r} is empty")
    if isinstance(cell, int | float | Decimal | np.floating | date | time | timedelta):
        return cell
    raise UserError(f"{where}: the column {column!r} (data.time) holds {cell!r}, which is no time")


def _moment(text: str, decimal: str) -> float | datetime:
    """Returns the number, or the date of ISO 8601, that a text holds; else raises ValueError."""
    try:
        return _number(text, decimal)
    except ValueError:
        # Python 3.10 does not know Z.
        return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))


def _number(text: str, decimal: str) -> float:
    if decimal == ",":
        if "." in text:
            raise ValueError(f"{text!r} may have points between its thousands")
        text = text.replace(",", ".")
    return number_of(text)


def number_cell(where: str, column: str, cell: Any, decimal: str = ".") -> float:
    """Returns the value of a feature; NaN if it is missing.

    Args:
        decimal: the sign before the decimals of a number in text, a point or a comma.
    """
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        text = cell.strip()
        if text.lower() in MISSING_CELLS:
            return math.nan
        try:
            return _number(text, decimal)
        except ValueError:
            advice = "'data.features=\"A,B\"' selects the columns that are read"
            other = "," if decimal == "." else "."
            if re.fullmatch(f"[+-]?[0-9]+[{other}][0-9]+", text):
                option = f"'data.decimal=\"{other}\"'"
                advice = (
                    f"numbers are read as 0{decimal}5, with {option} as 0{other}5, and without "
                    "signs between thousands"
                )
            raise UserError(
                f"{where}: the column {column!r} holds {text[:40]!r}, which is no number; {advice}"
            ) from None
    # bool is an int. Older pyarrow returns numbers of 16 bits as those of NumPy.
    if isinstance(cell, int | float | Decimal | np.floating):
        return float(cell)
    if hasattr(cell, "timestamp"):
        utc = cell if cell.tzinfo is not None else cell.replace(tzinfo=timezone.utc)
        return float(utc.timestamp())
    raise UserError(f"{where}: the column {column!r} holds {cell!r}, which is no number")
