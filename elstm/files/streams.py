"""Makes standard streams outlast their reader, and write any text.

The reader may be a pipe or a terminal that was closed.

print, logging and tqdm then see no error, so a run does not end because `| head -1` or a closed
terminal no longer reads its output.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.EINVAL)  # there is no reader any more


class _Lasting(io.FileIO):
    """Writes to a descriptor, which becomes os.devnull at the first error."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error
            _null(self.fileno())
            return len(memoryview(data).cast("B"))


class Streams:
    """Holds the streams while `lasting_streams` is active."""

    def __init__(self) -> None:
        self.raw: list[_Lasting] = []

    def flush(self) -> None:
        for name in _NAMES[1:]:
            with suppress(OSError, ValueError):
                getattr(sys, name).flush()

    def lost(self) -> OSError | None:
        """Returns the error of standard output on a full disk; None if only its reader has gone."""
        self.flush()
        errors = (raw.lost for raw in self.raw if raw.fileno() == 1)
        return next((e for e in errors if e is not None and e.errno not in _GONE), None)


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """Opens the standard streams that are closed, and makes output outlast its reader.

    The next file would get a descriptor that stays closed, and metrics.csv could then receive what
    a library writes to standard error. Streams that a caller has replaced stay as they are.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                _null(number)
            mode = "w" if number else "r"
            null = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, null)
    streams, before = Streams(), (sys.stdout, sys.stderr)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        with suppress(OSError):
            stream.flush()
        raw = _Lasting(number, "w", closefd=False)
        streams.raw.append(raw)
        # Unbuffered streams (standard error, or PYTHONUNBUFFERED=1) stay so, because otherwise a
        # progress bar and the messages on standard output would reach the terminal in another
        # order.
        buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
        # A terminal may lack a character of a message, and a path may hold bytes that are no text.
        errors = "backslashreplace" if stream.errors == "strict" else stream.errors
        lasting = io.TextIOWrapper(
            buffer, stream.encoding, errors,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
        setattr(sys, name, lasting)
    try:
        yield streams
    finally:
        streams.flush()
        sys.stdout, sys.stderr = before


def _null(number: int) -> None:
    """Points a descriptor to os.devnull."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)
