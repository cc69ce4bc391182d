"""A training step: what it computes, and that it never waits for the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import MODELS, small_config

from elstm.config.schema import (
    AdamConfig,
    Config,
    CosineConfig,
    OptimizerConfig,
    RMSpropConfig,
    SGDConfig,
)
from elstm.training.build import Parts, balanced_weights, build_parts
from elstm.training.optim import set_lr
from elstm.training.state import StepSums

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adam": AdamConfig(),
    "adamw": AdamConfig(name="adamw", weight_decay=0.1),
    "rmsprop": RMSpropConfig(momentum=0.9),
    "sgd": SGDConfig(momentum=0.9),
}


def built(config: Config) -> Parts:
    return build_parts(config, Accelerator(cpu=True))


class NoHostReads(TorchDispatchMode):
    """Refuses to turn a tensor into a Python number, which synchronises with a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a host read"
        assert "nonzero" not in str(func), "a shape that depends on values"
        return func(*args, **(kwargs or {}))


def test_a_step_is_forward_backward_clip_and_update() -> None:
    config = small_config(clip_grad_norm=0.05, scheduler=CosineConfig())
    parts, other = built(config), built(config)
    x, y = next(parts.data.train_batches(0, 0))
    result = parts.step(x, y)
    logits = other.model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    weights = list(other.model.parameters())
    norms = torch.stack([w.grad.norm() for w in weights if w.grad is not None])
    total = torch.nn.utils.clip_grad_norm_(weights, 0.05)
    assert total > 0.05
    other.optimizer.step()
    assert torch.equal(result.loss, loss)
    assert not result.loss.requires_grad
    assert result.correct == (logits.argmax(1) == y).sum()
    torch.testing.assert_close(result.grad_norms, norms)
    for mine, theirs in zip(parts.model.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [*((m, "adam") for m in MODELS), *(("elstm_bn", o) for o in OPTIMIZERS if o != "adam")],
)
def test_no_step_reads_from_the_device(model: str, optimizer: str) -> None:
    config = small_config(model, model={"backend": "reference"})
    config.optimizer = OPTIMIZERS[optimizer]
    parts = built(config)
    sums = StepSums(torch.device("cpu"))
    x, y = next(parts.data.train_batches(0, 0))
    parts.step(x, y)  # makes the optimizer's state
    with NoHostReads():
        set_lr(parts.optimizer, 1e-3)
        result = parts.step(x, y)
        sums.add(result, len(y))
        sums.flush()


def test_a_host_read_would_be_noticed() -> None:
    with NoHostReads(), pytest.raises(AssertionError, match="host read"):
        float(torch.ones(()))


def test_a_learning_rate_on_the_device_is_changed_in_place() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.5)
    plain = torch.optim.Adam([weight], lr=0.5)
    tensor = torch.optim.Adam([{"params": [weight]}], lr=rate)
    for optimizer in (plain, tensor):
        set_lr(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25
    assert tensor.param_groups[0]["lr"] is rate
    assert isinstance(plain.param_groups[0]["lr"], float)


def test_label_smoothing_and_class_weights() -> None:
    parts = built(small_config(label_smoothing=0.1, class_weights="balanced"))
    plain = built(small_config())
    x, y = next(parts.data.train_batches(0, 0))
    counts = torch.bincount(parts.data.train.labels, minlength=10)
    weights = counts.sum() / (10 * counts.double())
    log_p = plain.model(x).log_softmax(1).double()
    targets = torch.full_like(log_p, 0.01)
    targets[torch.arange(len(y)), y] += 0.9
    expected = -(targets * weights * log_p).sum() / weights[y].sum()
    torch.testing.assert_close(parts.step(x, y).loss.double(), expected, rtol=1e-5, atol=0)
    assert plain.step.class_weights is None
    assert plain.step.label_smoothing == 0


def test_balanced_weights_are_those_of_classes_that_occur() -> None:
    data = built(small_config()).data
    labels = torch.tensor([0, 0, 0, 2])
    few = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    expected = [4 / 6, 0.0, 2.0, *[0.0] * 7]
    torch.testing.assert_close(balanced_weights(few), torch.tensor(expected))


class OnMps(torch.Tensor):
    """Stands for a tensor on a device without float64."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.double:
            raise TypeError("MPS has no float64")
        return super().__torch_function__(func, types, args, kwargs)


def test_balanced_weights_need_no_float64_on_the_device() -> None:
    data = built(small_config()).data
    labels = data.train.labels.as_subclass(OnMps)
    moved = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    torch.testing.assert_close(balanced_weights(moved), balanced_weights(data))
