"""One training step: forward, backward, clip, optimizer step, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from elstm.data.sequences import Inputs
from elstm.training.torch_private import norms_of


class StepResult(NamedTuple):
    """Holds what a step measured, as tensors on the device.

    Attributes:
        loss: mean cross-entropy of the batch, with label smoothing and class weights, ().
        correct: number of correct predictions, ().
        grad_norms: norm of each parameter's gradient before clipping, (P,).
    """

    loss: Tensor
    correct: Tensor
    grad_norms: Tensor


class TrainStep:
    """Trains on one batch. No call here synchronises with the device.

    Args:
        model: as Accelerate prepared it.
        optimizer: the optimizer itself.
        prepared_optimizer: the same one, as Accelerate prepared it.
        clip_grad_norm: largest norm of the full gradient; None does not clip.
        label_smoothing: part of the target that is spread over all classes.
        class_weights: of each class in the loss, float32 (C,) on the device; None: all the same.
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
        # Accelerate's own step looks for a package twice at each call. Only fp16 needs it.
        owner = optimizer if accelerator.scaler is None else prepared_optimizer
        self.take_step = owner.step

    def __call__(self, x: Inputs, y: Tensor) -> StepResult:
        """Takes one optimizer step.

        Args:
            x: (T, B, F), or packed sequences.
            y: (B,).
        """
        logits = self.model(x)
        loss = F.cross_entropy(
            logits, y, weight=self.class_weights, label_smoothing=self.label_smoothing
        )
        for parameter in self.parameters:  # zero_grad with its hooks takes ten times as long
            parameter.grad = None
        self.accelerator.backward(loss)
        norms = clip_gradients(self.accelerator, self.parameters, self.max_norm)
        self.take_step()
        if self.accelerator.scaler is not None:  # in fp16 it skips the steps that overflow
            norms = norms.nan_to_num(0.0, 0.0, 0.0)
        return StepResult(loss.detach(), (logits.argmax(1) == y).sum(), norms)


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
