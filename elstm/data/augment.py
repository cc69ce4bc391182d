"""Augments training sequences by small random changes that preserve their class.

All draws of an epoch are a function of (seed, epoch, row of the training split). They do not depend
on the order or the size of the batches, on the number of processes, or on other code that draws
random numbers. A resumed epoch therefore has the same inputs as an uninterrupted one.

They are drawn on the CPU at the start of an epoch and lie on the device in tensors at fixed
addresses. A training step only indexes them, so it can be a CUDA graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from elstm.data.image_sets import generator_for


class Augmentation(ABC):
    """Changes batches of training sequences by the draws of the current epoch."""

    def __init__(self) -> None:
        self._draws: dict[str, Tensor] = {}  # by name, a row for each training sequence

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the draws of `count` sequences on the CPU."""

    @abstractmethod
    def __call__(self, values: Tensor, rows: Tensor) -> Tensor:
        """Returns the changed sequences.

        Args:
            values: the sequences of a batch, (B, ...), on the device.
            rows: int64 (B,), which training sequences they are, on the device.
        """

    @abstractmethod
    def describe(self) -> str:
        """Describes the changes in words, for the log."""

    def start_epoch(self, count: int, seed: int, epoch: int, device: torch.device) -> None:
        """Draws for all training sequences, `count` of them."""
        for name, drawn in self.draw(count, generator_for("augment", seed, epoch)).items():
            if name not in self._draws:
                self._draws[name] = torch.empty_like(drawn, device=device)
            self._draws[name].copy_(drawn)  # in place, because a CUDA graph reads it there

    def drawn(self, name: str, rows: Tensor) -> Tensor:
        """Returns the draws of the given sequences."""
        return self._draws[name].index_select(0, rows)


class SeriesOptions(Protocol):
    """Lists the options of SeriesAugmentation, as elstm.config.data_options has them."""

    jitter: float
    scale: float
    time_mask: float


class SeriesAugmentation(Augmentation):
    """Adds noise to series, scales them and masks a stretch of time (Um et al. 2017).

        x' = mean + factor * (x - mean) + jitter * std * noise

    with a factor for each sequence, uniform in [1 - scale, 1 + scale], and noise that is standard
    normal for each value. Then a stretch of steps becomes the mean: its length is uniform from no
    step to the part `time_mask` of the sequence.

    Args:
        values: float32 (N, T, F), the training sequences as a model takes them.
        lengths: int64 (N,), their numbers of steps, on the CPU.
    """

    def __init__(self, options: SeriesOptions, values: Tensor, lengths: Tensor) -> None:
        super().__init__()
        self.options, self.lengths, self.shape = options, lengths, values.shape[1:]
        active = torch.arange(values.shape[1])[None, :] < lengths[:, None]
        steps = values.cpu()[active].double()
        # They are 0 and 1 for standardised features, and 0 and 0 for a constant one.
        self.mean = steps.mean(0).float()
        self.std = steps.std(0, correction=0).float()

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        # All are drawn, so that one option does not change the draws of another.
        uniform = torch.rand((count, 3), generator=generator, dtype=torch.float64)
        longest = (self.options.time_mask * self.lengths).floor()
        width = (uniform[:, 1] * (longest + 1)).floor()
        first = (uniform[:, 2] * (self.lengths - width + 1)).floor()
        draws = {
            "factor": (1 + self.options.scale * (2 * uniform[:, 0] - 1)).float(),
            "first": first.long(),
            "end": (first + width).long(),
        }
        if self.options.jitter:
            noise = torch.randn((count, *self.shape), generator=generator)
            draws["noise"] = noise.mul_(self.options.jitter * self.std)
        return draws

    def __call__(self, values: Tensor, rows: Tensor) -> Tensor:
        if self.mean.device != values.device:
            self.mean = self.mean.to(values.device)
        mean, steps = self.mean, values.shape[1]
        if self.options.scale:
            values = mean + self.drawn("factor", rows)[:, None, None] * (values - mean)
        if self.options.jitter:
            values = values + self.drawn("noise", rows)[:, :steps]
        if self.options.time_mask:
            t = torch.arange(steps, device=values.device)[None, :]
            first, end = (self.drawn(name, rows)[:, None] for name in ("first", "end"))
            values = torch.where(((t >= first) & (t < end))[:, :, None], mean, values)
        return values

    def describe(self) -> str:
        options, parts = self.options, []
        if options.jitter:
            parts.append(f"noise of {options.jitter:g} standard deviations is added")
        if options.scale:
            parts.append(f"they are scaled by {1 - options.scale:g} to {1 + options.scale:g}")
        if options.time_mask:
            parts.append(f"up to {options.time_mask:.3g} of their steps are masked")
        return ", ".join(parts)
