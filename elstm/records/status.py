"""Writes status.json, the state of a run in one small file, for users, reports and sweeps.

    state             running, done, failed, interrupted, or pruned by a search (a killed run stays
                      at running)
    error             why it failed, in one line, or null; where the state is another one, why it
                      could not be resumed
    model, data, seed
    data_fingerprint, data_description   of user data: a checksum, and a summary in one line; the
                      fingerprint is null for a published data set
    data_content      of a published set of images: a checksum of all its images and labels
    augmentation      how training sequences are changed by chance; null where they are not
    epoch, step       done so far; max_epochs
    val_accuracy, val_accuracy_batch_stats, val_balanced_accuracy, val_macro_f1
                      of the latest evaluation
    best_val_accuracy, best_epoch                   by population statistics; without validation
                                                    null and the latest epoch
    test_accuracy, test_accuracy_batch_stats, test_balanced_accuracy, test_macro_f1, test_loss
                      of that best checkpoint, once done
    train_seconds, wall_seconds                     as in metrics.csv, summed over resumes
    parameters        number of trainable numbers
    device, device_name, threads, precision
    processes         how many train the run together
    processes_changes  [step, processes] from the start and from each resume with another number on;
                      null for a run that was always trained by the same number
    machine           device, threads and processor that trained the run, from which its times are
    machine_changes   [step, machine] from the start and from each resume on another machine or with
                      other threads on; null for a run that was always trained on the same
    code, code_changes  likewise the commit and the version of torch; the entries below are those of
                      the latest resume
    weights           those that are evaluated: "raw", or with trainer.ema_decay "ema", the averaged
    backend           that the recurrence ran on
    extensions        settings that a resume changed, and from which step on: a list
                      (elstm.training.extension), or null for a run as it was planned
    init_from         path, step and sha256 of the checkpoint with the initial weights, which of its
                      weights were used ("raw" or "ema"), and whether its head was; null for a run
                      with new weights
    environment       variables that torch read from the environment (elstm.training.environment)
    versions          python, elstm, torch and the other libraries
    git_commit, git_dirty   of elstm's own repository; null where it was installed from a package
    pid, started, updated   UTC, ISO 8601

Accuracies are fractions. A value that is not known yet is null. Each update replaces the file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import elstm
from elstm.errors import OtherProcessError, UserError
from elstm.files.atomic import open_locked, read_json, write_atomic

_EMPTY: dict[str, Any] = dict.fromkeys(
    (
        "state", "error", "model", "data", "seed", "data_fingerprint", "data_content",
        "data_description",
        "augmentation", "epoch", "step", "max_epochs",
        "val_accuracy", "val_accuracy_batch_stats", "val_balanced_accuracy", "val_macro_f1",
        "best_val_accuracy", "best_epoch",
        "test_accuracy", "test_accuracy_batch_stats", "test_balanced_accuracy", "test_macro_f1",
        "test_loss",
        "train_seconds", "wall_seconds", "parameters",
        "device", "device_name", "processes", "processes_changes", "machine",
        "machine_changes", "code", "code_changes", "threads", "precision",
        "weights", "backend",
        "environment",
        "extensions", "init_from", "versions", "git_commit", "git_dirty", "pid", "started",
        "updated",
    )
)  # fmt: skip


def status_path(run_dir: Path) -> Path:
    return run_dir / "status.json"


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """Reads RUN_DIR/status.json; None if there is none that can be read."""
    return read_json(status_path(run_dir))


def in_folder(text: str, run_dir: Path) -> str:
    """Names a run's files relative to its folder, which may be moved, archived and shared."""
    return text.replace(f"{run_dir}{os.sep}", "")


class Status:
    """Holds the status of an active run; `update` writes it.

    Args:
        run_dir: the run's folder.
        active: False on all ranks but 0: nothing is written.
    """

    def __init__(self, run_dir: Path, *, active: bool = True) -> None:
        self.path, self.active = status_path(run_dir), active
        self.before = before = read_status(run_dir) or {}
        self.fields = {**_EMPTY, **{k: v for k, v in before.items() if k in _EMPTY}}
        self.fields.update(
            error=None,
            pid=os.getpid(),
            started=before.get("started") or now(),
            versions=versions(),
            **git_state(),
        )

    def fail(self, error: BaseException, *, trained: bool = True) -> None:
        """Records how the run ended; it never fails itself, so that the user sees `error`.

        Args:
            trained: whether the run changed. If a resume ended before its first step, the run is as
                it was before, and only `error` holds the reason.
        """
        if isinstance(error, KeyboardInterrupt | SystemExit):
            state, line = "interrupted", None
        else:
            first = str(error).strip().partition("\n")[0]
            line = (
                first
                if isinstance(error, UserError | OtherProcessError)
                else f"{type(error).__name__}: {first}"
            )
            state = "failed"
        if not trained and self.before:
            self.fields.update({k: v for k, v in self.before.items() if k in _EMPTY})
            state, line = self.before.get("state", state), line or self.before.get("error")
        with suppress(UserError):
            self.update(state=state, error=line and in_folder(line, self.path.parent))

    def set(self, **fields: Any) -> None:
        """Sets fields without writing them; unknown ones are dropped."""
        self.fields.update({k: v for k, v in fields.items() if k in _EMPTY})

    def update(self, **fields: Any) -> None:
        """Sets fields and writes the file. Raises UserError if it cannot be written."""
        self.set(**fields, updated=now())
        if self.active:
            values = {k: None if _undefined(v) else v for k, v in self.fields.items()}
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            # A path may hold bytes that are no text; JSON has an escape for each.
            content = text.encode(errors="backslashreplace")
            write_atomic(self.path, content, sync=False)


def training_history(
    before: Mapping[str, Any], step: int, here: Mapping[str, int | str], *, finished: bool
) -> dict[str, Any]:
    """Returns the fields NAME and NAME_changes of a run for each name in `here`.

    Args:
        before: status.json as it was before this resume; empty for a new run.
        step: where the training starts or resumes. Parts that reached no later checkpoint are lost.
        here: the values from now on: processes, machine, code.
        finished: whether nothing is left to train.
    """
    fields: dict[str, Any] = {}
    for name, value in here.items():
        found: Any = before.get(f"{name}_changes")
        if not _are_changes(found, type(value)):
            found = [[0, before.get(name)]]
        parts = [part for part in found if type(part[1]) is type(value) and part[0] < step]
        if not finished and (not parts or parts[-1][1] != value):
            parts.append([step, value])
        fields[name] = parts[-1][1] if parts else value
        fields[f"{name}_changes"] = parts if len(parts) > 1 else None
    return fields


def code_version() -> str:
    """Describes the code that trains a run: elstm's commit, or its version, and torch's version."""
    commit, dirty = git_state()["git_commit"], git_state()["git_dirty"]
    own = f"elstm {elstm.__version__}" if commit is None else f"{commit[:10]}"
    return f"{own}{' (dirty)' if dirty else ''}, torch {versions().get('torch', 'unknown')}"


def _are_changes(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, list) and [type(each) for each in part] == [int, kind] for part in value
    )


def _undefined(value: Any) -> bool:
    """Returns whether a value is NaN or infinite, which JSON cannot hold."""
    return isinstance(value, float) and not math.isfinite(value)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@lru_cache
def versions() -> dict[str, str]:
    """Reads the versions of packages that affect results, without importing them."""
    found = {"python": platform.python_version(), "elstm": elstm.__version__}
    for name in ("torch", "accelerate", "numpy", "hydra-core", "tensorboard"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def git_state() -> dict[str, Any]:
    """Returns git_commit, and whether tracked files differ from it (git_dirty)."""
    folder = Path(elstm.__file__).parent
    try:
        # An installed copy may lie in another repository, which does not track it.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": dirty}


def _git(folder: Path, *command: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *command],
        check=True, capture_output=True, text=True, timeout=5,
    )  # fmt: skip
    return result.stdout.strip()


def is_locked(folder: Path) -> bool:
    """Returns whether another process trains in a folder, which it locks by metrics.csv."""
    path = folder / "metrics.csv"
    if path.is_symlink() or not path.is_file():
        return False
    try:
        open_locked(path, folder).close()
    except UserError:
        return True
    return False
