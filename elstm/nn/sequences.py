"""Batches of sequences: torch.nn.LSTM's input layouts to padded (T, B, F) and back."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Batch(NamedTuple):
    """Sequences as the recurrences take them."""

    x: Tensor  # (T, B, F); where sizes is given, rows by falling length
    sizes: list[int] | None  # active rows at each step, for a packed batch
    packed: PackedSequence | None
    unbatched: bool

    @property
    def order(self) -> Tensor | None:
        """The sequence order[b] of the input is row b of x, where they were sorted by length."""
        return None if self.packed is None else self.packed.sorted_indices


def unpack(input: Tensor | PackedSequence, batch_first: bool, features: int) -> Batch:
    """Reads (T, B, F), (B, T, F) with batch_first, (T, F) for a single sequence, or packed.

    Raises:
        ValueError: another number of dimensions or features, or no step or sequence at all.
    """
    check_input(input, features)
    if isinstance(input, PackedSequence):
        sizes = input.batch_sizes.tolist()
        # Padding here keeps the packed order: rows sorted by length.
        in_order = PackedSequence(input.data, input.batch_sizes)
        x, _ = pad_packed_sequence(in_order)
        return Batch(x, sizes, input, False)
    x = input.unsqueeze(1) if input.dim() == 2 else input
    if batch_first and input.dim() == 3:
        x = x.transpose(0, 1)
    if 0 in x.shape[:2]:
        raise ValueError(
            f"input must hold at least one step of one sequence, got {tuple(input.shape)}"
        )
    return Batch(x, None, None, input.dim() == 2)


def check_input(input: Tensor | PackedSequence, features: int) -> None:
    """Raises ValueError unless the input is packed, 2-D or 3-D and its last size is `features`."""
    x = input.data if isinstance(input, PackedSequence) else input
    if isinstance(input, PackedSequence):
        check_batch_sizes(input.batch_sizes.tolist(), x.shape[0])
    if x is input and x.dim() not in (2, 3):
        raise ValueError(f"input must be 2-D or 3-D, got {x.dim()}-D")
    if x.shape[-1] != features:
        raise ValueError(f"input must have {features} features (input_size), got {x.shape[-1]}")


def check_batch_sizes(sizes: list[int], rows: int) -> None:
    """Raises ValueError unless `sizes` are those of a packed batch of so many rows in all."""
    falling = all(a >= b for a, b in pairwise(sizes))
    if not sizes or sizes[-1] < 1 or not falling or sum(sizes) != rows:
        raise ValueError(
            f"batch_sizes of a PackedSequence must be at least 1, must not increase, and must add"
            f" up to the {rows} rows of its data; got {sizes}"
        )


def pack_like(
    batch: Batch, output: Tensor, state: tuple[Tensor, ...], batch_first: bool
) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
    """Gives output (T, B, F) and the state's parts (L, B, ·) the layout of the input."""
    if batch.unbatched:
        return output.squeeze(1), tuple(part.squeeze(1) for part in state)
    if batch.packed is None:
        return output.transpose(0, 1) if batch_first else output, state
    lengths = sequence_lengths(batch.sizes or [])
    data = pack_padded_sequence(output, lengths).data
    _, sizes, order, back = batch.packed
    if back is not None:
        state = tuple(part.index_select(1, back) for part in state)
    return PackedSequence(data, sizes, order, back), state


def keep_ended(active: Tensor, before: Tensor) -> Tensor:
    """Returns the state after a step: `active` rows, and those of `before` that have ended."""
    count = active.shape[0]
    return active if count == before.shape[0] else torch.cat((active, before[count:]))


def zero_ended(active: Tensor, size: int) -> Tensor:
    """Returns the output of a step, (size, F): `active` rows, and zero for the others."""
    count = active.shape[0]
    return active if count == size else F.pad(active, (0, 0, 0, size - count))


def sequence_lengths(sizes: list[int]) -> Tensor:
    """Returns the lengths of the rows, (B,) on the CPU, from the number of active rows per step."""
    active = torch.tensor(sizes, device="cpu")
    return (active.unsqueeze(1) > torch.arange(sizes[0], device="cpu")).sum(0)


def active_counts(counts: list[int], device: torch.device) -> Tensor:
    """Returns the number of active sequences at each step, (T,) int32 on the device.

    Equal counts are filled in by the device itself. So an unpacked batch needs no copy from the
    host, which a CUDA graph could not capture. Other counts are copied from pinned memory, so that
    the host does not wait for the GPU.
    """
    if counts[0] == counts[-1]:  # they do not increase
        return torch.full((len(counts),), counts[0], dtype=torch.int32, device=device)
    pinned = device.type == "cuda"
    on_host = torch.tensor(counts, dtype=torch.int32, device="cpu", pin_memory=pinned)
    return on_host.to(device, non_blocking=True)


def reverse_active(x: Tensor, sizes: list[int] | None) -> Tensor:
    """Reverses each sequence of x (T, B, F) within its own length; padding stays in place."""
    if sizes is None:
        return x.flip(0)
    lengths = sequence_lengths(sizes).to(x.device)
    t = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    source = torch.where(t < lengths, lengths - 1 - t, t)  # (T, B)
    return x.gather(0, source.unsqueeze(2).expand_as(x))
