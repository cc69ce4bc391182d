"""Defines the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor

from elstm.config.schema import Config
from elstm.training import evaluation
from elstm.training.build import Parts
from elstm.training.optim import set_lr
from elstm.training.recorder import Recorder
from elstm.training.signals import StopSignals
from elstm.training.snapshot import Checkpoints
from elstm.training.state import Clock, StepSums, TrainState

SIGNAL_STEPS = 10  # steps after which several processes agree again whether to stop

OnEvaluation = Callable[[int, float], bool]


@dataclass
class TrainingLoop:
    """Trains, evaluates and saves, starting from `state`.

    The order of records and checkpoints matters: a checkpoint holds the sizes of the record files,
    and a resume cuts them back to these. So the values of a step are recorded before its checkpoint
    is saved. Only a picture is drawn afterwards (Recorder.report_evaluation).
    """

    config: Config
    parts: Parts
    state: TrainState
    sums: StepSums
    train: Callable[[Tensor], None]  # takes a step on these rows; see batch_step
    clock: Clock
    signals: StopSignals
    recorder: Recorder
    checkpoints: Checkpoints

    def fit(self, on_evaluation: OnEvaluation, profiler: Any) -> bool:
        """Trains until the run is finished.

        Returns: whether it is finished; False if `on_evaluation` ended it before.

        Raises:
            Interrupted: a signal requested a stop; everything up to this step can be saved.
        """
        parts, state = self.parts, self.state
        while not state.finished:
            parts.model.train()
            with self.clock.training():
                for rows in self.rest_of_epoch():
                    set_lr(parts.optimizer, parts.schedule.lr(state.step))
                    self.train(rows)
                    state.count_step()
                    if parts.ema is not None:
                        parts.ema.update(state.step)
                    profiler.step()
                    self.after_step()
            if state.steps_to_evaluation:
                state.count_epoch()
                continue
            values = self.evaluate()
            accuracy = values.get("val_accuracy")
            if accuracy is not None:
                parts.schedule.after_evaluation(accuracy, state.epochs_since_evaluation)
            improved = state.end_epoch(accuracy)
            self.clock.update()
            self.recorder.log_evaluation(state, values)
            self.checkpoints.save(best=improved)
            self.recorder.report_evaluation(state, values, best=improved)
            pruned = accuracy is not None and on_evaluation(math.ceil(state.epochs), accuracy)
            if pruned and not state.finished:
                self.recorder.pruned(state)
                return False
            self.signals.raise_if_requested_by_any(parts.accelerator)
        if state.stopped_early:
            self.recorder.stopped_early(state)
        return True

    def rest_of_epoch(self) -> Iterator[Tensor]:
        """Yields the rows of this process's remaining steps, of n processes every n-th."""
        epoch = 0 if self.config.trainer.overfit_batches else self.state.epoch
        accelerator = self.parts.accelerator
        start = self.state.batch + accelerator.process_index
        batches = self.parts.data.train_rows(
            self.config.seed, epoch, start, accelerator.num_processes,
            self.config.trainer.accumulate,
        )  # fmt: skip
        return islice(batches, self.state.steps_left)

    def after_step(self) -> None:
        """Writes a log point and a checkpoint if they are due, and stops on a signal."""
        state, trainer = self.state, self.config.trainer
        progress = self.recorder.progress
        progress.step()
        # Log every log_every steps and before an evaluation. A short rest joins the last log point.
        done, left = state.steps_since_evaluation, state.steps_to_evaluation
        if left == 0 or (done % trainer.log_every == 0 and left >= trainer.log_every / 2):
            self.checkpoints.check_finite()
            self.clock.update()
            values = self.sums.pop_means(self.parts.accelerator, state.train_seconds)
            state.train_loss = values["train_loss"]
            self.recorder.log_point(state, values)
        elif progress.due():
            self.clock.update()
            progress.show(state.epochs, state.step, *self.sums.peek(state))
        if trainer.checkpoint_every and state.step % trainer.checkpoint_every == 0:
            self.checkpoints.save()
        if state.limits.processes == 1 or state.step % SIGNAL_STEPS == 0:
            self.signals.raise_if_requested_by_any(self.parts.accelerator)

    def evaluate(self) -> dict[str, float]:
        """Recomputes the population statistics and measures on the validation split, if any.

        With trainer.ema_decay the averaged weights are measured, and the raw ones beside them. It
        only measures and decides nothing. A signal stops it before anything is recorded, and a
        resume starts with it again.
        """
        parts, accelerator = self.parts, self.parts.accelerator
        before_batch = self.signals.raise_if_requested if accelerator.num_processes == 1 else None
        for model in dict.fromkeys((parts.model, parts.evaluated)):
            evaluation.recompute_statistics(
                model, parts.data, self.config, self.state.epoch, before_batch,
                rank=accelerator.process_index, processes=accelerator.num_processes,
            )  # fmt: skip
        val, values = (parts.data, "val", self.config, before_batch), dict[str, float]()
        if len(parts.data.val):
            values = evaluation.measure(parts.evaluated, *val)
            if parts.ema is not None:
                values |= evaluation.measure_raw(parts.model, *val)
        # All processes have to decide alike on these values.
        return broadcast_object_list([values])[0]
