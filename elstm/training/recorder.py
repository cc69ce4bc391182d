"""Writes the reports of a run: log messages, progress, status.json, the tables, TensorBoard.

The training loop calls `Recorder` and knows none of the formats.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from elstm.config.schema import Config
from elstm.errors import show
from elstm.files.atomic import write_atomic
from elstm.nn.backends import untested_backend
from elstm.records import pictures as figures
from elstm.records.correct import TABLE, encode_correct
from elstm.records.descriptions import changed_keys, describe_run, hparams
from elstm.records.progress import Progress, duration
from elstm.records.status import Status
from elstm.records.tags import PICTURES
from elstm.records.tracking import Tracker
from elstm.training import device as runtime
from elstm.training import evaluation
from elstm.training.build import Parts
from elstm.training.ema import EMA, RAW
from elstm.training.environment import active_variables
from elstm.training.start import augmented_examples, start_messages, start_warnings
from elstm.training.state import TrainState

STATUS_SECONDS = 10.0  # status.json is renewed this often within an epoch
MAX_PICTURES = (
    100  # about this many evaluations of a run have histograms and pictures, of 20 KB each
)

log = logging.getLogger(__name__)


def run_facts(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    """Returns the fields of status.json that are known before a run is built."""
    return {
        "model": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "max_epochs": config.trainer.max_epochs,
        "device": accelerator.device.type,
        "device_name": runtime.device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "precision": config.trainer.precision,
        "weights": RAW if config.trainer.ema_decay is None else EMA,
        "environment": active_variables(config.trainer),
    }


class Recorder:
    """Logs and records one run. Rank 0 writes; the other processes log at the level DEBUG."""

    def __init__(
        self, config: Config, run_dir: Path, parts: Parts, tracker: Tracker, status: Status
    ) -> None:
        self.config, self.run_dir, self.parts = config, run_dir, parts
        self.tracker, self.status = tracker, status
        self.main = parts.accelerator.is_main_process
        self.info = log.info if self.main else log.debug
        self.backend: str | None = None  # the one that was logged
        self.status_time = time.monotonic()
        self.gradient: np.ndarray | None = None  # |dL/dh_t| of the evaluation, (T,), to be drawn
        self.progress: Progress

    # --- the start

    def start(
        self,
        state: TrainState,
        file_sizes: Mapping[str, Any] | None,
        *,
        resume: bool,
        extension: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any]:
        """Opens the record files and logs what is trained.

        Args:
            file_sizes: sizes of the record files at the checkpoint; None for a run without one.
            resume: whether the user requested a resume.
            extension: the entry of an extension that starts. What it logs is provisional until its
                first checkpoint.

        Returns: the sizes of the record files before the first row of an extension.
        """
        texts = describe_run(self.config, self.run_dir, self.parts.model)
        at_evaluation = file_sizes is not None and state.evaluated_step == state.step
        keep = (PICTURES if extension else ("gradient",)) if at_evaluation else ()
        self.tracker.start(
            hparams(self.config), file_sizes, state.step, texts, keep,
            changed_keys(self.run_dir),
        )  # fmt: skip
        sizes: Mapping[str, Any] = {}
        if extension is not None:
            self._log_test_again(state, extension)
            self.tracker.hold(state.step)
            self.tracker.log_text("run/config", texts["run/config"], state.step)
            sizes = self.tracker.sizes()
        self.tracker.open_feeds(self.config)
        if extension is not None and extension["test_accuracy"] is not None:
            self.tracker.feed_results(self.status.before)
        due = at_evaluation and self.main and self._pictures_due(state)
        if due and not self.tracker.has_picture("gradient"):
            inside = evaluation.over_time(self.parts.model, self.parts.data)
            self._draw_gradient(state, inside["gradient"])
        count = sum(p.numel() for p in self.parts.model.parameters())
        data = self.parts.data
        self.status.update(
            parameters=count,
            data_fingerprint=data.fingerprint,
            data_content=getattr(data, "content", None),
            data_description=data.description or None,
            augmentation=None if data.augmentation is None else data.augmentation.describe(),
        )
        self._describe(count)
        self._show_folder()
        if file_sizes is not None:
            self.info("resuming at epoch %.2f, step %d", state.epochs, state.step)
        elif resume:
            self.info("no checkpoint yet in %s: starting from the beginning", self.run_dir)
        if file_sizes is None and data.augmentation is not None and self.main:
            title = f"{data.name}: training sequences, and their changes in the first epochs"
            self.tracker.log_picture(
                "augmented",
                lambda: figures.examples_figure(augmented_examples(data, self.config.seed), title),
                state.step,
            )
        self.progress = Progress(
            self.parts.limits.total_steps,
            state.step,
            self.config.trainer.max_epochs,
            epoch=int(state.epochs) + 1,
            enabled=self.config.trainer.progress and self.main,
        )
        if extension is not None:
            self._describe_extension(state, extension)
        return sizes

    def _log_test_again(self, state: TrainState, entry: Mapping[str, Any]) -> None:
        """Records the test of a run before its extension once more.

        Its row came after the checkpoint, so that a resume cuts it off.
        """
        tested = {k: v for k, v in entry.items() if k.startswith("test_") and v is not None}
        if tested:
            self.tracker.log(position(state), tested)
            self._log_results(state)

    def _describe_extension(self, state: TrainState, entry: Mapping[str, Any]) -> None:
        changed = ", ".join(
            f"{key} {show(old)} -> {show(new)}" for key, (old, new) in entry["changed"].items()
        )
        self.info(
            "the run is extended from epoch %.4g, step %d on: %s", state.epochs, state.step, changed
        )
        schedule, total = self.parts.schedule, self.parts.limits.total_steps
        self.info(
            "the learning rate (%s) is recomputed over %d steps: %.3g at step %d, %.3g at the last",
            schedule.config.name, total, schedule.lr(state.step), state.step + 1,
            schedule.lr(total - 1),
        )  # fmt: skip

    def _describe(self, parameters: int) -> None:
        for message in start_messages(self.config, self.parts, parameters):
            self.info("%s", message)
        for message in start_warnings(self.config, self.parts.limits):
            self.warn(message)

    def _show_folder(self) -> None:
        """Logs the run folder and the commands that show its content."""
        self.info("the run folder is:\n%s", self.run_dir)
        group = shlex.quote(str(self.run_dir.parent))
        self.info("its curves: tensorboard --logdir %s", group)
        self.info("its report: elstm-report %s", group)

    def warn(self, error: object) -> None:
        (log.warning if self.main else log.debug)("%s", error)

    # --- during training

    def log_point(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Records the means over the steps since the last log point."""
        backend = self.parts.model.rnn.last_backend
        if backend != self.backend:
            self.backend = backend
            self.info("the recurrence runs on backend %s", backend)
            faster = untested_backend(self.parts.accelerator.device, str(backend))
            if faster is not None and self.config.model.backend == "auto":
                self.info(
                    "model.backend=%s has not been measured on this kind of GPU, but may be many "
                    "times faster: try it", faster,
                )  # fmt: skip
        lr = self.parts.schedule.lr(state.step - 1)
        self.tracker.log(position(state), {"lr": lr, **values})
        self.progress.show(
            state.epochs, state.step, values["train_loss"], values["samples_per_second"]
        )
        if time.monotonic() - self.status_time >= STATUS_SECONDS:
            self._write_status("running", state)

    def log_evaluation(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Records an evaluation and the norms, whose file sizes the next checkpoint holds.

        The picture comes after that checkpoint, because drawing can fail in any way.
        """
        at, pictures = position(state), self._pictures_due(state)
        self.tracker.log_norms(self.parts.model, at, histograms=pictures)
        if self.main:
            inside = evaluation.over_time(self.parts.model, self.parts.data)
            self.tracker.write_over_time(inside)
            self.gradient = inside["gradient"] if pictures else None
        if values:
            self.tracker.log(at, values)

    def report_evaluation(
        self, state: TrainState, values: Mapping[str, float], *, best: bool
    ) -> None:
        """Reports an evaluation, once its checkpoint is on the disk."""
        self.progress.val_accuracy = values.get("val_accuracy")
        self._write_status("running", state, values)
        if not values:
            self.info("epoch %.4g: train loss %.4f", state.epochs, state.train_loss)
        else:
            self.info(
                "epoch %.4g: train loss %.4f, val loss %.4f, val accuracy %.2f%%%s%s%s",
                state.epochs, state.train_loss, values["val_loss"], 100 * values["val_accuracy"],
                self._in_batch(values["val_accuracy_batch_stats"]), _raw(values),
                " (best)" if best else "",
            )  # fmt: skip
        if self.gradient is not None:
            self._draw_gradient(state, self.gradient)
            self.gradient = None

    def _draw_gradient(self, state: TrainState, norms: np.ndarray) -> None:
        title = f"{self.config.model.name} on {self.parts.data.name}"
        self.tracker.log_picture(
            "gradient", lambda: figures.gradient_figure(norms, state.epochs, title), state.step
        )

    def _pictures_due(self, state: TrainState) -> bool:
        """Returns whether pictures are due, about MAX_PICTURES times and after the last step."""
        limits = self.parts.limits
        epochs = math.ceil(limits.total_steps / limits.steps_per_epoch)
        every = math.ceil(epochs / limits.evaluate_every / MAX_PICTURES)
        number = math.ceil(state.epochs / limits.evaluate_every)
        return (number - 1) % every == 0 or state.step >= limits.total_steps

    def _in_batch(self, accuracy: float) -> str:
        if not evaluation.has_statistics(self.parts.model):
            return ""
        return f" (batch statistics {accuracy:.2%})"

    # --- the end

    def stopped_early(self, state: TrainState) -> None:
        self.info(
            "stopped early at epoch %.4g: validation accuracy has not risen above %.2f%% for %.4g "
            "epochs (trainer.early_stopping_epochs=%d)",
            state.epochs, 100 * state.best_val_accuracy, state.epochs - state.best_epoch,
            state.limits.early_stopping,
        )  # fmt: skip

    def pruned(self, state: TrainState) -> None:
        self._write_status("pruned", state)
        self.info("pruned after epoch %d", math.ceil(state.epochs))

    def interrupted(self, state: TrainState, signal: object) -> None:
        self._write_status("interrupted", state)
        self.info(
            "interrupted by %s at epoch %.2f, step %d; everything is saved, resume with: "
            "elstm-train %s",
            signal, state.epochs, state.step, shlex.quote(f"trainer.resume={self.run_dir}"),
        )  # fmt: skip

    def tested(
        self, state: TrainState, values: Mapping[str, float], score: evaluation.SplitScore
    ) -> None:
        """Records the end of a run, with `values` for the tables and the test's `score`."""
        write_atomic(self.run_dir / TABLE, encode_correct(score.correct.numpy()), sync=False)
        self.tracker.log(position(state), values)
        best = state.best_validation
        self._log_results(state)
        self._log_test_pictures(state, score)
        self._write_status("done", state, values)
        self.info(
            "done: test accuracy %.2f%%%s%s of epoch %.4g, %s; %s in %s",
            100 * values["test_accuracy"], self._in_batch(values["test_accuracy_batch_stats"]),
            "" if self.parts.ema is None else " of the averaged weights", state.best_epoch,
            "the last" if best is None else f"the best by validation ({best:.2%})",
            duration(state.wall_seconds), self.run_dir,
        )  # fmt: skip

    def _log_results(self, state: TrainState) -> None:
        best = state.best_validation
        measured = {} if best is None else {"best_val_accuracy": best}
        self.tracker.log_end(state.step, {**measured, "train_seconds": state.train_seconds})

    def _log_test_pictures(self, state: TrainState, score: evaluation.SplitScore) -> None:
        data = self.parts.data
        title = f"{self.config.model.name} on {data.name}, test"
        what = "images" if "image_size" in data.facts() else "sequences"
        self.tracker.log_picture(
            "confusion",
            lambda: figures.confusion_figure(
                score.confusion.numpy(), data.class_names, title, what
            ),
            state.step,
        )
        if not bool(score.correct.all()):
            self.tracker.log_picture(
                "mistakes",
                lambda: figures.mistakes_figure(evaluation.mistakes(data, "test", score), title),
                state.step,
            )

    def _write_status(
        self, run_state: str, state: TrainState, values: Mapping[str, float] | None = None
    ) -> None:
        self.status_time = time.monotonic()
        self.status.set(**(values or {}))
        self.status.update(
            state=run_state,
            **position(state),
            best_val_accuracy=state.best_validation,
            best_epoch=state.best_epoch if state.evaluated else None,
            backend=self.parts.model.rnn.last_backend,
        )


def _raw(values: Mapping[str, float]) -> str:
    raw = values.get("val_accuracy_raw")
    return "" if raw is None else f", raw weights {raw:.2%}"


def position(state: TrainState) -> dict[str, float]:
    """Returns the position of a row of metrics.csv: epoch, step and clocks."""
    return {
        "epoch": state.epochs,
        "step": state.step,
        "train_seconds": state.train_seconds,
        "wall_seconds": state.wall_seconds,
    }
