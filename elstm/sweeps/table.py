"""How the runs of a sweep ended: a line for each, the table of all, and sweep.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elstm.files.atomic import write_atomic
from elstm.files.bounded import harmless, one_line
from elstm.records.status import read_status

COLUMNS = (
    "state", "best_val_accuracy", "val_accuracy_batch_stats", "test_accuracy",
    "test_accuracy_batch_stats", "epoch", "train_seconds", "wall_seconds", "error", "run_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One run: the overrides that the sweep varies, and what its status.json says."""

    varied: dict[str, str]
    folder: Path
    status: dict[str, Any]

    @property
    def state(self) -> str:
        return str(self.status.get("state"))

    @property
    def label(self) -> str:
        return label(self.varied)

    def number(self, key: str) -> float | None:
        value = self.status.get(key)
        return value if isinstance(value, int | float) and abs(value) < 1e15 else None

    def summary(self) -> str:
        """State, accuracies, time and folder, in one line."""
        parts = [self.state]
        if self.state == "failed":
            parts = [f"failed: {self.status.get('error') or 'see the log'}"]
        for name, key in (("validation", "best_val_accuracy"), ("test", "test_accuracy")):
            value = self.number(key)
            if value is not None:
                parts.append(f"{name} {value:.2%}")
        seconds = self.number("wall_seconds")
        if seconds is not None:
            parts.append(f"{seconds:.1f} s")
        return ", ".join([*parts, str(self.folder)])


def label(varied: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items()) or "the run"


def read_result(
    varied: dict[str, str], folder: Path, error: str | None = None, *, ended: bool = True
) -> Result:
    """What is known of a run that has ended: killed, if nothing else is known of how.

    Args:
        error: why it did not even begin.
        ended: whether it has.
    """
    status = _status(folder)
    if not ended:
        return Result(varied, folder, status)
    if status.get("state") == "running" and not error:
        status["state"] = "killed"
    elif error or status.get("state") not in ("done", "interrupted", "pruned"):
        status |= {"state": "failed", "error": error or status.get("error")}
    return Result(varied, folder, status)


def _status(folder: Path) -> dict[str, Any]:
    """status.json, which another may have written: numbers, and text that can be printed."""
    fields = read_status(folder) or {}
    return {
        k: v if isinstance(v, int | float | None) else one_line(v, 400) for k, v in fields.items()
    }


def best_first(results: Sequence[Result]) -> list[Result]:
    """By best validation accuracy; those without come last."""
    return sorted(results, key=lambda r: -(r.number("best_val_accuracy") or -1.0))


def table(results: Sequence[Result]) -> str:
    """The sweep at a glance, as lines of text."""
    keys = list(dict.fromkeys(key for r in results for key in r.varied))
    rows = [[*keys, "state", "validation", "test", "seconds", "folder"]]
    for r in best_first(results):
        accuracies = (r.number(key) for key in ("best_val_accuracy", "test_accuracy"))
        seconds = r.number("wall_seconds")
        rows.append([
            *(r.varied.get(key, "") for key in keys),
            r.state,
            *("" if a is None else f"{a:.2%}" for a in accuracies),
            "" if seconds is None else f"{seconds:.1f}",
            str(r.folder),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = range(len(keys) + 1, len(keys) + 4)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """sweep.csv: the varied keys, then COLUMNS; accuracies are fractions, unknowns empty.

    Raises:
        UserError: it cannot be written.
    """
    keys = list(dict.fromkeys(key for r in results for key in r.varied))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *COLUMNS])
    for r in best_first(results):
        known = r.status | {"run_dir": str(r.folder)}
        values = [harmless(v) if isinstance(v := known.get(k), str) else v for k in COLUMNS]
        writer.writerow([*(r.varied.get(key, "") for key in keys), *values])
    write_atomic(path, text.getvalue().encode(), sync=False)
