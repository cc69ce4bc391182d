"""How a launch of the Triton kernels is cut up, by a rough estimate of time."""

from __future__ import annotations

from typing import NamedTuple

_TILE = 16384  # gates of one program, B padded times 4 units: more do not fit its registers
_RESIDENT = 32768  # bytes of W_h that a program keeps, of the 99 KiB shared memory of sm_86
_ROWS = (16, 32, 64, 128, 256, 512, 1024)  # of one program; more leave no room for its tile of the state
_TILES = 16  # of W_h, at most, in shared memory: each is unrolled, and 32 compile for a minute
# Rough figures of an H100 or H200 per second, for choosing block sizes: bytes from L2 to all
# processors and to one, multiply-adds of one processor at half its peak.
_L2_BYTES, _L2_BYTES_ONE, _MULTIPLY_ADDS = 5.5e12, 1.1e11, 1.1e11


class Blocks(NamedTuple):
    """How a launch is cut up: `programs` for the hidden units, times `chunks` of the batch."""

    programs: int
    chunks: int
    num_warps: int
    BLOCK_B: int
    UNITS: int
    BLOCK_K: int
    RESIDENT: bool


def choose_blocks(
    batch: int, hidden: int, processors: int, *, depth: int, width: int, whole: bool = True
) -> Blocks | None:
    """Blocks for a product with `depth` summed terms and `width` columns a hidden unit; or None.

    The fewer units a program has, the more programs read the whole state from L2, and the less each
    multiplies: takes the count with the least estimated time. Batch statistics need the `whole`
    batch in one program; else it may be cut too. None: nothing fits.
    """
    padded = max(16, _power_of_two(batch))
    best = None
    for block_b in [padded] if whole else [size for size in _ROWS if size <= padded]:
        chunks = -(-batch // block_b)
        for units in (1, 2, 4, 8, 16, 32):
            programs = -(-hidden // units)
            if programs * chunks > processors or block_b * 4 * units > _TILE or block_b > _ROWS[-1]:
                continue
            state = 4 * min(batch, block_b) * depth
            seconds = max(programs * chunks * state / _L2_BYTES, state / _L2_BYTES_ONE)
            seconds += block_b * depth * width * units / _MULTIPLY_ADDS
            if best is None or seconds < best[0]:
                best = seconds, block_b, units, programs, chunks
    if best is None:
        return None
    _, block_b, units, programs, chunks = best
    warps = min(16, max(8, block_b * 4 * units // (8 * 32)))
    block_k = min(64, max(16, 8192 // block_b), max(16, _power_of_two(depth)))
    resident = 4 * depth * width * units <= _RESIDENT and depth <= _TILES * block_k
    return Blocks(programs, chunks, warps, block_b, units, block_k, resident)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
