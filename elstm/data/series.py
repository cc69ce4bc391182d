"""Holds user data as batches of sequences, packed where their lengths differ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from elstm.data.augment import Augmentation
from elstm.data.image_sets import random_order
from elstm.data.sequences import Inputs, SequenceData

BUCKET_BATCHES = 50  # batches that are sorted by length together


@dataclass(frozen=True, eq=False)
class SeriesSplit:
    """Holds the sequences of one split."""

    values: Tensor  # float32 (N, T, F), standardised; zero past a sequence's end
    lengths: Tensor  # int64 (N,), on the CPU, where packing needs them
    labels: Tensor  # int64 (N,)
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> SeriesSplit:
        return dataclasses.replace(
            self, values=self.values.to(device), labels=self.labels.to(device)
        )


@dataclass(frozen=True, eq=False)
class SeriesData(SequenceData):
    """Holds user data of the kind "sequences of numbers".

    Attributes:
        mean, std: of each feature over the steps of the training split, float64 (F,).
        fingerprint: a checksum of the data.
        description: a summary of the data, in one line.
        bucket: sort batches by length within groups of BUCKET_BATCHES, which saves steps where
            lengths differ; still a function of (seed, epoch).
        features: their names, where the files have them.
    """

    name: str
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    batch_size: int
    train: SeriesSplit
    val: SeriesSplit
    test: SeriesSplit
    fingerprint: str
    description: str
    bucket: bool = False
    features: tuple[str, ...] = ()
    augmentation: Augmentation | None = None

    @property
    def num_steps(self) -> int:
        """Returns the length of the longest training sequence; later steps share its last row."""
        return int(self.train.lengths.max())

    @property
    def input_size(self) -> int:
        return self.train.values.shape[2]

    @cached_property
    def unequal(self) -> bool:
        """Returns whether any two sequences differ in length."""
        lengths = torch.cat([part.lengths for part in (self.train, self.val, self.test)])
        return bool((lengths != lengths[0]).any())

    def to(self, device: torch.device | str) -> SeriesData:
        return dataclasses.replace(
            self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device)
        )

    def with_batch_size(self, batch_size: int) -> SeriesData:
        return dataclasses.replace(self, batch_size=batch_size)

    def inputs(self, part: SeriesSplit, rows: slice | Tensor) -> Inputs:
        place = rows if isinstance(rows, slice) else rows.to(part.values.device)
        if not self.unequal:
            return part.values[place, : int(part.lengths[0])].transpose(0, 1).contiguous()
        lengths = part.lengths[rows]
        return self._packed(part.values[place, : int(lengths.max())], lengths)

    def _packed(self, values: Tensor, lengths: Tensor) -> PackedSequence:
        """Packs (B, T, F) by lengths on the CPU; values past a sequence's end are dropped."""
        falling = bool((lengths[1:] <= lengths[:-1]).all())  # then nothing has to be sorted
        return pack_padded_sequence(values.transpose(0, 1), lengths, enforce_sorted=falling)

    def augmented_inputs(self, augmentation: Augmentation, rows: Tensor) -> Inputs:
        place = rows.to(self.device)
        if not self.unequal:
            values = self.train.values[place, : int(self.train.lengths[0])]
            return augmentation(values, place).transpose(0, 1).contiguous()
        lengths = self.train.lengths[rows]
        values = self.train.values[place, : int(lengths.max())]
        return self._packed(augmentation(values, place), lengths)

    def example(
        self, part: SeriesSplit, row: int, augmentation: Augmentation | None = None
    ) -> Tensor:
        values = part.values[row : row + 1, : int(part.lengths[row])]
        if augmentation is not None:
            values = augmentation(values, torch.tensor([row], device=self.device))
        return values[0].cpu()

    @property
    def packed(self) -> bool:
        return self.unequal

    def train_order(self, seed: int, epoch: int, processes: int = 1) -> Tensor:
        order = super().train_order(seed, epoch, processes)
        if not self.bucket or not self.unequal:
            return order
        step = self.batch_size * processes  # so that a resume may have another number of them
        # The incomplete last step is dropped before the sort, after which it would be the longest
        # sequences of each epoch.
        groups = order[: len(order) // step * step].split(step * BUCKET_BATCHES)
        order = torch.cat([rows[self.train.lengths[rows].argsort(stable=True)] for rows in groups])
        full = order.view(-1, step)
        return full[random_order(len(full), "buckets", seed, epoch)].flatten()

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "fingerprint": self.fingerprint,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "input_size": self.input_size,
            "num_steps": self.num_steps,
            **({"features": list(self.features)} if self.features else {}),
        }
