"""Defines the result of every reader of user data: labelled sequences, before they are split."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from elstm.errors import UserError

SPLITS = ("train", "val", "test")
# Names that other programs give splits; if all folders have such names, they are no classes.
LIKE_SPLITS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "testing"}
# Bytes that a number of a series takes at most until it is standardised: it is kept in 32 bits,
# once more with data.missing=forward, and in 64 bits for the moments. The rest is for masks.
SERIES_BYTES = 18
BLOCK = 100_000  # numbers that are converted at once
UNLABELLED = ""  # of a sequence without a label, which is only predicted
MISSING_CELLS = ("", "nan", "na", "n/a", "null", "none", "?")  # an empty cell and its usual names
# A whole number as text. 01 and 1.10 are codes and versions as well, and stay as they are.
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,3999}))(?:\.0+)?")


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Holds the sequences of one split, or of a set that is not split yet.

    Attributes:
        values: float32 (N, T, F), zero beyond a sequence's length; for pictures uint8 (N, pixels,
            channels), row by row.
        lengths: int64 (N,), each from 1 to T.
        labels: one text a sequence; numbers are written as the shortest text (3, not 3.0).
        ids: one text a sequence, by which messages and predictions name it.
        files: the files that were read.
        features: the names of the F features, where the file has them.
        image_size: rows and columns of pictures.
        notes: messages for the user about the files, a sentence each.
        groups: of each sequence the group that no draw of splits cuts; () if there are none.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    features: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


# By split; a source without splits holds one set under the name "all".
Source = dict[str, LabelledSet]


def with_features(part: LabelledSet, names: Sequence[str], what: str) -> LabelledSet:
    """Returns the set with its features in the order of `names`; files without names stay.

    Raises:
        UserError: the set has other features.
    """
    if not names or not part.features or tuple(names) == part.features:
        return part
    if sorted(names) != sorted(part.features):
        raise UserError(
            f"{what} has the features {', '.join(part.features[:20])}, and the training data have "
            f"{', '.join(names[:20])}"
        )
    order = [part.features.index(name) for name in names]
    return replace(part, values=part.values[:, :, order], features=tuple(names))


class MissingLabelError(ValueError):
    """Says that a sequence has no label."""


def label_text(value: object, *, required: bool = True) -> str:
    """Returns a label as text: 3, 3.0, "3" and "3.0" are one class. Other text stays as it is.

    Args:
        required: False: a missing label is UNLABELLED.

    Raises:
        ValueError: the label is missing, or is neither a number nor text.
    """
    try:
        return _label_text(value)
    except MissingLabelError:
        if required:
            raise
        return UNLABELLED


def group_text(value: object) -> str:
    """Returns a group as text, as `label_text` does.

    Raises:
        ValueError: the group is missing, or is neither a number nor text. A name of a missing cell
            is no group, because it would put unrelated sequences together.
    """
    try:
        text = label_text(value)
    except MissingLabelError as error:
        raise MissingLabelError("a group is missing") from error
    if text.lower() in MISSING_CELLS:
        raise MissingLabelError(f"{text!r} stands for a missing value")
    return text


def _label_text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if value is None:
        raise MissingLabelError("a label is missing")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):  # as databases have numbers
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if not np.isfinite(value):
            raise MissingLabelError("a label is missing (NaN)")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"a label is neither a number nor text: {value!r}")
    text = value.strip()
    if text.lower() in ("", "nan"):
        raise MissingLabelError("a label is missing" if text else "a label is empty")
    whole = _WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole else text  # a float would merge long numbers


def with_classes(part: LabelledSet, names: Sequence[str]) -> LabelledSet:
    """Returns the set with its labels spelled as the classes `names` where they mean the same.

    Formats spell some labels differently. A truth value is True in CSV, and 1 in arrays and
    Parquet. 0.1 in 32 bits is 0.10000000149011612, and CSV has 0.1. 01 in CSV is 1 in arrays. File
    names of some systems have an accent as a character of its own. Labels that mean none of the
    classes stay as they are.
    """
    known = {*names, UNLABELLED}
    if known.issuperset(part.labels):
        return part
    truth = {_meaning(name, truth=True) for name in names} <= {"0", "1"}
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(_meaning(name, truth=truth), []).append(name)

    def spelled(label: str) -> str:
        found = [label] if label in known else places.get(_meaning(label, truth=truth), [])
        return found[0] if len(found) == 1 else label

    return replace(part, labels=tuple(map(spelled, part.labels)))


def _meaning(label: str, *, truth: bool) -> str:
    """Returns a text that is the same for one label in all formats.

    Args:
        truth: whether the classes are truth values.
    """
    if truth and label.lower() in ("true", "false"):
        return "1" if label.lower() == "true" else "0"
    try:
        number = number_of(label)
    except ValueError:
        return unicodedata.normalize("NFC", label)
    if not np.isfinite(number) or abs(number) >= 2**53:
        return label
    if number.is_integer():
        return str(int(number))
    with np.errstate(over="ignore"):
        for kind in (np.float16, np.float32):
            if float(kind(number)) == number:
                return str(kind(number))
    return repr(number)


def number_of(text: str) -> float:
    """Returns the number that a cell holds.

    Raises:
        ValueError: it holds none. Python takes 1_2 for 12, and files mean something else by it.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes in the order of their numbers, or of their text if one is no number."""
    names = sorted(set(labels))  # decides between equal numbers, as in 1 and 01
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(names)
    if any(math.isnan(number) for number in numbers.values()):
        return tuple(names)
    return tuple(sorted(names, key=numbers.__getitem__))


def check_memory(what: str, count: int, each: int = SERIES_BYTES) -> None:
    """Raises UserError if `count` numbers do not fit into free memory.

    Args:
        each: bytes of a number where most memory is taken.
    """
    free = free_memory()
    needed = count * each
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            "free: keep fewer sequences, steps or features in the file"
        )


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Yields slices of the first axis of an array, each of BLOCK numbers or of one row."""
    rows = max(1, BLOCK // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], rows):
        yield slice(first, first + rows)


def free_memory() -> int | None:
    """Returns the bytes that a process may still allocate, where the system reports them."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def padded(sequences: Sequence[np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns arrays (T_n, F) as one of (N, T, F), with zeros at the end, and the lengths (N,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    features = sequences[0].shape[1]
    steps = int(lengths.max())
    check_memory(what, len(sequences) * steps * features)
    values = np.zeros((len(sequences), steps, features), np.float32)
    for row, sequence in enumerate(sequences):
        values[row, : len(sequence)] = sequence
    return values, lengths


class Narrowing:
    """Turns numbers into 32-bit ones, and counts what that loses.

    Time stamps and counters mostly stand still afterwards: near 1.7e9, 32-bit numbers are 128
    apart.
    """

    def __init__(self) -> None:
        self._moves: Any = 0
        self._lost: Any = 0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Returns float32 values of a sequence (T, F), or of several of one length (N, T, F)."""
        with np.errstate(over="ignore"):
            narrow = np.asarray(values, np.float32)
        if not np.can_cast(values.dtype, np.float32):
            before, after = values[..., :-1, :], values[..., 1:, :]
            moves = (before < after) | (before > after)  # NaN does not
            still = narrow[..., :-1, :] == narrow[..., 1:, :]
            axes = tuple(range(values.ndim - 1))
            self._moves = self._moves + moves.sum(axes)
            self._lost = self._lost + (moves & still).sum(axes)
        return narrow

    def notes(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Returns a sentence on each feature of which more than half of the changes are lost."""
        lost, moves = np.atleast_1d(self._lost), np.atleast_1d(self._moves)
        return tuple(
            f"feature {names[index] if names else index}: {lost[index]:,} of {moves[index]:,} "
            "changes from step to step are lost, because values are kept in 32 bits, which have 7 "
            "digits: subtract a constant in the file, such as the first value of each sequence"
            for index in np.flatnonzero(2 * lost > moves).tolist()
        )
