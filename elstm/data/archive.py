"""Extracts named files from tar and zip archives, and nothing else."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from elstm.errors import UserError

MAX_BYTES = 256_000_000  # of a file in the archive
PIECE = 1 << 20
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


def extract(
    path: Path, inside: str, names: Sequence[str], needed: Sequence[str], target: Path
) -> list[Path]:
    """Writes files of an archive into a folder; names in the archive never become paths.

    Args:
        path: a .zip or .tar.gz.
        inside: the folder in the archive that holds the files.
        names: the names of the files, without a folder.
        needed: those of `names` that have to be there.
        target: the folder for them.

    Returns: the files that were written.
    Raises:
        UserError: the archive is damaged, lacks a file, or holds too large a one.
    """
    members = {f"{inside}/{name}": name for name in names}
    read = _zip_files if path.suffix == ".zip" else _tar_files
    written = []
    try:
        for member, size, file in read(path, members):
            if size > MAX_BYTES:
                raise UserError(f"{path} is damaged: {member} has {size:,} bytes")
            written.append(target / members[member])
            with written[-1].open("wb") as out:
                shutil.copyfileobj(file, out, PIECE)
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be unpacked: {reason}") from error
    missing = set(needed) - {file.name for file in written}
    if missing:
        raise UserError(f"{path} does not hold {', '.join(sorted(missing))} in {inside}/")
    return written


def _zip_files(path: Path, members: dict[str, str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename in members:
                with archive.open(info) as file:  # gives at most file_size bytes
                    yield info.filename, info.file_size, file


def _tar_files(path: Path, members: dict[str, str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            file = archive.extractfile(member) if name in members and member.isreg() else None
            if file is not None:
                yield name, member.size, file
