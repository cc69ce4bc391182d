"""Reads the UCR/UEA archive's `.ts` files (timeseriesclassification.com).

A file has lines of `@key value`, then `@data`, then one sequence per line. Colons separate its
dimensions, commas the values of a dimension, and the class label comes last. `?` or NaN marks a
missing value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from elstm.data.labelled import (
    LIKE_SPLITS,
    UNLABELLED,
    LabelledSet,
    Narrowing,
    Source,
    check_memory,
    label_text,
    number_of,
    padded,
)
from elstm.errors import UserError
from elstm.files.bounded import file_text

MAX_BYTES = 4_000_000_000
CHECKED = 1_000_000  # numbers, after which the free memory is checked again
ENDS = {"_TRAIN": "train", "_TEST": "test"}
HEADER_KEYS = (
    "@problemname", "@timestamps", "@missing", "@univariate", "@dimension", "@dimensions",
    "@equallength", "@serieslength", "@classlabel", "@targetlabel", "@data",
)  # fmt: skip


class TsOptions(Protocol):
    path: str


def read(options: TsOptions) -> Source:
    """Reads the source `ts`; see `read_ts`."""
    return read_ts(Path(options.path))


def read_unlabelled(options: TsOptions) -> Source:
    """Reads files that may have no class labels."""
    return read_ts(Path(options.path), labelled=False)


def read_ts(path: Path, *, labelled: bool = True) -> Source:
    """Reads NAME_TRAIN.ts and NAME_TEST.ts of a folder, the partner of a file, or one file.

    In a folder with several sets, it reads the one that has the folder's name. Without `labelled`,
    for a prediction, a file is read alone.

    Raises:
        UserError: there is no such file, or it is not one that can be classified.
    """
    files = _files(path) if labelled or path.is_dir() else {"all": path}
    source = {split: _read(file, labelled) for split, file in files.items()}
    shapes = {split: part.values.shape[2] for split, part in source.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{path}: the files have different numbers of dimensions: {shapes}")
    return source


def _files(path: Path) -> dict[str, Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".ts")
        found = {
            split: [file for file in files if file.stem.upper().endswith(end)]
            for end, split in ENDS.items()
        }
        names = [file.name for each in found.values() for file in each]
        if len(found["train"]) > 1:  # aeon has JapaneseVowels_eq_TRAIN.ts in JapaneseVowels
            called = path.resolve().name.upper()
            found = {
                split: [file for file in found[split] if file.stem.upper() == f"{called}{end}"]
                for end, split in ENDS.items()
            }
        if len(found["train"]) != 1 or len(found["test"]) > 1:
            raise UserError(
                f"{path} has to hold one NAME_TRAIN.ts and at most one NAME_TEST.ts, and holds "
                f"{', '.join(names) or 'none'}: give the file itself"
            )
        _refuse_other_splits(found["train"][0])
        return {split: each[0] for split, each in found.items() if each}
    for end, split in ENDS.items():
        if path.stem.upper().endswith(end):
            stem = path.stem[: -len(end)]
            pair = {split: path}
            for other_end, other in ENDS.items():
                file = None if other == split else _beside(path, f"{stem}{other_end}{path.suffix}")
                if file is not None:
                    pair[other] = file
            if len(pair) == 1 and not path.stem.endswith(end):
                break  # a file that happens to be called so
            _refuse_other_splits(path)
            return {each: pair[each] for each in ENDS.values() if each in pair}
    return {"all": path}


def _refuse_other_splits(path: Path) -> None:
    """Raises UserError if there is another split beside NAME_TRAIN.ts or NAME_TEST.ts."""
    name = path.stem.rpartition("_")[0].upper()
    for file in sorted(path.parent.iterdir()):
        stem, _, split = file.stem.rpartition("_")
        if (
            file.suffix.lower() == ".ts"
            and stem.upper() == name
            and split.lower() in LIKE_SPLITS.difference(ENDS.values())
        ):
            raise UserError(
                f"{path.parent} holds {file.name}, which would not be used: the splits are "
                "NAME_TRAIN.ts and NAME_TEST.ts; rename it, or move it elsewhere"
            )


def _beside(path: Path, name: str) -> Path | None:
    """Returns the file of that name beside another, in upper or lower case."""
    exact = path.with_name(name)
    if exact.is_file():
        return exact
    files = sorted(file for file in path.parent.iterdir() if file.name.upper() == name.upper())
    return files[0] if files else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes")
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text and not text.startswith(("#", "%")):
                    yield number, text
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text: save it as UTF-8"
        raise UserError(f"{path} cannot be read: {reason}") from error


def _read(path: Path, labelled: bool) -> LabelledSet:
    lines = _lines(path)
    classes = _header(path, lines, labelled)
    sequences: list[np.ndarray] = []
    labels: list[str] = []
    ids: list[str] = []
    narrow = Narrowing()
    read = checked = 0  # numbers since the last check of the memory, and before it
    for number, line in lines:
        where = f"{path}, line {number}"
        *dimensions, label = line.split(":") if classes else [*line.split(":"), ""]
        if not dimensions:
            raise UserError(f"{where}: there is no class label after a colon")
        try:
            text = UNLABELLED
            if classes and (labelled or label.strip() != "?"):
                text = label_text(label, required=labelled)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if classes and text not in classes and (labelled or text != UNLABELLED):
            raise UserError(
                f"{where}: the class label is {text!r}, and @classLabel names "
                f"{', '.join(sorted(classes))}"
            )
        sequence = _sequence(where, dimensions)
        if sequences and sequence.shape[1] != sequences[0].shape[1]:
            raise UserError(
                f"{where}: {sequence.shape[1]} dimensions, and {sequences[0].shape[1]} in the "
                "first sequence"
            )
        sequences.append(narrow(sequence))
        read += sequence.size
        if read >= CHECKED:
            checked, read = checked + read, 0
            check_memory(str(path), checked)
        labels.append(text)
        ids.append(f"{file_text(path.stem)}:{number}")
    if not sequences:
        raise UserError(f"{path} holds no sequence after @data")
    values, lengths = padded(sequences, str(path))
    return LabelledSet(values, lengths, tuple(labels), tuple(ids), (path,), notes=narrow.notes())


def _header(path: Path, lines: Iterator[tuple[int, str]], labelled: bool) -> set[str]:
    """Reads up to @data and returns the classes; none where labels are not needed."""
    classes: set[str] | None = None
    for number, line in lines:
        key, *values = line.split()
        key = key.lower()
        if key not in HEADER_KEYS:
            raise UserError(f"{path}, line {number}: {line[:40]!r} is no line of a .ts header")
        if key == "@timestamps" and values[:1] and values[0].lower() == "true":
            raise UserError(
                f"{path}: sequences with time stamps (@timeStamps true) cannot be read: write "
                "values at equal distances, with @timeStamps false"
            )
        if key == "@targetlabel" and values[:1] and values[0].lower() == "true":
            raise UserError(f"{path} is a set for regression (@targetLabel), and has no classes")
        if key == "@classlabel" and values[:1] and values[0].lower() == "true":
            try:
                classes = {label_text(value) for value in values[1:]}
            except ValueError as error:
                raise UserError(f"{path}, line {number}: @classLabel: {error}") from error
        if key == "@data":
            if values:
                raise UserError(f"{path}, line {number}: the sequences start in the next line")
            if not classes and labelled:
                raise UserError(
                    f"{path} has no class labels (@classLabel true NAME NAME ...), so there is "
                    "nothing to learn"
                )
            return classes or set()
    raise UserError(f"{path} is not a .ts file: it has no line @data")


def _sequence(where: str, dimensions: list[str]) -> np.ndarray:
    """Returns float64 (T, F) of the text of F dimensions."""
    columns = []
    for index, text in enumerate(dimensions):
        cells = [cell.strip() for cell in text.split(",")]
        if cells == [""]:
            raise UserError(f"{where}: dimension {index + 1} is empty")
        try:
            columns.append([np.nan if cell == "?" else number_of(cell) for cell in cells])
        except ValueError:
            wrong = next(cell for cell in cells if cell != "?" and not _is_number(cell))
            raise UserError(
                f"{where}: dimension {index + 1} holds {wrong[:40]!r}, which is no number"
            ) from None
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{where}: its dimensions have {min(lengths)} to {max(lengths)} values: all "
            "dimensions of a sequence need the same number of steps"
        )
    return np.array(columns, np.float64).T


def _is_number(cell: str) -> bool:
    try:
        number_of(cell)
    except ValueError:
        return False
    return True
