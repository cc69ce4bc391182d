"""Memory of the CPU backend that waits for its next use."""

import gc
from collections import deque

import pytest
import torch

from elstm.nn import ELSTMBN
from elstm.nn.backends.cpu import library, memory

pytestmark = pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")
LIKE = torch.empty(0)
LARGE = memory.LEAST // 4  # numbers


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> deque:
    blocks: deque = deque()
    monkeypatch.setattr(memory, "_idle", blocks)
    return blocks


def test_a_block_waits_for_its_tensors_last_user(idle: deque) -> None:
    tensor = memory.empty(LIKE, 2, LARGE)
    part = tensor[1]
    address = tensor.data_ptr()
    del tensor
    gc.collect()
    assert not idle  # `part` still reads it
    assert memory.empty(LIKE, 2, LARGE).data_ptr() != address
    del part
    gc.collect()
    assert [block.address for block in idle].count(address) == 1
    again = [memory.empty(LIKE, 2, LARGE) for _ in range(len(idle))]
    assert address in {tensor.data_ptr() for tensor in again}


def test_another_size_gets_another_block(idle: deque) -> None:
    del_me = memory.empty(LIKE, LARGE)
    del del_me
    gc.collect()
    size = idle[0].size
    assert memory.acquire(2 * size).size >= 2 * size
    assert len(idle) == 1


@pytest.mark.parametrize("size", [1, 5_000, 300_000, 3 << 20, (37 << 20) + 1])
def test_blocks_are_as_large_as_asked_and_aligned_as_cpu_c_needs(size: int) -> None:
    block = memory.acquire(size)
    assert size <= block.size <= max(memory.LARGE_PAGE, 1.125 * size + (2 << 20))
    assert block.address % 128 == 0
    assert len(block.map) - block.offset >= block.size


def test_small_tensors_have_no_block(idle: deque) -> None:
    tensor = memory.empty(LIKE, LARGE - 1)
    del tensor
    gc.collect()
    assert not idle


def test_what_waits_is_bounded_and_the_longest_idle_goes_first(
    idle: deque, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [memory.acquire(memory.LEAST) for _ in range(4)]
    monkeypatch.setattr(memory, "IDLE", 3 * blocks[0].size)
    for block in blocks:
        memory.release(block)
    assert list(idle) == blocks[1:]


def test_tensors_in_blocks_change_in_place() -> None:
    tensor = memory.empty(LIKE.double(), 3, LARGE)
    assert tensor.shape == (3, LARGE)
    assert tensor.dtype == torch.float64
    assert not tensor._is_view()
    tensor.fill_(1).mul_(2)
    assert torch.equal(tensor.clone(), torch.full_like(tensor, 2))


def test_a_layers_results_stay_as_they_were() -> None:
    """Checks that a later call and its backward pass change no tensor that is still referenced."""
    torch.manual_seed(0)
    layer = ELSTMBN(8, 64, max_steps=32, backend="cpu")
    x = torch.randn(32, 128, 8, requires_grad=True)
    output, _ = layer(x)
    assert output.untyped_storage().nbytes() >= memory.LEAST
    kept = output.detach().clone()
    output.sum().backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    for _ in range(3):
        layer(torch.randn(32, 128, 8))[0].sum().backward()
    output.sum().backward()  # what was kept for it is still there
    assert torch.equal(output, kept)
    assert torch.equal(x.grad, first)


def test_a_block_that_the_system_has_not_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="MiB"):
        memory.acquire(1 << 60)


def test_a_collection_that_frees_a_tensor_while_blocks_are_read(idle: deque) -> None:
    """A collection may start at any allocation of Python, and gives the block back."""

    class Cycle:
        def __init__(self) -> None:
            self.me, self.tensor = self, memory.empty(torch.empty(0), memory.LEAST)

    for block in [memory.acquire(1 << 16) for _ in range(40)]:
        memory.release(block)
    thresholds = gc.get_threshold()
    gc.collect()
    try:
        for count in range(60):
            gc.disable()
            Cycle()
            gc.set_threshold(gc.get_count()[0] + count // 5, 1000, 1000)
            gc.enable()
            memory.acquire(3 * memory.LARGE_PAGE)
            gc.collect(0)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
