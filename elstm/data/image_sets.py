"""Loads image sets, and chooses which images train, validate and test."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elstm.data.catalog import DATA_SETS, DIGITS, DataSet
from elstm.data.cifar import read_cifar_part
from elstm.data.download import download, unpack_archive
from elstm.data.idx_sets import find, read_idx_part
from elstm.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    images: Tensor  # uint8 (N, pixels x channels), row by row, 0 black, 255 white
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
    channels: int = 1
    origin: str = ""  # the files that were read


# By layout: a function of the set, its folder and "train" or "test".
READ = {"idx": read_idx_part, "cifar": read_cifar_part}


def random_order(n: int, *key: str | int) -> Tensor:
    """Returns a permutation of 0 ... n - 1 that depends on the key alone."""
    return torch.randperm(n, generator=generator_for(*key))


def generator_for(*key: str | int) -> torch.Generator:
    """Returns a generator on the CPU whose draws depend on the key alone."""
    # The key is hashed, so that (seed 0, epoch 1) and (seed 1, epoch 0) have unrelated draws.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def pixel_order(pixels: int, seed: int | None) -> Tensor:
    """Returns the order in which permuted pixels are read.

    Raises:
        ValueError: the seed is None, because the caller has not passed the run's seed.
    """
    if seed is None:
        raise ValueError("the seed of the order of the pixels is not known")
    return random_order(pixels, "pixels", seed)


def load_image_set(name: str, root: str) -> ImageSet:
    """Returns a set of DATA_SETS, from torchvision's layout under `root`.

    Missing files are downloaded.

    Raises:
        UserError: there is no such set, or its files are damaged or cannot be downloaded.
    """
    if name not in DATA_SETS:
        raise UserError(
            f"data.name={name}: there is no such data set; allowed: {', '.join(DATA_SETS)}"
        )
    source = DATA_SETS[name]
    if source.folder is None:
        return _load_digits()
    try:
        folder = Path(root).expanduser().absolute() / source.place
        missing = _missing(source, folder)
    except (OSError, RuntimeError) as error:  # no permission; ~somebody without a home
        raise UserError(
            f"data.root={root} cannot be read ({error}): set data.root= to a folder that holds "
            f"{source.place}, or take data=digits, which needs no files"
        ) from error
    if missing and source.archive is None:
        download(source.folder, missing, folder)
    elif missing and source.archive is not None:
        others = (each for each in DATA_SETS.values() if each.archive == source.archive)
        selected = [file for each in others for file in _missing(each, folder)]
        unpack_archive(source.archive, missing, selected, folder, source.place)
    return _split(source, folder)


def files_exist(name: str, root: str) -> bool:
    """Returns whether all files of a set of DATA_SETS are there; False for one without files."""
    source = DATA_SETS[name]
    if source.folder is None:
        return False
    try:
        return not _missing(source, Path(root).expanduser().absolute() / source.place)
    except (OSError, RuntimeError):
        return False


def _missing(source: DataSet, folder: Path) -> list[str]:
    """Returns the missing files by their published names."""
    found = found_files(source, folder)
    names = zip(source.files, source.published_files, strict=True)
    return [published for file, published in names if file not in found]


def _load_digits() -> ImageSet:
    """Loads the 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,297 / 200 / 300.

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

    return ImageSet(
        DIGITS, (8, 8), split(50, None), split(30, 50), split(0, 30), origin="scikit-learn"
    )


def _split(source: DataSet, folder: Path) -> ImageSet:
    """Reads the files in `folder`; the last images of the training files validate."""
    read = READ[source.layout]
    (images, labels), (test_images, test_labels) = (
        tuple(map(torch.from_numpy, read(source, folder, part))) for part in ("train", "test")
    )
    least = max(12, source.val_part)
    if len(images) < least:
        raise UserError(f"{folder}: {len(images)} training images are too few, at least {least}")
    cut = len(images) - len(images) // source.val_part
    return ImageSet(
        class_names=source.class_names,
        image_size=source.image_size,
        train=Split(images[:cut], labels[:cut].long()),
        val=Split(images[cut:], labels[cut:].long()),
        test=Split(test_images, test_labels.long()),
        channels=source.channels,
        origin=f"{', '.join(found_files(source, folder).values())} in {folder}",
    )


def load_files(source: DataSet, place: Path, split: str) -> Split | None:
    """Returns a split of files in the format of a published set; None if they are missing.

    Args:
        place: the folder of the files, or one that has them as data.root has; the files of the
            other splits may be missing.

    Raises:
        UserError: a file is damaged.
    """
    if source.folder is None:
        return None
    part = "test" if split == "test" else "train"
    for folder in (place, place / source.place):
        if set(source.files_of(part)) <= set(found_files(source, folder)):
            images, labels = map(torch.from_numpy, READ[source.layout](source, folder, part))
            cut = len(images) - len(images) // source.val_part
            rows = {"train": slice(0, cut), "val": slice(cut, None), "test": slice(None)}[split]
            return Split(images[rows], labels[rows].long())
    return None


def found_files(source: DataSet, folder: Path) -> dict[str, str]:
    """Returns the files of a set that exist: the name of each in the folder."""
    if source.layout == "idx":
        paths = {file: find(folder, file) for file in source.files}
    else:
        paths = {file: folder / file for file in source.files if (folder / file).is_file()}
    return {file: str(path.relative_to(folder)) for file, path in paths.items() if path}


def stratified(labels: Tensor, size: int) -> Tensor:
    """Returns `size` rows that keep the classes' shares: the first ones of each class, in order.

    Shares are rounded by the largest remainder, ties by the lower class.
    """
    counts = torch.bincount(labels)
    exact = counts.double() * (size / len(labels))
    quota = exact.floor().long()
    rest = (exact - quota).argsort(descending=True, stable=True)
    quota[rest[: size - int(quota.sum())]] += 1
    chosen = [(labels == label).nonzero()[:n, 0] for label, n in enumerate(quota.tolist())]
    return torch.cat(chosen).sort().values
