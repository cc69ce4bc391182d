"""Packs the runs of a finished study into an archive, for `elstm-report --pack`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from elstm.cli import plural
from elstm.errors import UserError
from elstm.files.atomic import write_together, writing
from elstm.files.bounded import Damaged, parse_metrics
from elstm.records.archive import ALWAYS, ARCHIVE, ARCHIVED, RUNS, Archive, pack
from elstm.records.find import find_runs
from elstm.records.stored import StoredRun
from elstm.reporting.dynamics import representative
from elstm.reporting.groups import make_sections
from elstm.reporting.runs import COLUMNS, Run, load_run


def pack_study(study: Path, output: Path | None = None) -> str:
    """Writes the archive of all runs below a folder; returns the message for the user.

    The tables over time steps and of the norms are packed for one run of each group, because the
    figures show one. Runs that the folder's own archive already holds are packed again.

    Args:
        study: the folder that holds the runs.
        output: where the archive is written; None: into `study`.

    Raises:
        UserError: there are no runs; a run is damaged, still training or elsewhere; or the archive
            cannot be written, or would overwrite another one or files of the user.
    """
    top = study.resolve()
    found, damaged = find_runs([study])
    if damaged:
        raise UserError(f"{damaged[0][0]}: {damaged[0][1]}")
    if not found:
        raise UserError(f"no run folders in {study}: elstm-train makes them under outputs/")
    runs: list[Run] = []
    for stored in found:
        if not stored.folder.is_relative_to(top):
            raise UserError(f"{stored.name} lies outside {study}: pack the folder that holds it")
        try:
            runs.append(load_run(stored))
        except Damaged as error:
            raise UserError(f"{stored.name}: {error}; resume or delete that run first") from None
    for run in runs:
        if run.state == "running" and not run.stalled:
            raise UserError(f"{run.path} is still training: pack a study once its runs have ended")
    folders = {run.stored.folder: run.stored.folder.relative_to(top).as_posix() for run in runs}
    shown = [representative(group) for section in make_sections(runs) for group in section.groups]
    inside = {folders[run.stored.folder] for run in shown if run is not None}
    try:
        files = pack(found, list(folders.values()), inside)
    except Damaged as error:
        raise UserError(f"{study} cannot be packed: {error}") from None
    target = study if output is None else output
    _refuse_others(target, found, folders)
    for name in ARCHIVED.values():  # of an earlier archive that had more
        if name not in files and (target / name).exists():
            files[name] = b"run,epoch\n"
    with tempfile.TemporaryDirectory() as trial:
        write_together(Path(trial), files)
        _check(Archive(Path(trial)), found)
    write_together(target, files)
    size = sum(map(len, files.values()))
    return (
        f"{plural(len(runs), 'run')}, {size:,} bytes in {target}: {', '.join(files)}\n"
        "The archive has been read back and holds all that a report needs. elstm-report reads it "
        "in place of the run folders, which are unchanged."
    )


def _refuse_others(target: Path, runs: Sequence[StoredRun], folders: Mapping[Path, str]) -> None:
    """Raises UserError where the archive would overwrite another study's, or files of the user."""
    where = "choose another folder with -o DIR, or move the files away"
    for name in (ARCHIVE, RUNS, *ARCHIVED.values()):
        path, mark = target / name, b"format:" if name == ARCHIVE else b"run,"
        if path.exists() and not any(line.startswith(mark) for line in _first_lines(path)):
            raise UserError(f"{path} is not part of an archive, and would be overwritten: {where}")
    if not (target / ARCHIVE).exists():
        return
    packed = {folders[run.folder]: _which(run) for run in runs}
    try:
        for run in Archive(target).runs:
            if packed.get(run.name) != _which(run):
                raise UserError(
                    f"{target} holds an archive with the run {run.name}, which is not among those "
                    f"that are to be packed, and would be lost: {where}"
                )
    except Damaged as error:
        raise UserError(
            f"{target} holds an archive that cannot be read ({error}): {where}"
        ) from None


def _first_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    with writing(path), path.open("rb") as file:
        return file.read(4096).splitlines()


def _which(run: StoredRun) -> tuple[object, ...]:
    """Returns values that distinguish runs with the same folder name; a resume changes none."""
    config = run.config()
    return (*(config.get(key) for key in ALWAYS), run.status().get("started"))


def _check(archive: Archive, runs: Sequence[StoredRun]) -> None:
    """Reads the archive from the disk and compares every run with what was packed."""
    for packed, run in zip(archive.runs, runs, strict=True):
        status, ours, theirs = run.status(), _metrics(run), _metrics(packed)
        if (
            packed.config() != run.config()
            or any(status.get(key, value) != value for key, value in packed.status().items())
            or not all(np.array_equal(ours[c], theirs[c], equal_nan=True) for c in COLUMNS)
        ):
            raise UserError(
                f"{run.name} has values that an archive cannot hold: do not delete its folder"
            )


def _metrics(run: StoredRun) -> dict[str, np.ndarray]:
    try:
        return parse_metrics(run.lines("metrics.csv"), COLUMNS)
    except Damaged:  # a run that failed before its first point
        return {name: np.empty(0) for name in COLUMNS}
