"""Extends runs, which are then trained further than planned, or with another schedule.

Each extension is an entry of `extensions` in status.json, and in every later checkpoint:

    step, epoch     from which the settings hold
    when            UTC, ISO 8601
    changed         [old, new] of each setting that differs; null for a missing one
    settings        all settings that an extension may change, as they are from there on
    best_val_accuracy, best_epoch                             up to that step
    test_accuracy, test_loss, ...                             of a run that was tested there

Up to the first new checkpoint the run is as it was before. If the extension fails until then, its
rows are removed from the records. Weights & Biases and MLflow receive them at that checkpoint. Then
last.pt, still of the step from which the extension starts, records the extension.
.hydra/config.yaml, status.json and the new checkpoint follow it. After a kill or a full disk in
between, the next resume updates them, and trains from that step again. TensorBoard's HPARAMS and
MLflow's parameters, which cannot be changed, keep the settings of the run's start. TensorBoard's
Text tab shows those of each extension. Copies of the replaced files stay:

    checkpoints/best-before-step-N.pt, test_correct-before-step-N.csv,
    .hydra/config-before-step-N.yaml
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elstm.config.changes import changes, extended_settings, may_extend, with_settings
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.files.atomic import refuse_links, write_atomic
from elstm.files.bounded import Damaged, read_tree, to_yaml
from elstm.records.correct import TABLE
from elstm.records.status import Status, now
from elstm.records.tags import SCALARS
from elstm.training import checkpoint
from elstm.training.content import MAX_STEPS, integer, mapping
from elstm.training.state import TrainState

MAX_EXTENSIONS = 1000
RESULTS = tuple(column for column in SCALARS if column.startswith("test_"))


def stored_extensions(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the extensions that a checkpoint holds.

    Raises:
        ValueError: they are not as `Extension` writes them.
    """
    entries = saved.get("extensions", [])
    if not isinstance(entries, list) or len(entries) > MAX_EXTENSIONS:
        raise ValueError("its extensions are no list")
    for entry in entries:
        mapping("extension", entry)
        integer("its extension's step", entry.get("step"), 0, MAX_STEPS)
        for key in mapping("settings of an extension", entry.get("settings")):
            if not isinstance(key, str) or not may_extend(key):
                raise ValueError(f"its extension changes {str(key)[:60]!r}")
    return entries


def extended_config(config: Config, extensions: Sequence[Mapping[str, Any]]) -> Config:
    """Returns the config of a run after its last extension.

    Raises:
        UserError: the extension holds a wrong value.
    """
    return with_settings(config, extensions[-1]["settings"]) if extensions else config


def check_not_behind(
    status: Mapping[str, Any], extensions: Sequence[Any], run_dir: Path, step: Any
) -> None:
    """Raises UserError where the only readable checkpoint is from before the latest extension."""
    recorded = status.get("extensions")
    if isinstance(recorded, list) and len(recorded) > len(extensions):
        raise UserError(
            f"the checkpoint of step {step} in {run_dir} is from before the run was extended: put "
            f"a copy of {checkpoint.last_path(run_dir)} back"
        )


def new_entry(
    own: Config,
    config: Config,
    state: TrainState,
    status: Mapping[str, Any],
    tested: bool,
    rows: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Returns the entry of an extension that starts here.

    Args:
        own: the config of the run until now.
        config: the config from here on.
        state: as the checkpoint has it, with the limits of `config`.
        status: status.json as it was before this resume.
        tested: whether the run was finished and tested.
        rows: the rows of metrics.csv, by column, as they were before this resume.

    Raises:
        UserError: nothing is left to train.
    """
    done = f"the run has done {state.epochs:.4g} epochs and {state.step} steps"
    if state.complete:
        limits = state.limits
        planned = f"trainer.max_epochs={limits.max_epochs}"
        if limits.max_steps is not None:
            planned += f" and trainer.max_steps={limits.max_steps}"
        raise UserError(f"{done}, and {planned} leaves nothing to train: raise what limits it")
    if state.stopped_early and state.evaluated_step == state.step:
        raise UserError(
            f"{done} and stopped early, because validation accuracy did not rise for "
            f"{state.epochs - state.best_epoch:.4g} epochs: set trainer.early_stopping_epochs "
            f"above {state.limits.early_stopping}, or to null"
        )
    known = {**_test_row(rows, state.step), **{k: status.get(k) for k in RESULTS if k in status}}
    numbers = {k: v for k, v in known.items() if type(v) is float and math.isfinite(v)}
    return {
        "step": state.step,
        "epoch": state.epochs,
        "when": now(),
        "changed": changes(own, config),
        "settings": extended_settings(config),
        "best_val_accuracy": state.best_validation,
        "best_epoch": state.best_epoch if state.evaluated else None,
        **dict.fromkeys(RESULTS),
        **(numbers if tested else {}),
    }


def _test_row(rows: Sequence[Mapping[str, str]], step: int) -> dict[str, float]:
    """Returns the results of the test at a step from metrics.csv, which has more than status.json.

    A resume cuts the row off, since it comes after the checkpoint.
    """
    found: dict[str, float] = {}
    for row in rows:
        with suppress(ValueError):
            if row.get("step") == str(step) and row.get("test_accuracy"):
                found = {name: float(row[name]) for name in RESULTS if row.get(name)}
    return found


@dataclass
class Extension:
    """Copies the files that an extension replaces, and records it before its first checkpoint.

    Attributes:
        entries: all extensions of the run, this one last.
        start: the entries of the checkpoint from which it starts that differ from here on.
    """

    run_dir: Path
    status: Status
    entries: list[dict[str, Any]]
    start: dict[str, Any] = field(default_factory=dict)

    def begin(self, size_limit: int | None) -> None:
        """Makes last.pt that of the extended run, at the step from which the extension starts.

        It first copies the files that later checkpoints and the next test replace. A best.pt that
        is written next belongs to the same run as last.pt, even if nothing follows it.
        """
        best = checkpoint.best_path(self.run_dir)
        for path in (best, self.run_dir / TABLE):
            self._keep(path)
        content = checkpoint.latest(self.run_dir, size_limit)
        assert content is not None  # it was resumed from
        content = {key: value for key, value in content.items() if key not in checkpoint.MARKS}
        checkpoint.save({**content, **self.start}, checkpoint.last_path(self.run_dir))

    def complete(self) -> None:
        """Updates .hydra/config.yaml and status.json."""
        settings = self.entries[-1]["settings"]
        self._rewrite_config(settings)
        self.status.update(
            extensions=self.entries,
            max_epochs=settings["trainer.max_epochs"],
            **dict.fromkeys(RESULTS),
        )

    def _keep(self, path: Path) -> None:
        step = self.entries[-1]["step"]
        kept = path.with_name(f"{path.stem}-before-step-{step}{path.suffix}")
        refuse_links(path, kept)
        if path.is_file() and not kept.exists():
            write_atomic(kept, path.read_bytes())

    def _rewrite_config(self, settings: Mapping[str, Any]) -> None:
        path = self.run_dir / ".hydra" / "config.yaml"
        if not path.is_file():  # a run that was not started by elstm-train
            return
        try:
            tree = read_tree(path)
        except Damaged as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        new = {key: value for key, value in tree.items() if key != "scheduler"}
        for key, value in settings.items():
            group, _, name = key.partition(".")
            new[group] = {**(new.get(group) or {}), name: value}
        if new != tree:
            self._keep(path)
            text = to_yaml({key: new[key] for key in [*tree, *new]})
            write_atomic(path, text.encode())


def complete_extension(run_dir: Path, status: Status, extensions: list[dict[str, Any]]) -> None:
    """Completes the update of files that a kill prevented when the extension began."""
    if extensions and status.fields.get("extensions") != extensions:
        Extension(run_dir, status, extensions).complete()
