"""Shows how the runs of a sweep ended, in one line each, a table and sweep.csv."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elstm.files.atomic import write_atomic
from elstm.files.bounded import one_line, spreadsheet_safe
from elstm.records.archive import ArchivedRun
from elstm.records.status import read_status

COLUMNS = (
    "state", "best_val_accuracy", "val_accuracy_batch_stats", "test_accuracy",
    "test_accuracy_batch_stats", "epoch", "train_seconds", "wall_seconds", "error", "run_dir",
)  # fmt: skip


LOCKED = "locked by another process"
MAX_REASON = 80  # characters


@dataclass(frozen=True)
class JobResult:
    """Holds the values that a sweep varies, and the fields of the run's status.json."""

    varied: Mapping[str, str]
    folder: Path
    status: Mapping[str, Any]

    @property
    def state(self) -> str:
        return str(self.status.get("state"))

    def number(self, key: str) -> float | None:
        value = self.status.get(key)
        return value if isinstance(value, int | float) and abs(value) < 1e15 else None

    @property
    def reason(self) -> str:
        """Returns why a run failed."""
        return str(self.status.get("error") or "see the log")

    @property
    def shown_folder(self) -> str:
        """Returns the run's folder; "" for a run that failed before its first step.

        Another process may be about to remove the folder of its run, or trains in one of a name
        that is not known here.
        """
        gone = self.state in ("failed", LOCKED) and not self.folder.exists()
        gone = gone or (self.state == "failed" and not self.status.get("step"))
        return "" if gone else str(self.folder)

    def summary(self) -> str:
        """Returns state, accuracies, time and folder on one line."""
        parts = [self.state]
        if self.state == "failed":
            parts = [f"failed: {self.reason}"]
        for name, key in (("validation", "best_val_accuracy"), ("test", "test_accuracy")):
            if (value := self.number(key)) is not None:
                parts.append(f"{name} {value:.2%}")
        if (seconds := self.number("wall_seconds")) is not None:
            parts.append(f"{seconds:.1f} s")
        return ", ".join([*parts, *([self.shown_folder] if self.shown_folder else [])])


def label(varied: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items()) or "the run"


def read_result(
    varied: Mapping[str, str],
    folder: Path,
    error: str | None = None,
    *,
    locked: bool = False,
    archived: ArchivedRun | None = None,
) -> JobResult:
    """Reads how a run ended; one that recorded no end was killed.

    Args:
        error: why the run did not start.
        locked: another process trains it.
        archived: where the status is if the run has no folder any more.
    """
    # Another user may have written either.
    fields = (read_status(folder) if archived is None else archived.status()) or {}
    status = {
        k: v if isinstance(v, int | float | None) else one_line(v, 400) for k, v in fields.items()
    }
    if error is None and status.get("state") in ("interrupted", "running") and status.get("error"):
        error = str(status["error"])  # why it could not be resumed
    if locked:
        status["state"] = LOCKED
    elif status.get("state") == "running" and not error:
        status["state"] = "killed"
    elif error or status.get("state") not in ("done", "interrupted", "pruned"):
        status |= {"state": "failed", "error": error or status.get("error")}
    return JobResult(varied, folder, status)


def _sorted(results: Sequence[JobResult]) -> tuple[list[str], list[JobResult]]:
    """Returns the varied keys, and the runs by validation accuracy, those without one last."""
    keys = list(dict.fromkeys(key for r in results for key in r.varied))
    return keys, sorted(results, key=lambda r: -(r.number("best_val_accuracy") or -1.0))


def table(results: Sequence[JobResult], width: int | None = None) -> str:
    """Returns the runs as a table of text.

    Args:
        width: columns of the terminal. In a wider table the folders are left out, and the reason of
            a failure is on separate lines. The lines above the table name the folders.
    """
    keys, best_first = _sorted(results)
    errors = any(r.state == "failed" for r in results)
    heads = ["state", "validation", "test", "seconds"]
    right = range(len(keys) + 1, len(keys) + len(heads))
    values = [[r.varied.get(key, "") for key in keys] + _values(r) for r in best_first]
    wide = [
        [*row, r.shown_folder, *([_reason(r)] if errors else [])]
        for row, r in zip(values, best_first, strict=True)
    ]
    lines = _aligned([[*keys, *heads, "folder", *(["reason"] if errors else [])], *wide], right)
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    lines = _aligned([[*keys, *heads], *values], right)
    if max(map(len, lines)) > width:
        lines = _aligned([[*(key.rpartition(".")[2] for key in keys), *heads], *values], right)
    found = [lines[0]]
    for line, r in zip(lines[1:], best_first, strict=True):
        found.append(line)
        if r.state == "failed":
            found.append(
                textwrap.fill(
                    r.reason, width, initial_indent="    ", subsequent_indent="    ",
                    break_long_words=False, break_on_hyphens=False,
                )
            )  # fmt: skip
    return "\n".join(found)


def _values(result: JobResult) -> list[str]:
    """Returns state, accuracies and seconds as text."""
    accuracies = (result.number(key) for key in ("best_val_accuracy", "test_accuracy"))
    seconds = result.number("wall_seconds")
    return [
        result.state,
        *("" if a is None else f"{a:.2%}" for a in accuracies),
        "" if seconds is None else f"{seconds:.1f}",
    ]


def _aligned(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Returns a line for each row; the columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _reason(result: JobResult) -> str:
    """Returns why a run failed, cut to a length that a table can show."""
    if result.state != "failed":
        return ""
    text = result.reason
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."


def write_csv(path: Path, results: Sequence[JobResult]) -> None:
    """Writes sweep.csv: the varied keys, then COLUMNS; accuracies are fractions.

    Raises:
        UserError: it cannot be written.
    """
    keys, best_first = _sorted(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *COLUMNS])
    for r in best_first:
        known = {**r.status, "run_dir": str(r.folder)}
        values = [spreadsheet_safe(v) if isinstance(v := known.get(k), str) else v for k in COLUMNS]
        writer.writerow([*(r.varied.get(key, "") for key in keys), *values])
    write_atomic(path, text.getvalue().encode(), sync=False)
