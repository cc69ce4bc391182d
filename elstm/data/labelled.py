"""Defines the result of every reader of own data: labelled sequences, before they are split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elstm.errors import UserError

SPLITS = ("train", "val", "test")
FLOAT32_BYTES = 4
UNLABELLED = ""  # of a sequence without a label, which is only predicted


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
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    features: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


# By split; a source that has no splits of its own holds one set under the name "all".
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


def label_text(value: object) -> str:
    """Returns a label as text: 3, 3.0 and "3" are one class.

    Raises:
        ValueError: the label is missing, or is neither a number nor text.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if value is None:
        raise ValueError("a label is missing")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if not np.isfinite(value):
            raise ValueError("a label is missing (NaN)")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"a label is neither a number nor text: {value!r}")
    text = value.strip()
    if not text:
        raise ValueError("a label is empty")
    try:
        number = float(text)
    except ValueError:
        return text
    return text if np.isinf(number) else label_text(number)


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes in the order of their numbers, or of their text if one is no number."""
    names = set(labels)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def check_memory(what: str, count: int, itemsize: int = FLOAT32_BYTES) -> None:
    """Raises UserError if `count` numbers do not fit into free memory.

    Args:
        itemsize: bytes of a number in the file; they become float32.
    """
    free = free_memory()
    needed = count * (itemsize + 2 * FLOAT32_BYTES)  # as read, as float32, and standardised
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            "free: keep fewer sequences, steps or features in the file"
        )


def free_memory() -> int | None:
    """Returns the bytes that a process may still take, where the system says so."""
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
