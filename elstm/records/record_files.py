"""Opens, restores, flushes and closes the files of a run's records; `tracking` has what they hold.

All but over_time.csv are appended to. A file that another program changed is copied to another name
first, with a warning. A file that is removed during the run is written again, with a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elstm.files import atomic as files
from elstm.records.event_file import EventFile
from elstm.records.table_file import TableFile
from elstm.records.tags import FIRST_SCALARS, SCALARS

POSITION = ("epoch", "step", "train_seconds", "wall_seconds")
COLUMNS = (*POSITION, *SCALARS)
FIRST_COLUMNS = (*POSITION, *FIRST_SCALARS)
NORM_COLUMNS = (
    "epoch", "step", "norm", "gamma_mean", "gamma_std", "beta_mean", "beta_std", "spread",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordState:
    """Stores what the files hold at a step, so that they can be restored to it."""

    step: int
    sizes: Mapping[str, Any]
    over_time: bytes | None


class RecordFiles:
    """Holds metrics.csv, norms.csv, over_time.csv and the event file of a run.

    Its creation opens metrics.csv, which locks the run folder for this process; `restore` opens the
    others.

    Args:
        run_dir: the run's folder.
        columns: the columns of metrics.csv; an existing file keeps its columns.
    """

    def __init__(self, run_dir: Path, columns: Sequence[str]) -> None:
        self.run_dir = run_dir
        self.norms_path = run_dir / "norms.csv"
        self.over_time_path = run_dir / "over_time.csv"
        self._norms: TableFile | None = None
        self._over_time: bytes | None = None
        self.events: EventFile | None = None
        path = run_dir / "metrics.csv"
        files.refuse_links(path, self.norms_path)
        self.metrics = TableFile(path, _columns(path, columns), owner=run_dir)

    @property
    def norms(self) -> TableFile:
        """Returns the table of the normalisations, which is created when first needed."""
        if self._norms is None:
            self._norms = TableFile(self.norms_path, NORM_COLUMNS)
        return self._norms

    def restore(self, sizes: Mapping[str, Any], step: int, stay: Collection[str]) -> EventFile:
        """Restores the files to their content at a step, and opens the event file again.

        Args:
            sizes: the result of `sizes` at that step; empty for a new run.
            stay: tags of pictures of that step that stay, though they were drawn later.
        """
        tables = {"metrics": self.metrics}
        if sizes.get("norms") or os.path.lexists(self.norms_path):
            tables["norms"] = self.norms
        complete = True
        for name, table in tables.items():
            complete &= table.restore(sizes.get(name, 0), sizes.get(f"{name}_sha256"), step)
        self.events = EventFile(self.run_dir, step, sizes.get("events"), stay)
        if not complete or self.events.missing:
            log.warning(
                "metrics.csv, norms.csv or the event file in %s is not complete up to the "
                "checkpoint: their curves have a gap",
                self.run_dir,
            )
        return self.events

    def state(self, step: int) -> RecordState:
        """Returns what `return_to` needs to undo what is written from now on."""
        path = self.over_time_path
        with files.writing(path):
            known = path.is_file() and not path.is_symlink()
            over_time = path.read_bytes() if known else None
        return RecordState(step, self.sizes(), over_time)

    def return_to(self, state: RecordState) -> None:
        """Removes what was written since `state`."""
        if self.events is None:
            return
        with files.writing(self.run_dir):
            for record in self._open_records():
                record.file.flush()
            self.events.file.close()
        self.restore(state.sizes, state.step, ())
        if self._over_time is not None and state.over_time is not None:
            self.write_over_time(state.over_time)
        self.flush()

    def write_over_time(self, text: bytes) -> None:
        """Replaces over_time.csv."""
        self._over_time = text
        files.write_atomic(self.over_time_path, text, sync=False)

    def flush(self) -> None:
        """Writes everything to the files, and writes removed files again."""
        with files.writing(self.run_dir):
            for record in self._open_records():
                record.file.flush()
        for record in self._open_records():
            path, happened = record.path, record.repair()
            if happened is not None:
                log.warning("%s %s", path, happened)
        if self._over_time is not None and not self.over_time_path.exists():
            log.warning("%s was removed during the run: it is written again", self.over_time_path)
            self.write_over_time(self._over_time)

    def sizes(self) -> dict[str, Any]:
        """Returns sizes and fingerprints of the files, for a checkpoint.

        Their bytes are on the disk when it returns.
        """
        if self.events is None:
            return {}
        self.flush()
        with files.writing(self.run_dir):
            for record in self._open_records():
                os.fsync(record.file.fileno())
        norms = {"norms": 0} if self._norms is None else self._norms.mark("norms")
        return {**self.metrics.mark("metrics"), **norms, "events": self.events.total()}

    def close(self) -> None:
        """Closes all files. It never fails, so it cannot hide the error that ended the run."""
        for record in self._open_records():
            try:
                record.file.close()
            except OSError as error:
                log.warning("cannot write to %s: %s", self.run_dir, error)

    def _open_records(self) -> list[TableFile | EventFile]:
        records = (self.metrics, self._norms, self.events)
        return [record for record in records if record is not None]


def _columns(path: Path, columns: Sequence[str]) -> Sequence[str]:
    """Returns the columns of metrics.csv; a file of an earlier version keeps its columns."""
    try:
        with path.open("rb") as file:
            header = file.readline(10_000).decode("ascii", "replace").strip()
    except OSError:
        return columns
    return FIRST_COLUMNS if header == ",".join(FIRST_COLUMNS) else columns
