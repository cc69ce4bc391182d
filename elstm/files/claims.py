"""Claims names between processes; a process that claims a name holds it until it ends."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from elstm.files.atomic import refuse_links, writing

try:
    import fcntl
except ImportError:  # Windows has no record locks: every claim succeeds there
    fcntl = None  # type: ignore[assignment]


class Claims:
    """Claims names by locking one byte of a file for each.

    A name's hash is the byte's offset, so that the file stays empty. The system drops the locks of
    a process that ends or is killed. They hold across machines on NFS.

    Args:
        path: the file that all processes share; the first claim creates it and its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def claim(self, name: str) -> bool:
        """Returns False if another process has claimed `name`.

        Raises:
            UserError: the file cannot be written.
        """
        if fcntl is None:
            return True
        if self._file is None:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                refuse_links(self.path)
                self._file = self.path.open("ab")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(name), os.SEEK_SET)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def release(self, name: str) -> None:
        """Gives up this process's claim of `name`."""
        if fcntl is not None and self._file is not None:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(name), os.SEEK_SET)

    def close(self) -> None:
        """Gives up all claims of this process."""
        if self._file is not None:
            self._file.close()


def _offset(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
