"""Reads each run of a report, from its folder or an archive, into a `Run`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from elstm.config.check import resolve
from elstm.errors import UserError
from elstm.files.bounded import Config, Damaged, number, one_line, parse_metrics, text
from elstm.records.find import find_runs
from elstm.records.stored import StoredRun

STATES = ("done", "running", "interrupted", "pruned", "failed")
STALLED_SECONDS = 3600.0  # a run writes status.json at least once per epoch

MADE_WITH = ("device", "device_name", "processes", "threads", "precision", "backend")
CHANGING = {"processes": 60, "machine": 200, "code": 200}  # most characters that are shown

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
    """Holds a measured quantity along a run; all arrays are (points,), in the order of training."""

    epoch: np.ndarray  # completed epochs
    seconds: np.ndarray  # wall clock, with evaluation; NaN where not logged
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.epoch)


@dataclass(frozen=True)
class Run:
    """Holds one run as a report uses it. Accuracies are fractions, and None if not measured."""

    path: str
    stored: StoredRun
    config: Config
    model: str
    data: str
    fingerprint: str  # of user data: the checksum of what was read; "" if none was recorded
    description: str  # of user data: a summary of what was read
    seed: int
    fold: int | None  # the part that tests, in cross-validation
    state: str
    stalled: bool  # its state is running, but it has not written for STALLED_SECONDS
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
    test_balanced_accuracy: float | None
    test_macro_f1: float | None
    train_seconds: float | None
    wall_seconds: float | None
    parameters: int | None
    extensions: str  # from which steps on it had other settings than planned, and which; "" if none
    made_with: dict[str, str]  # device, backend, threads, precision, versions, initial weights
    started: str
    updated: str
    content: str = ""  # of a published set: a checksum of the images that were read
    timed_epoch: float | None = None  # epochs that took the seconds; the curves may be further
    changed: frozenset[str] = frozenset()  # the keys of CHANGING that a resume changed

    @property
    def choosing_accuracy(self) -> float | None:
        """Returns the accuracy by which settings are chosen; None if test data alone measured one.

        With data.val_fraction=0 the part that cross-validation leaves out does not affect the run.
        """
        if self.best_val_accuracy is None and self.fold is not None:
            return self.test_accuracy
        return self.best_val_accuracy

    @property
    def processes(self) -> int | str:
        """Returns how many processes trained the run together; "4 then 1" if that changed."""
        found = self.made_with.get("processes", "1")
        return int(found) if found.isascii() and found.isdecimal() else found

    def per_epoch(self, seconds: float | None) -> float | None:
        """Returns train_seconds or wall_seconds per epoch; None before the first."""
        return seconds / self.timed_epoch if seconds is not None and self.timed_epoch else None

    @property
    def pair(self) -> tuple[int, int]:
        """Returns fold and seed, by which runs of different groups are paired."""
        return (-1 if self.fold is None else self.fold), self.seed


def load_run(stored: StoredRun, now: float | None = None) -> Run:
    """Reads one run, from `metrics.csv` and `status.json` as elstm-train writes them.

    Raises:
        Damaged: a file is missing or cannot be read, with the reason.
    """
    config = stored.config()
    resolved = _resolved(config)
    model, data, seed = (resolved.get(key) for key in ("model.name", "data.name", "seed"))
    if not isinstance(model, str) or not isinstance(data, str) or type(seed) is not int:
        raise Damaged("config.yaml names no model, data or seed")
    fold = _fold(resolved)
    config = {**config, "data.name": data}
    if fold is not None:
        config["data.folds"] = resolved["data.folds"]
    status = stored.status()
    made_with = _made_with(status)
    source = status.get("init_from")
    if isinstance(source, dict) and isinstance(source.get("sha256"), str):
        # The path does not identify the weights, and two copies of them have two paths.
        weights = one_line(f"{source['sha256'][:8]} (step {source.get('step')})")
        made_with["init_from"] = one_line(f"{weights}: {config.get('trainer.init_from')}")
        config = {**config, "trainer.init_from": weights}
    state = status.get("state")
    if state not in STATES:
        raise Damaged(f"status.json: state is none of {', '.join(STATES)}")
    try:
        metrics = parse_metrics(stored.lines("metrics.csv"), COLUMNS)
    except Damaged as error:
        if str(error) != "no metrics.csv" or state == "done":
            raise
        metrics = {name: np.empty(0) for name in COLUMNS}  # nothing logged yet
    validation, batch_accuracy = _validation(metrics)
    last = len(validation) - 1
    best = _best(status if state == "done" else {}, validation)
    parameters = number(status, "parameters")
    return Run(
        path=stored.name,
        stored=stored,
        config=config,
        model=one_line(model, 40),
        data=one_line(data, 40),
        fingerprint=text(status, "data_fingerprint", 40),
        description=text(status, "data_description", 400),
        seed=seed,
        fold=fold,
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
        **_test_scores(status if state == "done" else {}),
        train_seconds=number(status, "train_seconds"),
        wall_seconds=number(status, "wall_seconds"),
        timed_epoch=number(status, "epoch"),
        parameters=None if parameters is None else int(parameters),
        extensions=_extensions(status),
        made_with=made_with,
        started=text(status, "started", 40),
        updated=text(status, "updated", 40),
        content=text(status, "data_content", 40),
        changed=frozenset(key for key in CHANGING if len(_changes(status, key)) > 1),
    )


def _test_scores(status: dict[str, Any]) -> dict[str, float | None]:
    names = "accuracy", "accuracy_batch_stats", "balanced_accuracy", "macro_f1"
    return {f"test_{name}": number(status, f"test_{name}", at_most=1) for name in names}


def _best(status: dict[str, Any], validation: Curve) -> float | None:
    """Returns the best validation accuracy, which metrics.csv lacks where its rows have a gap."""
    if not len(validation):
        return None
    best = number(status, "best_val_accuracy", at_most=1)
    return float(validation.value.max()) if best is None else best


def load_runs(roots: Sequence[Path]) -> tuple[list[Run], list[tuple[str, str]]]:
    """Reads all runs at or below the roots; returns them and (name, reason) of the unreadable."""
    runs: list[Run] = []
    found, damaged = find_runs(roots)
    for stored in found:
        try:
            runs.append(load_run(stored))
        except Damaged as error:
            damaged.append((stored.name, one_line(error)))
    return runs, damaged


def _resolved(config: Config) -> Config:
    """Returns the config with the values that interpolations stand for, as data.fold=${seed}."""
    try:
        return resolve(config)
    except UserError:  # one of them names no key; the others are read as they are
        return config


def _fold(config: Config) -> int | None:
    """Returns the part of a cross-validation that tests; None if there is none."""
    fold, folds = config.get("data.fold"), config.get("data.folds")
    known = type(fold) is int and type(folds) is int and 0 <= fold < folds
    return int(str(fold)) if known else None


def _validation(metrics: dict[str, np.ndarray]) -> tuple[Curve, np.ndarray]:
    """Returns the validation accuracies with population statistics, and with batch statistics."""
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
    """Returns the mean loss of each epoch; a log point weighs as many steps as it covers."""
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
    # An unfinished epoch is not compared with the full ones of other runs.
    kept = numbers <= (reached + 1e-6 if whole_epochs else np.inf)
    return Curve(np.minimum(numbers, reached).round(6)[kept], seconds[kept], loss[kept])


def _epochs_done(status: dict[str, Any], metrics: dict[str, np.ndarray]) -> float:
    logged = metrics["epoch"][np.isfinite(metrics["epoch"])]
    return max(number(status, "epoch") or 0.0, float(logged.max()) if len(logged) else 0.0)


def _extensions(status: dict[str, Any]) -> str:
    """Returns the extensions of a run in one line: "step 50: max_epochs 10 -> 20"."""
    found = status.get("extensions")
    parts = []
    for entry in found if isinstance(found, list) else ():
        entry = entry if isinstance(entry, dict) else {}
        changed = entry.get("changed")
        changed = changed if isinstance(changed, dict) else {}
        words = [
            f"{str(key).rpartition('.')[2]} {' -> '.join(map(str, each))}"
            for key, each in changed.items()
            if isinstance(each, list)
        ]
        parts.append(f"step {entry.get('step')}: {', '.join(words)}")
    return one_line("; ".join(parts), 200)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _age(updated: object, now: float | None) -> float:
    """Returns the seconds since an ISO 8601 time, or 0 if it cannot be read."""
    try:
        # Python 3.10 does not read the Z.
        then = datetime.fromisoformat(str(updated)[:40].replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return (time.time() if now is None else now) - then


def _changes(status: dict[str, Any], key: str) -> list[str]:
    """Returns the values that a fact had in turn; none if it never changed."""
    parts = status.get(f"{key}_changes")
    if not isinstance(parts, list) or not all(isinstance(part, list) and part for part in parts):
        return []
    return [str(part[-1]) for part in parts]


def _made_with(status: dict[str, Any]) -> dict[str, str]:
    facts = {key: text(status, key, 60) for key in MADE_WITH}
    for key, limit in CHANGING.items():
        found = one_line(" then ".join(_changes(status, key)), limit)
        facts[key] = found or text(status, key, limit)
    versions = status.get("versions")
    if isinstance(versions, dict):
        for name in ("python", "torch", "elstm"):
            facts[name] = text(versions, name, 40)
    commit = text(status, "git_commit", 12)
    facts["commit"] = commit.rstrip("…")[:10] + (" (dirty)" if status.get("git_dirty") else "")
    return {key: value for key, value in facts.items() if value}
