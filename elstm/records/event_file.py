"""Writes the TensorBoard event file of a run so that a reader never has to restart.

A file is only appended to: readers hold a position in it, and one that was renamed or cut back
would show nothing more. A resume writes a SessionLog.START with the checkpoint's step S. It makes
TensorBoard drop the events from S on, which training then writes again. Events of S that the file
had at the checkpoint are dropped with them, so they are repeated after the START. So are pictures
of S that were drawn after the checkpoint was written.

A kill may leave half a record, which stops every reader. Then a second file is started, whose name
sorts after the first, and readers continue there.

torch's SummaryWriter starts a file for each process, and writes from a thread. Here the position in
the files is known at every checkpoint.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
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
        keep: tags of pictures of that step that stay, though they were written after the
            checkpoint.

    Attributes:
        missing: bytes that the files lacked.
        tags: of all scalars, histograms and pictures in the existing files.
        repeated: tags of the events of the checkpoint's step and later that stay.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        size: int | None = None,
        keep: Collection[str] = (),
    ) -> None:
        self.folder = folder
        existing = sorted(folder.glob(PATTERN))
        files.refuse_links(*existing)
        found = _Found(step, frozenset(keep))
        ends_well, self.before = True, 0  # bytes in earlier files
        total = sum(path.stat().st_size for path in existing)
        self.missing = max((size or 0) - total, 0)
        for path in existing:
            with files.writing(path):
                ends_well = _read(path, (size or 0) - self.before, found)
                self.before += path.stat().st_size
        repeated = found.repeated()
        self.tags = found.tags
        self.repeated = {tag for event, _ in repeated for tag in _tags(event)}
        if existing and ends_well:
            self.path = existing[-1]
            self.before -= self.path.stat().st_size
            self._open()
        else:
            self._start(self._new_path())
        if existing:
            self._add_start(step)
            for _, data in repeated:
                self._write(data)

    def _new_path(self) -> Path:
        """Returns a name that sorts after those of the folder's other event files."""
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
        """Continues in a new file if this one was removed or changed; returns a message."""
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


def _tags(event: Event) -> set[str]:
    return {value.tag for value in event.summary.value}


@dataclass
class _Found:
    """Collects the events that a resume from `step` repeats, from this step on."""

    step: int
    keep: frozenset[str]
    tags: set[str] = field(default_factory=set)
    before: list[tuple[Event, bytes]] = field(default_factory=list)  # the checkpoint was written
    behind: list[tuple[Event, bytes]] = field(default_factory=list)

    def add(self, event: Event, data: bytes, *, known: bool) -> None:
        """Adds an event; `known` is whether it was written before the checkpoint."""
        tags = _tags(event)
        self.tags |= tags
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            if known:
                self.before = [entry for entry in self.before if entry[0].step < event.step]
            self.behind = [entry for entry in self.behind if entry[0].step < event.step]
        elif known and event.HasField("summary") and event.step >= self.step:
            self.before.append((event, data))
        elif not known and event.step == self.step and tags and tags <= self.keep:
            self.behind.append((event, data))

    def repeated(self) -> list[tuple[Event, bytes]]:
        """Returns these events; one from before the checkpoint may already be repeated after it."""
        known = {tag for event, _ in self.before for tag in _tags(event)}
        return [*self.before, *(entry for entry in self.behind if not _tags(entry[0]) & known)]


def _read(path: Path, size: int, found: _Found) -> bool:
    """Reads one file as TensorBoard does.

    Args:
        size: the number of bytes that were written before the checkpoint.
        found: its events are added to it.

    Returns: whether the file ends with a complete record.
    """
    complete = 0
    for start, end, data in _records(path, size):
        complete = end
        try:
            event = Event.FromString(data)
        except DecodeError:
            return False
        found.add(event, data, known=start < size)
    return complete == path.stat().st_size


def _records(path: Path, known: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields start, end and data of each complete record, up to the first that is damaged.

    The checksum of the data takes long. It is compared only after the first `known` bytes, which
    were on the disk at a checkpoint.
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
