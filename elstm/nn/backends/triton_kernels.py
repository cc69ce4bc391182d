"""The recurrence in Triton: one launch runs all steps, forward or backward.

A program owns UNITS hidden units, their four gates, for the whole batch: so every batch statistic
is a sum within one program. (Without batch statistics the batch may be cut into chunks of BLOCK_B
sequences, each with its programs and its barrier.) Its slice of W_h is loaded once and kept in shared memory (where
RESIDENT). Between two steps programs exchange h_t (forward) or the gradient of W_h h_{t-1}
(backward) through global memory, with one barrier. Programs wait for one another, so
with BARRIER they must all be resident at once: a cooperative launch sees to that. Without it, the
kernels compute the same from one launch for each step, [t, t + 1).

A tile of gates is (BLOCK_B, 4 * UNITS), column 4 u + gate, gates i, f, g, o. Equation numbers are
those of elstm.nn.recurrence. Each sum has a fixed order: the same input gives the same bits.
"""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

from elstm.nn.backends.triton_parts import (
    activations,
    arrive,
    count_alive,
    normalize_backward,
    normalized,
    product,
    tanh,
    wait,
    weight_tiles,
)

BETWEEN_COUNTERS = tl.constexpr(32)  # int32s: each chunk's in a cache line of its own
_DYNAMIC = ["t_start", "t_end", "steps", "batch_steps", "batch"]  # no binary for special values


@triton.jit(do_not_specialize=_DYNAMIC)
def forward(
    wx,  # (T, B, 4H) W_x x_t
    weight_hh, bias,  # (4H, H); (4H,) or None
    h_start,  # (B, H) the hidden state before t_start
    output,  # (T, B, H) written
    cells,  # (T + 1, B, H) written: c_t at row t + 1; row t_start is read
    gamma_ih, mean_ih, var_ih,  # (4H,), (T, 4H), (T, 4H) or None. Statistics: written at
    gamma_hh, mean_hh, var_hh,  # t < batch_steps, read at others
    gamma_c, beta_c, mean_c, var_c,  # (H,), (H,), (T, H), (T, H) or None
    alive_rows,  # (T,) int32, or None: B at every step
    counter,  # int32, zero: arrivals at each chunk's barrier
    t_start, t_end, batch_steps, batch, eps_ih, eps_hh, eps_c,
    H: tl.constexpr, CELL_NORM: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
    BARRIER: tl.constexpr,
):  # fmt: skip
    """Steps [t_start, t_end) on a grid of cdiv(H, UNITS) programs for each chunk of the batch."""
    programs: tl.constexpr = (H + UNITS - 1) // UNITS
    chunk, first_unit = tl.program_id(0) // programs, tl.program_id(0) % programs * UNITS
    counter += chunk * BETWEEN_COUNTERS
    rows = chunk * BLOCK_B + tl.arange(0, BLOCK_B)
    units = first_unit + tl.arange(0, UNITS)
    unit_mask = units < H
    column = tl.arange(0, 4 * UNITS)
    column_unit = first_unit + column // 4
    gate_mask = column_unit < H
    gates = (column % 4) * H + column_unit
    gate_tile = rows[:, None] * (4 * H) + gates[None, :]
    unit_tile = rows[:, None] * H + units[None, :]
    unit_tile_mask = (rows < batch)[:, None] & unit_mask[None, :]
    stride = batch.to(tl.int64) * H  # of a step in `output` and `cells`

    tiles = weight_tiles(weight_hh, gates * H, gate_mask, H, 1, BLOCK_K, RESIDENT)
    if bias is not None:
        b = tl.load(bias + gates, mask=gate_mask, other=0.0)[None, :]
    if gamma_ih is not None:
        g_ih = tl.load(gamma_ih + gates, mask=gate_mask, other=0.0)
    if gamma_hh is not None:
        g_hh = tl.load(gamma_hh + gates, mask=gate_mask, other=0.0)
    if gamma_c is not None:
        g_c = tl.load(gamma_c + units, mask=unit_mask, other=0.0)
        b_c = tl.load(beta_c + units, mask=unit_mask, other=0.0)
    c = tl.load(cells + t_start * stride + unit_tile, mask=unit_tile_mask, other=0.0)
    h_before = h_start

    for t in tl.range(t_start, t_end, num_stages=1):  # no load may move across the barrier
        alive = count_alive(alive_rows, t, batch)
        in_batch = t < batch_steps
        live = (rows < alive)[:, None]
        mask = live & gate_mask[None, :]
        at = t * (4 * H) + gates
        z = tl.load(wx + t * stride * 4 + gate_tile, mask=mask, other=0.0)
        if gamma_ih is not None:
            z, _ = normalized(
                z, mask, mean_ih, var_ih, at, gate_mask, eps_ih, alive, in_batch, True
            )
            z *= g_ih[None, :]
        if bias is not None:
            z += b
        if BARRIER:  # the first step waits for nothing
            wait(counter, (t - t_start) * programs)
        wh = product(
            h_before, rows, alive, tiles, weight_hh, gates * H, gate_mask,
            H, 1, BLOCK_B, 4 * UNITS, BLOCK_K, RESIDENT, PRECISION,
        )  # fmt: skip
        if gamma_hh is not None:
            wh, _ = normalized(
                wh, mask, mean_hh, var_hh, at, gate_mask, eps_hh, alive, in_batch, True
            )
            wh *= g_hh[None, :]
        i, f, g, o = activations(z + wh, BLOCK_B, UNITS)  # (1)

        live_units = live & unit_mask[None, :]
        new = f * c + i * g  # (3a), (3b)
        shown = new
        if gamma_c is not None:
            new = tl.where(live_units, new, 0.0)
            hat_c, _ = normalized(
                new, live_units, mean_c, var_c, t * H + units, unit_mask, eps_c, alive, in_batch,
                True,
            )  # fmt: skip
            shown = hat_c * g_c[None, :] + b_c[None, :]
        if CELL_NORM == "update":
            new = shown  # (3c)
        c = tl.where(live, new, c)
        h = tl.where(live, o * tanh(shown), 0.0)
        tl.store(output + t * stride + unit_tile, h, mask=unit_tile_mask)
        tl.store(cells + (t + 1) * stride + unit_tile, c, mask=unit_tile_mask)
        h_before = output + t * stride
        if BARRIER:
            arrive(counter)


@triton.jit(do_not_specialize=_DYNAMIC)
def backward(
    wx, wh,  # (T, B, 4H) W_x x_t and W_h h_{t-1}; replaced by their gradients
    weight_hh, bias, cells,
    d_output, d_h,  # (T, B, H); (B, H) gradient of h_n
    d_c,  # (B, H) gradient of the cell after t_end; replaced by that before t_start
    gamma_ih, mean_ih, var_ih, gamma_hh, mean_hh, var_hh, gamma_c, beta_c, mean_c, var_c,
    sums,  # (chunks, 14 H) added to: gradients of bias, γ_ih, γ_hh (4H each), γ_c, β_c (H each)
    alive_rows, counter,
    t_start, t_end, steps, batch_steps, batch, eps_ih, eps_hh, eps_c,
    H: tl.constexpr, CELL_NORM: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
    BARRIER: tl.constexpr,
):  # fmt: skip
    """Steps t_end - 1 down to t_start, on a like grid; wh has step t_end's gradient."""
    programs: tl.constexpr = (H + UNITS - 1) // UNITS
    chunk, first_unit = tl.program_id(0) // programs, tl.program_id(0) % programs * UNITS
    counter += chunk * BETWEEN_COUNTERS
    rows = chunk * BLOCK_B + tl.arange(0, BLOCK_B)
    units = first_unit + tl.arange(0, UNITS)
    unit_mask = units < H
    column = tl.arange(0, 4 * UNITS)
    column_unit = first_unit + column // 4
    gate_mask = column_unit < H
    gates = (column % 4) * H + column_unit
    gate_tile = rows[:, None] * (4 * H) + gates[None, :]
    unit_tile = rows[:, None] * H + units[None, :]
    sums += chunk * (14 * H)
    in_rows = (rows < batch)[:, None]
    unit_tile_mask = in_rows & unit_mask[None, :]
    stride = batch.to(tl.int64) * H

    tiles = weight_tiles(weight_hh, units, unit_mask, 4 * H, H, BLOCK_K, RESIDENT)
    if bias is not None:
        b = tl.load(bias + gates, mask=gate_mask, other=0.0)[None, :]
    sum_bias = tl.load(sums + gates, mask=gate_mask, other=0.0)
    if gamma_ih is not None:
        g_ih = tl.load(gamma_ih + gates, mask=gate_mask, other=0.0)
        sum_ih = tl.load(sums + 4 * H + gates, mask=gate_mask, other=0.0)
    if gamma_hh is not None:
        g_hh = tl.load(gamma_hh + gates, mask=gate_mask, other=0.0)
        sum_hh = tl.load(sums + 8 * H + gates, mask=gate_mask, other=0.0)
    if gamma_c is not None:
        g_c = tl.load(gamma_c + units, mask=unit_mask, other=0.0)
        b_c = tl.load(beta_c + units, mask=unit_mask, other=0.0)
        sum_gamma_c = tl.load(sums + 12 * H + units, mask=unit_mask, other=0.0)
        sum_beta_c = tl.load(sums + 13 * H + units, mask=unit_mask, other=0.0)
    dh_n = tl.load(d_h + unit_tile, mask=unit_tile_mask, other=0.0)
    dc = tl.load(d_c + unit_tile, mask=unit_tile_mask, other=0.0)

    for back in tl.range(0, t_end - t_start, num_stages=1):
        t = t_end - 1 - back
        alive = count_alive(alive_rows, t, batch)
        in_batch = t < batch_steps
        live = (rows < alive)[:, None]
        mask = live & gate_mask[None, :]
        live_units = live & unit_mask[None, :]
        wx_t = wx + t * stride * 4 + gate_tile
        wh_t = wh + t * stride * 4 + gate_tile
        zx = tl.load(wx_t, mask=mask, other=0.0)
        zh = tl.load(wh_t, mask=mask, other=0.0)
        tl.debug_barrier()  # every thread has read what another one will replace
        at = t * (4 * H) + gates
        if gamma_ih is not None:
            hat_ih, scale_ih = normalized(
                zx, mask, mean_ih, var_ih, at, gate_mask, eps_ih, alive, in_batch, False
            )
            zx = hat_ih * g_ih[None, :]
        if gamma_hh is not None:
            hat_hh, scale_hh = normalized(
                zh, mask, mean_hh, var_hh, at, gate_mask, eps_hh, alive, in_batch, False
            )
            zh = hat_hh * g_hh[None, :]
        z = zx + zh
        if bias is not None:
            z += b
        i, f, g, o = activations(z, BLOCK_B, UNITS)
        dh_t = tl.load(d_output + t * stride + unit_tile, mask=live_units, other=0.0)
        c_before = tl.load(cells + t * stride + unit_tile, mask=live_units, other=0.0)
        shown = f * c_before + i * g
        if gamma_c is not None:
            shown = tl.where(live_units, shown, 0.0)
            hat_c, scale_c = normalized(
                shown, live_units, mean_c, var_c, t * H + units, unit_mask, eps_c, alive, in_batch,
                False,
            )  # fmt: skip
            shown = hat_c * g_c[None, :] + b_c[None, :]
        shown = tanh(shown)

        alive_next = 0
        if t + 1 < steps:
            alive_next = count_alive(alive_rows, t + 1, batch)
        if BARRIER:
            wait(counter, back * programs)
        dh = product(
            wh + (t + 1) * stride * 4, rows, alive_next, tiles, weight_hh, units, unit_mask,
            4 * H, H, BLOCK_B, UNITS, BLOCK_K, RESIDENT, PRECISION,
        )  # fmt: skip
        dh = tl.where((rows < alive_next)[:, None], dh, dh_n)
        dh = tl.where(live_units, dh + dh_t, 0.0)

        d_shown = dh * o * (1 - shown * shown)
        d_new = tl.where(live_units, dc, 0.0)
        if CELL_NORM == "update":
            d_shown += d_new
        if gamma_c is not None:
            d_cell, step_beta, step_gamma = normalize_backward(
                d_shown, hat_c, scale_c, g_c, live_units, alive, in_batch
            )
            sum_beta_c += step_beta
            sum_gamma_c += step_gamma
        else:
            d_cell = d_shown
        if CELL_NORM != "update":
            d_cell += d_new
        dc = tl.where(live_units, d_cell * f, dc)

        di = d_cell * g * i * (1 - i)
        df = d_cell * c_before * f * (1 - f)
        dg = d_cell * i * (1 - g * g)
        do = dh * shown * o * (1 - o)
        dz = tl.reshape(tl.join(tl.join(di, dg), tl.join(df, do)), (BLOCK_B, 4 * UNITS))
        sum_bias += tl.sum(dz, 0)
        d_wx, d_wh = dz, dz
        if gamma_ih is not None:
            d_wx, _, step_gamma_ih = normalize_backward(
                dz, hat_ih, scale_ih, g_ih, mask, alive, in_batch
            )
            sum_ih += step_gamma_ih
        if gamma_hh is not None:
            d_wh, _, step_gamma_hh = normalize_backward(
                dz, hat_hh, scale_hh, g_hh, mask, alive, in_batch
            )
            sum_hh += step_gamma_hh
        written = in_rows & gate_mask[None, :]
        tl.store(wx_t, d_wx, mask=written)
        tl.store(wh_t, d_wh, mask=written)
        if BARRIER:
            arrive(counter)

    tl.store(d_c + unit_tile, dc, mask=unit_tile_mask)
    tl.store(sums + gates, sum_bias, mask=gate_mask)
    if gamma_ih is not None:
        tl.store(sums + 4 * H + gates, sum_ih, mask=gate_mask)
    if gamma_hh is not None:
        tl.store(sums + 8 * H + gates, sum_hh, mask=gate_mask)
    if gamma_c is not None:
        tl.store(sums + 12 * H + units, sum_gamma_c, mask=unit_mask)
        tl.store(sums + 13 * H + units, sum_beta_c, mask=unit_mask)


INTERPRETED = not isinstance(forward, triton.JITFunction)  # TRITON_INTERPRET=1: CPU tensors
