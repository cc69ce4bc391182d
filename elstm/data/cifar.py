"""Reads the binary version of CIFAR-10.

A file has records of a byte for the label and 3,072 bytes for the pixels: 1,024 of red, then green,
then blue, each row by row. batches.meta.txt names the classes, one per line
(www.cs.toronto.edu/~kriz/cifar.html). The Python version is a pickle, which is never loaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elstm.data.catalog import DataSet
from elstm.data.idx import damaged, read_plain

META = "batches.meta.txt"


def read_cifar_part(source: DataSet, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images, uint8 (N, pixels x channels), and the labels (N,) of "train" or "test".

    Raises:
        UserError: a file is damaged, or names other classes.
    """
    _check_classes(source, folder / META)
    batches = [_records(source, folder / file) for file in source.files_of(part)]
    labels = np.concatenate([records[:, 0] for records in batches])
    images = np.empty((len(labels), source.pixels * source.channels), np.uint8)
    first = 0
    for records in batches:
        colours = records[:, 1:].reshape(len(records), source.channels, source.pixels)
        # The channels of a pixel stand side by side, as in all images here.
        images[first : first + len(records)] = colours.transpose(0, 2, 1).reshape(len(records), -1)
        first += len(records)
    return images, labels


def _records(source: DataSet, path: Path) -> np.ndarray:
    """Returns uint8 (N, 1 + pixels x channels): the label, then the pixels."""
    content = read_plain(path)
    size = 1 + source.pixels * source.channels
    if not content or len(content) % size:
        raise damaged(path, f"{len(content):,} bytes are no multiple of {size:,}, an image's")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    if records[:, 0].max() >= len(source.class_names):
        last = len(source.class_names) - 1
        raise damaged(path, f"a label is {records[:, 0].max()}, the classes are 0 to {last}")
    return records


def _check_classes(source: DataSet, path: Path) -> None:
    """Compares the class names where there is a file of them."""
    if not path.is_file():
        return
    names = tuple(read_plain(path).decode("ascii", "replace").split())
    if names != source.class_names:
        shown = ", ".join(names)[:80]
        raise damaged(
            path, f"it names {shown or 'no class'} instead of {source.class_names[0]}, ..."
        )
