"""Builds the parts of a run from its config: data, model, optimizer, schedule, step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from elstm.cli import data_root_as
from elstm.config.schema import Config, PlateauConfig, data_with_seed
from elstm.data.load import load_data
from elstm.data.sequences import SequenceData
from elstm.errors import UserError
from elstm.models import SequenceClassifier, build_model
from elstm.training.data_facts import is_stratified
from elstm.training.ema import EmaModel
from elstm.training.initial import take_weights
from elstm.training.optim import Schedule, build_optimizer
from elstm.training.state import Limits
from elstm.training.step import TrainStep


@dataclass(frozen=True)
class Parts:
    """Holds the parts of a run.

    Attributes:
        model: the classifier itself, without the wrappers for compiling and for several processes.
        optimizer: as Accelerate prepared it.
        init_from: the source of the initial weights of a new run; see elstm.training.initial.
        ema: with trainer.ema_decay, the model with the averaged weights.
    """

    accelerator: Accelerator
    data: SequenceData
    model: SequenceClassifier
    optimizer: Any
    schedule: Schedule
    limits: Limits
    step: TrainStep
    init_from: dict[str, Any] | None = None
    ema: EmaModel | None = None

    @property
    def evaluated(self) -> SequenceClassifier:
        """Returns the model that is evaluated, the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.model


def build_parts(
    config: Config, accelerator: Accelerator, saved: dict[str, Any] | None = None
) -> Parts:
    """Builds everything on the accelerator's device.

    Args:
        saved: the checkpoint from which the run resumes, which was checked to fit the config.

    Raises:
        UserError: the data cannot be loaded, or cannot be shared by this number of processes.
    """
    data = build_data(config, accelerator, saved)
    if not len(data.val):
        _check_without_validation(config)
    limits = build_limits(config, data, accelerator.num_processes)
    torch.manual_seed(config.seed)
    model = build_classifier(config, data, accelerator.device)
    source = None
    if saved is None and config.trainer.init_from is not None:
        source = take_weights(config, model, data.facts())  # before DDP sends rank 0's weights
    plain = build_optimizer(config.optimizer, model.parameters(), accelerator.device)
    decay = config.trainer.ema_decay
    ema = None if decay is None else EmaModel(model, decay)  # before Accelerate wraps `forward`
    compiled = torch.compile(model) if config.trainer.compile else model
    prepared_model, optimizer = accelerator.prepare(compiled, plain)
    if ema is not None:
        ema.start()  # DDP has sent rank 0's weights to all
    trainer = config.trainer
    weights = balanced_weights(data) if trainer.class_weights == "balanced" else None
    step = TrainStep(
        prepared_model, plain, optimizer, accelerator, trainer.clip_grad_norm,
        trainer.label_smoothing, weights,
    )  # fmt: skip
    if not accelerator.is_main_process:  # weights are rank 0's; dropout and noise are not
        torch.manual_seed(config.seed + 1_000_003 * accelerator.process_index)
    schedule = build_schedule(config, limits)
    return Parts(accelerator, data, model, optimizer, schedule, limits, step, source, ema)


def build_data(
    config: Config, accelerator: Accelerator, saved: dict[str, Any] | None = None
) -> SequenceData:
    """Loads the data set; `batch_size` is the number of sequences in a step of this process.

    A step has trainer.accumulate batches. A resumed run has the same sequences in each step of all
    processes together as before.
    """
    stratify = is_stratified(saved and saved["data"])
    with nullcontext() if saved is None else data_root_as():
        data = load_data(data_with_seed(config), stratify=stratify).to(accelerator.device)
    processes, accumulate = accelerator.num_processes, config.trainer.accumulate
    total = data.batch_size * processes * accumulate
    if saved is not None:
        total = saved.get("global_batch_size", total)  # the first version had none
        if type(total) is not int:
            raise UserError("the checkpoint does not hold the size of the run's batches")
    if total % (processes * accumulate) or total < 2 * processes * accumulate:
        several = f" in {accumulate} batches each" if accumulate > 1 else ""
        raise UserError(
            f"the run's steps of {total} sequences cannot be shared by {processes} processes"
            f"{several}: resume with a number of processes that divides {total // accumulate} and "
            "leaves each batch at least 2 sequences"
        )
    return data.with_batch_size(total // processes)


def _check_without_validation(config: Config) -> None:
    """Raises UserError at a setting that needs a validation split."""
    needs = {
        "trainer.early_stopping_epochs": config.trainer.early_stopping_epochs is not None,
        "scheduler=plateau": isinstance(config.scheduler, PlateauConfig),
    }
    for setting, used in needs.items():
        if used:
            raise UserError(
                f"{setting} needs a validation split, and data.val_fraction=0 leaves none: raise "
                "data.val_fraction, or train for a fixed number of epochs"
            )


def balanced_weights(data: SequenceData) -> Tensor:
    """Returns N / (C n_c) for each class c of the training split, as scikit-learn's "balanced".

    C counts the classes that occur; the weight of any other class is 0.
    """
    # On the CPU, because MPS has no float64.
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes).double()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    weights = torch.where(counts > 0, weights, 0.0).to(torch.get_default_dtype())
    return weights.to(data.train.labels.device)


def build_limits(config: Config, data: SequenceData, processes: int) -> Limits:
    """Computes where the run and its epochs end."""
    trainer, batches = config.trainer, data.num_train_batches
    if trainer.overfit_batches is not None:
        overfit = trainer.overfit_batches * config.data.batch_size // data.batch_size
        if overfit < processes <= batches:
            raise UserError(
                f"trainer.overfit_batches={trainer.overfit_batches} has to be at least "
                f"{processes * trainer.accumulate}, the batches of a step of {processes} processes"
            )
        batches = min(batches, overfit)
    steps_per_epoch = batches // processes  # each process takes its part of a step
    if not steps_per_epoch and trainer.accumulate > 1:
        raise UserError(
            f"trainer.accumulate={trainer.accumulate} batches of {config.data.batch_size} sequences"
            f"{f' in each of {processes} processes' if processes > 1 else ''} are more than the "
            f"{len(data.train)} training sequences: lower it or data.batch_size"
        )
    if not steps_per_epoch:
        raise UserError(
            f"{batches} training batches are too few for {processes} processes: lower "
            "data.batch_size, or use fewer processes"
        )
    return Limits(
        processes,
        steps_per_epoch,
        trainer.max_epochs,
        trainer.max_steps,
        trainer.early_stopping_epochs,
        trainer.evaluate_every,
    )


def build_classifier(
    config: Config, data: SequenceData, device: torch.device
) -> SequenceClassifier:
    """Builds the model with weights from torch's generator."""
    model = build_model(
        config.model.name,
        config.model.options(),
        input_size=data.input_size,
        num_steps=data.num_steps,
        num_classes=data.num_classes,
        sync_batch_stats=config.trainer.sync_batch_stats,
    ).to(device)
    # DDP would send the buffers at each step. They are equal already, or meant to differ.
    buffers = [name for name, _ in model.named_buffers()]
    model._ddp_params_and_buffers_to_ignore = buffers  # type: ignore[assignment]
    return model


def build_schedule(config: Config, limits: Limits) -> Schedule:
    """Builds the learning-rate schedule over the run's steps."""
    return Schedule(
        config.scheduler, config.optimizer.lr, limits.total_steps, limits.steps_per_epoch
    )
