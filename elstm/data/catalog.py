"""Lists the data sets that `data=` names, with files, sizes and classes. It needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Protocol

from elstm.errors import UserError

DIGITS = tuple("0123456789")
# The four files of MNIST and its relatives, in torchvision's layout.
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
             "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


@dataclass(frozen=True)
class PublishedArchive:
    """Describes an archive from which the files of a set are extracted.

    Attributes:
        url: where it is published.
        md5: its checksum.
        size: its bytes, which are logged before a download; a larger download is aborted.
        folder: the folder in the archive that holds the files.
        extras: files that are extracted too, if the archive has them.
    """

    url: str
    md5: str
    size: int
    folder: str
    extras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """Describes an image set in its published form.

    Attributes:
        class_names: in the order of the labels.
        image_size: rows and columns.
        train_images: how many images train, after validation was split off.
        folder: its IDX files lie in ROOT/folder/raw, and torchvision's class of that name
            downloads them; None: the set comes with scikit-learn.
        md5: the checksums of the .gz of each of `files`, as in torchvision; none: not checked.
        files: the names of its files, unpacked: for IDX images and labels of training, then of
            the test.
        val_part: one in `val_part` images of the training files validates, the last ones.
        test_images: how many images test.
        layout: the format of the files, "idx" or "cifar"; the files of "cifar" lie in ROOT/folder.
        archive: what the files are published in; None: each is published alone.
        channels: 1 for grey, 3 for red, green and blue.
        first_label: the number of the first class in the files.
        transposed: rows and columns are exchanged in the files.
        box: the part of an image's side that its content fills, for elstm-predict --fit; None:
            the images are full pictures, without a ground.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    train_images: int
    folder: str | None = None
    md5: tuple[str, ...] = ()
    files: tuple[str, ...] = IDX_FILES
    val_part: int = 6
    test_images: int = 10_000
    layout: str = "idx"
    archive: PublishedArchive | None = None
    channels: int = 1
    first_label: int = 0
    transposed: bool = False
    box: float | None = 1.0

    @property
    def pixels(self) -> int:
        return math.prod(self.image_size)

    @property
    def file_images(self) -> tuple[int, int]:
        """Returns how many images the published training and test files hold."""
        return self.train_images * self.val_part // (self.val_part - 1), self.test_images

    @property
    def place(self) -> str:
        """Returns the folder of the files, below data.root."""
        return f"{self.folder}/raw" if self.layout == "idx" else str(self.folder)

    def files_of(self, part: str) -> tuple[str, ...]:
        """Returns the files of "train" or "test"."""
        first = 2 if self.layout == "idx" else -1
        return self.files[first:] if part == "test" else self.files[:first]

    @property
    def published_files(self) -> tuple[str, ...]:
        """Returns the names under which the files are published."""
        return tuple(f"{file}.gz" for file in self.files) if self.layout == "idx" else self.files


def _emnist_files(split: str) -> tuple[str, ...]:
    return tuple(f"emnist-{split}-{file.replace('t10k', 'test')}" for file in IDX_FILES)


CIFAR10_ARCHIVE = PublishedArchive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171, "cifar-10-batches-bin",
    ("batches.meta.txt",),
)  # fmt: skip
EMNIST_ARCHIVE = PublishedArchive(
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    "58c8d27c78d21e728a6bc7b3cc06412e", 561_753_746, "gzip",
)  # fmt: skip

DATA_SETS = {
    "digits": DataSet(DIGITS, (8, 8), 1297, test_images=300),
    "mnist": DataSet(
        DIGITS, (28, 28), 50_000, "MNIST",
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
         "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        box=20 / 28,
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
    "emnist": DataSet(  # the balanced split; lower-case letters like their capitals have no class
        (*DIGITS, *ascii_uppercase, *"abdefghnqrt"), (28, 28), 94_000, "EMNIST",
        files=_emnist_files("balanced"), test_images=18_800, archive=EMNIST_ARCHIVE,
        transposed=True, box=24 / 28,
    ),
    "emnist_letters": DataSet(
        tuple(ascii_lowercase), (28, 28), 104_000, "EMNIST",
        files=_emnist_files("letters"), test_images=20_800, archive=EMNIST_ARCHIVE,
        first_label=1, transposed=True, box=24 / 28,
    ),
    "cifar10": DataSet(
        ("airplane", "automobile", "bird", "cat", "deer",
         "dog", "frog", "horse", "ship", "truck"),
        (32, 32), 45_000, "cifar-10-batches-bin",
        files=CIFAR_FILES, val_part=10, layout="cifar", archive=CIFAR10_ARCHIVE,
        channels=3, box=None,
    ),
}  # fmt: skip


# Image sets whose classes do not change in a mirror image; those of characters do.
SAME_IN_A_MIRROR = ("fashion_mnist", "cifar10")

# Readers of user data, by the name that `data=` gives them: modules of elstm.data.readers with a
# function `read(options)` that returns labelled sequences by split (elstm.data.labelled.Source).
READERS = {
    "arrays": "elstm.data.readers.arrays",
    "table": "elstm.data.readers.table",
    "ts": "elstm.data.readers.ts",
    "images": "elstm.data.readers.image_folders",
}


def name_from_path(path: str) -> str:
    """Returns the name of user data, made from the name of the file or folder."""
    try:
        stem = Path(str(path)).expanduser().resolve().stem
    except (OSError, RuntimeError, ValueError):  # ~somebody, a null character: reading reports it
        stem = Path(str(path)).stem
    stem = re.sub("_(TRAIN|TEST)$", "", stem)  # the two files of one set of the UCR/UEA archive
    return re.sub("[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "data"


class DataOptions(Protocol):
    """Lists the options of an image set, as elstm.config.data_options.DigitsConfig has them."""

    name: str
    pixels_per_step: int
    permute: bool
    permute_seed: int | None
    train_size: int | None
    batch_size: int


class UserDataOptions(Protocol):
    """Lists the options of user data that are checked against the files."""

    name: str
    batch_size: int


def check_user_sizes(options: UserDataOptions, train_sequences: int) -> None:
    """Raises UserError if the batches are larger than the training split."""
    if options.batch_size > train_sequences:
        raise UserError(
            f"data.batch_size={options.batch_size} is more than the training sequences of "
            f"{options.name}: at most {train_sequences}"
        )


def check_sizes(options: DataOptions, pixels: int, train_images: int) -> None:
    """Raises UserError if the options do not fit a set with these numbers of pixels and images."""
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
