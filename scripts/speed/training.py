"""Times full runs of elstm-train: seconds per epoch, and the part of a step outside the layer."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from elstm.config.compose import Composer
from elstm.models import SequenceClassifier
from elstm.training import build
from elstm.training import run as training

MODELS = ("lstm", "bn_lstm", "elstm_bn")


class StepClock:
    """Counts the seconds in the layer and in the optimizer, over all training steps.

    The time of the layer is that of its forward call, and that from the gradient of its h_n to the
    gradient of its last parameter. Its input needs no gradient, so this is its full backward pass.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.layer = self.optimizer = 0.0
        self.steps = 0
        self._began = self._backward = self._optimizing = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def watch(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self._forward_begins)
        layer.register_forward_hook(self._forward_ends)
        for parameter in layer.parameters():
            parameter.register_post_accumulate_grad_hook(self._gradient_is_there)

    @contextmanager
    def optimizers(self) -> Iterator[None]:
        handles = (
            register_optimizer_step_pre_hook(self._optimizer_begins),
            register_optimizer_step_post_hook(self._optimizer_ends),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_begins(self, layer: nn.Module, inputs: Any) -> None:
        self._began = self.now()

    def _forward_ends(self, layer: nn.Module, inputs: Any, result: Any) -> None:
        if layer.training:
            self.layer += self.now() - self._began
            result[1][0].register_hook(self._backward_begins)

    def _backward_begins(self, gradient: torch.Tensor) -> None:
        self._backward = self.now()

    def _gradient_is_there(self, parameter: torch.Tensor) -> None:
        now = self.now()
        self.layer += now - self._backward
        self._backward = now

    def _optimizer_begins(self, *_: Any) -> None:
        self._optimizing = self.now()

    def _optimizer_ends(self, *_: Any) -> None:
        self.optimizer += self.now() - self._optimizing
        self.steps += 1


def epoch(model: str, words: Sequence[str], device: str) -> dict[str, float]:
    """Runs `elstm-train experiment=fashion_rows` for an epoch, in a temporary folder."""
    _, config = Composer().compose(
        [
            *("experiment=fashion_rows", f"model={model}", f"trainer.device={device}"),
            # A graph would hide the layer from the hooks.
            *("trainer.max_epochs=1", "trainer.progress=false", "trainer.cuda_graph=false"),
            *(*words, "hydra.mode=RUN"),
        ]
    )
    clock = StepClock(device)
    original = build.build_model

    def watched(*args: Any, **options: Any) -> SequenceClassifier:
        built = original(*args, **options)
        clock.watch(built.rnn)
        return built

    build.build_model = watched
    try:
        with tempfile.TemporaryDirectory() as folder, clock.optimizers():
            status = training.run(config, Path(folder)).status
    finally:
        build.build_model = original
    seconds = status["train_seconds"]
    return {
        "steps": clock.steps,
        "training_s": seconds,
        "evaluation_s": status["wall_seconds"] - seconds,
        "step_ms": 1e3 * seconds / clock.steps,
        "layer_ms": 1e3 * clock.layer / clock.steps,
        "optimizer_ms": 1e3 * clock.optimizer / clock.steps,
        "outside_share": 1 - clock.layer / seconds,
    }


def end_to_end(
    device: str, rounds: int = 3, models: Sequence[str] = MODELS, words: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Times the models in turns; prints medians over the rounds."""
    logging.disable(logging.INFO)
    print(
        "| model | training, s/epoch | with evaluation, s/epoch | ratio | step, ms | layer, ms"
        " | optimizer, ms | outside the layer |"
    )
    print("|---" * 8 + "|")
    found: dict[str, list[dict[str, float]]] = {model: [] for model in models}
    for _ in range(rounds):
        for model in models:
            found[model].append(epoch(model, words, device))
    rows = []
    for model, runs in found.items():
        row: dict[str, Any] = {"model": model, "rounds": rounds}
        row |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        base = found[models[0]]
        row["ratio"] = statistics.median(
            run["training_s"] / other["training_s"] for run, other in zip(runs, base, strict=True)
        )
        rows.append(row)
        shares = [100 * run["outside_share"] for run in runs]
        print(
            f"| {model} | {row['training_s']:.1f} | {row['training_s'] + row['evaluation_s']:.1f} |"
            f" {row['ratio']:.2f} | {row['step_ms']:.1f} | {row['layer_ms']:.1f} |"
            f" {row['optimizer_ms']:.2f} | {100 * row['outside_share']:.0f} %"
            f" ({min(shares):.0f}-{max(shares):.0f}) |",
            flush=True,
        )
    return rows
