"""Writes files so that a kill leaves them complete, and locks them. It needs no torch."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from elstm.errors import UserError

MAX_JSON = 1_000_000  # bytes; a status.json has about 1,500


def write_atomic(
    path: Path,
    write: bytes | Callable[[IO[bytes]], object],
    *,
    sync: bool = True,
    keep: Path | None = None,
) -> None:
    """Replaces the file at `path`, so that at every moment a complete file is there, old or new.

    Args:
        path: the file; its folder must exist.
        write: the bytes, or a function that writes them to an open file.
        sync: wait until the disk has the bytes. They then survive a power failure, not only a kill.
        keep: a path that holds the earlier content of `path` afterwards.

    Raises:
        UserError: the disk is full, the folder is read-only or gone. `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, "; the earlier file is unchanged"):
            with suppress(
                FileNotFoundError
            ):  # a killed process's with this number, or another user's link
                temporary.unlink()
            with temporary.open("xb") as file:
                if callable(write):
                    write(file)
                else:
                    file.write(write)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if keep is not None:
                _keep(path, keep)
            temporary.replace(path)
            if sync:
                _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces several files below `folder`; after a failure or a signal all earlier ones remain.

    Every content is on the disk before the first file is replaced. A signal that arrives while they
    are replaced is raised after the last one. Only a kill in that moment leaves some of each.

    Args:
        folder: it is created if it does not exist, as are the folders in the names.
        files: the contents by their names, relative to `folder`, with / between the parts.

    Raises:
        UserError: the disk is full, or a folder cannot be made or written.
    """
    temporaries: dict[Path, Path] = {}
    try:
        with writing(folder, "; the earlier files are unchanged"):
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                with suppress(FileNotFoundError):
                    temporary.unlink()
                temporaries[temporary] = path
                with temporary.open("xb") as file:
                    file.write(content)
        interrupt: KeyboardInterrupt | None = None
        with writing(folder):
            for temporary, path in temporaries.items():
                while temporary.exists():
                    try:
                        temporary.replace(path)
                    except KeyboardInterrupt as signal:
                        interrupt = signal
        if interrupt is not None:
            raise interrupt
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()


def _keep(path: Path, keep: Path) -> None:
    """Links the file at `path`, if there is one, to the name `keep` as well."""
    if not path.exists():
        return
    link = keep.with_name(f".{keep.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(path, link)
        except OSError:  # without hard links there is no file at `path` for a moment
            path.replace(keep)
        else:
            link.replace(keep)
    finally:
        with suppress(OSError):
            link.unlink()


@contextmanager
def writing(path: Path, note: str = "") -> Iterator[None]:
    """Turns system errors while `path` is written into one message for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{note}") from error


def refuse_links(*paths: Path) -> None:
    """Refuses links, so that files of a run folder lie in it, whoever created the folder.

    Raises:
        UserError: one of `paths` is a symbolic link, or neither file nor folder (a pipe, a device).
    """
    for path in paths:
        if path.is_symlink():
            raise UserError(f"{path} is a link: a run folder has to hold its files itself")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is not a plain file: delete it")


def refuse_no_folder(path: Path) -> None:
    """Raises UserError where something that is no folder, or a link, has the name of one."""
    refuse_links(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file and has to be a folder: move it away")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a killed `write_atomic` from `folder`."""
    for temporary in folder.glob(".*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename reach the disk, where the system lets folders be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_append(path: Path) -> IO[bytes]:
    """Opens a plain file for appending and reading; it is created if it does not exist.

    A link, a pipe or a device is refused when the file is opened, so that nothing can replace the
    file after a check.

    Raises:
        UserError: it cannot be opened, or is no plain file.
    """
    refuse_links(path)  # for its message, and where the system has no O_NOFOLLOW
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with writing(path):
        descriptor = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path} is not a plain file: delete it")
        return os.fdopen(descriptor, "a+b")


def is_at(file: IO[bytes], path: Path) -> bool:
    """Returns whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def open_locked(path: Path, owner: Path) -> IO[bytes]:
    """Opens `path` for appending and claims it for this process, until it is closed.

    The claim is a POSIX record lock, which a kill releases and which holds across machines on NFS.
    If the system or the file system has no such locks, nothing is claimed.

    Args:
        owner: the name that an error message shows.

    Raises:
        UserError: it cannot be written, or another process has claimed it.
    """
    file = open_append(path)
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f"{owner} is locked by another process, which is still training there: "
            "wait for it, or stop it"
        ) from error
    except (ImportError, OSError):  # Windows; a file system without locks
        pass
    return file


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads the object in `path`, a plain file of at most MAX_JSON; None if that fails."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_JSON:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
