"""Writes a CSV file row by row, and restores it to its content at a checkpoint.

Other programs may change the file: a spreadsheet rewrites line ends, a user deletes it. Therefore a
checkpoint holds the size and the SHA-256 of its content. A changed file is copied to another name
before anything in it is overwritten.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from elstm.files import atomic as files
from elstm.records.stored import rows_of

MAX_BYTES = 2**29  # four million rows; nothing is recovered from a larger file

log = logging.getLogger(__name__)


class TableFile:
    """Appends rows to a CSV file with a header.

    Args:
        path: the file; it is created if it does not exist.
        columns: its header.
        owner: the folder that this process locks by a lock on the file; None: no lock.
    """

    def __init__(self, path: Path, columns: Sequence[str], owner: Path | None = None) -> None:
        self.path, self.columns, self.owner = path, list(columns), owner
        self._open()

    def _open(self) -> None:
        self.file: IO[bytes] = (
            files.open_append(self.path)
            if self.owner is None
            else files.open_locked(self.path, self.owner)
        )
        self.size, self.digest = 0, hashlib.sha256()

    def restore(self, size: int, sha256: str | None, step: int) -> bool:
        """Cuts the file back to its first `size` bytes.

        Args:
            sha256: of these bytes; None: an older checkpoint, which holds none.
            step: of the checkpoint.

        Returns: whether the file holds all rows up to the checkpoint.
        """
        with files.writing(self.path):
            found = os.fstat(self.file.fileno()).st_size
            self.file.seek(0)
            text = self.file.read(size) if size <= MAX_BYTES else b""
            rest = self.file.read(MAX_BYTES)
            if self._is_left_as(text, size, sha256):
                if not self._are_rows(rest):
                    self._set_aside("holds other lines than this run's")
                self.file.truncate(size)
                self._count(text)
                return True
            if not found and size:
                log.warning("%s was removed: a new file is started", self.path)
                self._replace(b"")
                return False
            self._set_aside("is not as the run left it")
            return self._recover(text + rest, size, sha256, step)

    def _is_left_as(self, text: bytes, size: int, sha256: str | None) -> bool:
        if len(text) != size:
            return False
        if sha256 is not None:
            return hashlib.sha256(text).hexdigest() == sha256
        return not text or (text.endswith(b"\n") and b"\r" not in text and self._are_rows(text))

    def _are_rows(self, text: bytes) -> bool:
        """Returns whether all complete lines are rows; a kill may cut the last one."""
        lines = text.split(b"\n")[:-1]
        return all(line.count(b",") == len(self.columns) - 1 for line in lines)

    def _recover(self, text: bytes, size: int, sha256: str | None, step: int) -> bool:
        """Writes the rows that are certainly older than the checkpoint."""
        plain = text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._is_left_as(plain[:size], size, sha256):
            self._replace(plain[:size])
            return True
        rows = csv.DictReader(io.StringIO(plain.decode("utf-8", "replace"), newline=""))
        if rows.fieldnames != self.columns:
            self._replace(b"")
            return False
        rows_before = []
        for row in rows:
            cells = list(row.values())
            if len(row) != len(self.columns) or not all(isinstance(c, str) for c in cells):
                continue
            # Training rows of the checkpoint's step are older than it; evaluations may not be.
            at = row["step"]
            if at.isdecimal() and int(at) < step + bool(row.get("train_loss")):
                rows_before.append(cells)
        self._replace(b"".join(map(_line, rows_before)))
        return False

    def _replace(self, rows: bytes) -> None:
        """Replaces the content of the file by the rows, with the header before them."""
        header = _line(self.columns)
        text = rows if rows.startswith(header) else header + rows
        self.file.truncate(0)
        self.file.seek(0)
        self.file.write(text)
        self.file.flush()
        self._count(text)

    def _count(self, text: bytes) -> None:
        self.file.seek(0, os.SEEK_END)
        self.size, self.digest = len(text), hashlib.sha256(text)

    def _set_aside(self, why: str) -> None:
        """Copies the file to a free name."""
        number = 1
        while os.path.lexists(aside := self.path.with_name(f"{self.path.name}.kept{number}")):
            number += 1
        self.file.seek(0)
        files.write_atomic(aside, self._copy_to)
        log.warning("%s %s: a copy is %s", self.path, why, aside.name)

    def _copy_to(self, target: IO[bytes]) -> None:
        while block := self.file.read(2**20):
            target.write(block)

    def rows(self) -> list[dict[str, str]]:
        """Returns the complete rows by column.

        They are read through the open file. A second one would release this process's lock when it
        is closed.
        """
        with files.writing(self.path):
            self.file.flush()
            self.file.seek(0)
            text = self.file.read(MAX_BYTES).decode("utf-8", "replace")
            self.file.seek(0, os.SEEK_END)
        return rows_of(text[: text.rfind("\n") + 1].splitlines())

    def write_row(self, cells: Sequence[Any]) -> None:
        """Adds a row; the header comes first."""
        data = _line(cells) if self.size else _line(self.columns) + _line(cells)
        self._write(data)

    def write_header(self) -> None:
        if not self.size:
            self._write(_line(self.columns))

    def _write(self, data: bytes) -> None:
        with files.writing(self.path):
            self.file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def repair(self) -> str | None:
        """Writes the file again if it was removed or changed; returns a message about it.

        It is called when everything is flushed.
        """
        with files.writing(self.path):
            if not files.is_at(self.file, self.path):
                self.file.seek(0)
                text = self.file.read()  # a file lives until it is closed
                self.file.close()
                if os.path.lexists(self.path):
                    files.refuse_links(self.path)
                self._open()
                if os.fstat(self.file.fileno()).st_size:
                    self._set_aside("replaced the run's file")
                self._replace(text)
                return "was removed during the run: it is written again"
            now = os.fstat(self.file.fileno()).st_size
            if now == self.size:
                return None
            self._set_aside("was changed during the run")
            self.file.seek(0)
            text = self.file.read(MAX_BYTES)
            self._replace(text if self._is_left_as(text, now, None) else b"")
            return "was changed during the run: its rows may have a gap"

    def mark(self, name: str) -> dict[str, Any]:
        """Returns size and fingerprint for a checkpoint."""
        return {name: self.size, f"{name}_sha256": self.digest.hexdigest()}


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
