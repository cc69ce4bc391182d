"""Writes the TensorBoard event file of a run so that a reader never has to start again.

A file is only appended to: readers hold a position in it, and one that was renamed or cut back
would show nothing more. A resume writes a SessionLog.START with the checkpoint's step S. It makes
TensorBoard drop the events from S on, which training then writes again. What the file had of S at
the checkpoint is dropped with them, so it is repeated behind the START.

A kill may leave half a record, behind which no reader gets. Then a second file is started, whose
name sorts behind the first: readers go on to it.

torch's SummaryWriter starts a file for each process, and writes from a thread. Here the position in
the files is known at every checkpoint.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c

from elstm.files import atomic as files

PATTERN = "events.out.tfevents.*.elstm"
HEADER, FOOTER = 12, 4  # bytes of a record around its data: length and checksum; checksum


class EventFile:
    """Appends events to the run's event file.

    Args:
        folder: the run's.
        step: of the checkpoint that the run resumes from, else 0.
        size: bytes of all event files together at the checkpoint; None: there is none.

    Attributes:
        missing: bytes that the files lacked.
        tags: of all scalars, histograms and pictures in the existing files.
    """

    def __init__(self, folder: Path, step: int = 0, size: int | None = None) -> None:
        self.folder = folder
        existing = sorted(folder.glob(PATTERN))
        files.refuse_links(*existing)
        repeated: list[bytes] = []
        self.tags: set[str] = set()
        ends_well, self.before = True, 0  # bytes in earlier files
        total = sum(path.stat().st_size for path in existing)
        self.missing = max((size or 0) - total, 0)
        for path in existing:
            with files.writing(path):
                repeated, ends_well = _read(
                    path, step, (size or 0) - self.before, repeated, self.tags
                )
                self.before += path.stat().st_size
        if existing and ends_well:
            self.path = existing[-1]
            self.before -= self.path.stat().st_size
            self._open()
        else:
            self._start(self._new_path())
        if existing:
            self._add_start(step)
            for data in repeated:
                self._write(data)

    def _new_path(self) -> Path:
        """Returns a name that sorts behind those of the folder's other event files."""
        stamps = [path.name.split(".")[3] for path in self.folder.glob(PATTERN)]
        latest = max((int(s) for s in stamps if s.isdecimal()), default=0)
        return self.folder / f"events.out.tfevents.{max(time.time_ns(), latest + 1)}.elstm"

    def _open(self) -> None:
        self.file: IO[bytes] = files.open_append(self.path)
        self.size = self.file.seek(0, os.SEEK_END)
        self._records = RecordWriter(self.file)

    def _start(self, path: Path) -> None:
        self.path = path
        self._open()
        self._write(Event(file_version="brain.Event:2", wall_time=time.time()).SerializeToString())
        if not self.before:
            self._add_start(0)

    def _add_start(self, step: int) -> None:
        start = SessionLog(status=SessionLog.START)
        event = Event(session_log=start, step=step, wall_time=time.time())
        self._write(event.SerializeToString())

    def add(self, summary: Summary, step: int) -> None:
        self._write(Event(summary=summary, step=step, wall_time=time.time()).SerializeToString())

    def _write(self, data: bytes) -> None:
        with files.writing(self.path):
            self._records.write(data)
        self.size += HEADER + len(data) + FOOTER

    def total(self) -> int:
        """Returns the bytes of all event files together."""
        return self.before + self.size

    def repair(self) -> str | None:
        """Goes on in a new file if this one was removed or changed; returns what happened."""
        with files.writing(self.path):
            if not files.is_at(self.file, self.path):
                self.file.seek(0)
                data = self.file.read()  # a file lives until it is closed
                self.file.close()
                self.path = self._new_path()
                self._open()
                self.file.write(data)
                self.file.flush()
                self.size = len(data)
                return f"was removed: it is written again as {self.path.name}"
            now = os.fstat(self.file.fileno()).st_size
            if now != self.size:
                self.file.close()
                self.before += now
                self._start(self._new_path())
                return f"was changed: {self.path.name} has the events from here on"
        return None


def _read(
    path: Path, step: int, size: int, kept: list[bytes], tags: set[str]
) -> tuple[list[bytes], bool]:
    """Reads one file as TensorBoard does.

    Args:
        step: events from this step on are returned.
        size: only the first so many bytes count.
        kept: such events of earlier files.
        tags: the file's tags are added to it.

    Returns: the events, and whether the file ends with a complete record.
    """
    found, complete = [(Event.FromString(data), data) for data in kept], 0
    for start, end, data in _records(path, size):
        complete = end
        try:
            event = Event.FromString(data)
        except DecodeError:
            return [data for _, data in found], False
        tags.update(value.tag for value in event.summary.value)
        if start >= size:
            continue
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            found = [entry for entry in found if entry[0].step < event.step]
        elif event.HasField("summary") and event.step >= step:
            found.append((event, data))
    return [data for _, data in found], complete == path.stat().st_size


def _records(path: Path, known: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields start, end and data of each complete record, up to the first that is damaged.

    The checksum of the data, which takes long, is compared only behind the first `known` bytes:
    these were on the disk at a checkpoint.
    """
    position = 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while True:
            header = file.read(HEADER)
            if len(header) < HEADER:
                return
            length, crc = struct.unpack("<QI", header)
            end = position + HEADER + length + FOOTER
            if crc != masked_crc32c(header[:8]) or end > total:
                return
            data, footer = file.read(length), file.read(FOOTER)
            if position >= known and footer != struct.pack("<I", masked_crc32c(data)):
                return
            yield position, end, data
            position = end
