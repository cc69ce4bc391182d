"""Defines parts of the Triton kernels: barrier, product, gates, normalisation."""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def arrive(counter):
    tl.debug_barrier()  # all stores of the program come before the release
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
def count_active(active_rows, t, batch):
    if active_rows is None:
        return batch
    else:  # noqa: RET505  # two branches, of which the compiler sees one
        return tl.load(active_rows + t)


@triton.jit
def _weight_tile(
    w, units, k, K: tl.constexpr, K_STRIDE: tl.constexpr, UNIT_STRIDE: tl.constexpr,
    H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    ks = k + tl.arange(0, BLOCK_K)
    mask = (units < H)[:, None, None] & (ks < K)[None, :, None]
    at = units[:, None, None] * UNIT_STRIDE + ks[None, :, None] * K_STRIDE
    return tl.load(w + at, mask=mask, other=0.0)


@triton.jit
def weight_tiles(
    w, units, K: tl.constexpr, K_STRIDE: tl.constexpr, UNIT_STRIDE: tl.constexpr,
    H: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    """Loads the tiles (UNITS, BLOCK_K, 1) of w that `product` takes, where they stay resident."""
    tiles = ()
    if RESIDENT:
        for k in tl.static_range(0, K, BLOCK_K):
            tile = _weight_tile(w, units, k, K, K_STRIDE, UNIT_STRIDE, H, BLOCK_K)
            tiles = tiles + (tile,)  # noqa: RUF005  # unpacking is not Triton
    return tiles


@triton.jit
def _state_tile(a, k, K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr):
    """Loads the tile (1, BLOCK_K, BLOCK_B) of a (K, BLOCK_B)."""
    ks = k + tl.arange(0, BLOCK_K)[None, :, None]
    return tl.load(a + ks * BLOCK_B + tl.arange(0, BLOCK_B)[None, None, :], mask=ks < K, other=0.0)


@triton.jit
def product(
    a, tiles, w, units, K: tl.constexpr, K_STRIDE: tl.constexpr, UNIT_STRIDE: tl.constexpr,
    H: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr, BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
):  # fmt: skip
    """Sums over k of w[unit, k] a[k, row], for each place in a tile (UNITS, BLOCK_K, BLOCK_B)."""
    sums = tl.zeros((UNITS, BLOCK_K, BLOCK_B), tl.float32)
    if RESIDENT:
        for k in tl.static_range(0, K, BLOCK_K):
            sums += tiles[k // BLOCK_K] * _state_tile(a, k, K, BLOCK_B, BLOCK_K)
    else:
        for k in tl.range(0, K, BLOCK_K, num_stages=1, loop_unroll_factor=4):
            tile = _weight_tile(w, units, k, K, K_STRIDE, UNIT_STRIDE, H, BLOCK_K)
            sums += tile * _state_tile(a, k, K, BLOCK_B, BLOCK_K)
    return sums


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def products_of_gates(
    a, tiles_i, tiles_f, tiles_g, tiles_o, w, units, H: tl.constexpr, BLOCK_B: tl.constexpr,
    UNITS: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    """Computes W a of the four gates, (UNITS, BLOCK_B) each, and reads each tile of a once."""
    i = tl.zeros((UNITS, BLOCK_K, BLOCK_B), tl.float32)
    f, g, o = i, i, i
    if RESIDENT:
        for k in tl.static_range(0, H, BLOCK_K):
            here = _state_tile(a, k, H, BLOCK_B, BLOCK_K)
            i += tiles_i[k // BLOCK_K] * here
            f += tiles_f[k // BLOCK_K] * here
            g += tiles_g[k // BLOCK_K] * here
            o += tiles_o[k // BLOCK_K] * here
    else:
        for k in tl.range(0, H, BLOCK_K, num_stages=1, loop_unroll_factor=4):
            here = _state_tile(a, k, H, BLOCK_B, BLOCK_K)
            i += _weight_tile(w, units, k, H, 1, H, H, BLOCK_K) * here
            f += _weight_tile(w + H * H, units, k, H, 1, H, H, BLOCK_K) * here
            g += _weight_tile(w + 2 * H * H, units, k, H, 1, H, H, BLOCK_K) * here
            o += _weight_tile(w + 3 * H * H, units, k, H, 1, H, H, BLOCK_K) * here
    if _INTERPRETED:  # where this reduction calls Python for each number
        return tl.sum(i, 1), tl.sum(f, 1), tl.sum(g, 1), tl.sum(o, 1)
    else:  # noqa: RET505
        return tl.reduce((i, f, g, o), 1, _add_four)  # one exchange between the warps for all four


@triton.jit
def one_by_root(x):
    return tl.math.div_rn(1.0, tl.math.sqrt_rn(x))  # rsqrt is off by two units in the last place


@triton.jit
def statistics(x, mask, mean, var, offsets, in_features, active, in_batch):
    """Returns x - mean, mean and var of x (features, rows) in `mask`, of the batch or as stored."""
    if in_batch:
        m = tl.sum(tl.where(mask, x, 0.0), 1) / active
        centred = tl.where(mask, x - m[:, None], 0.0)
        v = tl.sum(centred * centred, 1) / active
    else:
        m = tl.load(mean + offsets, mask=in_features, other=0.0)
        v = tl.load(var + offsets, mask=in_features, other=1.0)
    return x - m[:, None], m, v


@triton.jit
def normalized(
    x, mask, mean, var, offsets, in_features, eps, active, in_batch, STORE: tl.constexpr
):  # fmt: skip
    """Returns (x - mean) / sqrt(var + eps) of x (features, rows), mean and 1 / sqrt(var + eps).

    The backward pass computes the batch statistics again, because it also computes x again. Stored
    statistics would differ from those of x by rounding, which the gradient of a variance near zero
    magnifies.
    """
    centred, m, v = statistics(x, mask, mean, var, offsets, in_features, active, in_batch)
    if STORE:  # noqa: SIM102  # the compiler knows this one alone
        if in_batch:
            tl.store(mean + offsets, m, mask=in_features)
            tl.store(var + offsets, v, mask=in_features)
    scale = one_by_root(v + eps)
    return centred * scale[:, None], m, scale


@triton.jit
def normalize_backward(dy, hat, scale, gamma, mask, active, in_batch):
    """Returns dx of (4), and the step's dβ and dγ. Population statistics are constants."""
    d_beta, d_gamma = tl.sum(dy, 1), tl.sum(dy * hat, 1)
    share = tl.where(in_batch, 1.0, 0.0) / active
    centred = dy - (d_beta[:, None] + hat * d_gamma[:, None]) * share
    return tl.where(mask, centred * (scale * gamma)[:, None], 0.0), d_beta, d_gamma
