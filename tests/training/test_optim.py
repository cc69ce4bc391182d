"""Optimizers and schedules: torch's own, and the values that the formulas give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

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
from elstm.nn import ELSTMBN
from elstm.training.optim import Schedule, build_optimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AdamConfig(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1),
         lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)),
        (AdamConfig(name="adamw", lr=0.1, weight_decay=0.1),
         lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)),
        (RMSpropConfig(lr=0.1, alpha=0.5, momentum=0.9, eps=1e-3, weight_decay=0.1),
         lambda p: torch.optim.RMSprop(
             p, lr=0.1, alpha=0.5, momentum=0.9, eps=1e-3, weight_decay=0.1)),
        (SGDConfig(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.1),
         lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.1)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_every_option_reaches_torch(config: OptimizerConfig, expected: object) -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    steps = ((ours, build_optimizer(config, [ours], CPU)), (theirs, expected([theirs])))  # type: ignore[operator]
    for parameter, optimizer in steps:
        for step in range(3):
            parameter.grad = torch.linspace(2, -1, 6) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours, torch.linspace(-1, 1, 6))


@pytest.mark.parametrize(
    "config",
    [
        AdamConfig(name="adamw", lr=0.1, weight_decay=0.1, decay_all=False),
        AdamConfig(lr=0.1, weight_decay=0.1, decay_all=False),
        RMSpropConfig(lr=0.1, weight_decay=0.1, decay_all=False),
        SGDConfig(lr=0.1, weight_decay=0.1, decay_all=False),
    ],
    ids=lambda config: config.name,
)
def test_decay_of_matrices_alone(config: OptimizerConfig) -> None:
    def stepped(config: OptimizerConfig) -> list[torch.Tensor]:
        rnn = ELSTMBN(3, 4, max_steps=2)
        for parameter in rnn.parameters():
            parameter.data = torch.linspace(-1, 2, parameter.numel()).view_as(parameter)
        optimizer = build_optimizer(config, rnn.parameters(), CPU)
        for factor in (1, -2, 1):
            for parameter in rnn.parameters():
                parameter.grad = torch.linspace(2, 1, parameter.numel()).view_as(parameter) * factor
            optimizer.step()
        return list(rnn.parameters())

    ours = stepped(config)
    decayed = stepped(replace(config, decay_all=True))
    plain = stepped(replace(config, weight_decay=0.0))
    assert {p.ndim for p in ours} == {1, 2}
    for parameter, with_decay, without in zip(ours, decayed, plain, strict=True):
        expected, other = (with_decay, without) if parameter.ndim == 2 else (without, with_decay)
        assert torch.equal(parameter, expected)
        assert not torch.equal(parameter, other)


def schedule(config: SchedulerConfig) -> Schedule:
    return Schedule(config, base=0.1, total_steps=100, steps_per_epoch=10)


def test_constant_and_warm_up() -> None:
    assert schedule(SchedulerConfig()).lr(57) == 0.1
    warm = schedule(SchedulerConfig(warmup_steps=4))
    assert [warm.lr(s) for s in (0, 1, 3, 4, 99)] == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])


def test_cosine() -> None:
    cosine = schedule(CosineConfig(min_lr=0.02))
    assert [cosine.lr(s) for s in (0, 50, 100)] == pytest.approx([0.1, 0.06, 0.02])
    warm = schedule(CosineConfig(warmup_steps=20))  # the cosine begins after it
    assert warm.lr(20) == 0.1
    assert warm.lr(60) == pytest.approx(0.05)
    assert warm.lr(99) == pytest.approx(0.05 * (1 + math.cos(math.pi * 79 / 80)))


def test_steps_by_epochs() -> None:
    steps = schedule(StepConfig(step_epochs=2, gamma=0.5))
    assert [steps.lr(s) for s in (0, 19, 20, 39, 40)] == pytest.approx(
        [0.1, 0.1, 0.05, 0.05, 0.025]
    )


def test_plateau_waits_and_is_restored() -> None:
    config = PlateauConfig(factor=0.5, patience=1)
    plateau = schedule(config)
    lrs = []
    for accuracy in (0.5, 0.5, 0.5, 0.6, 0.6, 0.6):
        plateau.after_evaluation(accuracy, 1)
        again = schedule(config)
        again.load_state_dict(plateau.state_dict())
        plateau = again
        lrs.append(plateau.lr(0))
    assert lrs == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05, 0.025])


def test_the_plateau_counts_epochs_between_evaluations() -> None:
    """Three evaluations without a gain are 6 epochs, more than the patience of 4."""
    plateau = schedule(PlateauConfig(factor=0.5, patience=4))
    lrs = []
    for _ in range(4):
        plateau.after_evaluation(0.5, 2)
        lrs.append(plateau.lr(0))
    assert lrs == pytest.approx([0.1, 0.1, 0.1, 0.05])


def test_the_others_do_not_look_at_accuracy() -> None:
    constant = schedule(SchedulerConfig())
    for _ in range(9):
        constant.after_evaluation(0.0, 1)
    assert constant.lr(0) == 0.1
