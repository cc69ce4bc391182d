"""Converts torch.nn.LSTM's input layouts to padded (T, B, F) and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

MOST_PADDING = 4  # rows of a padded batch for each active one, above which torch is left to it


class Batch(NamedTuple):
    """Holds sequences as the recurrences take them."""

    x: Tensor  # (T, B, F); where sizes is given, rows by falling length, not zero where inactive
    sizes: list[int] | None  # active rows at each step, for a packed batch of several lengths
    packed: PackedSequence | None
    unbatched: bool

    @property
    def order(self) -> Tensor | None:
        """Returns the input's index of each row of x; None where rows were not sorted."""
        return None if self.packed is None else self.packed.sorted_indices


def mostly_padding(input: PackedSequence) -> bool:
    """Returns whether a packed batch, once padded, would hold little else than padding."""
    steps, size = len(input.batch_sizes), int(input.batch_sizes[0])
    return steps * size > MOST_PADDING * len(input.data)


def unpack(input: Tensor | PackedSequence, batch_first: bool, features: int) -> Batch:
    """Reads (T, B, F), (B, T, F) with batch_first, (T, F) for a single sequence, or packed.

    Raises:
        ValueError: another number of dimensions or features, or no step at all.
    """
    check_input(input, features)
    if isinstance(input, PackedSequence):
        sizes = input.batch_sizes.tolist()
        if sizes[-1] == sizes[0]:  # all of one length: nothing is padded
            return Batch(input.data.view(len(sizes), sizes[0], features), None, input, False)
        # Padding here keeps the packed order: rows sorted by length.
        rows = packed_indices(sizes, input.data).rows
        x = input.data.index_select(0, rows).view(len(sizes), sizes[0], features)
        return Batch(x, sizes, input, False)
    x = input.unsqueeze(1) if input.dim() == 2 else input
    if batch_first and input.dim() == 3:
        x = x.transpose(0, 1)
    if x.shape[0] == 0:
        raise ValueError(f"input must hold at least one step, got {tuple(input.shape)}")
    return Batch(x, None, None, input.dim() == 2)


def check_input(input: Tensor | PackedSequence, features: int) -> None:
    """Raises ValueError unless the input is packed, 2-D or 3-D and its last size is `features`.

    Raises:
        TypeError: it is neither a tensor nor packed.
    """
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        kind = type(x).__name__
        raise TypeError(f"input must be a torch.Tensor or a PackedSequence, got a {kind}")
    if x.layout is not torch.strided or x.is_quantized or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout} and {x.dtype}"
        raise ValueError(f"input must be a dense tensor, got {kind}")
    if isinstance(input, PackedSequence):
        if x.dim() != 2:
            raise ValueError(
                "the data of a PackedSequence must be 2-D (all steps of all sequences, features),"
                f" got {x.dim()}-D"
            )
        check_batch_sizes(input.batch_sizes.tolist(), x.shape[0])
    elif x.dim() not in (2, 3):
        raise ValueError(f"input must be 2-D or 3-D, got {x.dim()}-D")
    if x.shape[-1] != features:
        raise ValueError(f"input must have {features} features (input_size), got {x.shape[-1]}")


def check_batch_sizes(sizes: list[int], rows: int) -> None:
    """Raises ValueError unless `sizes` are those of a packed batch of `rows` rows in all."""
    falling = sizes == sorted(sizes, reverse=True)  # in C: there may be thousands of steps
    if not sizes or sizes[-1] < 1 or not falling or sum(sizes) != rows:
        raise ValueError(
            f"batch_sizes of a PackedSequence must be at least 1, must not increase, and must add"
            f" up to the {rows} rows of its data; got {sizes}"
        )


def pack_like(
    batch: Batch, output: Tensor, state: tuple[Tensor, ...], batch_first: bool
) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
    """Converts output (T, B, F) and the state's parts (L, B, ·) to the layout of the input."""
    if batch.unbatched:
        return output.squeeze(1), tuple(part.squeeze(1) for part in state)
    if batch.packed is None:
        return output.transpose(0, 1) if batch_first else output, state
    _, sizes, order, back = batch.packed
    data = output.flatten(0, 1)
    if batch.sizes is not None:
        data = data.index_select(0, packed_indices(batch.sizes, output).active)
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


class PackedIndices(NamedTuple):
    """Holds the indices of a packed batch's sequences in (T, B), on the device of the batch.

    Attributes:
        counts: (T,) int32, the number of active rows at each step.
        rows: (T * B,) the row of the packed data for each place; past a sequence's end that of its
            first step, so that NaN in one sequence never reaches the gradient of another.
        active: (N,) the place of each row of the packed data.
        reversed: (T * B,) the place that each place has in its reversed sequence; inactive places
            stay.
    """

    counts: Tensor
    rows: Tensor
    active: Tensor
    reversed: Tensor


def packed_indices(sizes: Sequence[int], like: Tensor) -> PackedIndices:
    """Returns the PackedIndices of a packed batch, from a cache of the last batches.

    Args:
        sizes: the number of active rows at each step.
        like: a tensor of the batch, for its device. With one of another class, such as a fake
            tensor, or in the compiler, nothing is taken from the cache or put into it.

    Raises:
        RuntimeError: a CUDA graph is being captured, and the batch is not in the cache.
    """
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return _packed_indices(tuple(sizes), like.device)
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return _captured(tuple(sizes), like.device)
    return _cached(tuple(sizes), like.device)


def _packed_indices(sizes: tuple[int, ...], device: torch.device) -> PackedIndices:
    """Computes on the host, and copies from pinned memory, so that no call waits for the GPU."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph cannot copy the lengths of a packed batch to the GPU: call the layer once"
            " with a batch of these lengths before the capture"
        )
    with torch.inference_mode(False):  # a cached tensor must be allowed to take part in training
        counts = torch.tensor(sizes, device="cpu")
        steps, batch = len(sizes), sizes[0]
        t = torch.arange(steps, device="cpu").unsqueeze(1)
        b = torch.arange(batch, device="cpu")
        is_active = b < counts.unsqueeze(1)
        first = counts.cumsum(0) - counts
        rows = torch.where(is_active, first.unsqueeze(1) + b, b).flatten()
        backwards = torch.where(is_active, is_active.sum(0) - 1 - t, t).mul_(batch).add_(b)
        active = is_active.flatten().nonzero_static(size=sum(sizes)).squeeze(1)
        found = PackedIndices(counts.int(), rows, active, backwards.flatten())
        if device.type == "cpu":
            return found
        together, narrow = torch.cat(found[1:]), found.counts
        if device.type == "cuda":
            together, narrow = together.pin_memory(), narrow.pin_memory()
        on_device = together.to(device, non_blocking=True)
        lengths = [len(rows), len(active), len(rows)]
        return PackedIndices(narrow.to(device, non_blocking=True), *on_device.split(lengths))


_cached = lru_cache(maxsize=8)(_packed_indices)  # shared by the layers and directions of a step
_captured = cache(_cached)  # a graph reads the tensors for as long as it is replayed


def reverse_active(x: Tensor, sizes: list[int] | None) -> Tensor:
    """Reverses each sequence of x (T, B, F) within its own length; padding stays in place."""
    if sizes is None:
        return x.flip(0)
    return x.flatten(0, 1).index_select(0, packed_indices(sizes, x).reversed).view_as(x)
