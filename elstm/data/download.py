"""Downloads the files of published data sets, and fails soon if there is no network."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from elstm.data.archive import extract
from elstm.data.catalog import PublishedArchive
from elstm.errors import UserError

log = logging.getLogger(__name__)

# A download fails if no byte arrives for STALL seconds, even if a name server or a proxy would hang
# for longer: within 30 seconds, with torchvision's import. A slow network has unlimited time. If a
# mirror is silent for SILENCE seconds, the next one is tried.
STALL = 20.0
SILENCE = 8.0

MAX_BYTES = 256_000_000  # of a file that is published alone; the largest has 18,165,135
PIECE = 1 << 16
SHOWN = 100_000_000  # bytes after which a long download is logged again

ELSEWHERE = "or take data=digits, which needs no download"


def download(dataset: str, files: Sequence[str], folder: Path) -> None:
    """Downloads `files` of torchvision's data set into `folder`, and checks the MD5 of each.

    A file appears in the folder once it is complete. An interrupted download therefore leaves no
    broken file, and several processes may download the same files at once.

    Args:
        dataset: the name of the class in torchvision.datasets, which knows mirrors and checksums.
        files: names as in its `resources`, with `.gz`.
        folder: where to put them; it is created if it is missing.
    Raises: UserError if the folder cannot be written to or the download fails.
    """
    lacks = _lacks(folder, files)
    with _writing(lacks, folder, f"{dataset}/raw"), _scratch(folder) as scratch:
        from torchvision import datasets  # takes a second, and is needed only here

        source = getattr(datasets, dataset)
        md5 = dict(source.resources)
        for file in files:
            log.info("downloading %s into %s", file, folder)
            urls = [mirror + file for mirror in source.mirrors]
            failure = _fetch(urls, md5[file], scratch, MAX_BYTES)
            if failure is not None:
                raise UserError(
                    f"{lacks}, and the download failed ({failure}): set data.root= to "
                    f"a folder that holds {dataset}/raw, {ELSEWHERE}"
                )
            (scratch / file).replace(folder / file)


def unpack_archive(
    archive: PublishedArchive,
    missing: Sequence[str],
    extracted: Sequence[str],
    folder: Path,
    place: str,
) -> None:
    """Extracts files from an archive, which is downloaded unless it exists already.

    The archive is searched for in `folder` and in data.root, where torchvision stores it.

    Args:
        missing: the names of the files that are needed, for the error message.
        extracted: the names of the files that are extracted.
        folder: where to put them; it is created if it is missing.
        place: the path of `folder` in data.root.

    Raises:
        UserError: the archive is damaged or cannot be downloaded, or the folder cannot be written
            to.
    """
    lacks = _lacks(folder, missing)
    root = folder.parents[len(Path(place).parts) - 1]
    with _writing(lacks, folder, place), _scratch(folder) as scratch:
        places = (folder / archive.name, root / archive.name)
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            path = scratch / archive.name
            _download_archive(archive, lacks, folder, place, scratch)
        elif _md5(path) != archive.md5:
            raise UserError(
                f"{path} is damaged (its MD5 is not that of the published file): put a good copy "
                "in its place, or move it elsewhere and run again, which downloads it"
            )
        else:
            log.info("extracting the files from %s", path)
        for file in extract(path, archive.folder, (*extracted, *archive.extras), missing, scratch):
            file.replace(folder / file.name)


def _download_archive(
    archive: PublishedArchive, lacks: str, folder: Path, place: str, scratch: Path
) -> None:
    size = f"{archive.size / 1e9:.2f} GB"
    free = shutil.disk_usage(folder).free
    if free < 2 * archive.size:
        raise UserError(
            f"{lacks}, and the download of {size} needs twice as much space: {free / 1e9:.2f} GB "
            f"are free; set data.root= to a folder elsewhere, {ELSEWHERE}"
        )
    log.info(
        "downloading %s, which has %s, from %s into %s",
        archive.name, size, urlsplit(archive.url).netloc, folder,
    )  # fmt: skip
    failure = _fetch([archive.url], archive.md5, scratch, archive.size + archive.size // 10)
    if failure is not None:
        raise UserError(
            f"{lacks}, and the download of {archive.url} failed ({failure}): put that file into "
            f"{folder}, set data.root= to a folder that holds {place}, {ELSEWHERE}"
        )


def _lacks(folder: Path, files: Sequence[str]) -> str:
    # Usually all files are missing, and four long names would hide the rest of the message.
    return f"{folder} lacks {', '.join(files) if len(files) < 4 else 'all files of the set'}"


@contextlib.contextmanager
def _writing(lacks: str, folder: Path, place: str) -> Iterator[None]:
    """Reports that the folder cannot be written to."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{lacks}, and cannot be written to ({reason}): set data.root= to a folder that holds "
            f"{place} or can be written to, {ELSEWHERE}"
        ) from error


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Makes a temporary folder inside `folder`; new folders that stay empty are removed again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # FIPS systems need to know
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _save(url: str, path: Path, md5: str, limit: int, given_up: threading.Event) -> None:
    """Downloads from an address to a file, at most `limit` bytes.

    Raises:
        ValueError: it is larger, or its checksum is another.
        OSError: the network or the disk failed.
    """
    digest, received = hashlib.md5(usedforsecurity=False), 0
    request = Request(url, headers={"User-Agent": "elstm"})
    with urlopen(request) as response, path.open("wb") as file:
        while (piece := response.read(PIECE)) and not given_up.is_set():
            received += len(piece)
            if received > limit:
                raise ValueError(f"more than {limit:,} bytes")
            file.write(piece)
            digest.update(piece)
    if digest.hexdigest() != md5:
        raise ValueError("the file is corrupted: its MD5 is not that of the published one")


def _fetch(urls: Sequence[str], md5: str, scratch: Path, limit: int) -> str | None:
    """Downloads a file from the first address that has it; returns None, or the errors."""
    failures: list[str] = []
    given_up = threading.Event()

    def work() -> None:
        for url in urls:
            if given_up.is_set():
                return
            try:
                _save(url, scratch / url.rsplit("/", 1)[1], md5, limit, given_up)
            except Exception as error:  # no network, no such file, wrong checksum, disk full ...
                reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
                failures.append(f"{urlsplit(url).netloc}: {reason}")
            else:
                failures.clear()
                return

    # This is a thread because resolving a name has no time limit, and a daemon because one that
    # hangs must not prevent the program from ending.
    thread = threading.Thread(target=work, name="download", daemon=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        thread.start()
        size, moved, shown = 0, time.monotonic(), 0
        while thread.is_alive():
            thread.join(0.1)
            now = sum(path.stat().st_size for path in scratch.iterdir())
            if now != size:
                size, moved = now, time.monotonic()
                if size - shown >= SHOWN:
                    shown = size
                    log.info("%.2f GB are downloaded", size / 1e9)
            elif time.monotonic() - moved > STALL:
                failures.append(f"no byte arrived for {STALL:g} s")
                break
    finally:
        given_up.set()
        socket.setdefaulttimeout(timeout)
    return " ".join("; ".join(failures).split()) or None
