"""Downloads the files of a torchvision data set, and fails soon if there is no network."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from elstm.errors import UserError

log = logging.getLogger(__name__)

# A download fails if no byte arrives for STALL seconds, even if a name server or a proxy would hang
# for longer: within 30 seconds, with torchvision's import. A slow network has unlimited time. If a
# mirror is silent for SILENCE seconds, the next one is tried.
STALL = 20.0
SILENCE = 8.0

ELSEWHERE = "or take data=digits, which needs no download"


def download(dataset: str, files: Sequence[str], folder: Path) -> None:
    """Fetches `files` of torchvision's data set into `folder`, and checks the MD5 of each.

    A file appears in the folder once it is complete. An interrupted download therefore leaves no
    broken file, and several processes may fetch the same files at once.

    Args:
        dataset: the name of the class in torchvision.datasets, which knows mirrors and checksums.
        files: names as in its `resources`, with `.gz`.
        folder: where to put them; it is created if it is missing.
    Raises: UserError if the folder cannot be written to or the download fails.
    """
    # Usually the full set is missing, and four long names would hide the rest of the message.
    lacks = f"{folder} lacks {', '.join(files) if len(files) < 4 else 'all files of the set'}"
    try:
        with _scratch(folder) as scratch:
            from torchvision import datasets  # takes a second, and is needed only here

            source = getattr(datasets, dataset)
            md5 = dict(source.resources)
            for file in files:
                log.info("downloading %s into %s", file, folder)
                failure = _fetch([mirror + file for mirror in source.mirrors], md5[file], scratch)
                if failure is not None:
                    raise UserError(
                        f"{lacks}, and the download failed ({failure}): set data.root= to "
                        f"a folder that holds {dataset}/raw, {ELSEWHERE}"
                    )
                (scratch / file).replace(folder / file)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{lacks}, and cannot be written to ({reason}): set data.root= to a folder that holds "
            f"{dataset}/raw or can be written to, {ELSEWHERE}"
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


def _fetch(urls: Sequence[str], md5: str, scratch: Path) -> str | None:
    """Fetches a file from the first address that has it; returns None, or the errors."""
    from torchvision.datasets.utils import download_url

    failures: list[str] = []
    given_up = threading.Event()

    def work() -> None:
        for url in urls:
            if given_up.is_set():
                return
            try:
                download_url(url, str(scratch), url.rsplit("/", 1)[1], md5)
            except Exception as error:  # no network, no such file, wrong checksum, disk full ...
                reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
                failures.append(f"{urlsplit(url).netloc}: {reason}")
            else:
                failures.clear()
                return

    # This is a thread because resolving a name has no time limit, and a daemon because one that
    # hangs must not keep the program from ending.
    thread = threading.Thread(target=work, name="download", daemon=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)  # torchvision sets none
    try:
        thread.start()
        size, moved = 0, time.monotonic()
        while thread.is_alive():
            thread.join(0.1)
            now = sum(path.stat().st_size for path in scratch.iterdir())
            if now != size:
                size, moved = now, time.monotonic()
            elif time.monotonic() - moved > STALL:
                failures.append(f"nothing came for {STALL:g} s")
                break
    finally:
        given_up.set()
        socket.setdefaulttimeout(timeout)
    return " ".join("; ".join(failures).split()) or None
