"""Reads and writes archives, which hold the runs of a finished study as a few tables.

An archive is a folder with these files. `elstm-report --pack STUDY_DIR` writes one, and
elstm-report reads archives and run folders alike.

    archive.yaml      the format's number and the full config of the first run
    runs.csv          one row per run: its number, the folder it had, the settings that differ
                      between the runs, and from `state` on the fields of status.json
    curves.csv        metrics.csv of all runs, each line after the run's number
    norms.csv, over_time.csv, test_correct.csv
                      the same for the other tables of a run folder, of the runs that have been
                      packed with them

An empty cell of a setting means that the run does not have it. A text that would read as another
value is quoted. Settings are plain data. Those without an option in this version are preserved, and
nothing in an archive is ever executed or composed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elstm.files.bounded import (
    Config,
    Damaged,
    Value,
    flatten,
    open_regular,
    read_text,
    read_tree,
    to_yaml,
)
from elstm.records.cells import decode, encode, settings_tree
from elstm.records.stored import TABLES, StoredRun, table_rows

ARCHIVE = "archive.yaml"
RUNS = "runs.csv"
FORMAT = 1
# The table of an archive that holds a table of its run folders.
ARCHIVED = {name: "curves.csv" if name == "metrics.csv" else name for name in TABLES}
# The columns of runs.csv before and after the settings. The status begins at `state`.
FIRST = ("run", "folder")
STATE = "state"
# Settings that have a column even if they do not differ, and fields of a status that have none.
ALWAYS = ("model.name", "data.name", "seed")
# The lists of a status.
LISTS = ("extensions", "processes_changes", "machine_changes", "code_changes")
IN_CONFIG = ("model", "data", "data_description", "augmentation", "seed", "pid")

MAX_RUNS = 20_000
MAX_ENTRIES = 5_000_000  # settings of all runs
MAX_RUNS_BYTES = 32_000_000
MAX_TABLE_BYTES = 128_000_000

_HEADER = """\
# The runs of a finished study: runs.csv and the tables beside it hold them. `config` is the full
# config of the first run; runs.csv has the settings in which the others differ.
"""


@dataclass(frozen=True, eq=False)
class ArchivedRun:
    """Reads one row of an archive like a run folder."""

    name: str  # the run's folder, relative to the archive's
    folder: Path  # where the run folder was, relative to where the archive is now
    archive: Archive
    number: str
    settings: Config  # the columns of the table; those without a value are not in it
    fields: Config  # of its status, flat

    def config(self) -> Config:
        return {**self.archive.shared, **self.settings}

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = {}
        for key, value in self.fields.items():
            group, _, name = key.partition(".")
            if key in LISTS:
                status[key] = _list(key, value)
            elif name:
                inner = status.setdefault(group, {})
                if not isinstance(inner, dict):
                    raise Damaged(f"{RUNS}: {group} is both a value and a group")
                inner[name] = value
            else:
                status[key] = value
        return status

    def lines(self, table: str) -> list[str]:
        header, by_run = self.archive.table(ARCHIVED[table])
        return [header, *by_run.get(self.number, ())]


class Archive:
    """Reads an archive in a folder; its curves and other tables are read when first needed.

    Raises:
        Damaged: archive.yaml or runs.csv is missing or not as `pack` writes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tree = read_tree(folder / ARCHIVE)
        if type(tree.get("format")) is not int or not isinstance(tree.get("config"), dict):
            raise Damaged(f"{ARCHIVE} names no format and config")
        if tree["format"] != FORMAT:
            raise Damaged(f"{ARCHIVE} has format {tree['format']}, this version reads {FORMAT}")
        self.shared = flatten(tree["config"], ARCHIVE)  # what all runs have
        self._tables: dict[str, tuple[str, dict[str, list[str]]]] = {}
        self.runs = self._read_runs()
        self._numbers = {run.number for run in self.runs}

    def _read_runs(self) -> list[ArchivedRun]:
        text = read_text(self.folder / RUNS, MAX_RUNS_BYTES)
        try:
            header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        except (csv.Error, ValueError) as error:
            raise Damaged(f"{RUNS} is not a table ({error})") from None
        if tuple(header[:2]) != FIRST or STATE not in header:
            raise Damaged(f"{RUNS}: its first line does not name run, folder and state")
        at = len(header) - 1 - header[::-1].index(STATE)
        keys, fields = header[2:at], header[at:]
        if len(set(keys)) != len(keys) or len(set(fields)) != len(fields):
            raise Damaged(f"{RUNS} names a column twice")
        size = len(rows) * (len(self.shared) + len(header))
        if len(rows) > MAX_RUNS or size > MAX_ENTRIES:
            raise Damaged(f"{RUNS} has {len(rows):,} runs, too many to be read")
        for key in keys:
            self.shared.pop(key, None)
        runs = []
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise Damaged(f"{RUNS}, row {line} does not have {len(header)} cells")
            number, folder = row[0], row[1]
            if not _is_inner(folder):
                raise Damaged(f"{RUNS}, row {line}: the folder is not below the archive's")
            run = ArchivedRun(
                name=folder,
                folder=self.folder / folder,
                archive=self,
                number=number,
                settings=_values(keys, row[2:at], line),
                fields=_values(fields, row[at:], line),
            )
            run.status()  # a damaged one is found here
            runs.append(run)
        for what in ({run.number for run in runs}, {run.folder for run in runs}):
            if len(what) != len(runs):
                raise Damaged(f"{RUNS} holds a run twice")
        return runs

    def table(self, name: str) -> tuple[str, dict[str, list[str]]]:
        """Returns a table's header, and its lines by the run's number, both without that number."""
        if name not in self._tables:
            self._tables[name] = self._read_table(name)
        return self._tables[name]

    def _read_table(self, name: str) -> tuple[str, dict[str, list[str]]]:
        by_run: dict[str, list[str]] = {}
        with open_regular(self.folder / name, MAX_TABLE_BYTES) as file:
            try:
                first, _, header = file.readline().rstrip("\n").partition(",")
                if first != FIRST[0] or not header:
                    raise Damaged(f"{name}: its first line does not name the columns")
                for line in file:
                    number, _, rest = line.partition(",")
                    if not rest.endswith("\n") or number not in self._numbers:
                        raise Damaged(f"{name} is cut off or has a run that is not in {RUNS}")
                    by_run.setdefault(number, []).append(rest[:-1])
            except UnicodeDecodeError:
                raise Damaged(f"{name} is not UTF-8 text") from None
        return header, by_run


def finished_runs(folder: Path) -> list[ArchivedRun]:
    """Returns the finished runs of the archive in `folder`, or none if there is no archive.

    `settings_tree(run.config())` is the config of each, and `run.folder` the folder it had.

    Raises:
        Damaged: there is an archive that cannot be read.
    """
    if not (folder / ARCHIVE).exists():
        return []
    return [run for run in Archive(folder).runs if run.fields.get(STATE) == "done"]


def pack(
    runs: Sequence[StoredRun], folders: Sequence[str], inside: Collection[str]
) -> dict[str, bytes]:
    """Returns the files of an archive.

    Args:
        runs: at least one, in the order in which a report finds them.
        folders: the folder of each run relative to the archive's, with / between the parts.
        inside: the folders of the runs whose norms and values over time are archived.

    Raises:
        Damaged: a run cannot be read, or holds something that an archive cannot hold.
    """
    configs = [run.config() for run in runs]
    statuses = [_flat_status(run.status()) for run in runs]
    varied = {key for config in configs for key in config.keys() ^ configs[0].keys()}
    varied |= {
        key
        for config in configs
        for key, value in config.items()
        # Not by == alone: 1, 1.0 and true are equal there.
        if value is not (first := configs[0].get(key)) and encode(value) != encode(first)
    }
    keys = [*ALWAYS, *sorted(varied - set(ALWAYS))]
    fields = [STATE, *dict.fromkeys(k for status in statuses for k in status if k != STATE)]
    table = [[*FIRST, *keys, *fields]]
    for number, (folder, config, status) in enumerate(
        zip(folders, configs, statuses, strict=True), start=1
    ):
        cells = [encode(config[key]) if key in config else "" for key in keys]
        cells += [encode(status[key]) if key in status else "" for key in fields]
        table.append([str(number), folder, *cells])
    tree = {"format": FORMAT, "config": settings_tree(configs[0])}
    text = to_yaml(tree, width=100)
    files = {ARCHIVE: (_HEADER + text).encode(), RUNS: _csv(table)}
    for name, archived in ARCHIVED.items():
        chosen = name in ("metrics.csv", "test_correct.csv")
        rows = [
            (str(number), table_rows(run, name) if chosen or folder in inside else [])
            for number, (run, folder) in enumerate(zip(runs, folders, strict=True), start=1)
        ]
        if name == "metrics.csv" or any(of_run for _, of_run in rows):
            files[archived] = _table(rows)
    return files


def _list(key: str, value: Value) -> Any:
    """Returns a list of a status from its cell, which holds JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(value) if isinstance(value, str) else value
    raise Damaged(f"{RUNS}: the {key} of a run cannot be read")


def _flat_status(status: dict[str, Any]) -> dict[str, Value]:
    """Returns the fields that have a column; those of an inner object have a dotted name."""
    fields: dict[str, Value] = {}
    for key, value in status.items():
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else None
        if key in LISTS and isinstance(value, list):
            value = json.dumps(value)
        fields.update(inner or ({} if key in IN_CONFIG else {key: value}))
    return {k: v for k, v in fields.items() if v is None or isinstance(v, str | int | float)}


def _table(rows: Iterable[tuple[str, list[dict[str, str]]]]) -> bytes:
    rows = list(rows)
    columns = list(dict.fromkeys(key for _, of_run in rows for row in of_run for key in row))
    cells = [
        [number, *(row.get(c, "") for c in columns)] for number, of_run in rows for row in of_run
    ]
    return _csv([[FIRST[0], *(columns or ["epoch"])], *cells])


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _values(keys: Sequence[str], cells: Sequence[str], line: int) -> Config:
    try:
        return {key: decode(cell) for key, cell in zip(keys, cells, strict=True) if cell}
    except ValueError:
        raise Damaged(f"{RUNS}, row {line}: a text has no end") from None


def _is_inner(folder: str) -> bool:
    """Returns whether a folder's name leads to a folder below, on every system."""
    parts = folder.split("/")
    return len(folder) <= 1000 and not any(
        part in ("", ".", "..") or "\\" in part or ":" in part or not part.isprintable()
        for part in parts
    )
