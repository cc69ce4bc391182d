"""The training loop: one run from its config to its test accuracy.

A run that is ended at any moment, by a signal or a kill, goes on from its last checkpoint to the
same weights and the same records, on a CPU bit by bit: the checkpoint has all that the next steps
depend on (`Snapshot`), and the order of the data follows from seed and epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from elstm.config.schema import Config
from elstm.data.sequences import ImageSequences, load_data
from elstm.errors import UserError
from elstm.files.atomic import refuse_links, remove_leftovers, writing
from elstm.models import build_model
from elstm.records import pictures as figures
from elstm.records.progress import Progress, duration
from elstm.records.status import Status, read_status
from elstm.records.tracking import Tracker, hparams
from elstm.training import checkpoint, evaluation
from elstm.training import device as runtime
from elstm.training.distributed import first_failure
from elstm.training.environment import taken_variables
from elstm.training.nonfinite import clip_gradients
from elstm.training.optim import Schedule, build_optimizer
from elstm.training.signals import Interrupted, Interrupts
from elstm.training.state import Clock, Snapshot, State, Window
from elstm.training.trained import check_fits, is_stratified

SIGNAL_STEPS = 10  # several processes agree on stopping every so many steps
STATUS_SECONDS = 10.0  # status.json is renewed this often within an epoch
MAX_PICTURES = 100  # about so many evaluations of a run have histograms and pictures: 20 KB each

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `state` is done, pruned, or interrupted by `signal`.

    Accuracies are fractions.
    """

    state: str
    test_accuracy: float | None
    best_val_accuracy: float | None
    status: dict[str, Any]
    signal: str | None = None


OnEvaluation = Callable[[int, float], bool]


def run(
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> RunResult:
    """Trains, evaluates and tests one model, and records it all in `run_dir`.

    Args:
        config: validated; its trainer.resume is not looked at.
        run_dir: an existing folder of the run's own.
        resume: go on from the folder's last checkpoint, or afresh where there is none yet. A run
            that is done is left as it is.
        on_evaluation: called after each evaluation with the epoch, counted from 1, and validation
            accuracy; True ends the run there, without a test, as `pruned`.

    Raises:
        UserError: what the user can mend: device, data, checkpoint, disk, a loss not finite.
        KeyboardInterrupt: at a second Ctrl-C, or at one before training has begun.
    """
    if resume:
        before = read_status(run_dir)
        if before is not None and before.get("state") == "done":
            log.info("%s is done: nothing left to train", run_dir)
            return _result(before)
    with (
        Interrupts() as interrupts,
        runtime.process_settings(config.trainer),
        runtime.accelerator_for(config.trainer) as accelerator,
        closing(Tracker(run_dir, active=accelerator.is_main_process)) as tracker,
    ):
        status = Status(run_dir, active=accelerator.is_main_process)
        try:
            whole = _Run(config, run_dir, resume, accelerator, tracker, status, interrupts)
            whole.run(on_evaluation or (lambda epoch, accuracy: False))
        except Exception as error:
            first = first_failure(error)
            status.fail(first)
            if first is error:
                raise
            raise first from error
        except BaseException as error:
            status.fail(error)
            raise
        return _result(status.fields, interrupts.requested)


def _result(status: dict[str, Any], signal: str | None = None) -> RunResult:
    accuracies = status.get("test_accuracy"), status.get("best_val_accuracy")
    signal = signal if status["state"] == "interrupted" else None
    return RunResult(status["state"], *accuracies, status, signal)


class _Run:
    """One run: what was built from its config, and where it stands."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        resume: bool,
        accelerator: Accelerator,
        tracker: Tracker,
        status: Status,
        interrupts: Interrupts,
    ) -> None:
        self.config, self.trainer, self.run_dir = config, config.trainer, run_dir
        self.accelerator, self.tracker = accelerator, tracker
        self.status, self.interrupts = status, interrupts
        self.device = device = accelerator.device
        self.main, self.processes = accelerator.is_main_process, accelerator.num_processes
        self.say, self.warn = (log.info, log.warning) if self.main else (log.debug, log.debug)
        status.update(
            state="running",
            model=config.model.name,
            data=config.data.name,
            seed=config.seed,
            max_epochs=self.trainer.max_epochs,
            device=device.type,
            device_name=runtime.device_name(device),
            processes=self.processes,
            threads=torch.get_num_threads(),
            precision=self.trainer.precision,
            environment=taken_variables(self.trainer),
        )

        self.saved = checkpoint.latest(run_dir) if resume else None
        if self.saved is not None:
            try:
                check_fits(self.saved, config)
            except ValueError as error:
                raise UserError(
                    f"{run_dir}: the checkpoint does not fit the run's config: {error}"
                ) from error
        self.data = data = self.shared_batches(
            load_data(config.data, stratify=is_stratified(self.saved and self.saved["data"])).to(
                device
            )
        )
        torch.manual_seed(config.seed)
        self.model = build_model(
            config.model,
            input_size=data.input_size,
            num_steps=data.num_steps,
            num_classes=data.num_classes,
            sync_batch_stats=self.trainer.sync_batch_stats,
        ).to(device)
        self.parameters = list(self.model.parameters())
        optimizer = build_optimizer(config.optimizer, self.parameters, device)
        # DDP would send them all at each step; they are the same already, or each process's own.
        buffers = [name for name, _ in self.model.named_buffers()]
        self.model._ddp_params_and_buffers_to_ignore = buffers  # type: ignore[assignment]
        step_model = torch.compile(self.model) if self.trainer.compile else self.model
        self.step_model, self.optimizer = accelerator.prepare(step_model, optimizer)
        # Accelerate's step looks for a package twice at each call; it is needed in fp16 alone.
        self.take_step = optimizer.step if accelerator.scaler is None else self.optimizer.step
        if not self.main:  # dropout and noise of its own; the weights are the first process's
            torch.manual_seed(config.seed + 1_000_003 * accelerator.process_index)

        batches = data.num_train_batches
        if self.trainer.overfit_batches is not None:
            overfit = self.trainer.overfit_batches * config.data.batch_size // data.batch_size
            batches = min(batches, overfit)
        steps_per_epoch = batches // self.processes  # a step takes a batch for each process
        if not steps_per_epoch:
            raise UserError(
                f"{batches} training batches are too few for {self.processes} processes: lower "
                "data.batch_size, or use fewer processes"
            )
        self.batches = steps_per_epoch * self.processes  # of an epoch
        total_steps = self.trainer.max_epochs * steps_per_epoch
        if self.trainer.max_steps is not None:
            total_steps = min(total_steps, self.trainer.max_steps)
        self.total_steps = total_steps
        self.schedule = Schedule(
            config.scheduler, config.optimizer.lr, total_steps, steps_per_epoch
        )
        self.clip = self.trainer.clip_grad_norm or math.inf
        self.backend: str | None = None  # the log has named it
        self.recorded = time.monotonic()
        self.state, self.window = State(), Window(device)
        self.snapshot = Snapshot(
            self.state, self.window, self.model, self.optimizer, self.schedule, data, accelerator
        )
        self.begin(resume)
        self.clock = Clock(self.state)
        self.progress = Progress(
            total_steps,
            self.state.step,
            self.trainer.max_epochs,
            enabled=self.trainer.progress and self.main,
        )

    def shared_batches(self, data: ImageSequences) -> ImageSequences:
        """With this process's share of the run's batches, however many processes it began with."""
        own = data.batch_size
        whole = own * self.processes
        if self.saved is not None:
            whole = self.saved.get("global_batch_size", whole)
        if whole % self.processes or whole < 2 * self.processes:
            raise UserError(
                f"the run's batches of {whole} sequences cannot be shared by {self.processes} "
                "processes: go on with a number that divides it, each with 2 sequences or more"
            )
        if whole != own * self.processes:
            self.say("each of %d processes takes %d of the run's batches of %d sequences",
                self.processes, whole // self.processes, whole)  # fmt: skip
        return dataclasses.replace(data, batch_size=whole // self.processes)

    def begin(self, resume: bool) -> None:
        """Starts the run's files, or goes on from where its checkpoint left them."""
        folder = checkpoint.last_path(self.run_dir).parent
        refuse_links(folder)
        if self.main:
            with writing(folder):
                folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        saved, self.saved = self.saved, None
        sizes = None if saved is None else self.snapshot.restore(saved)
        self.tracker.start(hparams(self.config), sizes)
        data, count = self.data, sum(p.numel() for p in self.parameters)
        self.status.update(parameters=count)
        self.say(
            "%s on %s: %d training sequences of %d steps x %d, batch %d%s; %s parameters; %s, %s",
            self.config.model.name, data.name, len(data.train), data.num_steps, data.input_size,
            data.batch_size, f" x {self.processes}" if self.processes > 1 else "",
            f"{count:,}", runtime.device_name(self.device), self.trainer.precision,
        )  # fmt: skip
        if self.model.rnn.sync_batch_stats and self.processes > 1:
            self.say(
                "batch statistics are those of all %d processes, which only the reference "
                "recurrence can do", self.processes,
            )  # fmt: skip
        if saved is not None:
            self.say("going on at epoch %.2f, step %d", self.position()["epoch"], self.state.step)
            if self.main and self.state.evaluated_step >= 0:
                try:
                    checkpoint.best(self.run_dir)
                except checkpoint.Unreadable as error:
                    self.warn("%s: the next epoch that is better replaces it", error)
        elif resume:
            self.say("no checkpoint yet in %s: starting afresh", self.run_dir)

    # --- the loop

    def run(self, on_evaluation: OnEvaluation) -> None:
        """Trains to the end, until it is pruned, or to a signal, and records which."""
        self.interrupts.graceful = True
        try:
            with closing(self.progress), runtime.profiler(self.trainer, self.run_dir) as profiler:
                while not self.finished():
                    self.model.train()
                    self.clock.switch(training=True)
                    for x, y in self.train_batches():
                        self.train_step(x, y)
                        profiler.step()
                        self.after_step()
                    self.clock.switch(training=False)
                    accuracy = self.evaluate()
                    epoch = math.ceil(self.position()["epoch"])
                    if on_evaluation(epoch, accuracy) and not self.finished():
                        self.record("pruned")
                        self.say("pruned after epoch %d", epoch)
                        return
                    self.interrupts.check_together(self.accelerator)
            self.test()
        except Interrupted as interrupted:
            if not self.finished():  # then the last evaluation has saved it
                self.save(checkpoint.last_path(self.run_dir))
            self.record("interrupted")
            self.say(
                "interrupted by %s at epoch %.2f, step %d; all is saved, go on with: "
                "elstm-train trainer.resume=%s",
                interrupted, self.position()["epoch"], self.state.step, self.run_dir,
            )  # fmt: skip

    def finished(self) -> bool:
        state, trainer = self.state, self.trainer
        return state.evaluated_step == state.step and (
            state.epoch >= trainer.max_epochs
            or state.step >= (trainer.max_steps or math.inf)
            or state.waited >= (trainer.early_stopping_epochs or math.inf)
        )

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the epoch for this process: of n processes, each n-th batch."""
        epoch = 0 if self.trainer.overfit_batches else self.state.epoch
        start = self.state.batch + self.accelerator.process_index
        batches = self.data.train_batches(self.config.seed, epoch, start, self.processes)
        return islice(batches, self.steps_left())

    def steps_left(self) -> int:
        """To the end of the epoch, or of the run."""
        in_epoch = (self.batches - self.state.batch) // self.processes
        if self.trainer.max_steps is None:
            return in_epoch
        return min(in_epoch, self.trainer.max_steps - self.state.step)

    def train_step(self, x: Tensor, y: Tensor) -> None:
        """x (T, B, F), y (B,). Nothing here waits for the device."""
        lr = self.schedule.lr(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logits = self.step_model(x)
        loss = F.cross_entropy(logits, y)
        for parameter in self.parameters:  # zero_grad with its hooks takes ten times as long
            parameter.grad = None
        self.accelerator.backward(loss)
        norms = clip_gradients(self.accelerator, self.parameters, self.clip)
        self.take_step()
        if self.accelerator.scaler is not None:  # it skips steps that overflow in fp16
            norms = norms.nan_to_num(0.0, 0.0, 0.0)
        self.window.add(loss.detach(), (logits.argmax(1) == y).sum(), norms, len(y))
        self.state.step += 1
        self.state.batch += self.processes

    def after_step(self) -> None:
        """What is due between two steps: a log point, a checkpoint, the end if a signal came."""
        state, trainer = self.state, self.trainer
        self.progress.step()
        # Every log_every steps and at the epoch's end, where a short rest joins the last window.
        done, left = state.batch // self.processes, self.steps_left()
        if left == 0 or (done % trainer.log_every == 0 and left >= trainer.log_every / 2):
            self.log_point()
        if trainer.checkpoint_every and state.step % trainer.checkpoint_every == 0:
            self.clock.switch(training=False)
            self.save(checkpoint.last_path(self.run_dir))
            self.clock.switch(training=True)
        if self.processes == 1 or state.step % SIGNAL_STEPS == 0:
            self.interrupts.check_together(self.accelerator)

    def log_point(self) -> None:
        self.check_finite()
        self.clock.look()
        state, window = self.state, self.window
        sums = self.accelerator.reduce(window.sums.clone())
        values = window.means(sums, self.processes, state.train_seconds)
        window.clear(state.train_seconds)
        if self.backend != self.model.rnn.last_backend:
            self.backend = self.model.rnn.last_backend
            self.say("the recurrence runs on backend %s", self.backend)
        state.train_loss = values["train_loss"]
        self.tracker.log(self.position(), {"lr": self.schedule.lr(state.step - 1), **values})
        self.progress.show(
            self.position()["epoch"], state.step, state.train_loss, values["samples_per_second"]
        )
        if time.monotonic() - self.recorded >= STATUS_SECONDS:
            self.record("running")

    # --- evaluation

    def evaluate(self) -> float:
        """Population statistics, both accuracies, records, best and last checkpoint.

        Returns validation accuracy.

        A signal abandons it before anything is recorded; a resume begins with it again.
        """
        state = self.state
        between = self.interrupts.check if self.processes == 1 else None
        evaluation.recompute_statistics(
            self.model, self.data, self.config, state.epoch, between,
            rank=self.accelerator.process_index, processes=self.processes,
        )  # fmt: skip
        values = evaluation.measure(self.model, self.data, "val", self.config, between)
        # The decisions below have to be the same in all processes.
        values = broadcast_object_list([values])[0]
        accuracy = values["val_accuracy"]
        improved = accuracy > state.best_val_accuracy
        epoch = self.position()["epoch"]

        state.evaluated_step = state.step
        state.waited = 0 if improved else state.waited + 1
        if improved:
            state.best_val_accuracy, state.best_epoch = accuracy, epoch
        self.schedule.after_epoch(accuracy)
        pictures = self.pictures_due()
        self.tracker.log_norms(self.model, self.position(), histograms=pictures)
        if self.main:
            inside = evaluation.over_time(self.model, self.data)
            self.tracker.write_over_time(inside)
            if pictures:
                title = f"{self.config.model.name} on {self.data.name}"
                self.tracker.log_picture(
                    "gradient/hidden",
                    lambda: figures.gradient_figure(inside["gradient"], epoch, title),
                    state.step,
                )
        self.clock.look()
        self.tracker.log(self.position(), values)
        if state.batch == self.batches:
            state.epoch, state.batch = state.epoch + 1, 0
        best = [checkpoint.best_path(self.run_dir)] if improved else []
        self.save(*best, checkpoint.last_path(self.run_dir))
        self.progress.val_accuracy = accuracy
        self.record("running", values)
        self.say(
            "epoch %.4g: train loss %.4f, val loss %.4f, val accuracy %.2f%%%s%s",
            epoch, state.train_loss, values["val_loss"], 100 * accuracy,
            self.gap(values["val_accuracy_batch_stats"]), " (best)" if improved else "",
        )  # fmt: skip
        return float(accuracy)

    def pictures_due(self) -> bool:
        """At each epoch; of a run of more than MAX_PICTURES at each n-th, and at its last step."""
        every = math.ceil(self.total_steps / self.batches * self.processes / MAX_PICTURES)
        number = math.ceil(self.position()["epoch"])
        return (number - 1) % every == 0 or self.state.step >= self.total_steps

    def gap(self, in_batch: float) -> str:
        return (
            f" (batch statistics {in_batch:.2%})" if evaluation.has_statistics(self.model) else ""
        )

    def test(self) -> None:
        """The best checkpoint by validation accuracy, once, at the end."""
        if not self.main:
            return
        try:
            best = checkpoint.best(self.run_dir)
        except checkpoint.Unreadable as error:
            raise UserError(
                f"{error}, and with it the weights of epoch {self.state.best_epoch:.4g}, the best: "
                f"put a copy of it back and resume, or: elstm-eval {self.run_dir} "
                "--checkpoint last"
            ) from error
        self.model.load_state_dict(best["model"])
        values = evaluation.measure(
            self.model, self.data, "test", self.config, self.interrupts.check
        )
        self.clock.look()
        self.tracker.log(self.position(), values)
        self.tracker.log_end(self.state.step)
        self.record("done", values)
        self.say(
            "done: test accuracy %.2f%%%s of epoch %.4g, the best by validation (%.2f%%); %s in %s",
            100 * values["test_accuracy"], self.gap(values["test_accuracy_batch_stats"]),
            self.state.best_epoch,
            100 * self.state.best_val_accuracy, duration(self.state.wall_seconds), self.run_dir,
        )  # fmt: skip

    # --- records and checkpoints

    def position(self) -> dict[str, float]:
        state = self.state
        return {
            "epoch": state.epoch + state.batch / self.batches,
            "step": state.step,
            "train_seconds": state.train_seconds,
            "wall_seconds": state.wall_seconds,
        }

    def record(self, state: str, values: Mapping[str, float] | None = None) -> None:
        """status.json, with what was measured."""
        self.recorded = time.monotonic()
        self.status.set(**(values or {}))
        evaluated = self.state.evaluated_step >= 0
        self.status.update(
            state=state,
            **self.position(),
            best_val_accuracy=self.state.best_val_accuracy if evaluated else None,
            best_epoch=self.state.best_epoch if evaluated else None,
            backend=self.model.rnn.last_backend,
        )

    def check_finite(self) -> None:
        """Raises UserError before the weights or records of a bad step reach the disk."""
        bad = self.snapshot.bad()
        if bad is None:
            return
        step, what = bad
        raise UserError(
            f"{what} was not finite at step {step} (epoch {self.state.epoch + 1}): lower "
            f"optimizer.lr or trainer.clip_grad_norm; {self.kept()}"
        )

    def kept(self) -> str:
        last = checkpoint.last_path(self.run_dir)
        return f"{last} holds the last good state" if last.exists() else "nothing was saved yet"

    def save(self, *paths: Path) -> None:
        """All that the steps to come depend on."""
        self.check_finite()
        self.snapshot.gather()
        if not self.main:
            return
        self.clock.look()
        checkpoint.save(self.snapshot.content(self.tracker.sizes()), *paths)
