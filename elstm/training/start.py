"""Describes a run at its start, in log messages and a picture of augmented inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from elstm.config.data_options import AugmentPicturesConfig, DigitsConfig, PixelsConfig
from elstm.config.schema import BNLSTMConfig, Config, ELSTMBNConfig, StepConfig
from elstm.data.catalog import SAME_IN_A_MIRROR
from elstm.data.sequences import SequenceData
from elstm.training import device as runtime
from elstm.training.build import Parts
from elstm.training.state import Limits

EXAMPLES, EPOCHS = 6, 3  # of the picture


def start_messages(config: Config, parts: Parts, parameters: int) -> Iterator[str]:
    """Yields the log messages of a run before its first step."""
    data, processes, accumulate = parts.data, parts.limits.processes, config.trainer.accumulate
    step = data.batch_size * processes
    if data.batch_size != config.data.batch_size * accumulate:
        yield (
            f"each of {processes} processes takes {data.batch_size} of the run's "
            f"{'batches' if accumulate == 1 else 'steps'} of {step} sequences"
        )
    times = f" x {processes}" if processes > 1 else ""
    yield (
        f"{config.model.name} on {data.name}: {len(data.train)} training sequences of "
        f"{data.num_steps} steps x {data.input_size}, batch {data.batch_size // accumulate}{times};"
        f" {parameters:,} parameters; {runtime.device_name(parts.accelerator.device)}, "
        f"{config.trainer.precision}"
    )
    if parts.ema is not None:
        yield (
            "validation, best.pt and the test are of the averaged weights "
            f"(trainer.ema_decay={parts.ema.decay:g}); checkpoints hold the raw ones as well"
        )
    if accumulate > 1:
        yield (
            f"an optimizer step adds up the gradients of {accumulate} batches{times}, {step} "
            "sequences"
        )
    if data.augmentation is not None:
        yield (
            f"training sequences are augmented: {data.augmentation.describe()}; evaluation and "
            "population statistics use them as they are"
        )
    if parts.model.rnn.sync_batch_stats and processes > 1:
        yield (
            f"batch statistics are those of all {processes} processes, which only the reference "
            "recurrence supports"
        )


def start_warnings(config: Config, limits: Limits) -> Iterator[str]:
    """Yields warnings about likely mistakes in the config, such as settings without an effect."""
    trainer, scheduler = config.trainer, config.scheduler
    full, total = limits.max_epochs * limits.steps_per_epoch, limits.total_steps
    if limits.max_steps is not None and limits.max_steps > full:
        yield (
            f"trainer.max_steps={limits.max_steps} has no effect, because "
            f"trainer.max_epochs={limits.max_epochs} ends the run after {full} steps"
        )
    if scheduler.warmup_steps >= total:
        yield (
            f"scheduler.warmup_steps={scheduler.warmup_steps} covers all {total} steps of the run, "
            "whose learning rate rises to the end"
        )
    if isinstance(scheduler, StepConfig) and total <= (
        scheduler.step_epochs * limits.steps_per_epoch
    ):
        yield (
            f"scheduler=step does not lower the learning rate, because the run ends within "
            f"scheduler.step_epochs={scheduler.step_epochs} epochs"
        )
    if trainer.recompute_batch_size is not None and not trainer.recompute_batches:
        yield (
            f"trainer.recompute_batch_size={trainer.recompute_batch_size} has no effect with "
            "trainer.recompute_batches=0"
        )
    yield from _norm_warnings(config)
    data, augment = config.data, getattr(config.data, "augment", None)
    if isinstance(data, PixelsConfig) and data.permute_seed and not data.permute:
        yield f"data.permute_seed={data.permute_seed} has no effect with data.permute=false"
    mirrored = isinstance(augment, AugmentPicturesConfig) and augment.flip
    if mirrored and isinstance(data, DigitsConfig) and data.name not in SAME_IN_A_MIRROR:
        yield (
            f"data.augment.flip=true trains {data.name} on mirror images of characters, which are "
            "other characters or none: leave it out"
        )


def _norm_warnings(config: Config) -> Iterator[str]:
    """Yields warnings about settings of norms that the model does not have, or does not use."""
    model = config.model
    if not isinstance(model, BNLSTMConfig):
        return
    if config.trainer.recompute_batches and model.momentum != type(model)().momentum:
        yield (
            f"model.momentum={model.momentum} has no effect with trainer.recompute_batches="
            f"{config.trainer.recompute_batches}, which replaces the moving averages"
        )
    if not isinstance(model, ELSTMBNConfig):
        return
    used = {
        "gamma_ih": model.normalize_input,
        "gamma_hh": model.normalize_hidden,
        "gamma_c": model.cell_norm != "none",
    }
    for name, is_used in used.items():
        if not is_used and getattr(model, name) != getattr(type(model)(), name):
            yield f"model.{name}={getattr(model, name)} has no effect: the model has no such norm"


def augmented_examples(data: SequenceData, seed: int) -> list[list[Tensor]]:
    """Returns a few training sequences, and below each its changes in the first epochs."""
    assert data.augmentation is not None
    rows = data.train_order(seed, 0)[:EXAMPLES].tolist()
    found = [[data.example(data.train, row) for row in rows]]
    for epoch in range(EPOCHS):
        data.augmentation.start_epoch(len(data.train), seed, epoch, data.device)
        found.append([data.example(data.train, row, data.augmentation) for row in rows])
    return found
