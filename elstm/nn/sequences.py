"""Batches of sequences: torch.nn.LSTM's input layouts to padded (T, B, F) and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Batch(NamedTuple):
    """Sequences as the recurrences take them."""

    x: Tensor  # (T, B, F); where sizes is given, rows by falling length
    sizes: list[int] | None  # alive rows at each step, for a packed batch
    packed: PackedSequence | None
    unbatched: bool

    @property
    def order(self) -> Tensor | None:
        """Row b of x is sequence order[b] of the input, where they were sorted by length."""
        return None if self.packed is None else self.packed.sorted_indices


def unpack(input: Tensor | PackedSequence, batch_first: bool, features: int) -> Batch:
    """(T, B, F), (B, T, F) with batch_first, (T, F) for a single sequence, or packed.

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
    if x is input and x.dim() not in (2, 3):
        raise ValueError(f"input must be 2-D or 3-D, got {x.dim()}-D")
    if x.shape[-1] != features:
        raise ValueError(f"input must have {features} features (input_size), got {x.shape[-1]}")


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


def keep_ended(alive: Tensor, before: Tensor) -> Tensor:
    """The state after a step: of the rows alive, and as `before` of those that have ended."""
    count = alive.shape[0]
    return alive if count == before.shape[0] else torch.cat((alive, before[count:]))


def zero_ended(alive: Tensor, size: int) -> Tensor:
    """The output of a step, (size, F): of the rows alive, and zero of those that have ended."""
    count = alive.shape[0]
    return alive if count == size else F.pad(alive, (0, 0, 0, size - count))


def sequence_lengths(sizes: list[int]) -> Tensor:
    """(B,) lengths of the rows, from the number of rows alive at each step."""
    alive = torch.tensor(sizes)
    return (alive.unsqueeze(1) > torch.arange(sizes[0])).sum(0)


def active_counts(counts: list[int], device: torch.device) -> Tensor:
    """(T,) the number of active sequences at each step, int32, on the device.

    Equal counts are filled in by the device itself. So an unpacked batch needs no copy from the
    host, which a CUDA graph could not capture. Other counts are copied from pinned memory, so that
    the host does not wait for the GPU.
    """
    if counts[0] == counts[-1]:  # they do not increase
        return torch.full((len(counts),), counts[0], dtype=torch.int32, device=device)
    on_host = torch.tensor(counts, dtype=torch.int32, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def reverse_alive(x: Tensor, sizes: list[int] | None) -> Tensor:
    """Turns each sequence of x (T, B, F) round within its own length; padding stays in place."""
    if sizes is None:
        return x.flip(0)
    lengths = sequence_lengths(sizes).to(x.device)
    t = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    source = torch.where(t < lengths, lengths - 1 - t, t)  # (T, B)
    return x.gather(0, source.unsqueeze(2).expand_as(x))
