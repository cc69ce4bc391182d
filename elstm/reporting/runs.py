"""Run folders: finding them, and reading each into a `Run`."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from elstm.errors import UserError
from elstm.files.bounded import (
    Config,
    Damaged,
    number,
    one_line,
    read_config,
    read_metrics,
    read_status,
    read_text,
    text,
)

STATES = ("done", "running", "interrupted", "pruned", "failed")
STALLED_SECONDS = 3600.0  # a running run writes status.json at least once per epoch
MAX_FOLDERS = 200_000
MAX_SWEEP_BYTES = 10_000_000

MADE_WITH = ("device", "device_name", "processes", "threads", "precision", "backend")

COLUMNS = (
    "epoch",
    "step",
    "wall_seconds",
    "train_loss",
    "val_accuracy",
    "val_accuracy_batch_stats",
)


@dataclass(frozen=True)
class Curve:
    """A measured quantity along a run; all arrays (points,), in the order of training."""

    epoch: np.ndarray  # completed epochs
    seconds: np.ndarray  # wall clock, with evaluation; NaN where not logged
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.epoch)


@dataclass(frozen=True)
class Run:
    """What the report knows of one run. Accuracies are fractions; None: not measured (yet)."""

    path: str
    folder: Path
    config: Config
    model: str
    data: str
    seed: int
    state: str
    stalled: bool  # says running, but has not written for STALLED_SECONDS
    error: str
    epoch: float
    max_epochs: float | None
    validation: Curve
    loss: Curve  # training loss, mean over each epoch
    val_accuracy: float | None  # at the last evaluation
    val_accuracy_batch_stats: float | None
    best_val_accuracy: float | None
    test_accuracy: float | None
    test_accuracy_batch_stats: float | None
    train_seconds: float | None
    wall_seconds: float | None
    parameters: int | None
    made_with: dict[str, str]  # device, backend, threads, precision, versions, commit
    started: str
    updated: str


def find_runs(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name to show, folder) of every run folder at or below the roots, each once.

    Of a sweep's folder, those that its sweep.csv names: they lie elsewhere under outputs/. Links
    to folders are not followed below the roots: a stranger's link may lead anywhere.

    Raises:
        UserError: a root is not a folder, or holds more than 200,000 folders.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: give run folders or folders that hold them")
        top = root.resolve()
        for path in (*_folders_below(top), *_folders_of_sweep(top)):
            if path not in seen:
                seen.add(path)
                shown = path.relative_to(top.parent) if path.is_relative_to(top.parent) else path
                yield one_line(shown.as_posix(), 300), path


def _folders_below(top: Path) -> Iterator[Path]:
    for number_of_folders, (folder, inner, files) in enumerate(os.walk(top)):
        if number_of_folders > MAX_FOLDERS:
            raise UserError(f"{top} holds more than {MAX_FOLDERS:,} folders: give inner ones")
        inner.sort()
        if ".hydra" in inner or "status.json" in files or "metrics.csv" in files:
            inner.clear()
            yield Path(folder)


def _folders_of_sweep(top: Path) -> Iterator[Path]:
    """The run folders in top/sweep.csv, which are relative to a folder that holds `top` as well.

    A name that leads out of that folder is passed over.
    """
    try:
        rows = list(csv.DictReader(read_text(top / "sweep.csv", MAX_SWEEP_BYTES).splitlines()))
    except (Damaged, csv.Error):
        return
    for row in rows:
        name = row.get("run_dir") or ""
        for base in list(top.parents)[:3]:
            folder = (base / name).resolve()
            if name and folder.is_relative_to(base) and (folder / ".hydra").is_dir():
                yield folder
                break


def load_run(name: str, folder: Path, now: float | None = None) -> Run:
    """Reads one run folder; the contract is `metrics.csv` and `status.json` of elstm-train.

    Raises:
        Damaged: a file is missing or cannot be read, with the reason.
    """
    if (folder / ".hydra").is_symlink():
        raise Damaged(".hydra is a link: only plain folders are read")
    config = read_config(folder / ".hydra" / "config.yaml")
    model, data, seed = (config.get(key) for key in ("model.name", "data.name", "seed"))
    if not isinstance(model, str) or not isinstance(data, str) or type(seed) is not int:
        raise Damaged("config.yaml names no model, data or seed")
    try:
        status = read_status(folder / "status.json")
    except Damaged as error:
        if str(error) == "no status.json":
            raise Damaged("no status.json: not started yet, or killed at once") from None
        raise
    state = status.get("state")
    if state not in STATES:
        raise Damaged(f"status.json: state is none of {', '.join(STATES)}")
    try:
        metrics = read_metrics(folder / "metrics.csv", COLUMNS)
    except Damaged as error:
        if str(error) != "no metrics.csv" or state == "done":
            raise
        metrics = {name: np.empty(0) for name in COLUMNS}  # nothing logged yet
    validation, batch_accuracy = _validation(metrics)
    last = len(validation) - 1
    best = float(validation.value.max()) if len(validation) else None
    parameters = number(status, "parameters")
    return Run(
        path=name,
        folder=folder,
        config=config,
        model=one_line(model, 40),
        data=one_line(data, 40),
        seed=seed,
        state=state,
        stalled=state == "running" and _age(status.get("updated"), now) > STALLED_SECONDS,
        error=text(status, "error"),
        epoch=_epochs_done(status, metrics),
        max_epochs=number(status, "max_epochs"),
        validation=validation,
        loss=_training_loss(metrics, whole_epochs=state != "done"),
        val_accuracy=float(validation.value[last]) if len(validation) else None,
        val_accuracy_batch_stats=_finite(batch_accuracy[last]) if len(validation) else None,
        best_val_accuracy=best,
        test_accuracy=number(status, "test_accuracy", at_most=1) if state == "done" else None,
        test_accuracy_batch_stats=number(status, "test_accuracy_batch_stats", at_most=1)
        if state == "done"
        else None,
        train_seconds=number(status, "train_seconds"),
        wall_seconds=number(status, "wall_seconds"),
        parameters=None if parameters is None else int(parameters),
        made_with=_made_with(status),
        started=text(status, "started", 40),
        updated=text(status, "updated", 40),
    )


def load_runs(roots: Sequence[Path]) -> tuple[list[Run], list[tuple[str, str]]]:
    """All runs at or below the roots, and (name, reason) of the folders that cannot be read."""
    runs: list[Run] = []
    damaged: list[tuple[str, str]] = []
    for name, folder in find_runs(roots):
        try:
            runs.append(load_run(name, folder))
        except Damaged as error:
            damaged.append((name, one_line(error)))
    return runs, damaged


def _validation(metrics: dict[str, np.ndarray]) -> tuple[Curve, np.ndarray]:
    """The rows that evaluate: accuracy with population statistics, and with the batch's."""
    accuracy = metrics["val_accuracy"]
    rows = np.flatnonzero(np.isfinite(accuracy) & np.isfinite(metrics["epoch"]))
    if not ((accuracy[rows] >= 0) & (accuracy[rows] <= 1)).all():
        raise Damaged("metrics.csv: a val_accuracy is not a fraction between 0 and 1")
    # One point per epoch, the last one written.
    epochs, reverse_index = np.unique(metrics["epoch"][rows][::-1].round(6), return_index=True)
    rows = rows[::-1][reverse_index]
    curve = Curve(epochs, metrics["wall_seconds"][rows], accuracy[rows])
    return curve, metrics["val_accuracy_batch_stats"][rows]


def _training_loss(metrics: dict[str, np.ndarray], *, whole_epochs: bool) -> Curve:
    """Mean over each epoch, a log point weighing as many steps as it covers, drawn at its end."""
    epoch = metrics["epoch"]
    if not np.isfinite(epoch).any():
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    reached = float(np.nanmax(epoch))
    rows = np.flatnonzero(np.isfinite(metrics["train_loss"]) & np.isfinite(epoch))
    steps = metrics["step"][rows]
    weight = np.diff(steps, prepend=0.0)
    weight = np.where(np.isfinite(weight) & (weight > 0), weight, 1.0)
    epoch_number = np.ceil(epoch - 1e-6)  # 1 for (0, 1]
    numbers, place = np.unique(epoch_number[rows], return_inverse=True)
    total = np.bincount(place, weights=weight * metrics["train_loss"][rows])
    loss = total / np.bincount(place, weights=weight)
    # The clock at the epoch's end: its latest row, which may be that of the evaluation.
    timed = np.flatnonzero(np.isfinite(metrics["wall_seconds"]) & np.isin(epoch_number, numbers))
    seconds = np.full(len(numbers), -np.inf)
    np.maximum.at(
        seconds, np.searchsorted(numbers, epoch_number[timed]), metrics["wall_seconds"][timed]
    )
    seconds[np.isinf(seconds)] = np.nan
    # An epoch that is going on is not compared with the others' whole ones.
    kept = numbers <= (reached + 1e-6 if whole_epochs else np.inf)
    return Curve(np.minimum(numbers, reached).round(6)[kept], seconds[kept], loss[kept])


def _epochs_done(status: dict[str, Any], metrics: dict[str, np.ndarray]) -> float:
    logged = metrics["epoch"][np.isfinite(metrics["epoch"])]
    return max(number(status, "epoch") or 0.0, float(logged.max()) if len(logged) else 0.0)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _age(updated: object, now: float | None) -> float:
    """Seconds since an ISO 8601 time; 0 where it cannot be read."""
    try:
        # Python 3.10 does not read the Z.
        then = datetime.fromisoformat(str(updated)[:40].replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return (time.time() if now is None else now) - then


def _made_with(status: dict[str, Any]) -> dict[str, str]:
    facts = {key: text(status, key, 60) for key in MADE_WITH}
    versions = status.get("versions")
    if isinstance(versions, dict):
        for name in ("python", "torch", "elstm"):
            facts[name] = text(versions, name, 40)
    commit = text(status, "git_commit", 12)
    facts["commit"] = commit.rstrip("…")[:10] + (" (dirty)" if status.get("git_dirty") else "")
    return {key: value for key, value in facts.items() if value}
