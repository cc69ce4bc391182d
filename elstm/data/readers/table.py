"""Reads long tables, a row for each time step, from CSV or Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from elstm.data.labelled import (
    LIKE_SPLITS,
    SPLITS,
    UNLABELLED,
    LabelledSet,
    Narrowing,
    Source,
    check_memory,
    label_text,
    padded,
)
from elstm.data.readers.cells import group_cell, id_cell, number_cell, time_cell
from elstm.data.readers.row_numbers import RowNumbers
from elstm.data.readers.table_rows import rows_of
from elstm.errors import UserError

SUFFIXES = (".csv", ".parquet")
# Endings of tables that are not read from a folder, and would be overlooked there.
LIKE_TABLES = {
    *SUFFIXES, ".tsv", ".txt", ".dat", ".pq", ".gz", ".zip", ".bz2", ".xz", ".xlsx", ".xls",
}  # fmt: skip
NAMELESS = ("", "Unnamed: 0", "__index_level_0__")  # what pandas calls an index


@dataclass(frozen=True)
class Columns:
    """Names the columns by their role.

    Attributes:
        id: rows with the same value are one sequence.
        label: its class; the same in all rows of a sequence. None: there are no labels.
        time: rows are sorted by it within a sequence; None: they are in order, and the rows of a
            sequence stand together.
        features: the columns that are fed to the model; None: all others.
        separator: between the cells of a CSV file.
        label_required: False: cells of the label may be empty.
        trained: the features are those of a run, and the option data.features does not exist.
        group: its group, the same in all rows of a sequence; None: there are none.
        decimal: the sign before the decimals of numbers in a CSV file.
    """

    id: str
    label: str | None
    time: str | None = None
    features: tuple[str, ...] | None = None
    separator: str = ","
    label_required: bool = True
    trained: bool = False
    group: str | None = None
    decimal: str = "."


@dataclass
class _Sequence:
    label: str
    group: str
    line: int  # the line of its first row
    last: int  # number of its last row, to see whether rows stand together
    rows: list[list[float]] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)  # of one type that can be sorted


class TableOptions(Protocol):
    path: str
    id: str
    label: str
    time: str | None
    features: str | tuple[str, ...] | None  # a tuple: those that a run was trained on
    separator: str
    group: str | None
    decimal: str


def read_unlabelled(options: TableOptions) -> Source:
    """Reads tables whose column of labels may be missing."""
    return read(options, labelled=False)


def read(options: TableOptions, *, labelled: bool = True) -> Source:
    """Reads the source `table`; see `read_table`."""
    features = options.features
    trained = isinstance(features, tuple)
    if isinstance(features, str):
        features = tuple(name.strip() for name in features.split(","))
    separator = {r"\t": "\t"}.get(options.separator, options.separator)
    if len(separator) != 1:
        raise UserError(f"data.separator={options.separator}: has to be one character, or \\t")
    columns = Columns(
        options.id, options.label, options.time, features, separator, trained=trained,
        group=options.group, decimal=options.decimal,
    )  # fmt: skip
    return read_table(Path(options.path), columns, labelled=labelled)


def read_table(path: Path, columns: Columns, *, labelled: bool = True) -> Source:
    """Reads labelled sequences from one table, or from train, val and test files of a folder.

    Raises:
        UserError: a column is missing, a cell is no number, rows do not belong together, or the
            file is not a table.
    """
    return {split: _read(file, columns, labelled) for split, file in _files(path).items()}


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {"all": path}
    names = {f"{split}{end}": split for split in SPLITS for end in SUFFIXES}
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in sorted(path.iterdir()):
        if file.name.lower() in names and file.is_file():
            files[names[file.name.lower()]].append(file)
        elif (
            file.suffix.lower() in LIKE_TABLES
            and file.stem.partition(".")[0].lower() in LIKE_SPLITS
        ):
            raise UserError(
                f"{path} holds {file.name}, which would not be used: the splits are train, val and "
                "test, as .csv or .parquet; rename it, or leave it out"
            )
    double = next((found for found in files.values() if len(found) > 1), None)
    if double:
        raise UserError(
            f"{path} holds both {double[0].name} and {double[1].name}: remove one of them"
        )
    if not any(files.values()):
        raise UserError(
            f"{path} holds no train.csv or train.parquet: add one, or give a single file"
        )
    return {split: found[0] for split, found in files.items() if found}


def _read(path: Path, columns: Columns, labelled: bool) -> LabelledSet:
    rows = rows_of(path, columns.separator)
    _, names = next(rows)
    if not labelled and columns.label not in names:
        columns = replace(columns, label=None)
    columns = replace(columns, label_required=labelled)
    places, features = _places(path, names, columns)
    sequences: dict[str, _Sequence] = {}
    count = 0
    numbering = RowNumbers() if columns.features is None else None
    for count, (line, cells) in enumerate(rows, 1):
        where = f"{path}, line {line}"
        sequence = _add(where, sequences, cells, places, features, columns, count, line)
        if numbering is not None:
            numbering.add(sequence, sequence.rows[-1])
        if count % 1_000_000 == 0:
            check_memory(str(path), count * len(features), 100)  # Python's numbers are large
    if not sequences:
        raise UserError(f"{path} holds no row below its header")
    arrays, narrow = [], Narrowing()
    for name, sequence in sequences.items():
        values = np.array(sequence.rows).reshape(len(sequence.rows), len(features))
        if columns.time is not None:
            values = values[_order(f"{path}: {columns.id}={name}", columns.time, sequence.times)]
        arrays.append(narrow(values))
        sequence.rows.clear()
    values, lengths = padded(arrays, str(path))
    labels = tuple(sequence.label for sequence in sequences.values())
    names = tuple(features)
    notes = narrow.notes(names)
    if len(sequences) > 1 and numbering is not None:
        notes += tuple(
            f"feature {names[each]} only rises in {path}, with each sequence, as row numbers and "
            "time stamps do, so it may reveal the sequence and the class: list the other columns "
            "in data.features"
            for each in numbering.found()
        )
    groups = tuple(sequence.group for sequence in sequences.values()) if columns.group else ()
    return LabelledSet(
        values, lengths, labels, tuple(sequences), (path,), names, notes=notes,
        groups=groups,
    )  # fmt: skip


def _order(where: str, column: str, times: Sequence[Any]) -> list[int]:
    """Returns the indices that sort the rows of a sequence by time."""
    try:
        order = sorted(range(len(times)), key=times.__getitem__)
    except TypeError as error:
        raise UserError(
            f"{where} has values of {column} (data.time) that cannot be compared: numbers and "
            "dates, or times with and without a time zone"
        ) from error
    for first, second in pairwise(order):
        if times[first] == times[second]:
            raise UserError(
                f"{where} has two rows with {column}={times[first]}: two sequences may have the "
                "same id"
            )
    return order


def _places(
    path: Path, names: Sequence[str], columns: Columns
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the indices of the named columns and of the features."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns named {twice!r}")
    wanted = {"data.id": columns.id}
    if columns.label is not None:
        wanted["data.label"] = columns.label
    if columns.time is not None:
        wanted["data.time"] = columns.time
    if columns.group is not None:
        wanted["data.group"] = columns.group
    same = [option for option, name in wanted.items() if list(wanted.values()).count(name) > 1]
    if same:
        raise UserError(f"{' and '.join(same)} name the same column: give each another one")
    given = columns.features
    if columns.trained and given is not None and not set(given) <= set(names):
        others = [name for name in names if name not in wanted.values()]
        raise UserError(
            f"{path} has the features {', '.join(others[:20])}, and the training data have "
            f"{', '.join(given[:20])}"
        )
    for option, name in [*wanted.items(), *(("data.features", name) for name in given or ())]:
        if name not in names:
            hint = ""
            if len(names) == 1 and ";" in names[0]:
                hint = "; its cells are apart by semicolons: set 'data.separator=\";\"'"
            elif len(names) == 1 and "\t" in names[0]:
                hint = "; its cells are apart by tabs: set data.separator='\\t'"
            raise UserError(
                f"{path} has no column {name!r} ({option}); it has {', '.join(names)}{hint}"
            )
    places = {option.removeprefix("data."): names.index(name) for option, name in wanted.items()}
    chosen = given if given is not None else [n for n in names if n not in wanted.values()]
    overlap = next((name for name in chosen if name in wanted.values()), None)
    if overlap is not None:
        raise UserError(f"data.features names {overlap!r}, which is the id, label, time or group")
    nameless = next((name for name in chosen if name in NAMELESS), None)
    if nameless is not None and given is None:
        raise UserError(
            f"{path} has a column without a name ({nameless!r}), which may be the row numbers that "
            "pandas writes: leave it out (to_csv(index=False)), or set data.features"
        )
    if not chosen:
        raise UserError(
            f"{path} has no column beside id, label, time and group: there are no features"
        )
    return places, {name: names.index(name) for name in chosen}


def _add(
    where: str, sequences: dict[str, _Sequence], cells: Sequence[Any], places: dict[str, int],
    features: dict[str, int], columns: Columns, number: int, line: int,
) -> _Sequence:  # fmt: skip
    """Adds one row to the sequence that it belongs to, and returns that."""
    name = id_cell(where, columns.id, cells[places["id"]])
    try:
        label = UNLABELLED
        if columns.label is not None:
            label = label_text(cells[places["label"]], required=columns.label_required)
    except ValueError as error:
        raise UserError(f"{where}: {columns.label}: {error}") from error
    group = group_cell(where, columns.group, cells[places["group"]]) if columns.group else ""
    sequence = sequences.setdefault(name, _Sequence(label, group, line, number - 1))
    for what, here, first in (("label", label, sequence.label), ("group", group, sequence.group)):
        if here != first:
            raise UserError(
                f"{where}: {columns.id}={name} has the {what} {here!r}, and {first!r} in line "
                f"{sequence.line}: a sequence has one {what}"
            )
    if columns.time is None and sequence.last != number - 1:
        raise UserError(
            f"{where}: {columns.id}={name} started in line {sequence.line}, and other rows are in "
            "between: two sequences have the same id, or the table needs sorting (data.time=COLUMN "
            "sorts it)"
        )
    sequence.last = number
    if columns.time is not None:
        cell = cells[places["time"]]
        sequence.times.append(time_cell(where, columns.time, cell, columns.decimal))
    sequence.rows.append(
        [number_cell(where, name, cells[at], columns.decimal) for name, at in features.items()]
    )
    return sequence
