"""Defines the recurrence with layer normalisation in Triton: one launch runs all steps, each way.

Layer normalisation sums over the units of one sequence. So a program owns BLOCK_B sequences with
all of their units, and programs never wait for one another: there is no barrier, and h_{t-1} is
read from where the same program has written it. The price is that each program reads all of W_h
from L2 at each step. Splitting the units over programs instead would need two more exchanges a
step, one for each of the two sums, at 0.9 us each; reading 4H H numbers takes 2.4 us at H = 128.

Equation numbers are those of elstm.nn.layer_norm_lstm. Units lie innermost. A sum has a fixed
order, so the same input gives the same bits.
"""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

from elstm.nn.backends.cuda.parts import count_active, one_by_root, tanh

_DYNAMIC = ["steps", "batch"]  # no binary for special values


@triton.jit
def _row_sums(i, f, g, o):
    return (tl.sum(i, 1) + tl.sum(f, 1) + tl.sum(g, 1) + tl.sum(o, 1))[:, None]


@triton.jit(do_not_specialize=_DYNAMIC)
def forward(
    z_x,  # (T, B, 4H) LN(W_x x_t; a_2, b_2) + b
    weight_t,  # (H, 4H) W_h transposed
    a_h, b_h, a_c, b_c,  # (4H,), (4H,), (H,), (H,)
    states, cells,  # (T + 1, B, H): row 0 is read, h_t and c_t are written to row t + 1
    h_n, c_n,  # (B, H) written
    gates, hats, scales,  # (T, B, 4H), (T, B, 4H), (T, B): i, f, g, o; LN(W_h h; 1, 0) and its 1/σ
    active_rows, steps, batch, eps_h, eps_c,
    H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Runs all steps on a grid (cdiv(B, BLOCK_B),); gates, hats and scales only where KEEP."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.arange(0, BLOCK_H)
    in_units = units < H
    in_tile = (rows < batch)[:, None] & in_units[None, :]
    tile = rows[:, None] * H + units[None, :]
    wide = rows[:, None] * (4 * H) + units[None, :]
    stride = batch.to(tl.int64) * H
    a_i = tl.load(a_h + units, mask=in_units, other=0.0)[None, :]
    a_f = tl.load(a_h + H + units, mask=in_units, other=0.0)[None, :]
    a_g = tl.load(a_h + 2 * H + units, mask=in_units, other=0.0)[None, :]
    a_o = tl.load(a_h + 3 * H + units, mask=in_units, other=0.0)[None, :]
    b_i = tl.load(b_h + units, mask=in_units, other=0.0)[None, :]
    b_f = tl.load(b_h + H + units, mask=in_units, other=0.0)[None, :]
    b_g = tl.load(b_h + 2 * H + units, mask=in_units, other=0.0)[None, :]
    b_o = tl.load(b_h + 3 * H + units, mask=in_units, other=0.0)[None, :]
    gamma = tl.load(a_c + units, mask=in_units, other=0.0)[None, :]
    beta = tl.load(b_c + units, mask=in_units, other=0.0)[None, :]
    h = tl.load(states + tile, mask=in_tile, other=0.0)
    c = tl.load(cells + tile, mask=in_tile, other=0.0)

    for t in tl.range(0, steps, num_stages=1):  # no load may move across the barrier
        active = count_active(active_rows, t, batch)
        live = (rows < active)[:, None] & in_units[None, :]
        z_i = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        z_f, z_g, z_o = z_i, z_i, z_i
        before = states + t * stride + rows[:, None] * H
        tl.debug_barrier()  # the program's own stores of the step before
        for k in tl.range(0, H, num_stages=1, loop_unroll_factor=4):
            h_k = tl.load(before + k, mask=(rows < active)[:, None], other=0.0)
            row = weight_t + k * (4 * H) + units
            z_i += h_k * tl.load(row, mask=in_units, other=0.0)[None, :]
            z_f += h_k * tl.load(row + H, mask=in_units, other=0.0)[None, :]
            z_g += h_k * tl.load(row + 2 * H, mask=in_units, other=0.0)[None, :]
            z_o += h_k * tl.load(row + 3 * H, mask=in_units, other=0.0)[None, :]
        mean = _row_sums(z_i, z_f, z_g, z_o) / (4 * H)
        z_i, z_f = tl.where(live, z_i - mean, 0.0), tl.where(live, z_f - mean, 0.0)
        z_g, z_o = tl.where(live, z_g - mean, 0.0), tl.where(live, z_o - mean, 0.0)
        scale = one_by_root(_row_sums(z_i * z_i, z_f * z_f, z_g * z_g, z_o * z_o) / (4 * H) + eps_h)
        z_i, z_f, z_g, z_o = z_i * scale, z_f * scale, z_g * scale, z_o * scale
        at = t * 4 * stride + wide
        if KEEP:
            tl.store(hats + at, z_i, mask=live)
            tl.store(hats + at + H, z_f, mask=live)
            tl.store(hats + at + 2 * H, z_g, mask=live)
            tl.store(hats + at + 3 * H, z_o, mask=live)
            tl.store(scales + t * batch + rows[:, None], scale, mask=(rows < active)[:, None])
        i = tl.sigmoid(z_i * a_i + b_i + tl.load(z_x + at, mask=live, other=0.0))  # (20)
        f = tl.sigmoid(z_f * a_f + b_f + tl.load(z_x + at + H, mask=live, other=0.0))
        g = tanh(z_g * a_g + b_g + tl.load(z_x + at + 2 * H, mask=live, other=0.0))
        o = tl.sigmoid(z_o * a_o + b_o + tl.load(z_x + at + 3 * H, mask=live, other=0.0))
        if KEEP:
            tl.store(gates + at, i, mask=live)
            tl.store(gates + at + H, f, mask=live)
            tl.store(gates + at + 2 * H, g, mask=live)
            tl.store(gates + at + 3 * H, o, mask=live)
        new = tl.where(live, f * c + i * g, 0.0)  # (21)
        centred = tl.where(live, new - tl.sum(new, 1)[:, None] / H, 0.0)
        scale_c = one_by_root(tl.sum(centred * centred, 1)[:, None] / H + eps_c)
        h_t = o * tanh(centred * scale_c * gamma + beta)  # (22)
        c = tl.where(live, new, c)
        h = tl.where(live, h_t, h)
        tl.store(states + (t + 1) * stride + tile, tl.where(live, h_t, 0.0), mask=in_tile)
        tl.store(cells + (t + 1) * stride + tile, c, mask=in_tile)
    tl.store(h_n + tile, h, mask=in_tile)
    tl.store(c_n + tile, c, mask=in_tile)


@triton.jit(do_not_specialize=_DYNAMIC)
def backward(
    gates, hats,  # (T, B, 4H) replaced by the gradients of z_x and of W_h h_{t-1}
    scales, cells,
    weight,  # (4H, H) W_h
    a_h, a_c, b_c,
    d_output, d_h, d_c,  # gradients of the output (T, B, H), of h_n and c_n (B, H), or None
    d_h_0, d_c_0,  # (B, H) written
    sums,  # (programs, 6 H) written: gradients of a_h (4H), a_c and b_c (H each)
    active_rows, steps, batch, eps_c,
    H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Runs all steps from the last to the first on the same grid."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.arange(0, BLOCK_H)
    in_units = units < H
    in_tile = (rows < batch)[:, None] & in_units[None, :]
    tile = rows[:, None] * H + units[None, :]
    wide = rows[:, None] * (4 * H) + units[None, :]
    stride = batch.to(tl.int64) * H
    a_i = tl.load(a_h + units, mask=in_units, other=0.0)[None, :]
    a_f = tl.load(a_h + H + units, mask=in_units, other=0.0)[None, :]
    a_g = tl.load(a_h + 2 * H + units, mask=in_units, other=0.0)[None, :]
    a_o = tl.load(a_h + 3 * H + units, mask=in_units, other=0.0)[None, :]
    gamma = tl.load(a_c + units, mask=in_units, other=0.0)[None, :]
    beta = tl.load(b_c + units, mask=in_units, other=0.0)[None, :]
    dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    dc = dh
    if d_h is not None:
        dh = tl.load(d_h + tile, mask=in_tile, other=0.0)
    if d_c is not None:
        dc = tl.load(d_c + tile, mask=in_tile, other=0.0)
    sum_i = tl.zeros((BLOCK_H,), tl.float32)
    sum_f, sum_g, sum_o, sum_gamma, sum_beta = sum_i, sum_i, sum_i, sum_i, sum_i

    for back in tl.range(0, steps, num_stages=1):
        t = steps - 1 - back
        active = count_active(active_rows, t, batch)
        is_active = (rows < active)[:, None]
        live = is_active & in_units[None, :]
        at = t * 4 * stride + wide
        i = tl.load(gates + at, mask=live, other=0.0)
        f = tl.load(gates + at + H, mask=live, other=0.0)
        g = tl.load(gates + at + 2 * H, mask=live, other=0.0)
        o = tl.load(gates + at + 3 * H, mask=live, other=0.0)
        c_before = tl.load(cells + t * stride + tile, mask=live, other=0.0)
        new = f * c_before + i * g
        centred = tl.where(live, new - tl.sum(new, 1)[:, None] / H, 0.0)
        scale_c = one_by_root(tl.sum(centred * centred, 1)[:, None] / H + eps_c)
        hat_c = centred * scale_c
        shown = tanh(hat_c * gamma + beta)

        dh_t = tl.where(live, dh, 0.0)
        if d_output is not None:
            dh_t += tl.load(d_output + t * stride + tile, mask=live, other=0.0)
        d_shown = dh_t * o * (1 - shown * shown)
        sum_beta += tl.sum(d_shown, 0)
        sum_gamma += tl.sum(d_shown * hat_c, 0)
        d_hat = d_shown * gamma
        mean = tl.sum(d_hat, 1)[:, None] / H
        along = tl.sum(d_hat * hat_c, 1)[:, None] / H
        d_cell = tl.where(live, scale_c * (d_hat - mean - hat_c * along) + dc, 0.0)
        dc = tl.where(live, d_cell * f, dc)
        di, df = d_cell * g * i * (1 - i), d_cell * c_before * f * (1 - f)
        dg, do = d_cell * i * (1 - g * g), dh_t * shown * o * (1 - o)

        hat_i = tl.load(hats + at, mask=live, other=0.0)
        hat_f = tl.load(hats + at + H, mask=live, other=0.0)
        hat_g = tl.load(hats + at + 2 * H, mask=live, other=0.0)
        hat_o = tl.load(hats + at + 3 * H, mask=live, other=0.0)
        sum_i += tl.sum(di * hat_i, 0)
        sum_f += tl.sum(df * hat_f, 0)
        sum_g += tl.sum(dg * hat_g, 0)
        sum_o += tl.sum(do * hat_o, 0)
        tl.store(gates + at, di, mask=in_tile)
        tl.store(gates + at + H, df, mask=in_tile)
        tl.store(gates + at + 2 * H, dg, mask=in_tile)
        tl.store(gates + at + 3 * H, do, mask=in_tile)
        di, df, dg, do = di * a_i, df * a_f, dg * a_g, do * a_o
        scale = tl.load(scales + t * batch + rows[:, None], mask=is_active, other=0.0)
        mean = _row_sums(di, df, dg, do) / (4 * H)
        along = _row_sums(di * hat_i, df * hat_f, dg * hat_g, do * hat_o) / (4 * H)
        tl.store(hats + at, tl.where(live, scale * (di - mean - hat_i * along), 0.0), mask=in_tile)
        tl.store(
            hats + at + H, tl.where(live, scale * (df - mean - hat_f * along), 0.0), mask=in_tile
        )
        tl.store(
            hats + at + 2 * H, tl.where(live, scale * (dg - mean - hat_g * along), 0.0),
            mask=in_tile,
        )  # fmt: skip
        tl.store(
            hats + at + 3 * H, tl.where(live, scale * (do - mean - hat_o * along), 0.0),
            mask=in_tile,
        )  # fmt: skip
        tl.debug_barrier()  # all of them, before any is read
        d_before = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        own = hats + t * 4 * stride + rows[:, None] * (4 * H)
        for k in tl.range(0, 4 * H, num_stages=1, loop_unroll_factor=8):
            d_k = tl.load(own + k, mask=is_active, other=0.0)
            d_before += d_k * tl.load(weight + k * H + units, mask=in_units, other=0.0)[None, :]
        dh = tl.where(live, d_before, dh)
    tl.store(d_h_0 + tile, dh, mask=in_tile)
    tl.store(d_c_0 + tile, dc, mask=in_tile)
    sums += tl.program_id(0) * (6 * H)
    tl.store(sums + units, sum_i, mask=in_units)
    tl.store(sums + H + units, sum_f, mask=in_units)
    tl.store(sums + 2 * H + units, sum_g, mask=in_units)
    tl.store(sums + 3 * H + units, sum_o, mask=in_units)
    tl.store(sums + 4 * H + units, sum_gamma, mask=in_units)
    tl.store(sums + 5 * H + units, sum_beta, mask=in_units)
