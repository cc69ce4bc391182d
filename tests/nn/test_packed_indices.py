"""Packed batches as one gather each way, against torch's padding and packing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from elstm.nn import ELSTMBN
from elstm.nn import sequences as batches
from elstm.nn.sequences import pack_like, packed_indices, reverse_active, unpack


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    batches._cached.cache_clear()


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 3, 1], [1], [2, 1, 1, 1]])
def test_equals_padding_and_packing(lengths: list[int]) -> None:
    x = torch.randn(max(lengths), len(lengths), 2, requires_grad=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths))
    batch = unpack(packed, False, 2)
    padded, _ = pad_packed_sequence(packed)
    t = torch.arange(len(x)).unsqueeze(1)
    is_active = t < torch.tensor(lengths)
    assert torch.equal(batch.x[is_active], padded[is_active])

    back, _ = pack_like(batch, padded, (), False)
    assert torch.equal(back.data, packed.data)  # type: ignore[union-attr]
    gradient = torch.randn_like(packed.data)
    (expected,) = torch.autograd.grad(packed.data, x, gradient, retain_graph=True)
    (found,) = torch.autograd.grad(back.data, x, gradient)  # type: ignore[union-attr]
    assert torch.equal(found, expected)

    reversed_ = reverse_active(padded, batch.sizes)
    for row, length in enumerate(lengths):
        assert torch.equal(reversed_[:length, row], padded[:length, row].flip(0))
        assert torch.equal(reversed_[length:, row], padded[length:, row])


def test_a_cache_that_inference_or_fake_tensors_filled_serves_training() -> None:
    layer = ELSTMBN(2, 3, backend="reference")
    packed = pack_padded_sequence(torch.randn(3, 4, 2), torch.tensor([3, 3, 2, 2]))
    with torch.inference_mode():
        layer.eval()(packed)
    assert batches._cached.cache_info().currsize == 1
    layer.train()(packed)[0].data.sum().backward()
    batches._cached.cache_clear()
    with FakeTensorMode():
        data = torch.empty(10, 2)
        packed_indices([4, 4, 2], data)
    assert batches._cached.cache_info().currsize == 0
    assert type(packed_indices([4, 4, 2], torch.empty(1)).rows) is torch.Tensor
    with FakeTensorMode():  # the cache has real tensors now
        data = torch.empty(10, 2)
        assert data.index_select(0, packed_indices([4, 4, 2], data).rows).shape == (12, 2)


def test_a_capture_needs_a_batch_that_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    like: Any = torch.empty(1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(batches, "_captured", lambda sizes, device: SimpleNamespace(rows=sizes))
    # A CPU's batch may come at any time.
    assert type(packed_indices([2, 1], like).rows) is torch.Tensor
    with pytest.raises(RuntimeError, match="call the layer once with a batch of these lengths"):
        batches._packed_indices((2, 1), torch.device("cuda"))
