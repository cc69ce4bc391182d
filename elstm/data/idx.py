"""Reads IDX files, the format of MNIST and its relatives, and reports damaged ones.

Format: two zero bytes, the type of the entries, the number of dimensions, each dimension as a
big-endian uint32, then the entries in C order (Y. LeCun, yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import io
import math
import stat
import struct
import zlib
from pathlib import Path

import numpy as np

from elstm.errors import UserError

MAX_BYTES = 256_000_000  # of a file, packed or not; the largest here has 47,040,016
UNSIGNED_BYTE = 0x08  # the format's code for uint8, the only type these data sets use


def read_idx(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Reads the entries of an IDX file of unsigned bytes; a .gz is unpacked in memory.

    Args:
        path: the file, gzip'd if its name ends in `.gz`.
        shape: the dimensions that it has to have, None for any: (None, 28, 28).

    Returns: a read-only uint8 array.
    Raises: UserError that names the file, what is wrong with it and how to repair it.
    """
    content = read_plain(path)
    start, total = 4 + 4 * len(shape), 0
    # A few bytes may unpack to any number, so no more is unpacked than the header declares.
    packed = path.suffix == ".gz"
    with gzip.open(io.BytesIO(content)) if packed else io.BytesIO(content) as file:
        try:
            header = file.read(start)
            total = _size(path, header, shape)
            entries = file.read(total - start + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, f"cannot be unpacked: {error}") from error
    length = start + len(entries)
    if length != total:
        given = f"{length:,}" if length < total else f"more than {total:,}"
        raise damaged(path, f"{given} bytes (unpacked) instead of {total:,}")
    return np.frombuffer(entries, np.uint8).reshape(
        [-1 if size is None else size for size in shape]
    )


def read_plain(path: Path) -> bytes:
    """Reads a plain file of at most MAX_BYTES.

    Raises:
        UserError: it is none, or cannot be read.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{path} cannot be read (not a plain file)")
        if info.st_size > MAX_BYTES:
            raise damaged(path, f"{info.st_size:,} bytes, more than {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def _size(path: Path, header: bytes, shape: tuple[int | None, ...]) -> int:
    """Checks a header and returns the length of the unpacked file."""
    length = 4 + 4 * len(shape)
    if len(header) < length:
        raise damaged(path, f"{len(header)} bytes are too few for the header")
    if header[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise damaged(path, f"not an IDX file of unsigned bytes: starts with {header[:4].hex()}")
    if header[3] != len(shape):
        raise damaged(path, f"{header[3]} dimensions instead of {len(shape)}")
    sizes = struct.unpack(f">{len(shape)}I", header[4:length])
    total = length + math.prod(sizes)
    wrong = any(need not in (None, size) for need, size in zip(shape, sizes, strict=True))
    if 0 in sizes or wrong or total > MAX_BYTES:
        expected = " x ".join("N" if size is None else str(size) for size in shape)
        limit = "" if wrong or 0 in sizes else f" of at most {MAX_BYTES:,} bytes"
        raise damaged(
            path, f"holds {' x '.join(map(str, sizes))} entries instead of {expected}{limit}"
        )
    return total


def damaged(path: Path, what: str) -> UserError:
    """Returns the error to raise for a file whose content is wrong."""
    return UserError(
        f"{path} is damaged ({what}): put a good copy in its place, or move it elsewhere and run "
        "again, which downloads the published file"
    )
