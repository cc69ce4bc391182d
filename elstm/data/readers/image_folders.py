"""Reads class folders of pictures, as torchvision's ImageFolder has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from elstm.data.image_files import endings, read_full, scaled
from elstm.data.labelled import LIKE_SPLITS, SPLITS, LabelledSet, Source, check_memory
from elstm.errors import UserError
from elstm.files.bounded import file_text

MODES = {1: "L", 3: "RGB"}
GROUND = 0  # black, behind transparent parts; elstm-predict takes the same for such a run

Note = Callable[[Path, str], None]  # receives a file and a message for the user about it
# Reads a picture in the requested size, raises ValueError, and gives its messages to the function.
Decode = Callable[[Path, Callable[[str], None]], np.ndarray]


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
    path: Path,
    channels: int = 1,
    image_size: tuple[int, int] | None = None,
    decode: Decode | None = None,
) -> Source:
    """Reads DIR/CLASS/* or DIR/{train,val,test}/CLASS/*.

    Args:
        path: the folder. Hidden files and folders are skipped.
        channels: 1 for grey, 3 for red, green and blue.
        image_size: rows and columns that all pictures are brought to; None: they have one size.
        decode: reads a picture in another way, in the size `image_size`.

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
    if any(name in SPLITS for name in names) and set(names) <= set(SPLITS):
        parts = {split: path / split for split in SPLITS if split in names}
    elif "train" in names or {name.lower() for name in names} <= LIKE_SPLITS:
        other = sorted(set(names) - set(SPLITS))
        raise UserError(
            f"{path} holds {', '.join(other[:5])}, which are neither splits nor classes: either "
            "every folder is a class, or the folders are train, val and test, with the classes "
            "inside"
        )
    else:
        parts = {"all": path}
    found: Source = {}
    size = image_size
    for split, folder in parts.items():
        fixed = image_size is not None
        found[split] = _read(path, folder, channels, size, fixed=fixed, decode=decode)
        size = found[split].image_size
    return found


def _folders(path: Path) -> list[Path]:
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _files(root: Path, folder: Path, note: Note) -> list[tuple[str, Path]]:
    """Returns class and file of each picture below `folder`."""
    found, known = [], endings()
    for label in _folders(folder):
        files = []
        for file in sorted(_visible(label)):
            if file.suffix.lower() in known:
                files.append(file)
            else:
                note(file, "was skipped: its name does not end like a picture's")
        if not files:
            raise UserError(f"{label} holds no picture: add some, or remove the folder")
        found += [(file_text(label.name), file) for file in files]
    if not found:
        raise UserError(f"{folder} holds no class folders")
    for file in sorted(folder.iterdir()):
        is_picture = file.suffix.lower() in known and file.is_file()
        if is_picture and not file.name.startswith("."):
            note(file, "was skipped: it lies in no class folder")
    return found


def _visible(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder that are not hidden; links are followed, each folder once."""
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = os.path.realpath(root)
        folders[:] = [name for name in folders if not name.startswith(".") and place not in seen]
        if place not in seen:
            yield from (Path(root, name) for name in names if not name.startswith("."))
        seen.add(place)


def _read(
    root: Path, folder: Path, channels: int, size: tuple[int, int] | None, *, fixed: bool,
    decode: Decode | None,
) -> LabelledSet:  # fmt: skip
    notes: dict[str, list[Path]] = {}

    def note(file: Path, text: str) -> None:
        notes.setdefault(text, []).append(file)

    files = _files(root, folder, note)
    if size is None:
        rows, columns, _ = _pixels(files[0][1], channels, None, lambda *_: None).shape
        size = rows, columns
    # A byte as read, one in a split, and one in between.
    check_memory(str(folder), len(files) * size[0] * size[1] * channels, 3)
    images = np.empty((len(files), *size, channels), np.uint8)
    for row, (_, file) in enumerate(files):
        pixels = _pixels(file, channels, size if fixed else None, note, decode)
        if pixels.shape[:2] != size:
            height, width = pixels.shape[:2]
            raise UserError(
                f"{file} is {height} x {width} and others are {size[0]} x {size[1]}: give one size "
                f"for all, data.image_size={size[0]}x{size[1]}"
            )
        images[row] = pixels
    labels = tuple(label for label, _ in files)
    ids = tuple(file_text(file.relative_to(root)) for _, file in files)
    pixels_first = images.reshape(len(files), -1, channels)
    lengths = np.full(len(files), pixels_first.shape[1])
    return LabelledSet(
        pixels_first, lengths, labels, ids, (folder,), image_size=size,
        notes=tuple(_sentence(root, text, found) for text, found in notes.items()),
    )  # fmt: skip


def _sentence(root: Path, text: str, files: list[Path]) -> str:
    """Returns one sentence for a note about several files."""
    more = f" (and {len(files) - 1:,} more)" if len(files) > 1 else ""
    return f"{files[0].relative_to(root)}{more} {text}"


def _pixels(
    file: Path, channels: int, size: tuple[int, int] | None, note: Note,
    decode: Decode | None = None,
) -> np.ndarray:  # fmt: skip
    """Returns uint8 (rows, columns, channels) of one picture, upright."""

    def note_file(text: str) -> None:
        note(file, text)

    try:
        if decode is not None:
            image = decode(file, note_file)
            return image.reshape(*image.shape[:2], channels)
        full = read_full(file, MODES[channels], None, GROUND, note_file, eight_bits=True)
    except ValueError as error:
        raise UserError(f"{file} cannot be read as a picture: {error}") from error
    rows, columns = size or (full.height, full.width)
    return scaled(full, rows, columns).reshape(rows, columns, channels)
