"""Read IDX files, the format of MNIST and its relatives, and say plainly where one is damaged.

Format: two zero bytes, the type of the entries, the number of dimensions, each dimension as a
big-endian uint32, then the entries in C order (Y. LeCun, yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from elstm.errors import UserError

UNSIGNED_BYTE = 0x08  # the format's code for uint8, the only type these data sets use


def read_idx(path: Path, shape: tuple[int | None, ...], md5: str | None = None) -> np.ndarray:
    """The entries of an IDX file of unsigned bytes; nothing is written, a .gz is read in memory.

    Args:
        path: the file, gzip'd if its name ends in `.gz`.
        shape: the dimensions that it has to have, None for any: (None, 28, 28).
        md5: the checksum of the file as it lies there; None: not checked.

    Returns: a read-only uint8 array.
    Raises: UserError that names the file, what is wrong with it and how to mend it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if md5 is not None:
        # MD5 guards against damage here, not against an attacker; FIPS systems need to be told so.
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise damaged(path, f"{len(content):,} bytes with MD5 {found}, should be MD5 {md5}")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, f"cannot be unpacked: {error}") from error
    return np.frombuffer(content, np.uint8, offset=_header(path, content, shape)).reshape(
        [-1 if size is None else size for size in shape]
    )


def _header(path: Path, content: bytes, shape: tuple[int | None, ...]) -> int:
    """The length of the header, once it and the length of the file have proved right."""
    length = 4 + 4 * len(shape)
    if len(content) < length:
        raise damaged(path, f"{len(content)} bytes are too few for the header")
    if content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise damaged(path, f"not an IDX file of unsigned bytes: begins with {content[:4].hex()}")
    if content[3] != len(shape):
        raise damaged(path, f"{content[3]} dimensions instead of {len(shape)}")
    sizes = struct.unpack(f">{len(shape)}I", content[4:length])
    if 0 in sizes or any(want not in (None, size) for want, size in zip(shape, sizes, strict=True)):
        wanted = " x ".join("N" if size is None else str(size) for size in shape)
        raise damaged(path, f"holds {' x '.join(map(str, sizes))} entries instead of {wanted}")
    total = length + math.prod(sizes)
    if len(content) != total:
        raise damaged(path, f"{len(content):,} bytes (unpacked) instead of {total:,}")
    return length


def damaged(path: Path, what: str) -> UserError:
    """The error to raise for a file whose content is wrong."""
    return UserError(
        f"{path} is damaged ({what}): delete it and run again, or put a good copy there"
    )
