"""Defines one training step: forward, backward, clip, optimizer step, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from elstm.data.sequences import Inputs
from elstm.training.torch_private import norms_of


class StepResult(NamedTuple):
    """Holds the measurements of a step, as tensors on the device.

    Attributes:
        loss: mean cross-entropy of the sequences, with label smoothing and class weights, ().
        correct: number of correct predictions, ().
        grad_norms: norm of each parameter's gradient before clipping, (P,).
    """

    loss: Tensor
    correct: Tensor
    grad_norms: Tensor


class TrainStep:
    """Takes an optimizer step on one batch or several. No call here synchronises with the device.

    Args:
        model: the model as Accelerate prepared it.
        optimizer: the optimizer itself.
        prepared_optimizer: the same one, as Accelerate prepared it.
        clip_grad_norm: largest norm of the full gradient; None does not clip.
        label_smoothing: part of the target that is spread over all classes.
        class_weights: the weight of each class in the loss, float32 (C,) on the device; None:
            equal.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        prepared_optimizer: Any,
        accelerator: Accelerator,
        clip_grad_norm: float | None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.parameters = list(model.parameters())
        self.max_norm = clip_grad_norm or math.inf
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        # Accelerate's step searches for a package twice at each call. Only fp16 needs that step.
        owner = optimizer if accelerator.scaler is None else prepared_optimizer
        self.take_step = owner.step

    def __call__(self, x: Inputs, y: Tensor) -> StepResult:
        """Takes one optimizer step on one batch.

        Args:
            x: (T, B, F), or packed sequences.
            y: (B,).
        """
        return self.accumulated([(x, y)], y, 1)

    def accumulated(
        self, batches: Iterable[tuple[Inputs, Tensor]], labels: Tensor, count: int
    ) -> StepResult:
        """Takes one optimizer step on the mean loss over several batches.

        Only one batch at a time is in memory. Several processes exchange the gradients once, with
        those of the last batch.

        Args:
            batches: x and y of each batch, as `__call__` takes them.
            labels: the labels of all batches together.
            count: the number of batches.
        """
        weight = self._weight(labels, count)
        losses: list[Tensor] = []
        correct: list[Tensor] = []
        for parameter in self.parameters:  # zero_grad with its hooks takes ten times as long
            parameter.grad = None
        for number, (x, y) in enumerate(batches, start=1):
            last = number == count
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                logits = self.model(x)
                loss = self._loss(logits, y, weight)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            correct.append((logits.argmax(1) == y).sum())
        norms = clip_gradients(self.accelerator, self.parameters, self.max_norm)
        self.take_step()
        if self.accelerator.scaler is not None:  # in fp16 it skips the steps that overflow
            norms = norms.nan_to_num(0.0, 0.0, 0.0)
        return StepResult(sum(losses[1:], losses[0]), sum(correct[1:], correct[0]), norms)

    def _weight(self, labels: Tensor, count: int) -> Tensor | int | None:
        """Returns the sum of the weights of a step's sequences; None if one batch has them all.

        Of several processes it is the mean, because their gradients are averaged.
        """
        several = self.accelerator.num_processes > 1
        if self.class_weights is None:
            return None if count == 1 else len(labels)
        if count == 1 and not several:
            return None
        weight = self.class_weights[labels].sum()
        return self.accelerator.reduce(weight, "mean") if several else weight

    def _loss(self, logits: Tensor, y: Tensor, weight: Tensor | int | None) -> Tensor:
        """Returns a batch's part of the step's mean cross-entropy."""
        loss = F.cross_entropy(
            logits, y, weight=self.class_weights, label_smoothing=self.label_smoothing,
            reduction="mean" if weight is None else "sum",
        )  # fmt: skip
        return loss if weight is None else loss / weight


def clip_gradients(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], max_norm: float
) -> Tensor:
    """Clips the norm of the full gradient, as torch.nn.utils.clip_grad_norm_ does.

    Returns: the norm of each parameter's gradient before, (P,), of those that have one.
    """
    accelerator.unscale_gradients()  # in fp16
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(norms_of(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.linalg.vector_norm(norms))
    return norms
