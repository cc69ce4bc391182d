"""Finds run folders, and runs in archives of finished studies, below given folders."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from elstm.errors import UserError, in_full
from elstm.files.bounded import Damaged, one_line, read_text
from elstm.records.archive import ARCHIVE, RUNS, Archive
from elstm.records.stored import RunFolder, StoredRun

MAX_FOLDERS = 200_000
MAX_SWEEP_BYTES = 10_000_000
LEVELS = 4  # a run lies at DATA/MODEL/CHANGES/RUN below its study, formerly at DATA/MODEL/RUN


def find_runs(roots: Sequence[Path]) -> tuple[list[StoredRun], list[tuple[str, str]]]:
    """Finds every run at or below the roots once.

    Returns the runs, and (name, reason) of damaged archives and of folders that cannot be read.

    A root may be the place of a run or of a group of runs that an archive above it holds. If a run
    is in an archive and its folder still exists, the folder is taken. The runs of a sweep's folder
    include those in its sweep.csv, which lie elsewhere under outputs/ or in the archive there.
    Links to folders are not followed below the roots, because an untrusted link may lead anywhere.

    Raises:
        UserError: a root is neither a folder nor in an archive, or holds more than 200,000 folders.
    """
    found: dict[Path, StoredRun] = {}
    damaged: dict[str, str] = {}
    for root in roots:
        try:
            top, is_folder = root.resolve(), root.is_dir()
        except (OSError, RuntimeError) as error:  # a name that is too long; a loop of links
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{in_full(str(root))} cannot be read: {reason}") from error
        archives = [folder for folder in [*top.parents][:LEVELS] if (folder / RUNS).is_file()]
        archives = [folder for folder in archives if (folder / ARCHIVE).is_file()]
        if not is_folder and not archives:
            raise UserError(
                f"{root} is not a folder: give run folders or folders that hold them{_near(root)}"
            )
        folders: list[Path] = []
        unreadable: dict[Path, str] = {}
        for folder, is_run in _folders_below(top, unreadable):
            (folders if is_run else archives).append(folder)
        damaged |= {_shown(path, top): one_line(text) for path, text in unreadable.items()}
        in_archives: dict[Path, StoredRun] = {}
        for folder in archives:
            try:
                runs = Archive(folder).runs
            except Damaged as error:
                damaged[_shown(folder, top)] = one_line(error)
                continue
            for archived in runs:
                name = _shown(archived.folder, top)
                in_archives[archived.folder] = replace(archived, name=name)
        of_root = {path: run for path, run in in_archives.items() if path.is_relative_to(top)}
        of_root |= {folder: RunFolder(_shown(folder, top), folder) for folder in folders}
        of_root = {path: of_root[path] for path in sorted(of_root, key=lambda path: path.parts)}
        for folder in _folders_of_sweep(top, in_archives):
            of_sweep: StoredRun = RunFolder(_shown(folder, top), folder)
            if not folder.is_dir():
                of_sweep = in_archives.get(folder, of_sweep)
            of_root.setdefault(folder, of_sweep)
        if not is_folder and not of_root:
            raise UserError(f"{root} is neither a folder nor in the archive above it")
        for path, run in of_root.items():
            found.setdefault(path, run)
    return list(found.values()), list(damaged.items())


def _near(path: Path) -> str:
    """Returns a hint at the run, sweep or archive that a file belongs to; "" if it has none."""
    for folder in path.parents[:2]:
        marks = (folder / ".hydra", folder / "sweep.csv", folder / ARCHIVE)
        if path.is_file() and any(mark.exists() for mark in marks):
            return f"; did you mean {in_full(str(folder))}?"
    return ""


def _shown(path: Path, top: Path) -> str:
    shown = path.relative_to(top.parent) if path.is_relative_to(top.parent) else path
    return one_line(shown.as_posix(), 300)


def _folders_below(top: Path, unreadable: dict[Path, str]) -> Iterator[tuple[Path, bool]]:
    """Yields each run folder with True, and each folder of an archive with False.

    Args:
        unreadable: receives the folders that cannot be read, each with the reason.
    """

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # removed meanwhile
            unreadable[Path(error.filename)] = f"cannot be read: {error.strerror}"

    for number_of_folders, (folder, inner, files) in enumerate(os.walk(top, onerror=note)):
        if number_of_folders > MAX_FOLDERS:
            raise UserError(f"{top} holds more than {MAX_FOLDERS:,} folders: give inner ones")
        inner.sort()
        if ".hydra" in inner or "status.json" in files or "metrics.csv" in files:
            inner.clear()
            yield Path(folder), True
        elif ARCHIVE in files:
            yield Path(folder), False


def _folders_of_sweep(top: Path, archived: Collection[Path]) -> Iterator[Path]:
    """Lists the places of the runs in top/sweep.csv.

    A name that leads out of the folders above `top` is ignored.

    Args:
        archived: the places of the runs in archives, whose folders may be gone.
    """
    try:
        rows = list(csv.DictReader(read_text(top / "sweep.csv", MAX_SWEEP_BYTES).splitlines()))
    except (Damaged, csv.Error):
        return
    for row in rows:
        for base, name in _places(top, row.get("run_dir") or ""):
            folder = _run_in(base, name, archived)
            if folder is not None:
                yield folder
                break


def _places(top: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yields where a run of the sweep in `top` may lie: a folder above `top`, and a name below it.

    sweep.csv names a run as the sweep's command did, relative to its current folder or absolute.
    That folder may be far above `top`, and the tree may have been moved. But the last parts of the
    name, DATA/MODEL/CHANGES/RUN, are always below the folder that holds `sweeps`.
    """
    above, parts = list(top.parents), Path(name).parts
    yield from ((base, name) for base in above[:3])
    for base in above[1:2]:
        yield from ((base, "/".join(parts[-levels:])) for levels in (LEVELS, LEVELS - 1))


def _run_in(base: Path, name: str, archived: Collection[Path]) -> Path | None:
    """Returns the place of the run of this name below `base`, or None."""
    try:
        folder = (base / name).resolve()
        is_run = (folder / ".hydra").is_dir() or (folder in archived and not folder.exists())
    except (OSError, ValueError, RuntimeError):  # too long; a NUL in it; a loop of links
        return None
    return folder if name and is_run and folder.is_relative_to(base) else None
