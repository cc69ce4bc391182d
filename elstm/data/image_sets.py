"""The image sets: where they come from, and which images train, validate and test."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elstm.data.download import download
from elstm.data.idx import damaged, read_idx
from elstm.errors import UserError

log = logging.getLogger(__name__)

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


@dataclass(frozen=True)
class IdxSet:
    """A relative of MNIST: 28 x 28 grey images in ten classes, in four IDX files."""

    folder: str  # files lie in ROOT/folder/raw; torchvision's class of that name downloads them
    class_names: tuple[str, ...]
    md5: tuple[str, ...]  # of the .gz of each of FILES, as in torchvision


DIGITS = tuple("0123456789")
IDX_SETS = {
    "mnist": IdxSet(
        "MNIST",
        DIGITS,
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
         "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion_mnist": IdxSet(
        "FashionMNIST",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
         "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
         "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "kmnist": IdxSet(
        "KMNIST",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        ("bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
         "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134"),
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Split:
    images: Tensor  # uint8 (N, pixels), row by row, 0 black, 255 white
    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageSet:
    class_names: tuple[str, ...]
    image_size: tuple[int, int]  # rows, columns
    train: Split
    val: Split
    test: Split


def outline(name: str) -> tuple[tuple[str, ...], tuple[int, int]]:
    """The names of a set's classes, and rows and columns of its images, without its files."""
    return (DIGITS, (8, 8)) if name == "digits" else (IDX_SETS[name].class_names, (28, 28))


def random_order(n: int, *key: str | int) -> Tensor:
    """A permutation of 0 ... n - 1 that follows from the key alone, whatever else was drawn."""
    # Hashed, so that (seed 0, epoch 1) and (seed 1, epoch 0) are strangers, for seeds of any size.
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.randperm(n, generator=generator)


def load_image_set(name: str, root: str) -> ImageSet:
    """The set of that name, from torchvision's layout under `root`, downloaded if it has to be.

    Raises: UserError if there is no such set, or if its files are damaged or cannot be had.
    """
    if name == "digits":
        return _load_digits()
    if name not in IDX_SETS:
        allowed = ", ".join(["digits", *IDX_SETS])
        raise UserError(f"data.name={name}: there is no such data set; allowed: {allowed}")
    source = IDX_SETS[name]
    try:
        folder = Path(root).expanduser().absolute() / source.folder / "raw"
        missing = [f"{file}.gz" for file in FILES if _find(folder, file) is None]
    except (OSError, RuntimeError) as error:  # no permission; ~somebody without a home
        raise UserError(
            f"data.root={root} cannot be read ({error}): set data.root= to a folder that holds "
            f"{source.folder}/raw, or take data=digits, which needs no files"
        ) from error
    if missing:
        download(source.folder, missing, folder)
    return _load_idx_set(source, folder)


def _load_digits() -> ImageSet:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,297 / 200 / 300 images.

    30 images of each class test and 20 validate, so that no class weighs more than another; the
    others, 124 to 133 of each, train. With 300 test images, 97 % is known to about one point.
    """
    from sklearn.datasets import load_digits  # takes a second

    pixels, labels = load_digits(return_X_y=True)
    # 0 ... 16 onto the grey scale of the other sets, so that predictions for image files fit
    images = torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8))
    targets = torch.from_numpy(labels.astype(np.int64))

    rows = random_order(len(targets), "digits")  # in the file, a writer's digits stand together
    of_class = [rows[targets[rows] == label] for label in range(10)]

    def split(start: int, stop: int | None) -> Split:
        chosen = torch.cat([members[start:stop] for members in of_class])
        chosen = chosen[random_order(len(chosen), "digits", start)]  # the classes mixed again
        return Split(images[chosen], targets[chosen])

    return ImageSet(DIGITS, (8, 8), split(50, None), split(30, 50), split(0, 30))


def _load_idx_set(source: IdxSet, folder: Path) -> ImageSet:
    """The four files in `folder`, .gz or unpacked; the last sixth of training validates.

    That is the last 10,000 of 60,000. Where a file is there in both forms the .gz is read, since
    its checksum is known; unpacked files are held to the format alone, so a cut-down set works.
    """
    arrays = []
    for file, md5 in zip(FILES, source.md5, strict=True):
        path = _find(folder, file) or folder / file
        shape = (None, 28, 28) if "images" in file else (None,)
        array = read_idx(path, shape, md5 if path.suffix == ".gz" else None)
        if "labels" in file and array.max() >= len(source.class_names):
            last = len(source.class_names) - 1
            raise damaged(path, f"a label is {array.max()}, the classes are 0 to {last}")
        arrays.append(torch.from_numpy(array.reshape(len(array), -1).copy()))
    images, labels, test_images, test_labels = arrays
    for kind, a, b in (("train", images, labels), ("t10k", test_images, test_labels)):
        if len(a) != len(b):
            raise UserError(
                f"{folder}: {len(a)} images but {len(b)} labels in {kind}-*: the files do not "
                "belong together; delete both and run again, or put good copies there"
            )
    if len(images) < 12:
        raise UserError(f"{folder}: {len(images)} training images are too few, at least 12")
    if (len(images), len(test_images)) != (60_000, 10_000):
        log.warning(
            "%s holds %d training and %d test images instead of 60,000 and 10,000",
            folder, len(images), len(test_images),
        )  # fmt: skip
    cut = len(images) - len(images) // 6
    targets, test_targets = labels.flatten().long(), test_labels.flatten().long()
    return ImageSet(
        class_names=source.class_names,
        image_size=(28, 28),
        train=Split(images[:cut], targets[:cut]),
        val=Split(images[cut:], targets[cut:]),
        test=Split(test_images, test_targets),
    )


def _find(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
