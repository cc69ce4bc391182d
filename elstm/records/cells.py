"""Writes settings as cells of a table and reads them back without a loss."""

from __future__ import annotations

import json
import re
from typing import Any

from elstm.files.bounded import Config, Damaged, Value

_INT = re.compile(r"-?\d{1,25}", re.ASCII)
_FLOAT = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?|-?\.inf", re.ASCII)
_WORDS: dict[str, Value] = {"null": None, "true": True, "false": False}


def encode(value: Value) -> str:
    """Returns a value as the text of a cell, from which `decode` makes the same value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value).replace("inf", ".inf")  # as YAML writes it
    # Text that a spreadsheet would read as a formula is quoted as well.
    plain = (
        value and value.isprintable() and value[0] not in "\"'=+-@＝＋－＠ " and value[-1] != " "
    )
    if plain and value not in _WORDS and not _INT.fullmatch(value) and not _FLOAT.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def decode(cell: str) -> Value:
    """Returns the value of a cell that is not empty.

    Raises:
        ValueError: a quoted text in the cell has no end.
    """
    if cell in _WORDS:
        return _WORDS[cell]
    if _INT.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell.replace(".inf", "inf"))
    if cell.startswith('"'):
        text = json.loads(cell)
        if not isinstance(text, str):
            raise ValueError(cell)
        return text
    return cell


def settings_tree(config: Config) -> dict[str, Any]:
    """Returns the nested config of a flat one."""
    tree: dict[str, Any] = {}
    for key, value in config.items():
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            inner = place.setdefault(group, {})
            if not isinstance(inner, dict):
                raise Damaged(f"the setting {key} is also a value")
            place = inner
        place[name] = {} if value == "{}" else [] if value == "[]" else value
    return {key: _with_lists(value) for key, value in tree.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _with_lists(item) for key, item in value.items()}
    is_list = inner and list(inner) == [str(index) for index in range(len(inner))]
    return list(inner.values()) if is_list else inner
