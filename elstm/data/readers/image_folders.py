"""Reads class folders of pictures, as torchvision's ImageFolder has them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

import numpy as np

from elstm.data.labelled import SPLITS, LabelledSet, Source, check_memory
from elstm.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = 100_000_000  # of one picture


class ImageFolderOptions(Protocol):
    path: str
    channels: int
    image_size: int | str | None


def read(options: ImageFolderOptions) -> Source:
    """Reads the source `images`; see `read_image_folders`."""
    return read_image_folders(Path(options.path), options.channels, parse_size(options.image_size))


def parse_size(text: int | str | None) -> tuple[int, int] | None:
    """Returns rows and columns of "28" or "28x32".

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return None
    parts = str(text).lower().split("x")
    sizes = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    if len(sizes) != len(parts) or len(parts) > 2 or not all(0 < size <= 10_000 for size in sizes):
        raise UserError(
            f"data.image_size={text}: has to be a number of pixels up to 10,000, or rows and "
            "columns as 28x32"
        )
    return sizes[0], sizes[-1]


def read_image_folders(
    path: Path, channels: int = 1, image_size: tuple[int, int] | None = None
) -> Source:
    """Reads DIR/CLASS/* or DIR/{train,val,test}/CLASS/*.

    Args:
        path: the folder. Hidden files and folders are skipped.
        channels: 1 for grey, 3 for red, green and blue.
        image_size: rows and columns that all pictures are brought to; None: they have one size.

    Raises:
        UserError: there are no pictures, an empty class, a picture that cannot be read, or pictures
            of several sizes without `image_size`.
    """
    folders = _folders(path)
    if not folders:
        raise UserError(
            f"{path} has to hold a folder for each class (or train, val and test with such "
            "folders), and holds no folder"
        )
    names = [folder.name for folder in folders]
    if "train" in names:
        other = sorted(set(names) - set(SPLITS))
        if other:
            raise UserError(
                f"{path} holds the splits {', '.join(n for n in SPLITS if n in names)} and also "
                f"{', '.join(other[:5])}: keep one of the two layouts"
            )
        parts = {split: path / split for split in SPLITS if split in names}
    else:
        parts = {"all": path}
    found: Source = {}
    size = image_size
    for split, folder in parts.items():
        found[split] = _read(path, folder, channels, size, fixed=image_size is not None)
        size = found[split].image_size
    return found


def _folders(path: Path) -> list[Path]:
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _files(root: Path, folder: Path) -> list[tuple[str, Path]]:
    """Returns class and file of each picture below `folder`."""
    found = []
    for label in _folders(folder):
        files = sorted(
            file
            for file in label.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        )
        if not files:
            raise UserError(f"{label} holds no picture: every class needs some, or take it away")
        found += [(label.name, file) for file in files]
    if not found:
        raise UserError(f"{folder} holds no class folders")
    return found


def _read(
    root: Path, folder: Path, channels: int, size: tuple[int, int] | None, *, fixed: bool
) -> LabelledSet:
    files = _files(root, folder)
    first = files[0][1]
    if size is None:
        rows, columns, _ = _pixels(first, channels, None).shape
        size = rows, columns
    check_memory(str(folder), len(files) * size[0] * size[1] * channels // 4)
    images = np.empty((len(files), *size, channels), np.uint8)
    for row, (_, file) in enumerate(files):
        pixels = _pixels(file, channels, size if fixed else None)
        if pixels.shape[:2] != size:
            height, width = pixels.shape[:2]
            raise UserError(
                f"{file} is {height} x {width} and others are {size[0]} x {size[1]}: give one size "
                f"for all, data.image_size={size[0]}x{size[1]}"
            )
        images[row] = pixels
    labels = tuple(label for label, _ in files)
    ids = tuple(str(file.relative_to(root)) for _, file in files)
    pixels_first = images.reshape(len(files), -1, channels)
    lengths = np.full(len(files), pixels_first.shape[1])
    return LabelledSet(pixels_first, lengths, labels, ids, (folder,), image_size=size)


def _pixels(file: Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Returns uint8 (rows, columns, channels) of one picture, upright."""
    from PIL import Image, ImageOps  # half a second: only where pictures are read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # bounded here
            with Image.open(file) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise UserError(f"{file} has more than {MAX_PIXELS:,} pixels")
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith(("I", "F")):
                    raise UserError(
                        f"{file} has grey levels of 16 bits or more ({upright.mode}): save it with "
                        "8 bits a channel"
                    )
                converted = upright.convert(MODES[channels])
                if size is not None and converted.size != (size[1], size[0]):
                    converted = converted.resize((size[1], size[0]), Image.Resampling.BOX)
                pixels = np.asarray(converted, np.uint8)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} is no picture that can be read: {reason}") from error
    return pixels.reshape(*pixels.shape[:2], channels)
