"""Keeps a pool of large aligned buffers that calls reuse.

A large block that is freed returns to the system. The next call then pays for its pages again,
because the system clears each of them at first touch. That took a tenth to a quarter of a call. The
blocks of this pool have large pages and are reused. A block returns to the pool when the last
tensor in it is freed.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections import deque
from contextlib import suppress

import torch
from torch import Tensor

LEAST = 1 << 20  # bytes of a tensor that is worth a block
LARGE_PAGE = 2 << 20  # a block of several small pages fits the second-level cache by luck alone
IDLE = 512 << 20  # bytes that may wait for their next use, in all


class Block:
    """Maps memory from the system, in large pages where it has them and `size` is a multiple."""

    def __init__(self, size: int) -> None:
        large = size % LARGE_PAGE == 0
        space = size + LARGE_PAGE * large  # to align it in; what is not touched costs nothing
        self.size = size
        self.map = mmap.mmap(-1, space, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if large and hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.offset = -start % LARGE_PAGE if large else 0
        self.address = start + self.offset


_idle: deque[Block] = deque()  # the longest idle first; its methods are atomic


def _now_idle() -> list[Block]:
    # Not a tuple, because its allocation may start a garbage collection. That may free a tensor and
    # append its block while the deque is read, a RuntimeError. A list is allocated before.
    return list(_idle)


def acquire(size: int) -> Block:
    """Returns an uninitialised block of at least `size` bytes.

    Raises:
        MemoryError: the system has none.
    """
    least = LARGE_PAGE if size > LARGE_PAGE // 8 else 1 << 16
    step = max(least, (1 << size.bit_length()) >> 4)  # of a large block at most an eighth too much
    size = -(-max(size, 1) // step) * step
    for block in reversed(_now_idle()):
        if block.size == size:
            try:
                _idle.remove(block)
            except ValueError:  # another thread was faster
                continue
            return block
    try:
        return Block(size)
    except OSError as error:
        raise MemoryError(f"the recurrence needs {size >> 20} MiB: {error}") from None


def release(block: Block) -> None:
    """Returns a block to the pool, for the next call."""
    _idle.append(block)
    while sum(idle.size for idle in _now_idle()) > IDLE:
        with suppress(IndexError):  # another thread was faster
            _idle.popleft()


def empty(like: Tensor, *shape: int) -> Tensor:
    """Returns like.new_empty(shape), in a block of the pool where that is large."""
    count = math.prod(shape)
    size = count * like.element_size()
    if size < LEAST:
        return like.new_empty(shape)
    block = acquire(size)
    memory = (ctypes.c_char * size).from_buffer(block.map, block.offset)
    weakref.finalize(memory, release, block).atexit = False
    tensor = torch.frombuffer(memory, dtype=like.dtype, count=count)
    return tensor.resize_(shape)  # not a view, which could not be changed in place
