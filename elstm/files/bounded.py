"""Reading of files that a stranger may have written: bounded in size, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

Value = str | int | float | bool | None
Config = dict[str, Value]  # a nested config, flat: "model.hidden_size" -> 128

MAX_CONFIG_BYTES = 100_000  # a real one has about 2,000
MAX_STATUS_BYTES = 1_000_000
MAX_METRICS_BYTES = 64_000_000  # 500,000 rows
MAX_NODES = 5_000  # of a config: aliases let a small YAML file unfold into a huge tree
MAX_DEPTH = 20

# YAML 1.1 reads 1e-3 as a string, Hydra as a number.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


class Damaged(Exception):
    """One line: which file cannot be used, and why."""


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
    """The whole text of a small file."""
    with open_regular(path, max_bytes) as file:
        try:
            return file.read(max_bytes)
        except (UnicodeDecodeError, OSError):
            raise Damaged(f"{path.name} is not UTF-8 text") from None


def read_config(path: Path) -> Config:
    """A Hydra config.yaml, flat. Interpolations stay as they are written."""
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        tree = yaml.load(text, Loader=_loader(text))
        if isinstance(tree, dict):
            return _flatten(tree, path.name)
    except Damaged:
        raise
    except Exception as error:  # the loaders raise AttributeError, OverflowError and others too
        raise Damaged(f"{path.name} is not plain YAML ({one_line(error, 80)})") from None
    raise Damaged(f"{path.name} holds no settings")


def _loader(text: str) -> Any:
    """libyaml is ten times faster, but overflows the C stack on deeply nested text.

    Each level of nesting costs a bracket or a column, so that few brackets and short lines bound
    the depth; anything else goes to the Python loader, which raises RecursionError instead.
    """
    brackets = text.count("[") + text.count("{")
    columns = max((len(line) for line in text.splitlines()), default=0)
    if brackets < 500 and columns < 1000:
        return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.SafeLoader


def _flatten(tree: dict[Any, Any], name: str) -> Config:
    flat: Config = {}
    nodes = 0

    def visit(value: Any, key: str, depth: int) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise Damaged(f"{name} has more than {MAX_NODES:,} entries or {MAX_DEPTH} levels")
        if isinstance(value, dict) and value:
            for part, item in value.items():
                visit(item, f"{key}.{part}" if key else str(part), depth + 1)
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                visit(item, f"{key}.{index}", depth + 1)
        else:
            flat[key] = _scalar(value)

    visit(tree, "", 0)
    return flat


def _scalar(value: Any) -> Value:
    if isinstance(value, str):
        if len(value) < 40 and _NUMBER.fullmatch(value):
            return float(value)
        return value
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{value:#x}"[:40]  # Python refuses to print it in decimal
    if isinstance(value, float) and value != value:
        return "nan"  # equal to itself, so that runs can be grouped by it
    if value is None or isinstance(value, int | float):
        return value
    return str(value)[:1000]  # dates, empty containers


def read_status(path: Path) -> dict[str, Any]:
    """status.json as a dictionary; `number` and `text` take its fields out."""
    try:
        status = json.loads(read_text(path, MAX_STATUS_BYTES))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is not JSON ({one_line(error, 80)})") from None
    if not isinstance(status, dict):
        raise Damaged(f"{path.name} holds no fields")
    return status


def number(status: dict[str, Any], key: str, *, at_most: float = float("inf")) -> float | None:
    """A finite number from 0 up, or None where there is none."""
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
    """A field as one printable line; empty where there is none."""
    value = status.get(key)
    return "" if value is None else one_line(value, limit)


def read_metrics(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named columns of metrics.csv, each (rows,); empty cells and absent columns are NaN.

    A last line without its end is being written at this moment: it is left out.
    """
    with open_regular(path, MAX_METRICS_BYTES) as file:
        try:
            header = file.readline().rstrip("\r\n").split(",")
            if "epoch" not in header or len(set(header)) != len(header):
                raise Damaged(f"{path.name}: its first line does not name the columns")
            found = [(name, header.index(name)) for name in columns if name in header]
            table: dict[str, list[float]] = {name: [] for name, _ in found}
            for line_number, line in enumerate(file, start=2):
                if not line.endswith("\n"):
                    break
                cells = line.rstrip("\r\n").split(",")
                if len(cells) != len(header):
                    raise Damaged(f"{path.name}, line {line_number}: not {len(header)} cells")
                for name, index in found:
                    cell = cells[index]
                    table[name].append(float(cell) if cell else np.nan)
        except UnicodeDecodeError:
            raise Damaged(f"{path.name} is not UTF-8 text") from None
        except ValueError:
            raise Damaged(f"{path.name}, line {line_number}: {name} is not a number") from None
    rows = len(table["epoch"])
    return {name: _column(table.get(name, [np.nan] * rows)) for name in columns}


def _column(cells: list[float]) -> np.ndarray:
    values = np.array(cells, dtype=float)
    with np.errstate(invalid="ignore"):
        values[~(np.abs(values) < 1e30)] = np.nan  # infinite, or soon to be in a sum
    return values


def harmless(text: str) -> str:
    """A text for a cell of a CSV file, as one line: a spreadsheet takes it for no formula."""
    text = one_line(text, 1000)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") else text


def one_line(value: object, limit: int = 200) -> str:
    """Any text as one line of printable characters (no terminal escapes), cut at the limit."""
    words = " ".join(str(value)[: 10 * limit].split())
    words = "".join(c if c.isprintable() else "?" for c in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"
