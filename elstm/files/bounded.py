"""Reads files of unknown origin within bounds of size, and executes nothing in them."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

Value = str | int | float | bool | None
Config = dict[str, Value]  # a nested config, flat: "model.hidden_size" -> 128

MAX_CONFIG_BYTES = 100_000  # a real one has about 2,000
MAX_STATUS_BYTES = 1_000_000
MAX_NODES = 5_000  # of a config: aliases let a small YAML file unfold into a huge tree
MAX_DEPTH = 20

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # the first character of a formula in a cell

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# YAML 1.1 reads 1e-3 as a text, Hydra as a number. A text in quotes stays one, such as '2020'.
_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$", re.ASCII)
_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _SafeLoader(yaml.SafeLoader):
    """Reads plain values, with Hydra's numbers."""


class _FastLoader(_Fastest):
    """Does the same by libyaml where it is installed."""


class _Dumper(yaml.SafeDumper):
    """Quotes each text that the loaders would read as a number."""


for _kind in (_SafeLoader, _FastLoader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _WITH_EXPONENT, list("-+.0123456789"))


class Damaged(Exception):
    """Reports that a file cannot be used; the message names it and the reason on one line."""


def open_regular(path: Path, max_bytes: int) -> IO[str]:
    """Opens a UTF-8 text file, under the conditions of `open_bytes`."""
    return io.TextIOWrapper(open_bytes(path, max_bytes), encoding="utf-8")


def open_bytes(path: Path, max_bytes: int) -> IO[bytes]:
    """Opens a plain file; refuses links (they may lead out of the folder), pipes and devices."""
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink():
            raise Damaged(f"{path.name} is a link: only plain files are read")
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise Damaged(f"no {path.name}") from None
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_size > max_bytes:
        os.close(descriptor)
        reason = (
            f"larger than {max_bytes:,} bytes" if stat.S_ISREG(info.st_mode) else "not a plain file"
        )
        raise Damaged(f"{path.name} is {reason}")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, max_bytes: int) -> str:
    """Returns the text of a small file."""
    with open_regular(path, max_bytes) as file:
        try:
            return file.read(max_bytes)
        except (UnicodeDecodeError, OSError):
            raise Damaged(f"{path.name} is not UTF-8 text") from None


def read_config(path: Path) -> Config:
    """Reads a Hydra config.yaml and makes it flat. Interpolations stay as they are written."""
    return flatten(read_tree(path), path.name)


def read_tree(path: Path) -> dict[Any, Any]:
    """Reads a small YAML file of settings. Aliases may let it unfold: `flatten` counts."""
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise Damaged(f"{path.name} holds no settings")
    return tree


def read_yaml(path: Path) -> Any:
    """Reads a small YAML file of plain values."""
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        return yaml.load(text, Loader=_loader(text))
    except Exception as error:  # the loaders raise AttributeError, OverflowError and others too
        raise Damaged(f"{path.name} is not plain YAML ({one_line(error, 80)})") from None


def _loader(text: str) -> Any:
    """Returns the fastest loader that is safe for the text.

    libyaml is ten times faster, but overflows the C stack on deeply nested text.

    Each level of nesting needs a bracket or a column, so that few brackets and short lines bound
    the depth. All other text goes to the Python loader, which raises RecursionError instead.
    """
    brackets = text.count("[") + text.count("{")
    columns = max((len(line) for line in text.splitlines()), default=0)
    if brackets < 500 and columns < 1000:
        return _FastLoader
    return _SafeLoader


def to_yaml(tree: Mapping[Any, Any], **options: Any) -> str:
    """Returns plain values as YAML, from which `read_tree` reads the same values.

    Args:
        options: of yaml.dump.
    """
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def flatten(tree: dict[Any, Any], file: str) -> Config:
    """Returns a nested config with dotted keys, at most `MAX_NODES` of them.

    Args:
        tree: the nested config.
        file: the name of the file, for the error message.
    """
    flat: Config = {}
    nodes = 0

    def visit(value: Any, key: str, depth: int) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise Damaged(f"{file} has more than {MAX_NODES:,} entries or {MAX_DEPTH} levels")
        if isinstance(value, dict) and value:
            for part, item in value.items():
                name = part if isinstance(part, str) else str(_scalar(part))
                visit(item, f"{key}.{name}" if key else name, depth + 1)
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                visit(item, f"{key}.{index}", depth + 1)
        else:
            flat[key] = _scalar(value)

    visit(tree, "", 0)
    return flat


def _scalar(value: Any) -> Value:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{value:#x}"[:40]  # Python refuses to print it in decimal
    if isinstance(value, float) and value != value:
        return "nan"  # equal to itself, so that runs can be grouped by it
    if value is None or isinstance(value, int | float):
        return value
    return str(value)[:1000]  # dates, empty containers


def read_status(path: Path) -> dict[str, Any]:
    """Reads status.json as a dictionary, from which `number` and `text` take fields."""
    try:
        status = json.loads(read_text(path, MAX_STATUS_BYTES))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is not JSON ({one_line(error, 80)})") from None
    if not isinstance(status, dict):
        raise Damaged(f"{path.name} holds no fields")
    return status


def number(status: dict[str, Any], key: str, *, at_most: float = float("inf")) -> float | None:
    """Returns a field as a finite number from 0 up, or None if it holds none."""
    value = status.get(key)
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        value = float(value)
    except (ValueError, OverflowError):
        raise Damaged(f"status.json: {key} is not a number") from None
    if not np.isfinite(value):
        return None
    if not 0 <= value <= at_most:
        raise Damaged(f"status.json: {key} = {value:g} is out of range")
    return value


def text(status: dict[str, Any], key: str, limit: int = 200) -> str:
    """Returns a field as one printable line, empty if there is none."""
    value = status.get(key)
    return "" if value is None else one_line(value, limit)


def parse_metrics(lines: Sequence[str], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the named columns of metrics.csv, each (rows,); empty and absent cells are NaN."""
    name = "metrics.csv"
    header = lines[0].split(",") if lines else []
    if "epoch" not in header or len(set(header)) != len(header):
        raise Damaged(f"{name}: its first line does not name the columns")
    found = [(column, header.index(column)) for column in columns if column in header]
    table: dict[str, list[float]] = {column: [] for column, _ in found}
    for line_number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        if len(cells) != len(header):
            raise Damaged(f"{name}, line {line_number}: not {len(header)} cells")
        for column, index in found:
            cell = cells[index]
            try:
                table[column].append(float(cell) if cell else np.nan)
            except ValueError:
                where = f"{name}, line {line_number}"
                raise Damaged(f"{where}: {column} is not a number") from None
    rows = len(table["epoch"])
    return {column: _column(table.get(column, [np.nan] * rows)) for column in columns}


def _column(cells: list[float]) -> np.ndarray:
    values = np.array(cells, dtype=float)
    with np.errstate(invalid="ignore"):
        values[~(np.abs(values) < 1e30)] = np.nan  # infinite, or soon to be in a sum
    return values


def spreadsheet_safe(text: str) -> str:
    """Returns a text as one line for a CSV cell that no spreadsheet takes for a formula."""
    text = one_line(text, 1000)
    return f"'{text}" if text[:1] in FORMULA else text


def starts_formula(text: str) -> bool:
    """Returns whether a spreadsheet may take a text for a formula, and not for a negative number.

    Spreadsheets skip a tab or a line end before it.
    """
    start = text.lstrip("\t\r\n")[:1]
    return start in FORMULA and not (start == "-" and _NUMBER.fullmatch(text))


def one_line(value: object, limit: int = 200) -> str:
    """Returns a value as one line of printable characters (no terminal escapes), cut at `limit`."""
    text = str(value)
    if len(text) <= limit and text.isprintable() and "  " not in text and text == text.strip():
        return text
    words = " ".join(text[: 10 * limit].split())
    words = "".join(c if c.isprintable() else "?" for c in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"


def file_text(path: str | Path) -> str:
    """Returns a file's name, in which bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
