"""Reads `.npz` files: X and y, or X_train, y_train, X_val, ..., optionally with lengths.

A file is never unpickled, and the sizes of its arrays are read from their headers first.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from elstm.data.labelled import (
    LIKE_SPLITS,
    SERIES_BYTES,
    SPLITS,
    UNLABELLED,
    LabelledSet,
    Narrowing,
    Source,
    blocks,
    check_memory,
    group_text,
    label_text,
)
from elstm.errors import UserError

# The axes of X in the file; F is 1 for `nt`.
LAYOUTS = {"ntc": "N, T, F", "nct": "N, F, T", "nt": "N, T"}
# Names of arrays that belong to X, or that somebody takes for such.
_SPLIT = "|".join(sorted(LIKE_SPLITS))
LIKE_X = re.compile(rf"X|lengths|(?i:(x|y|lengths)_?({_SPLIT})|({_SPLIT})_?(x|y|lengths))")
# Names that other programs give to lengths, which would make padding count as data.
LIKE_LENGTHS = re.compile(r"(?i)((seq(uence)?_?)?len(gth)?s?|n_?steps|(padding_?)?mask)(_\w*)?")
REASONS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ArraysOptions(Protocol):
    path: str
    layout: str
    group: str | None


def read(options: ArraysOptions) -> Source:
    """Reads the source `arrays`; see `read_arrays`."""
    return read_arrays(Path(options.path), options.layout, options.group)


def read_unlabelled(options: ArraysOptions) -> Source:
    """Reads arrays whose labels may be missing."""
    return read_arrays(Path(options.path), options.layout, options.group, labelled=False)


def read_arrays(
    path: Path, layout: str = "ntc", group: str | None = None, *, labelled: bool = True
) -> Source:
    """Reads labelled sequences from an `.npz` file.

    Args:
        path: a file with `X` and `y`, or with `X_train`, `y_train` and the same for `val` and
            `test` where it has them. `lengths` (`lengths_train`, ...) holds the steps of each
            sequence; without it all have T.
        layout: the axes of X: "ntc" (N, T, F), "nct" (N, F, T) as aeon and sktime have them, or
            "nt" (N, T) for one feature.
        group: the name of the array with the group of each sequence (`group`_train, ...).
        labelled: whether labels are required; if False, a file without y is read too.

    Raises:
        UserError: an array is missing, holds Python objects, or does not fit the others.
    """
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"{path} holds one array: save X and y together by numpy.savez")
        headers = _headers(path)
        with np.load(path, allow_pickle=False) as arrays:
            return _read(path, arrays, headers, layout, group, labelled)
    except UserError:
        raise
    except REASONS as error:
        raise UserError(f"{path} cannot be read as an .npz file: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if "allow_pickle" in text:
        return "it holds Python objects, which are never loaded; save numbers or text only"
    return text or type(error).__name__


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Returns shape and dtype of each array, without reading its numbers."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if read is None:
                    raise ValueError(f"{name} has the unknown format version {version}")
                shape, _, dtype = read(member)
                found[name.removesuffix(".npy")] = (shape, dtype)
    return found


def _read(
    path: Path, file: Any, headers: dict[str, Any], layout: str, group: str | None, labelled: bool
) -> Source:
    names = {split: f"_{split}" for split in SPLITS if f"X_{split}" in headers}
    if "X" in headers:
        if names:
            raise UserError(f"{path} holds both X and X_{next(iter(names))}: remove one of them")
        names = {"all": ""}
    if not names:
        raise UserError(
            f"{path} holds {', '.join(headers) or 'no array'}: needed are X and y, or X_train and "
            "y_train (and X_val, y_val, X_test, y_test where there are such splits)"
        )
    counts = {headers[f"X{end}"][0][:1] for end in names.values()}
    for name in headers:
        if group is not None and name in (f"{group}{end}" for end in names.values()):
            continue
        array = name.partition("_")[0]
        is_used = array in ("X", "y", "lengths") and name.removeprefix(array) in names.values()
        like_lengths = LIKE_LENGTHS.fullmatch(name) and headers[name][0][:1] in counts
        if (LIKE_X.fullmatch(name) or like_lengths) and not is_used:
            raise UserError(
                f"{path} holds {name}, which would not be used: y and lengths go with X, y_train "
                "and lengths_train with X_train, and the same for val and test; rename it, or "
                "leave it out"
            )
    found = {}
    for split, end in names.items():
        found[split] = _set(path, file, headers, end, layout, labelled)
        if group is not None:
            groups = _groups(path, file, headers, f"{group}{end}", len(found[split]))
            found[split] = replace(found[split], groups=groups)
    return found


def _set(
    path: Path, file: Any, headers: dict[str, Any], end: str, layout: str, labelled: bool
) -> LabelledSet:
    x_name, y_name, l_name = f"X{end}", f"y{end}", f"lengths{end}"
    if y_name not in headers and labelled:
        raise UserError(f"{path} holds {x_name} but not {y_name}, the labels")
    shape, dtype = headers[x_name]
    axes = LAYOUTS[layout]
    if len(shape) != len(axes.split(",")):
        fits = [name for name, wanted in LAYOUTS.items() if len(wanted.split(",")) == len(shape)]
        hint = f"data.layout={' or '.join(fits)} fits such an array" if fits else "2 or 3 axes fit"
        raise UserError(
            f"{path}: {x_name} has {len(shape)} axes ({' x '.join(map(str, shape))}), and "
            f"data.layout={layout} means ({axes}): {hint}"
        )
    if 0 in shape:
        raise UserError(f"{path}: {x_name} is empty ({' x '.join(map(str, shape))})")
    if dtype.hasobject or dtype.kind not in "fiub":
        raise UserError(f"{path}: {x_name} holds {dtype} and not real numbers")
    labels_shape = headers[y_name][0] if y_name in headers else (shape[0],)
    if labels_shape not in ((shape[0],), (shape[0], 1)):
        given = " x ".join(map(str, labels_shape)) or "1"
        raise UserError(
            f"{path}: {x_name} is {' x '.join(map(str, shape))} and {y_name} is {given}: the "
            f"first axis of {x_name} has to count the sequences, with one label for each"
        )
    for name in (y_name, l_name):
        if name in headers:
            size, kind = headers[name]
            check_memory(f"{path}: {name}", math.prod(size), kind.itemsize + 8)
    check_memory(f"{path}: {x_name}", math.prod(shape), max(dtype.itemsize + 4, SERIES_BYTES))
    values = file[x_name]
    if layout == "nct":
        values = values.transpose(0, 2, 1)
    elif layout == "nt":
        values = values[:, :, None]
    given, values, narrow = values, np.empty(values.shape, np.float32), Narrowing()
    for rows in blocks(values.shape):
        values[rows] = narrow(given[rows])
    lengths = _lengths(path, file, headers, l_name, values.shape[:2])
    for row, length in enumerate(lengths):
        values[row, length:] = 0
    try:
        labels = (UNLABELLED,) * len(values)
        if y_name in headers:
            labels = tuple(
                label_text(label, required=labelled) for label in file[y_name].reshape(-1)
            )
    except ValueError as error:
        raise UserError(f"{path}: {y_name}: {_reason(error)}") from error
    ids = tuple(f"{x_name}[{row}]" for row in range(len(values)))
    return LabelledSet(values, lengths, labels, ids, (path,), notes=narrow.notes())


def _groups(
    path: Path, file: Any, headers: dict[str, Any], name: str, count: int
) -> tuple[str, ...]:
    if name not in headers or name.partition("_")[0] in ("X", "y", "lengths"):
        raise UserError(
            f"{path}: data.group has to name an array with the group of each sequence, and {name} "
            f"is none; the file holds {', '.join(headers)}"
        )
    shape, _ = headers[name]
    if shape not in ((count,), (count, 1)):
        raise UserError(
            f"{path}: {name} (data.group) has to hold {count} groups, one for each sequence, "
            f"and is {' x '.join(map(str, shape)) or '1'}"
        )
    try:
        return tuple(group_text(group) for group in file[name].reshape(-1))
    except ValueError as error:
        raise UserError(f"{path}: {name} (data.group): {_reason(error)}") from error


def _lengths(
    path: Path, file: Any, headers: dict[str, Any], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    count, steps = shape
    if name not in headers:
        return np.full(count, steps, np.int64)
    lengths = file[name]
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {name} has to hold {count} integers, one for each sequence, and is "
            f"{lengths.dtype} {' x '.join(map(str, lengths.shape))}"
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(wrong):
        raise UserError(
            f"{path}: {name}[{wrong[0]}] is {lengths[wrong[0]]}, and X has {steps} steps: a "
            f"length is from 1 to {steps} ({len(wrong)} of {count} are not; is data.layout right?)"
        )
    return np.asarray(lengths.astype(np.int64))
