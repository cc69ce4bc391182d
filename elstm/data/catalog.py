"""Lists the data sets that `data=` names, with files, sizes and classes. Needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from elstm.errors import UserError

DIGITS = tuple("0123456789")
# The four files of MNIST and its relatives, in torchvision's layout.
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
             "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """Describes an image set in its published form.

    Attributes:
        class_names: in the order of the labels.
        image_size: rows and columns.
        train_images: how many images train, after validation was split off.
        folder: its IDX files lie in ROOT/folder/raw, and torchvision's class of that name
            downloads them; None: the set comes with scikit-learn.
        md5: the checksums of the .gz of each of IDX_FILES, as in torchvision.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    train_images: int
    folder: str | None = None
    md5: tuple[str, ...] = ()

    @property
    def pixels(self) -> int:
        return math.prod(self.image_size)


DATA_SETS = {
    "digits": DataSet(DIGITS, (8, 8), 1297),
    "mnist": DataSet(
        DIGITS, (28, 28), 50_000, "MNIST",
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
         "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion_mnist": DataSet(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
         "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (28, 28), 50_000, "FashionMNIST",
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
         "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "kmnist": DataSet(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        (28, 28), 50_000, "KMNIST",
        ("bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
         "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134"),
    ),
}  # fmt: skip


# Readers of own data, by the name that `data=` gives them: modules of elstm.data.readers with a
# function `read(options)` that returns labelled sequences by split (elstm.data.labelled.Source).
READERS = {
    "arrays": "elstm.data.readers.arrays",
    "table": "elstm.data.readers.table",
    "ts": "elstm.data.readers.ts",
    "images": "elstm.data.readers.image_folders",
}


def name_from_path(path: str) -> str:
    """Returns what own data are called: the file's or folder's name, fit for a folder's name."""
    stem = Path(str(path)).expanduser().resolve().stem
    stem = re.sub("_(TRAIN|TEST)$", "", stem)  # the two files of one set of the UCR/UEA archive
    return re.sub("[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "data"


class DataOptions(Protocol):
    """Names the options of an image set, as elstm.config.data_options.DigitsConfig has them."""

    name: str
    pixels_per_step: int
    permute: bool
    permute_seed: int
    train_size: int | None
    batch_size: int


class OwnDataOptions(Protocol):
    """Names the options of own data that are checked against the files."""

    name: str
    batch_size: int


def check_own_sizes(options: OwnDataOptions, train_sequences: int) -> None:
    """Raises UserError if the batches are larger than the training split."""
    if options.batch_size > train_sequences:
        raise UserError(
            f"data.batch_size={options.batch_size} is more than the training sequences of "
            f"{options.name}: at most {train_sequences}"
        )


def check_sizes(options: DataOptions, pixels: int, train_images: int) -> None:
    """Raises UserError if the options do not fit a set of so many pixels and images."""
    name = options.name
    if pixels % options.pixels_per_step:
        divisors = ", ".join(str(d) for d in range(1, pixels + 1) if pixels % d == 0)
        raise UserError(
            f"data.pixels_per_step={options.pixels_per_step} does not divide the {pixels} pixels "
            f"of {name}; allowed: {divisors}"
        )
    if options.train_size is not None and options.train_size > train_images:
        raise UserError(
            f"data.train_size={options.train_size} is more than the training images of {name}: "
            f"at most {train_images}"
        )
    images = options.train_size or train_images
    if options.batch_size > images:
        raise UserError(
            f"data.batch_size={options.batch_size} is more than the training images: at most "
            f"{images} for {name}" + (" with this data.train_size" if options.train_size else "")
        )
