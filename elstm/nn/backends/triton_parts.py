"""Parts of the kernels of triton_kernels: barrier, products, gates, normalisation."""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    tl.debug_barrier()  # the whole program's stores come before the release
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, arrivals):
    while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
        pass
    tl.debug_barrier()


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    s = x * x  # near 0, where 1 - e cancels: the series up to x^9, to 5e-8 below 0.3
    small = x * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.3, small, tl.where(x < 0, -large, large))


@triton.jit
def activations(z, BLOCK_B: tl.constexpr, UNITS: tl.constexpr):
    pairs = tl.reshape(z, (BLOCK_B, UNITS, 2, 2))
    ig, fo = tl.split(pairs)
    i, g = tl.split(ig)
    f, o = tl.split(fo)
    return tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)  # (2)


@triton.jit
def count_alive(alive_rows, t, batch):
    if alive_rows is None:
        return batch
    else:  # noqa: RET505  # two branches, of which the compiler sees one
        return tl.load(alive_rows + t)


@triton.jit
def _weight_tile(
    w, columns, column_mask, k, K: tl.constexpr, K_STRIDE: tl.constexpr, BLOCK_K: tl.constexpr
):
    ks = k + tl.arange(0, BLOCK_K)
    mask = (ks < K)[:, None] & column_mask[None, :]
    return tl.load(w + ks[:, None] * K_STRIDE + columns[None, :], mask=mask, other=0.0)


@triton.jit
def weight_tiles(
    w, columns, column_mask,
    K: tl.constexpr, K_STRIDE: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    tiles = ()
    if RESIDENT:
        for k in tl.static_range(0, K, BLOCK_K):
            tile = _weight_tile(w, columns, column_mask, k, K, K_STRIDE, BLOCK_K)
            tiles = tiles + (tile,)  # noqa: RUF005  # unpacking is not Triton
    return tiles


@triton.jit
def _state_tile(a, rows, alive, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    ks = k + tl.arange(0, BLOCK_K)
    mask = (rows < alive)[:, None] & (ks < K)[None, :]
    return tl.load(a + rows[:, None] * K + ks[None, :], mask=mask, other=0.0)


@triton.jit
def product(
    a, rows, alive, tiles, w, columns, column_mask,
    K: tl.constexpr, K_STRIDE: tl.constexpr, BLOCK_B: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over k of a[row, k] w[k, column], a (batch, K); zero in rows >= alive."""
    acc = tl.zeros((BLOCK_B, COLUMNS), tl.float32)
    if RESIDENT:
        coming = _state_tile(a, rows, alive, 0, K, BLOCK_K)
        for k in tl.static_range(0, K, BLOCK_K):
            here = coming
            if k + BLOCK_K < K:  # loads the next tile while this one is multiplied
                coming = _state_tile(a, rows, alive, k + BLOCK_K, K, BLOCK_K)
            acc = tl.dot(here, tiles[k // BLOCK_K], acc, input_precision=PRECISION)
    else:
        for k in tl.range(0, K, BLOCK_K, num_stages=3):
            here = _state_tile(a, rows, alive, k, K, BLOCK_K)
            tile = _weight_tile(w, columns, column_mask, k, K, K_STRIDE, BLOCK_K)
            acc = tl.dot(here, tile, acc, input_precision=PRECISION)
    return acc


@triton.jit
def normalized(
    x, mask, mean, var, offsets, column_mask, eps, alive, in_batch, STORE: tl.constexpr
):  # fmt: skip
    """(x - mean) / sqrt(var + eps), and 1 / sqrt(var + eps); x is zero outside `mask`.

    Statistics of the batch, or those stored. The backward pass computes the batch's again, because
    it also computes x again: the stored ones would differ from x's by rounding, which the gradient
    of a variance near zero magnifies.
    """
    if in_batch:
        m = tl.sum(x, 0) / alive
        centred = tl.where(mask, x - m[None, :], 0.0)
        v = tl.sum(centred * centred, 0) / alive
        if STORE:
            tl.store(mean + offsets, m, mask=column_mask)
            tl.store(var + offsets, v, mask=column_mask)
    else:
        m = tl.load(mean + offsets, mask=column_mask, other=0.0)
        v = tl.load(var + offsets, mask=column_mask, other=1.0)
    scale = tl.math.rsqrt(v + eps)
    return (x - m[None, :]) * scale[None, :], scale


@triton.jit
def normalize_backward(dy, hat, scale, gamma, mask, alive, in_batch):
    """dx of (4), and the step's dβ and dγ. Population statistics are constants."""
    d_beta, d_gamma = tl.sum(dy, 0), tl.sum(dy * hat, 0)
    share = tl.where(in_batch, 1.0, 0.0) / alive
    centred = dy - (d_beta[None, :] + hat * d_gamma[None, :]) * share
    return tl.where(mask, centred * (scale * gamma)[None, :], 0.0), d_beta, d_gamma
