"""Loads image sets, and chooses which images train, validate and test."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elstm.data.catalog import DATA_SETS, DIGITS, IDX_FILES, DataSet
from elstm.data.download import download
from elstm.data.idx import damaged, read_idx
from elstm.errors import UserError

log = logging.getLogger(__name__)


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


def random_order(n: int, *key: str | int) -> Tensor:
    """Returns a permutation of 0 ... n - 1 that depends on the key alone."""
    # The key is hashed, so that (seed 0, epoch 1) and (seed 1, epoch 0) have unrelated orders.
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.randperm(n, generator=generator)


def load_image_set(name: str, root: str) -> ImageSet:
    """Returns a set of DATA_SETS, from torchvision's layout under `root`.

    Files that are not there are downloaded.

    Raises:
        UserError: there is no such set, or its files are damaged or cannot be had.
    """
    if name not in DATA_SETS:
        raise UserError(
            f"data.name={name}: there is no such data set; allowed: {', '.join(DATA_SETS)}"
        )
    source = DATA_SETS[name]
    if source.folder is None:
        return _load_digits()
    try:
        folder = Path(root).expanduser().absolute() / source.folder / "raw"
        missing = [f"{file}.gz" for file in IDX_FILES if _find(folder, file) is None]
    except (OSError, RuntimeError) as error:  # no permission; ~somebody without a home
        raise UserError(
            f"data.root={root} cannot be read ({error}): set data.root= to a folder that holds "
            f"{source.folder}/raw, or take data=digits, which needs no files"
        ) from error
    if missing:
        download(source.folder, missing, folder)
    return _load_idx_set(source, folder)


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

    return ImageSet(DIGITS, (8, 8), split(50, None), split(30, 50), split(0, 30))


def _load_idx_set(source: DataSet, folder: Path) -> ImageSet:
    """Reads the four files in `folder`, .gz or unpacked; the last sixth of training validates.

    That is the last 10,000 of 60,000. Files that are not the published ones are read as they are,
    so that a user's own set in this format works; the log names them.
    """
    arrays, paths = [], []
    for file, md5 in zip(IDX_FILES, source.md5, strict=True):
        path = _find(folder, file) or folder / file
        shape = (None, *source.image_size) if "images" in file else (None,)
        array = read_idx(path, shape)
        if path.suffix == ".gz":
            _check_published(path, md5)
        if "labels" in file and array.max() >= len(source.class_names):
            last = len(source.class_names) - 1
            raise damaged(path, f"a label is {array.max()}, the classes are 0 to {last}")
        arrays.append(torch.from_numpy(array.reshape(len(array), -1).copy()))
        paths.append(path)
    log.info("read %s from %s", ", ".join(str(p.relative_to(folder)) for p in paths), folder)
    images, labels, test_images, test_labels = arrays
    for kind, a, b in (("train", images, labels), ("t10k", test_images, test_labels)):
        if len(a) != len(b):
            raise UserError(
                f"{folder}: {len(a)} images but {len(b)} labels in {kind}-*: the files do not "
                "belong together; put files of one set there"
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
    found = ImageSet(
        class_names=source.class_names,
        image_size=source.image_size,
        train=Split(images[:cut], targets[:cut]),
        val=Split(images[cut:], targets[cut:]),
        test=Split(test_images, test_targets),
    )
    warn_of_missing_classes(found)
    return found


def warn_of_missing_classes(data: ImageSet) -> None:
    """Names in the log the classes of which a split holds no image: the file may be sorted."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    for split, part in splits.items():
        counts = torch.bincount(part.labels, minlength=len(data.class_names)).tolist()
        missing = [name for name, n in zip(data.class_names, counts, strict=True) if not n]
        if missing:
            log.warning(
                "the %s split holds no image of %s %s", split,
                "class" if len(missing) == 1 else "classes", ", ".join(missing),
            )  # fmt: skip


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


def _check_published(path: Path, md5: str) -> None:
    """Says in the log what lies there beside, or in the place of, a published file."""
    packed = path.read_bytes()
    # MD5 tells files apart here, and guards against no attacker; FIPS systems need to know.
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


def _find(folder: Path, file: str) -> Path | None:
    """Returns the file under any of the names that it is published under.

    Kaggle's copies have a point in the name (train-images.idx3-ubyte), some of them in a folder
    of the same name.
    """
    dotted = file.replace("-idx", ".idx")
    names = (f"{file}.gz", file, f"{dotted}.gz", dotted, f"{file}/{file}", f"{dotted}/{dotted}")
    return next((path for path in map(folder.joinpath, names) if path.is_file()), None)
