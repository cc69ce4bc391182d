"""Chooses the block sizes of the Triton kernels by a rough estimate of time."""

from __future__ import annotations

from typing import NamedTuple

_SIZES = (1, 2, 4, 8, 16, 32)  # hidden units of one program
_ROWS = (16, 32, 64, 128, 256, 512, 1024)  # sequences of one program: with more, registers overflow
_NUMBERS = 32  # partial sums of a product that a thread keeps, at most
_TILES = 32  # of a product whose W_h is kept, at most: each is unrolled
_TILE_NUMBERS = 16  # of a tile of (UNITS, BLOCK_B) that a thread holds without spilling registers
_RESIDENT = 128  # numbers of W_h that a thread keeps over all steps
# For choosing block sizes, per second: bytes from L2 to all processors and to one; multiply-adds of
# one, as measured on an H200 with 50 and 100 programs (its peak is ten times as high).
_L2_BYTES, _L2_BYTES_ONE, _MULTIPLY_ADDS = 5.5e12, 1.1e11, 2e10


class Blocks(NamedTuple):
    """Divides a launch into `programs` for the hidden units, times `chunks` of the batch."""

    programs: int
    chunks: int
    num_warps: int
    BLOCK_B: int
    UNITS: int
    BLOCK_K: int
    RESIDENT: bool


def choose_blocks(
    batch: int, hidden: int, processors: int, *, depth: int, width: int, full_batch: bool = True
) -> Blocks | None:
    """Returns blocks for a product with `depth` summed terms and `width` columns a hidden unit.

    The fewer units a program has, the more programs read the full state from L2, and the less each
    multiplies. The count with the least estimated time is taken. Batch statistics need the full
    batch in one program (`full_batch`); else the batch may be divided too. The result is None if
    nothing fits.
    """
    padded = max(_ROWS[0], _power_of_two(batch))
    best = None
    for block_b in [padded] if full_batch else [size for size in _ROWS if size <= padded]:
        chunks = -(-batch // block_b)
        for units in _SIZES:
            blocks = _blocks(-(-hidden // units), chunks, block_b, units, depth, width)
            if blocks is None or blocks.programs * chunks > processors:
                continue
            state = 4 * min(batch, block_b) * depth
            seconds = max(blocks.programs * chunks * state / _L2_BYTES, state / _L2_BYTES_ONE)
            seconds += block_b * depth * width * units / _MULTIPLY_ADDS
            seconds += _spilled_bytes(blocks) / _L2_BYTES_ONE
            if best is None or seconds < best[0]:
                best = seconds, blocks
    return best and best[1]


def _blocks(
    programs: int, chunks: int, block_b: int, units: int, depth: int, width: int
) -> Blocks | None:
    if block_b > _ROWS[-1]:
        return None
    columns = block_b * width * units  # of which a thread has a part, for each k of a tile
    warps = 8 if width == 1 else 4  # one sum takes more warps along k than four do
    if depth * columns > 100_000:
        warps = 8  # with 16, half of the registers are left to a thread
    block_k = min(_power_of_two(depth), _NUMBERS * 32 * warps // columns)
    if block_k == 0:
        return None
    along_k = max(1, 128 * warps // block_b)  # threads, with 4 sequences each
    resident = depth * width * units <= _RESIDENT * along_k and depth <= _TILES * block_k
    return Blocks(programs, chunks, warps, block_b, units, block_k, resident)


def _spilled_bytes(blocks: Blocks) -> int:
    """Estimates what a program writes to memory at each step because registers run out.

    Every warp holds the full tile of a tensor, and some 30 tensors are in use at once.
    """
    numbers = blocks.UNITS * max(4, blocks.BLOCK_B // 32)  # of a tile, for each thread
    return max(0, numbers - _TILE_NUMBERS) * 30 * 4 * 32 * blocks.num_warps


def _power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
