"""Builds optimizers and computes learning-rate schedules from their configs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from elstm.config.schema import (
    AdamConfig,
    CosineConfig,
    OptimizerConfig,
    PlateauConfig,
    RMSpropConfig,
    SchedulerConfig,
    SGDConfig,
    StepConfig,
)


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Builds Adam, AdamW, RMSprop or SGD.

    Weight decay acts on all parameters, as in torch. With `decay_all=False` it acts on matrices
    alone, and not on vectors, which are the biases and the normalisations' gamma and beta.

    The update is one fused call for all parameters if torch has one. On a CPU it takes a third of
    the time of a loop over parameters.
    """
    lr, decay = config.lr, config.weight_decay
    fused: dict[str, Any] = {"fused": True} if device.type in ("cpu", "cuda") else {}
    groups = _groups(list(parameters), config)
    if isinstance(config, AdamConfig):
        adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        betas = (config.beta1, config.beta2)
        return adam(groups, lr=lr, betas=betas, eps=config.eps, weight_decay=decay, **fused)
    if isinstance(config, RMSpropConfig):  # torch has no fused RMSprop
        return torch.optim.RMSprop(
            groups,
            lr=lr,
            alpha=config.alpha,
            momentum=config.momentum,
            eps=config.eps,
            weight_decay=decay,
            foreach=True,
        )
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
            **fused,
        )
    raise TypeError(f"no optimizer for {type(config).__name__}")


def _groups(parameters: list[Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    if config.decay_all:
        return [{"params": parameters}]
    vectors = [p for p in parameters if p.ndim < 2]
    matrices = [p for p in parameters if p.ndim >= 2]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def set_lr(optimizer: Any, lr: float) -> None:
    """Sets the learning rate of all groups, in place if it is a tensor on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Prepares an optimizer for a CUDA graph, so that a step reads only memory on the device.

    SGD has no such flag and only needs its learning rate as a tensor.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True
    for parameter, entry in optimizer.state.items():
        if isinstance(entry.get("step"), torch.Tensor):
            entry["step"] = entry["step"].to(parameter.device)


def stored_state(optimizer: Any) -> dict[str, Any]:
    """Returns the state of an optimizer as a checkpoint holds it, with or without a CUDA graph."""
    state = optimizer.state_dict()
    groups = []
    for group in state["param_groups"]:
        plain = {"lr": float(group["lr"])}
        if "capturable" in group:
            plain["capturable"] = False
        groups.append(group | plain)
    return {**state, "param_groups": groups}


class Schedule:
    """Computes the learning rate of each training step.

        lr(s) = base * min(1, (s + 1) / warmup_steps) * factor(s)

    with the step s counted from 0. The factor is 1 for `constant`, half a cosine over the steps
    after the warm-up for `cosine`, and gamma^(epoch // step_epochs) for `step`. For `plateau`,
    `after_evaluation` updates it. Only the plateau has a state. The others depend on s alone, so a
    resume is exact.

    Args:
        config: the config of one of the schedulers.
        base: the optimizer's learning rate.
        total_steps: number of steps of the full run, for the cosine.
        steps_per_epoch: number of steps of an epoch, for `step`.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        base: float,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self.config, self.base = config, base
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.plateau_factor = 1.0
        self.best = -math.inf
        self.epochs_since_best = 0

    def lr(self, step: int) -> float:
        config, warmup = self.config, self.config.warmup_steps
        rate = self.base
        if isinstance(config, CosineConfig):
            progress = max(step - warmup, 0) / max(self.total_steps - warmup, 1)
            swing = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
            rate = config.min_lr + (self.base - config.min_lr) * swing
        elif isinstance(config, StepConfig):
            rate *= config.gamma ** (step // self.steps_per_epoch // config.step_epochs)
        elif isinstance(config, PlateauConfig):
            rate *= self.plateau_factor
        return rate * min(1.0, (step + 1) / warmup) if warmup else rate

    def after_evaluation(self, accuracy: float, epochs: int) -> None:
        """Lowers the plateau's factor after more than `patience` epochs without a gain.

        Args:
            epochs: number of epochs since the evaluation before.
        """
        if not isinstance(self.config, PlateauConfig):
            return
        if accuracy > self.best:
            self.best, self.epochs_since_best = accuracy, 0
            return
        self.epochs_since_best += epochs
        if self.epochs_since_best > self.config.patience:
            self.plateau_factor *= self.config.factor
            self.epochs_since_best = 0

    def state_dict(self) -> dict[str, float]:
        """Returns the plateau's state under the names that all checkpoints have."""
        waited = self.epochs_since_best
        return {"factor": self.plateau_factor, "best": self.best, "waited": waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.plateau_factor, self.best = state["factor"], state["best"]
        self.epochs_since_best = int(state["waited"])
        if isinstance(self.config, PlateauConfig):  # an extension may have lowered the patience
            self.epochs_since_best = min(self.epochs_since_best, self.config.patience)
