"""Reads the image sets that are published as IDX files: MNIST and its relatives, EMNIST."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
from pathlib import Path

import numpy as np

from elstm.data.catalog import DataSet
from elstm.data.idx import damaged, read_idx
from elstm.errors import UserError

log = logging.getLogger(__name__)


def read_idx_part(source: DataSet, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images, uint8 (N, pixels), and the labels (N,) of "train" or "test".

    The files are .gz or unpacked. Those that are not the published ones are read as they are, so
    that a user's own set in this format works; the log names them.

    Raises:
        UserError: a file is damaged, or the two do not belong together.
    """
    arrays = []
    for file in source.files_of(part):
        path = find(folder, file) or folder / file
        shape = (None, *source.image_size) if "images" in file else (None,)
        array = read_idx(path, shape)
        if source.md5 and path.suffix == ".gz":
            _check_published(path, source.md5[source.files.index(file)])
        if "labels" in file:
            array = _labels(path, array, source)
        elif source.transposed:
            array = array.transpose(0, 2, 1)
        arrays.append(array)
    images, labels = arrays
    if len(images) != len(labels):
        kind = source.files_of(part)[0].partition("-images")[0]
        raise UserError(
            f"{folder}: {len(images)} images but {len(labels)} labels in {kind}-*: the files do "
            "not belong together; put files of one set there"
        )
    return images.reshape(len(images), -1).copy(), labels


def find(folder: Path, file: str) -> Path | None:
    """Returns the file under any of its published names.

    Kaggle's copies have a point in the name (train-images.idx3-ubyte), some of them in a folder
    of the same name.
    """
    dotted = file.replace("-idx", ".idx")
    names = (f"{file}.gz", file, f"{dotted}.gz", dotted, f"{file}/{file}", f"{dotted}/{dotted}")
    return next((path for path in map(folder.joinpath, names) if path.is_file()), None)


def _labels(path: Path, array: np.ndarray, source: DataSet) -> np.ndarray:
    """Returns labels that count from 0."""
    first = source.first_label
    last = first + len(source.class_names) - 1
    wrong = array[(array < first) | (array > last)]
    if len(wrong):
        raise damaged(path, f"a label is {wrong[0]}, the classes are {first} to {last}")
    return array - np.uint8(first)


def _check_published(path: Path, md5: str) -> None:
    """Logs a file that exists beside a published file or in its place."""
    packed = path.read_bytes()
    # MD5 distinguishes files and guards against no attacker, which the flag declares to FIPS.
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5:
        log.warning("%s is not the published file: it is read as a set of your own", path)
    beside = path.with_suffix("")
    if beside.is_file() and _differs(beside, packed):
        log.warning(
            "%s was read, and not %s, which holds something else; to read that one, move the "
            ".gz file elsewhere", path, beside.name,
        )  # fmt: skip


def _differs(unpacked: Path, packed: bytes) -> bool:
    """Returns whether a file differs from what `packed` unpacks to; both are read in pieces."""
    try:
        with unpacked.open("rb") as file, gzip.open(io.BytesIO(packed)) as other:
            while True:
                piece = other.read(1 << 20)
                if file.read(max(len(piece), 1)) != piece:
                    return True
                if not piece:
                    return False
    except OSError:
        return True
