"""Repeats a finished run: makes the overrides that train it again, and compares the two runs."""

from __future__ import annotations

from elstm.cli import plural
from elstm.config.removed import REMOVED, is_default
from elstm.errors import UserError
from elstm.files.bounded import Value
from elstm.records.correct import read_correct
from elstm.records.stored import StoredRun, table_rows
from elstm.reporting.wording import tested_items

GROUPS = ("model", "data", "optimizer", "scheduler")
# Settings that keep their local values, and columns in which no two runs agree.
OF_THE_PLACE = ("data.root", "trainer.progress", "trainer.resume")
TIMES = ("train_seconds", "wall_seconds", "samples_per_second")


def overrides_of(run: StoredRun) -> list[str]:
    """Returns the overrides with which this version trains a run again.

    Raises:
        UserError: the run has a setting that this version no longer has.
    """
    config = run.config()
    named = ("data.name",) if "data.source" in config else ()  # user data may have any name
    overrides = [
        f"{group}={config.get(f'{group}.source', config[f'{group}.name'])}" for group in GROUPS
    ]
    for key, value in config.items():
        if key in REMOVED:
            if not is_default(key, value):
                commit = REMOVED[key][1]
                raise UserError(
                    f"{run.name} has {key}={value}; commit {commit} is the last that supports it"
                )
        elif key not in OF_THE_PLACE and not key.startswith(("sweep.", "tracking.")):
            of_option = key == "data.source" or (key.endswith(".name") and key not in named)
            overrides += [] if of_option else [f"{key}={quoted(value)}"]
    return overrides


def differences(old: StoredRun, new: StoredRun) -> list[str]:
    """Compares all records of two runs, except the times."""
    found = []
    for key in ("test_accuracy", "test_accuracy_batch_stats", "best_val_accuracy", "parameters"):
        before, after = old.status().get(key), new.status().get(key)
        if before != after:
            found.append(f"{key} {before} before, {after} now")
    before_rows, after_rows = table_rows(old, "metrics.csv"), table_rows(new, "metrics.csv")
    if len(before_rows) != len(after_rows):
        found.append(f"{len(before_rows)} rows of metrics before, {len(after_rows)} now")
    for row, again in zip(before_rows, after_rows, strict=False):
        for key in row.keys() & again.keys() - set(TIMES):
            if row[key] != again[key]:
                found.append(f"step {row['step']}: {key} {row[key]} before, {again[key]} now")
    correct, again_correct = read_correct(old), read_correct(new)
    if correct is not None and again_correct is not None:
        what = f"test {tested_items([old.config()])}"
        if len(correct) != len(again_correct):
            found.append(f"{len(correct)} {what} before, {len(again_correct)} now")
        elif changed := int((correct != again_correct).sum()):
            found.append(f"{plural(changed, what.removesuffix('s'))} classified otherwise")
    return found


def quoted(value: Value) -> str:
    """Returns a value as Hydra reads it back."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = str(value)
    plain = not isinstance(value, str) or (text and all(c.isalnum() or c in "_-./" for c in text))
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
