"""Holds the progress of a run: counters, clocks, and sums since the last log point."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from elstm.training import nonfinite
from elstm.training.step import StepResult

# Checkpoints keep the names of the first version.
STORED_NAMES = {"evaluations_since_best": "waited"}
REMOVED_COUNTERS = ("skipped_steps",)  # in checkpoints up to commit d8d01eb


@dataclass(frozen=True)
class Limits:
    """Holds the limits of a run and of its epochs.

    Attributes:
        steps_per_epoch: number of steps; every process takes one batch in each.
        early_stopping: epochs without an improvement after which the run ends; None: never.
        evaluate_every: epochs between two evaluations.
    """

    processes: int
    steps_per_epoch: int
    max_epochs: int
    max_steps: int | None = None
    early_stopping: int | None = None
    evaluate_every: int = 1

    @property
    def batches_per_epoch(self) -> int:
        """Returns the number of batches of an epoch, of all processes together."""
        return self.steps_per_epoch * self.processes

    @property
    def total_steps(self) -> int:
        steps = self.max_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass
class TrainState:
    """Holds counters and results, which a resume needs beside weights and random states."""

    limits: Limits
    epoch: int = 0  # epochs completed, their evaluation included
    batch: int = 0  # batches taken of the next one, by all processes together
    step: int = 0  # optimizer steps done
    evaluated_step: int = -1  # `step` at the latest evaluation
    best_val_accuracy: float = -1.0
    best_epoch: float = 0.0
    evaluations_since_best: int = 0
    train_loss: float = math.nan  # of the latest log point
    train_seconds: float = 0.0  # training alone
    wall_seconds: float = 0.0  # with evaluations and checkpoints

    @property
    def epochs(self) -> float:
        """Returns the number of epochs done, such as 1.25."""
        return self.epoch + self.batch / self.limits.batches_per_epoch

    @property
    def steps_left(self) -> int:
        """Returns the number of steps to the end of the epoch, or of the run."""
        limits = self.limits
        in_epoch = (limits.batches_per_epoch - self.batch) // limits.processes
        return in_epoch if limits.max_steps is None else min(in_epoch, limits.max_steps - self.step)

    @property
    def steps_since_evaluation(self) -> int:
        """Returns the steps since the latest epoch whose number `evaluate_every` divides."""
        limits = self.limits
        return (
            self.epoch % limits.evaluate_every * limits.steps_per_epoch
            + self.batch // limits.processes
        )

    @property
    def steps_to_evaluation(self) -> int:
        """Returns the number of steps to the end of the next such epoch, or of the run."""
        limits = self.limits
        start = self.epoch - self.epoch % limits.evaluate_every
        epochs = min(limits.evaluate_every, limits.max_epochs - start)
        steps = epochs * limits.steps_per_epoch - self.steps_since_evaluation
        return steps if limits.max_steps is None else min(steps, limits.max_steps - self.step)

    @property
    def epochs_since_evaluation(self) -> int:
        """Returns the number of epochs that ended since the latest evaluation."""
        length = self.limits.steps_per_epoch
        return self.step // length - max(self.evaluated_step, 0) // length

    @property
    def evaluated(self) -> bool:
        return self.evaluated_step >= 0

    @property
    def best_validation(self) -> float | None:
        """Returns the best validation accuracy; None before the first or without a split."""
        return self.best_val_accuracy if self.best_val_accuracy >= 0 else None

    @property
    def complete(self) -> bool:
        """Returns whether all epochs or steps of the run are done."""
        return self.epoch >= self.limits.max_epochs or self.step >= (
            self.limits.max_steps or math.inf
        )

    @property
    def stopped_early(self) -> bool:
        """Returns whether the run ends early because validation did not improve."""
        patience = self.limits.early_stopping or math.inf
        return not self.complete and self.epochs - self.best_epoch >= patience

    @property
    def finished(self) -> bool:
        """Returns whether the run is at its end and was evaluated there."""
        return self.evaluated_step == self.step and (self.complete or self.stopped_early)

    def count_step(self) -> None:
        self.step += 1
        self.batch += self.limits.processes

    def end_epoch(self, accuracy: float | None) -> bool:
        """Counts an evaluation, and the epoch if all its batches are done.

        Args:
            accuracy: validation accuracy, the same in all processes; None without a validation
                split.

        Returns: whether it is the best so far. Without a validation split the latest is.
        """
        improved = accuracy is None or accuracy > self.best_val_accuracy
        self.evaluated_step = self.step
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        if improved:
            self.best_epoch = self.epochs
        if improved and accuracy is not None:
            self.best_val_accuracy = accuracy
        self.count_epoch()
        return improved

    def count_epoch(self) -> None:
        """Counts the epoch if all its batches are done."""
        if self.batch == self.limits.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {STORED_NAMES.get(name, name): getattr(self, name) for name in _counters()}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Loads the counters of a checkpoint, which were checked."""
        for name in _counters():
            setattr(self, name, stored[STORED_NAMES.get(name, name)])


def _counters() -> list[str]:
    return [field.name for field in fields(TrainState) if field.name != "limits"]


class Clock:
    """Adds the time that passes to wall_seconds and, during training, to train_seconds."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.in_training, self.mark = state, False, time.perf_counter()

    def update(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds += now - self.mark
        if self.in_training:
            self.state.train_seconds += now - self.mark
        self.mark = now

    def training(self) -> Any:
        """Counts the time inside the `with` block as training."""
        return self._switched(True)

    def paused(self) -> Any:
        """Counts the time inside the `with` block, but not as training."""
        return self._switched(False)

    @contextmanager
    def _switched(self, training: bool) -> Iterator[None]:
        self.update()
        before, self.in_training = self.in_training, training
        try:
            yield
        finally:
            self.update()
            self.in_training = before


class StepSums:
    """Accumulates sums over the steps since the last log point, on the device.

    Only reading them synchronises with the device. NaN stays NaN in a running sum, so one check per
    log point is enough. `bad` counts the steps since the first bad one, whose norms are kept.

    Steps are queued until a sum is read. Adding many at once takes a fraction of the time that each
    takes after a training step, when the processor's caches hold other data.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=device)  # loss, correct, gradient norm
        self.bad = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = self.samples = 0
        self.start_seconds = 0.0  # train_seconds at the last log point
        # Loss and norms of each parameter's gradient: of the first bad step, or the latest, and of
        # the step before. (2, 1 + P)
        self.norms: Tensor | None = None
        self._queue: list[StepResult] = []

    def add(self, result: StepResult, samples: int) -> None:
        """Counts a step with `samples` samples; its tensors must not change afterwards."""
        self._queue.append(result)
        self.count(samples)

    def count(self, samples: int) -> None:
        """Counts a step with `samples` samples that `accumulate` adds, or has added."""
        self.steps += 1
        self.samples += samples

    def flush(self) -> None:
        """Adds the queued steps one by one; the time of the call makes no difference."""
        for result in self._queue:
            self.accumulate(result)
        self._queue.clear()

    def accumulate(self, result: StepResult) -> None:
        """Adds one step in place, on the device alone."""
        loss, correct, norms = result
        latest = torch.cat((loss[None], norms))
        if self.norms is None:
            self.norms = torch.zeros_like(torch.stack((latest, latest)))
        newest = torch.stack((latest, self.norms[0]))
        self.norms.copy_(torch.where(self.bad == 0, newest, self.norms))
        self.bad += ~latest.isfinite().all() | (self.bad > 0)
        self.sums += torch.stack((loss, correct, torch.linalg.vector_norm(norms)))

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that `accumulate` changes, the same ones after the first step."""
        return [self.sums, self.bad, *([] if self.norms is None else [self.norms])]

    def first_bad_step(self, step: int) -> int | None:
        """Returns the first step that was not finite, None if all were; `step` is the latest."""
        self.flush()
        return None if self.sums.isfinite().all() else step - int(self.bad) + 1

    def culprit(self, names: Sequence[str]) -> str:
        """Describes the value that was not finite; `names` are those of the parameters."""
        assert self.norms is not None
        (loss, *norms), (_, *before) = self.norms.tolist()
        return nonfinite.culprit(names, loss, norms, before)

    def reduced(self, accelerator: Accelerator) -> Tensor:
        """Returns `sums` added over all processes."""
        self.flush()
        return accelerator.reduce(self.sums.clone())

    def pop_means(self, accelerator: Accelerator, train_seconds: float) -> dict[str, float]:
        """Returns the means as columns of metrics.csv, and resets the sums."""
        loss, correct, grad_norm = self.reduced(accelerator).tolist()
        processes = accelerator.num_processes
        steps, samples = self.steps * processes, self.samples * processes
        means = {
            "train_loss": loss / steps,
            "train_accuracy": correct / samples,
            "grad_norm": grad_norm / steps,
            "samples_per_second": samples / max(train_seconds - self.start_seconds, 1e-9),
        }
        self.sums.zero_()
        self.bad.zero_()
        self.steps = self.samples = 0
        self.start_seconds = train_seconds
        return means

    def peek(self, state: TrainState) -> tuple[float, float]:
        """Returns this process's mean loss and the samples per second of all processes so far."""
        self.flush()
        seconds = max(state.train_seconds - self.start_seconds, 1e-9)
        samples = self.samples * state.limits.processes
        return float(self.sums[0]) / self.steps, samples / seconds

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {
            "sums": self.sums,
            "bad": self.bad,
            "steps": self.steps,
            "samples": self.samples,
            "began": self.start_seconds,
            "norms": self.norms,
        }

    def load_state_dict(self, stored: dict[str, Any], parameters: int) -> None:
        """Loads checked sums; norms for another number of parameters are left out."""
        self._queue.clear()
        self.sums.copy_(stored["sums"])
        self.bad.copy_(stored["bad"])
        norms, like = stored.get("norms"), torch.empty(2, 1 + parameters)
        self.norms = None  # they only name a culprit
        if isinstance(norms, Tensor) and (norms.shape, norms.dtype) == (like.shape, like.dtype):
            self.norms = norms.to(self.bad.device)
        self.steps, self.samples = stored["steps"], stored["samples"]
        self.start_seconds = stored["began"]
