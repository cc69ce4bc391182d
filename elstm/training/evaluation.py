"""Measures accuracy, loss and confusion, with population statistics and with batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elstm import nn as elstm_nn
from elstm.config.schema import Config
from elstm.data.sequences import Inputs, SequenceData
from elstm.models import SequenceClassifier
from elstm.records.pictures import Mistake
from elstm.training.scores import balanced_accuracy, macro_f1

MAX_MISTAKES = 16
OVER_TIME_BATCH = 64  # sequences, so that a graph of T steps fits in memory
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SplitScore:
    """Holds loss and confusion over all sequences of a split.

    Attributes:
        loss: mean cross-entropy.
        confusion: int64 (C, C) on the CPU; rows are true classes, columns predicted ones.
        correct: bool (N,) on the CPU; whether each sequence of the split is classified correctly.
        predicted: int64 (N,) on the CPU.
        confidence: float32 (N,) on the CPU; the probability of the predicted class.
    """

    loss: float
    confusion: Tensor
    correct: Tensor
    predicted: Tensor
    confidence: Tensor

    @property
    def accuracy(self) -> float:
        return int(self.confusion.trace()) / int(self.confusion.sum())


def has_statistics(model: nn.Module) -> bool:
    """Returns whether the model has any batch normalisation."""
    return next(elstm_nn.statistics_norms(model), None) is not None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Runs the forward pass in the run's precision: fp32, bf16 or fp16."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@torch.no_grad()
def score_split(
    model: nn.Module,
    data: SequenceData,
    split: str,
    batch_size: int,
    *,
    batch_stats: bool = False,
    precision: str = "fp32",
    before_batch: Callable[[], None] | None = None,
) -> SplitScore:
    """Scores a model in eval mode, on the device of the data; the model's mode is restored.

    Args:
        model: logits (B, C) from x (T, B, F).
        split: train, val or test.
        batch_stats: normalise with batch statistics, as in training. A last batch of a single
            sequence has no variance, so it is scored with population statistics.
        before_batch: called before each batch; an exception that it raises ends the evaluation.
    """
    classes, device = data.num_classes, data.device
    total_loss = torch.zeros((), device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    correct: list[Tensor] = []
    classes_of: list[Tensor] = []
    confidence: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for x, y in data.eval_batches(split, batch_size):
            if before_batch is not None:
                before_batch()
            in_batch = (
                elstm_nn.batch_statistics(model) if batch_stats and len(y) > 1 else nullcontext()
            )
            with in_batch, autocast(device, precision):
                logits = model(x).float()
            total_loss += F.cross_entropy(logits, y, reduction="sum")
            predicted = logits.argmax(1)
            confusion += torch.bincount(y * classes + predicted, minlength=classes**2)
            correct.append(predicted == y)
            classes_of.append(predicted)
            confidence.append(logits.softmax(1).amax(1))
    finally:
        for module, training in modes.items():
            module.training = training
    confusion = confusion.view(classes, classes).cpu()
    return SplitScore(
        float(total_loss) / int(confusion.sum()),
        confusion,
        torch.cat(correct).cpu(),
        torch.cat(classes_of).cpu(),
        torch.cat(confidence).cpu(),
    )


def score_with_both_statistics(
    model: nn.Module, data: SequenceData, split: str, batch_size: int, **options: Any
) -> tuple[SplitScore, SplitScore]:
    """Scores with population statistics, and with the statistics of each batch.

    The gap shows how much population statistics lose. A model without normalisation is scored
    once, and both results are the same object.
    """
    population = score_split(model, data, split, batch_size, **options)
    if not has_statistics(model):
        return population, population
    in_batch = score_split(model, data, split, batch_size, batch_stats=True, **options)
    return population, in_batch


def measure(
    model: nn.Module,
    data: SequenceData,
    split: str,
    config: Config,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Returns loss, accuracies and macro F1 of a split, as columns of metrics.csv."""
    return measure_each(model, data, split, config, before_batch)[0]


def measure_raw(
    model: nn.Module,
    data: SequenceData,
    split: str,
    config: Config,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Returns loss and accuracy of the raw weights beside those of the averaged ones."""
    size, precision = config.data.eval_batch_size, config.trainer.precision
    score = score_split(model, data, split, size, precision=precision, before_batch=before_batch)
    return {f"{split}_loss_raw": score.loss, f"{split}_accuracy_raw": score.accuracy}


def measure_each(
    model: nn.Module,
    data: SequenceData,
    split: str,
    config: Config,
    before_batch: Callable[[], None] | None = None,
) -> tuple[dict[str, float], SplitScore]:
    """Returns the results of `measure`, and the score with population statistics."""
    size, precision = config.data.eval_batch_size, config.trainer.precision
    population, in_batch = score_with_both_statistics(
        model, data, split, size, precision=precision, before_batch=before_batch
    )
    values = {
        f"{split}_loss": population.loss,
        f"{split}_accuracy": population.accuracy,
        f"{split}_accuracy_batch_stats": in_batch.accuracy,
        f"{split}_balanced_accuracy": balanced_accuracy(population.confusion),
        f"{split}_macro_f1": macro_f1(population.confusion),
    }
    return values, population


def mistakes(data: SequenceData, split: str, score: SplitScore) -> list[Mistake]:
    """Returns the most confident mistakes, the most confident one first."""
    part = data.split(split)
    wrong = (~score.correct).nonzero().flatten()
    most = score.confidence[wrong].argsort(descending=True, stable=True)[:MAX_MISTAKES]
    return [
        Mistake(
            data.example(part, row),
            data.class_names[int(part.labels[row])],
            data.class_names[int(score.predicted[row])],
            float(score.confidence[row]),
        )
        for row in wrong[most].tolist()
    ]


def recompute_statistics(
    model: nn.Module,
    data: SequenceData,
    config: Config,
    epoch: int,
    before_batch: Callable[[], None] | None = None,
    *,
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Replaces the lagging moving averages by exact population statistics of training sequences.

    Training continues from these values but does not use them, because it normalises with batch
    statistics. The random state is unchanged, so the weights do not depend on this call. Each
    process takes its share of the batches, and all get the same statistics.

    The default is one large batch, because statistics pooled over several batches may fit none of
    them (elstm.nn.recompute_statistics).
    """
    trainer = config.trainer
    if not trainer.recompute_batches or not has_statistics(model):
        return
    size = trainer.recompute_batch_size or _statistics_batch_size(data, config)

    def batches() -> Iterator[Inputs]:
        for x in data.statistics_batches(
            trainer.recompute_batches, size, config.seed, epoch, rank, processes
        ):
            if before_batch is not None:
                before_batch()
            yield x

    with autocast(data.device, trainer.precision):
        elstm_nn.recompute_statistics(model, batches(), across_processes=processes > 1)


def _statistics_batch_size(data: SequenceData, config: Config) -> int:
    """Returns 5,000, or fewer, down to 1,000, if the hidden states would take more than 512 MiB.

    It is 1,711 for sequences of 784 steps and 100 units.
    """
    return min(5000, max(1000, 2**27 // (data.num_steps * config.model.hidden_size)))


def over_time(model: SequenceClassifier, data: SequenceData) -> dict[str, np.ndarray]:
    """Returns |dL/dh_t| and the cell over t, always on the same first training sequences."""
    rows = slice(OVER_TIME_BATCH)
    y = data.train.labels[rows]
    found = elstm_nn.over_time(
        model.rnn,
        data.inputs(data.train, rows),
        lambda _, state: F.cross_entropy(model.logits(state), y),
    )
    return {name: values.cpu().numpy() for name, values in found.items()}
