"""A step that is skipped leaves everything as it was, whatever the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training_runs import differences

from elstm.config.schema import AdamConfig, OptimizerConfig, RMSpropConfig, SGDConfig
from elstm.nn import BNLSTM
from elstm.training.nonfinite import Skipping, clip_gradients, culprit
from elstm.training.optim import build_optimizer

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adam": AdamConfig(),
    "adamw": AdamConfig(name="adamw", weight_decay=0.1),
    "rmsprop": RMSpropConfig(momentum=0.9),
    "sgd": SGDConfig(momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = BNLSTM(3, 4, max_steps=5)
    parameters = list(model.parameters())
    optimizer = accelerator.prepare(
        build_optimizer(OPTIMIZERS[name], parameters, torch.device("cpu"))
    )
    skipping = Skipping(model, optimizer)
    batches = [torch.randn(5, 6, 3) for _ in range(2)]

    def states() -> Any:
        return copy.deepcopy([model.state_dict(), optimizer.state_dict()])

    def step(x: torch.Tensor, scale: float) -> bool:
        skipping.begin()
        loss = scale * model(x)[0].square().sum()
        for parameter in parameters:
            parameter.grad = None
        accelerator.backward(loss)
        return bool(skipping.step(clip_gradients(accelerator, parameters, 1.0)))

    def after(*scales: float) -> Any:
        """The states at the start and after each step; those of scale 1 have the good batches."""
        model.load_state_dict(start[0])
        optimizer.optimizer.state.clear()
        good, found = iter(batches), [states()]
        for scale in scales:
            assert step(next(good) if scale == 1 else batches[0], scale) == (scale != 1)
            found.append(states())
        return found

    start = states()
    for bad in (float("nan"), float("inf")):
        _, first, second = after(1, 1)
        assert differences(start[0], first[0]) != []
        between = after(1, bad, 1)
        assert differences(first, between[2]) == []
        assert differences(second, between[3]) == []
        before = after(bad, 1)
        assert differences(start[0], before[1][0]) == []
        assert differences(first, before[2]) == []


def test_the_culprit() -> None:
    nan, inf = float("nan"), float("inf")
    names = ["a", "b", "c"]
    assert culprit(names, 0.5, [1, inf, nan], [1, 1, 1]) == "the gradient of b and 1 more"
    assert culprit(names, 0.5, [1, 1, nan], [1, 1, 1]) == "the gradient of c"
    assert culprit(names, nan, [nan] * 3, [0, 0, 0]) == "the loss"
    assert culprit(names, inf, [nan] * 3, [1, 9, 2]) == (
        "the loss (the step before had its largest gradient in b)"
    )
