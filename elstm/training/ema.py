"""Averages the weights over the training steps: trainer.ema_decay.

After the optimizer step t = 1, 2, ... the exponential moving average (EMA) of the weights w is

    w_ema = d * w_ema + (1 - d) * w        with d = min(ema_decay, (1 + t) / (10 + t))

The smaller d of the first steps lets the average forget the initial weights, of which a constant
0.999 would still hold 0.999^390 = 68 % after 390 steps. It is the rule of
tf.train.ExponentialMovingAverage with `num_updates`. (timm's ModelEmaV3 has a warm-up too, which is
off by default.) d depends on t alone, so that a resume is exact.

elstm_bn was trained on Fashion-MNIST's rows for 5 epochs at a learning rate of 0.01 with two seeds.
At a constant rate, a decay of 0.999 brings the test accuracy to 90.0 % and 90.5 % instead of 88.8 %
and 88.9 %. With a cosine schedule, which ends near 0, both weights reach 89.9 %, and the averaged
ones validate better in the first three epochs alone.

The averaged weights have separate population statistics, which are recomputed before each
evaluation. Validation and test evaluate them, so that they decide which checkpoint is the best.
Checkpoints hold both kinds of weights, each with its statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from elstm.config.schema import Config
from elstm.models import SequenceClassifier
from elstm.nn.norm import STATISTICS
from elstm.training.content import check_weights, describe, integer, mapping, same

EMA, RAW = "ema", "raw"
WEIGHTS = (EMA, RAW)


def decay_at(step: int, decay: float) -> float:
    """Returns d of the update after optimizer step `step`."""
    return min(decay, (1 + step) / (10 + step))


class EmaModel:
    """Keeps a copy of a model with the averaged weights.

    An update is one fused operation and does not synchronise with the device. It is not part of the
    training step, because the changing d would be a constant in a CUDA graph of the step.

    torch's AveragedModel is not used, because it has a constant decay and reads a counter from the
    device at each update.
    """

    def __init__(self, model: SequenceClassifier, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged, self._raw = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def start(self) -> None:
        """Copies the current weights."""
        for averaged, raw in zip(self._averaged, self._raw, strict=True):
            averaged.copy_(raw)

    def update(self, step: int) -> None:
        """Adds the weights after optimizer step `step`, counted from 1."""
        get_ema_multi_avg_fn(decay_at(step, self.decay))(self._averaged, self._raw, 0)


def check_ema(content: Mapping[str, Any], config: Config, expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless a checkpoint has the averaged weights that the config requires.

    Args:
        expected: the state dict of the model; it may be on the meta device.
    """
    decay = config.trainer.ema_decay
    if decay is None:
        if content.get(EMA) is not None:
            raise ValueError("it holds averaged weights, and trainer.ema_decay is null")
        return
    stored = mapping("averaged weights", content.get(EMA), {"decay", "model"})
    if not same(stored["decay"], decay):
        raise ValueError(
            f"its weights were averaged with ema_decay={describe(stored['decay'])}, not {decay:g}"
        )
    check_weights(mapping("averaged weights", stored["model"]), expected)


def chosen_weights(
    content: Mapping[str, Any], requested: str | None = None
) -> tuple[Any, str, str | None]:
    """Returns the weights of a checkpoint to use, unchecked, and their kind.

    They are the averaged ones if the run has them. A checkpoint from between two evaluations has
    statistics of the averaged weights at the first one, so that its raw weights are taken.

    Args:
        requested: one of WEIGHTS; None: the averaged ones if possible.

    Returns:
        The state dict, one of WEIGHTS, and the reason where the raw ones were taken instead of the
        averaged ones.

    Raises:
        ValueError: the checkpoint does not have those.
    """
    raw, stored = content.get("model"), content.get(EMA)
    if stored is None or requested == RAW:
        if requested == EMA:
            raise ValueError("it has no averaged weights: its run has no trainer.ema_decay")
        return raw, RAW, None
    weights = mapping("averaged weights", mapping("averaged weights", stored).get("model"))
    state = mapping("state", content.get("state"))
    step = integer("its step", state.get("step"), 0, 2**53)
    evaluated = integer("its evaluated_step", state.get("evaluated_step"), -1, step)
    if evaluated != step and any(str(name).endswith(STATISTICS) for name in weights):
        when = f"step {evaluated}" if evaluated > 0 else "the start"
        reason = (
            f"the checkpoint is from step {step}, between two evaluations, and the statistics of "
            f"its averaged weights are from {when}"
        )
        if requested == EMA:
            raise ValueError(f"{reason}: take the raw weights, or the best checkpoint")
        return raw, RAW, reason
    return weights, EMA, None
