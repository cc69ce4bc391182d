"""Makes batches of labelled sequences, and of image sets as rows, pixels or permuted pixels.

These sets are small, so there are no worker processes. All data lie on the device, and a batch is
one indexing operation there. For images, one pass turns bytes into normalised floats of shape
(T, B, F).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Self

from elstm.data.augment import Augmentation
from elstm.data.image_sets import Split, random_order

Inputs = Tensor | PackedSequence  # (T, B, F), or sequences of several lengths


class SequenceData(ABC):
    """Holds a data set in splits, and makes batches of sequences from them.

    All batches lie on the device of the tensors (`to`). Every order depends on (seed, epoch) alone
    and is drawn on the CPU, so that it is the same on every device.

    Attributes:
        name: the name in runs and reports.
        batch_size: sequences that `train_rows` yields at once, for one training step.
        num_steps: steps that have separate population statistics.
        input_size: features of a step.
        fingerprint: a checksum of user data as they were read; None for a published set.
        description: a summary of what was read, in one line.
        augmentation: changes training batches, and nothing else; None: they stay as they are.
    """

    name: str
    class_names: tuple[str, ...]
    batch_size: int
    train: Any  # has `labels` (N,) and a length, as `val` and `test`
    val: Any
    test: Any
    fingerprint: str | None
    description: str
    augmentation: Augmentation | None

    @property
    @abstractmethod
    def num_steps(self) -> int: ...

    @property
    @abstractmethod
    def input_size(self) -> int: ...

    @abstractmethod
    def to(self, device: torch.device | str) -> Self: ...

    @abstractmethod
    def with_batch_size(self, batch_size: int) -> Self: ...

    @abstractmethod
    def inputs(self, part: Any, rows: slice | Tensor) -> Inputs:
        """Returns the model's input for rows of a split, a slice or int64 as from `train_rows`."""

    @abstractmethod
    def augmented_inputs(self, augmentation: Augmentation, rows: Tensor) -> Inputs:
        """Returns `inputs` of training sequences that `augmentation` changes."""

    @abstractmethod
    def example(self, part: Any, row: int, augmentation: Augmentation | None = None) -> Tensor:
        """Returns one sequence of a split for display, on the CPU.

        An image is uint8 (rows, columns, channels), a series float32 (T, F).

        Args:
            augmentation: changes it; then it is one of the training split.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns plain values that define how files become inputs; checkpoints hold them."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.train.labels.device
        return device

    @property
    def num_train_batches(self) -> int:
        """Returns the number of batches of an epoch; an incomplete last one is dropped."""
        return len(self.train) // self.batch_size

    def split(self, name: str) -> Any:
        """Returns the split "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def train_order(self, seed: int, epoch: int, processes: int = 1) -> Tensor:
        """Returns the rows of an epoch in their order, int64 on the CPU.

        It depends on `processes` only through the sequences that all of them take in a step.
        """
        return random_order(len(self.train), "train", seed, epoch)

    @property
    def packed(self) -> bool:
        """Returns whether batches are packed, so that their shapes differ."""
        return False

    def train_rows(
        self, seed: int, epoch: int, start: int = 0, stride: int = 1, parts: int = 1
    ) -> Iterator[Tensor]:
        """Yields the rows (B,) of an epoch's batches start, start + stride, ..., int64.

        They lie on the device, where they are copied once an epoch. Packing needs them on the CPU.

        Args:
            parts: the number of parts of a batch that a step uses one after the other. Part p of
                all `stride` processes together equals part p of one process with batches of
                `stride` times the size.
        """
        if self.augmentation is not None:
            self.augmentation.start_epoch(len(self.train), seed, epoch, self.device)
        order = self.train_order(seed, epoch, stride)
        order = order if self.packed else order.to(self.device)
        pieces = order.split(self.batch_size // parts)
        rank = start % stride
        for batch in range(start, self.num_train_batches // stride * stride, stride):
            first = (batch - rank) * parts + rank
            found = pieces[first : first + parts * stride : stride]
            yield found[0] if parts == 1 else torch.cat(found)

    def train_batch(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Returns the batch of these rows: x (T, B, F), y int64 (B,).

        It is augmented by the draws of the epoch whose `train_rows` were requested last. Batches
        for evaluation and for population statistics never are, because these statistics have to
        describe the evaluated sequences.
        """
        labels = self.train.labels[rows.to(self.device)]
        if self.augmentation is None:
            return self.inputs(self.train, rows), labels
        return self.augmented_inputs(self.augmentation, rows), labels

    def train_batches(
        self, seed: int, epoch: int, start: int = 0, stride: int = 1
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yields the batches of `train_rows`."""
        for rows in self.train_rows(seed, epoch, start, stride):
            yield self.train_batch(rows)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yields all of a split in order; the last batch may be smaller."""
        part = self.split(split)
        for first in range(0, len(part), batch_size):
            rows = slice(first, first + batch_size)
            yield self.inputs(part, rows), part.labels[rows]

    def statistics_batches(
        self, count: int, batch_size: int, seed: int, epoch: int, start: int = 0, stride: int = 1
    ) -> Iterator[Inputs]:
        """Yields distinct training sequences for population statistics: x (T, B, F).

        There are `count` batches, or as many full ones as the split has, or the full split if it is
        smaller than one. Of these, number start, start + stride, and so on are yielded. The order
        differs from that of training, so the statistics are not those of its last batches.
        """
        rows = random_order(len(self.train), "statistics", seed, epoch)
        count = max(1, min(count, len(rows) // batch_size))
        for batch in rows.split(batch_size)[start:count:stride]:
            yield self.inputs(self.train, batch)


def to_sequences(
    images: Tensor,
    pixels_per_step: int,
    mean: float,
    std: float,
    permutation: Tensor | None = None,
    channels: int = 1,
) -> Tensor:
    """Turns images into sequences, where step t holds pixels t F ... (t + 1) F - 1 of each image.

    Args:
        images: uint8 (B, pixels x channels), the channels of a pixel side by side.
        pixels_per_step: a divisor of the number of pixels.
        mean, std: of pixels in [0, 1].
        permutation: pixel p of the sequence is pixel permutation[p] of the image; None: in order.

    Returns: float32 (T, B, F), contiguous, F = pixels_per_step x channels.
    """
    pixels = images.t()  # (pixels x channels, B)
    if permutation is not None:
        pixels = pixels.unflatten(0, (-1, channels)).index_select(0, permutation).flatten(0, 1)
    steps = pixels.unflatten(0, (-1, pixels_per_step * channels)).transpose(1, 2)  # (T, B, F)
    # One pass converts and transposes; then, in place, x = (pixel / 255 - mean) / std
    x = torch.empty(steps.shape, dtype=torch.float32, device=images.device).copy_(steps)
    return x.mul_(1 / (255 * std)).sub_(mean / std)


@dataclass(frozen=True, eq=False)
class ImageSequences(SequenceData):
    """Holds an image set as sequences; step t has pixels t F ... (t + 1) F - 1 of each image."""

    name: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]  # rows, columns
    pixels_per_step: int
    mean: float  # of the pixels in [0, 1] of the training split
    std: float
    permutation: Tensor | None  # int64 (pixels,): the order of the pixels if it is not their own
    batch_size: int
    train: Split
    val: Split
    test: Split
    stratified: bool = True  # how `train_size` chose the training images
    channels: int = 1
    fingerprint: str | None = None  # of user pictures: a checksum of what was read
    description: str = ""  # what was read, in one line
    content: str | None = None  # of a published set: a checksum of its images and labels
    augmentation: Augmentation | None = None

    @property
    def num_steps(self) -> int:
        return math.prod(self.image_size) // self.pixels_per_step

    @property
    def input_size(self) -> int:
        return self.pixels_per_step * self.channels

    def to(self, device: torch.device | str) -> ImageSequences:
        return dataclasses.replace(
            self,
            permutation=None if self.permutation is None else self.permutation.to(device),
            train=self.train.to(device),
            val=self.val.to(device),
            test=self.test.to(device),
        )

    def with_batch_size(self, batch_size: int) -> ImageSequences:
        return dataclasses.replace(self, batch_size=batch_size)

    def sequences(self, images: Tensor) -> Tensor:
        """Normalises, permutes and cuts into steps: uint8 (B, pixels) to float32 (T, B, F)."""
        return to_sequences(
            images, self.pixels_per_step, self.mean, self.std, self.permutation, self.channels
        )

    def inputs(self, part: Split, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            return self.sequences(part.images[rows])
        return self.sequences(part.images.index_select(0, rows.to(self.device)))

    def augmented_inputs(self, augmentation: Augmentation, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return self.sequences(augmentation(self.train.images.index_select(0, rows), rows))

    def example(self, part: Split, row: int, augmentation: Augmentation | None = None) -> Tensor:
        image = part.images[row : row + 1]
        if augmentation is not None:
            image = augmentation(image, torch.tensor([row], device=self.device))
        return image.cpu().view(*self.image_size, self.channels)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "image_size": list(self.image_size),
            "pixels": math.prod(self.image_size),
            "pixels_per_step": self.pixels_per_step,
            "mean": self.mean,
            "std": self.std,
            "permutation": None if self.permutation is None else self.permutation.cpu(),
            "train_images": len(self.train),
            "stratified": self.stratified,
            # Checkpoints of published sets have no fingerprint, and those of grey sets no channels.
            **({"channels": self.channels} if self.channels > 1 or self.fingerprint else {}),
            **({"fingerprint": self.fingerprint} if self.fingerprint else {}),
            **({"content": self.content} if self.content else {}),
        }
