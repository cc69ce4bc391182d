"""Makes programs from trained models, which map raw images or raw series to probabilities.

torch.export and ONNX take such a program, which runs without elstm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from elstm.commands.serving import Layers
from elstm.data.sequences import to_sequences
from elstm.models import SequenceClassifier
from elstm.training.torch_private import assert_dtype, scan


class Program(nn.Module):
    """Maps raw inputs to logits (B, C) and probabilities (B, C).

    Args:
        model: in eval mode, on the CPU.
        steps: number of steps with separate statistics.

    Attributes:
        names: of the inputs.

    Raises:
        TypeError: its recurrent layers are of a kind that is not known here.
    """

    names: tuple[str, ...]

    def __init__(self, model: SequenceClassifier, steps: int) -> None:
        super().__init__()
        model = copy.deepcopy(model).requires_grad_(False)
        self.layers = Layers(model.rnn, steps)
        self.head = model.head

    def example(self) -> tuple[Tensor, ...]:
        """Returns inputs of the right shapes."""
        raise NotImplementedError

    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """Returns the dimensions of each input that may have any size."""
        raise NotImplementedError

    def described(self) -> str:
        """Describes the inputs."""
        raise NotImplementedError

    def classified(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.head(self.layers(x, lengths))
        return logits, logits.softmax(1)


class ImageProgram(Program):
    """Takes images (B, rows, columns) uint8, or (B, rows, columns, 3) in colour.

    Args:
        facts: how they become sequences (elstm.data.sequences.SequenceData.facts).
    """

    names = ("images",)
    permutation: Tensor | None

    def __init__(self, model: SequenceClassifier, facts: dict[str, Any]) -> None:
        super().__init__(model, facts["pixels"] // facts["pixels_per_step"])
        self.pixels_per_step = facts["pixels_per_step"]
        self.mean, self.std = facts["mean"], facts["std"]
        self.channels = facts.get("channels", 1)
        self.register_buffer("permutation", facts["permutation"])
        self.size = (*facts["image_size"], *([self.channels] if self.channels > 1 else []))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert_dtype(images, torch.uint8)  # images of floats in [0, 1] would be nearly black
        pixels = images.reshape(-1, self.size[0] * self.size[1] * self.channels)
        x = to_sequences(
            pixels, self.pixels_per_step, self.mean, self.std, self.permutation, self.channels
        )
        return self.classified(x)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(3, *self.size, dtype=torch.uint8),)

    def dynamic(self) -> tuple[dict[int, Any], ...]:
        return ({0: torch.export.Dim("batch", min=1)},)

    def described(self) -> str:
        return f"uint8 ({', '.join(['batch', *map(str, self.size)])}), 0 black"


class SeriesProgram(Program):
    """Takes series (B, T, F) float32 as they are in the files, for any B and T.

    If the run's data have several lengths, it also takes the number of steps of each series, int64
    (B,). Values beyond are ignored, so the padding may be anything. Steps beyond the longest
    training sequence take the statistics of its last one, as in elstm-predict.

    Args:
        facts: how they are scaled (elstm.data.sequences.SequenceData.facts).
        missing: how NaN is handled (data.missing).
        unequal: whether there are lengths.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: SequenceClassifier, facts: dict[str, Any], missing: str, *, unequal: bool
    ) -> None:
        super().__init__(model, facts["num_steps"])
        self.features, self.missing, self.unequal = facts["input_size"], missing, unequal
        self.names = ("series", "lengths") if unequal else ("series",)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name], dtype=torch.float64))

    def forward(self, series: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values = series.transpose(0, 1)  # (T, B, F)
        if self.missing == "forward":
            values = _repeated(values)
        # In float64, as elstm.data.preparing.standardized does.
        x = ((values.double() - self.mean) / self.std).float()
        if self.missing != "error":  # there NaN has been refused, and gives NaN here
            x = torch.where(x.isnan(), 0.0, x)
        return self.classified(x, lengths)

    def example(self) -> tuple[Tensor, ...]:
        series = torch.zeros(3, 7, self.features)
        return (series, torch.tensor([7, 3, 5])) if self.unequal else (series,)

    def dynamic(self) -> tuple[dict[int, Any], ...]:
        batch = torch.export.Dim("batch", min=1)
        of_series = {0: batch, 1: torch.export.Dim("steps", min=1)}
        return (of_series, {0: batch}) if self.unequal else (of_series,)

    def described(self) -> str:
        text = f"float32 (batch, steps, {self.features}), unscaled"
        return f"{text}; int64 (batch,), the steps of each" if self.unequal else text


def _repeated(values: Tensor) -> Tensor:
    """Replaces each NaN by the value before it, as elstm.data.preparing.fill_missing does."""

    def body(carry: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        filled = torch.where(inputs[0].isnan(), carry[0], inputs[0])
        return [filled], [filled.clone()]

    _, (filled,) = scan(body, [torch.full_like(values[0], torch.nan)], [values])
    result: Tensor = filled
    return result


def export_program(model: Program) -> torch.export.ExportedProgram:
    """Exports a program that takes any batch size from 1 on, and any number of steps of series."""
    # Sizes that an earlier export in this process saw would be taken for special cases.
    torch.compiler.reset()
    with torch.no_grad():
        return torch.export.export(model.eval(), model.example(), dynamic_shapes=model.dynamic())
