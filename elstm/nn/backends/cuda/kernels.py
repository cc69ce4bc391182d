"""Defines the recurrence in Triton: one launch runs all steps, forward or backward.

A program owns UNITS hidden units, with their four gates, for the full batch. So each batch
statistic is a sum within one program. Without batch statistics the batch may be cut into chunks of
BLOCK_B sequences, each with its programs and its barrier. Between two steps, programs exchange h_t
(forward) or the gradient of W_h h_{t-1} (backward) through `exchange`, two slots in global memory,
with one barrier. Programs wait for one another, so with BARRIER all must be resident at once, which
a cooperative launch ensures. Without BARRIER each launch computes one step, [t, t + 1).

Everything that does not depend on the step before is computed for all steps at once: the
projections by a matrix product, the rest by the kernels of `all_steps`.

Projections lie as (4H, T, B) and states as (H, B), with the sequences innermost. Threads then read
neighbouring sequences, and one warp has the full batch of a feature, so that batch statistics need
no shared memory. In the product, each thread sums some of the k for some sequences, and one
exchange between the warps adds them. Equation numbers are those of elstm.nn.recurrence. Each sum
has a fixed order, so the same input gives the same bits.
"""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

from elstm.nn.backends.cuda.parts import (
    arrive,
    count_active,
    normalize_backward,
    one_by_root,
    product,
    products_of_gates,
    statistics,
    tanh,
    wait,
    weight_tiles,
)

_DYNAMIC = ["t_start", "t_end", "steps", "batch_steps", "batch"]  # no binary for special values


@triton.jit(do_not_specialize=_DYNAMIC)
def forward(
    z_x,  # (4H, T, B) BN(W_x x_t) + b
    weight_hh,  # (4H, H)
    exchange,  # (chunks, 2, H, BLOCK_B): h before step t in slot t % 2, h_0 in slot 0
    states,  # (T + 1, B, H) written: h_t at row t + 1
    cells,  # (T + 1, H, B) written: c_t at row t + 1; row t_start is read
    h_n, c_n,  # (B, H) written: the state after each sequence's last step before t_end
    gamma_hh, mean_hh, var_hh,  # (4H,), (T, 4H), (T, 4H) or None. Statistics: written at
    gamma_c, beta_c, mean_c, var_c,  # t < batch_steps, read at others. (H,), (H,), (T, H), (T, H)
    active_rows,  # (T,) int32, or None: B at every step
    counter,  # int32, zero: arrivals at each chunk's barrier
    t_start, t_end, steps, batch_steps, batch, eps_hh, eps_c,
    H: tl.constexpr, CELL_NORM: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, BARRIER: tl.constexpr,
    BETWEEN_COUNTERS: tl.constexpr,
):  # fmt: skip
    """Runs steps [t_start, t_end), with cdiv(H, UNITS) programs for each chunk of the batch."""
    programs: tl.constexpr = (H + UNITS - 1) // UNITS
    chunk = tl.program_id(0) // programs
    units = tl.program_id(0) % programs * UNITS + tl.arange(0, UNITS)
    counter += chunk * BETWEEN_COUNTERS
    exchange += chunk * (2 * H * BLOCK_B)
    columns = tl.arange(0, BLOCK_B)
    rows = chunk * BLOCK_B + columns
    in_units = units < H
    in_tile = in_units[:, None] & (rows < batch)[None, :]
    stride = batch.to(tl.int64) * H  # of a step in `states` and `cells`
    of_gate = stride * steps  # of a gate in `z_x`
    z_tile = (units.to(tl.int64) * steps)[:, None] * batch + rows[None, :]
    cell_tile = units[:, None] * batch + rows[None, :]
    out_tile = rows[None, :] * H + units[:, None]
    slot_tile = units[:, None] * BLOCK_B + columns[None, :]
    of_w: tl.constexpr = H * H

    tiles_i = weight_tiles(weight_hh, units, H, 1, H, H, BLOCK_K, RESIDENT)
    tiles_f = weight_tiles(weight_hh + of_w, units, H, 1, H, H, BLOCK_K, RESIDENT)
    tiles_g = weight_tiles(weight_hh + 2 * of_w, units, H, 1, H, H, BLOCK_K, RESIDENT)
    tiles_o = weight_tiles(weight_hh + 3 * of_w, units, H, 1, H, H, BLOCK_K, RESIDENT)
    if gamma_hh is not None:
        g_i = tl.load(gamma_hh + units, mask=in_units, other=0.0)[:, None]
        g_f = tl.load(gamma_hh + H + units, mask=in_units, other=0.0)[:, None]
        g_g = tl.load(gamma_hh + 2 * H + units, mask=in_units, other=0.0)[:, None]
        g_o = tl.load(gamma_hh + 3 * H + units, mask=in_units, other=0.0)[:, None]
    if gamma_c is not None:
        g_c = tl.load(gamma_c + units, mask=in_units, other=0.0)[:, None]
        b_c = tl.load(beta_c + units, mask=in_units, other=0.0)[:, None]
    c = tl.load(cells + t_start * stride + cell_tile, mask=in_tile, other=0.0)
    h_last = tl.load(h_n + out_tile, mask=in_tile & (t_start > 0), other=0.0)

    for t in tl.range(t_start, t_end, num_stages=1):  # no load may move across the barrier
        active = count_active(active_rows, t, batch)
        in_batch = t < batch_steps
        live = in_units[:, None] & (rows < active)[None, :]
        z = z_x + t * batch + z_tile
        z_i = tl.load(z, mask=live, other=0.0)
        z_f = tl.load(z + of_gate, mask=live, other=0.0)
        z_g = tl.load(z + 2 * of_gate, mask=live, other=0.0)
        z_o = tl.load(z + 3 * of_gate, mask=live, other=0.0)
        if BARRIER:  # the first step waits for nothing
            wait(counter, (t - t_start) * programs)
        h_before = exchange + t % 2 * (H * BLOCK_B)
        wh_i, wh_f, wh_g, wh_o = products_of_gates(
            h_before, tiles_i, tiles_f, tiles_g, tiles_o, weight_hh, units, H, BLOCK_B, UNITS,
            BLOCK_K, RESIDENT,
        )  # fmt: skip
        if gamma_hh is not None:
            at = t * (4 * H) + units
            wh_i, m_i, v_i = statistics(wh_i, live, mean_hh, var_hh, at, in_units, active, in_batch)
            wh_f, m_f, v_f = statistics(
                wh_f, live, mean_hh, var_hh, at + H, in_units, active, in_batch
            )
            wh_g, m_g, v_g = statistics(
                wh_g, live, mean_hh, var_hh, at + 2 * H, in_units, active, in_batch
            )
            wh_o, m_o, v_o = statistics(
                wh_o, live, mean_hh, var_hh, at + 3 * H, in_units, active, in_batch
            )
            wh_i *= one_by_root(v_i + eps_hh)[:, None] * g_i
            wh_f *= one_by_root(v_f + eps_hh)[:, None] * g_f
            wh_g *= one_by_root(v_g + eps_hh)[:, None] * g_g
            wh_o *= one_by_root(v_o + eps_hh)[:, None] * g_o
        i, f = tl.sigmoid(z_i + wh_i), tl.sigmoid(z_f + wh_f)  # (1), (2)
        g, o = tanh(z_g + wh_g), tl.sigmoid(z_o + wh_o)

        new = f * c + i * g  # (3a), (3b)
        shown = new
        if gamma_c is not None:
            at_c = t * H + units
            hat_c, m_c, v_c = statistics(new, live, mean_c, var_c, at_c, in_units, active, in_batch)
            shown = hat_c * one_by_root(v_c + eps_c)[:, None] * g_c + b_c
        if CELL_NORM == "update":
            new = shown  # (3c)
        c = tl.where(live, new, c)
        h = tl.where(live, o * tanh(shown), 0.0)
        h_last = tl.where(live, h, h_last)
        slot = exchange + (t + 1) % 2 * (H * BLOCK_B)
        tl.store(slot + slot_tile, h, mask=in_units[:, None])
        if BARRIER:
            arrive(counter)
        # Nobody waits for the rest.
        tl.store(states + (t + 1) * stride + out_tile, h, mask=in_tile)
        tl.store(cells + (t + 1) * stride + cell_tile, c, mask=in_tile)
        if in_batch:
            if gamma_hh is not None:
                tl.store(mean_hh + at, m_i, mask=in_units)
                tl.store(mean_hh + at + H, m_f, mask=in_units)
                tl.store(mean_hh + at + 2 * H, m_g, mask=in_units)
                tl.store(mean_hh + at + 3 * H, m_o, mask=in_units)
                tl.store(var_hh + at, v_i, mask=in_units)
                tl.store(var_hh + at + H, v_f, mask=in_units)
                tl.store(var_hh + at + 2 * H, v_g, mask=in_units)
                tl.store(var_hh + at + 3 * H, v_o, mask=in_units)
            if gamma_c is not None:
                tl.store(mean_c + at_c, m_c, mask=in_units)
                tl.store(var_c + at_c, v_c, mask=in_units)

    tl.store(h_n + out_tile, h_last, mask=in_tile)
    tl.store(c_n + out_tile, c, mask=in_tile)


@triton.jit(do_not_specialize=_DYNAMIC)
def backward(
    gates,  # (4H, T, B) i, f, g, o; replaced by the gradient of z
    hats,  # (4H, T, B) BN(W_h h_{t-1}; 1, 0); replaced by the gradient of W_h h_{t-1}
    weight_hh, cells,
    exchange,  # (chunks, 2, 4H, BLOCK_B): the gradient of W_h h_{t-1} in slot t % 2
    d_output, d_h, d_c,  # gradients of the output (T, B, H), of h_n and of c_n (B, H), or None
    d_c_0,  # (B, H) written: gradient of the cell before t_start; read where t_end < T
    gamma_hh, gamma_c, beta_c, scale_hh, shift_c, scale_c,
    sums,  # (chunks, 10 H) gradients of b, γ_hh (4H each), γ_c, β_c (H each) from steps >= t_start
    active_rows, counter, t_start, t_end, steps, batch_steps, batch,
    H: tl.constexpr, CELL_NORM: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, BARRIER: tl.constexpr,
    BETWEEN_COUNTERS: tl.constexpr,
):  # fmt: skip
    """Runs steps t_end - 1 down to t_start on the same grid; slot t_end % 2 holds its gradient."""
    programs: tl.constexpr = (H + UNITS - 1) // UNITS
    chunk = tl.program_id(0) // programs
    units = tl.program_id(0) % programs * UNITS + tl.arange(0, UNITS)
    counter += chunk * BETWEEN_COUNTERS
    exchange += chunk * (8 * H * BLOCK_B)
    sums += chunk * (10 * H)
    columns = tl.arange(0, BLOCK_B)
    rows = chunk * BLOCK_B + columns
    in_units = units < H
    in_tile = in_units[:, None] & (rows < batch)[None, :]
    stride = batch.to(tl.int64) * H
    of_gate = stride * steps
    of_slot: tl.constexpr = H * BLOCK_B
    z_tile = (units.to(tl.int64) * steps)[:, None] * batch + rows[None, :]
    cell_tile = units[:, None] * batch + rows[None, :]
    out_tile = rows[None, :] * H + units[:, None]
    slot_tile = units[:, None] * BLOCK_B + columns[None, :]

    # Values that only the end of a step needs are loaded there, because registers are short.
    LATE: tl.constexpr = UNITS * BLOCK_B >= 256
    tiles = weight_tiles(weight_hh, units, 4 * H, H, 1, H, BLOCK_K, RESIDENT)
    if gamma_hh is not None:
        g_i = tl.load(gamma_hh + units, mask=in_units, other=0.0)
        g_f = tl.load(gamma_hh + H + units, mask=in_units, other=0.0)
        g_g = tl.load(gamma_hh + 2 * H + units, mask=in_units, other=0.0)
        g_o = tl.load(gamma_hh + 3 * H + units, mask=in_units, other=0.0)
    if gamma_c is not None:
        g_c = tl.load(gamma_c + units, mask=in_units, other=0.0)
        b_c = tl.load(beta_c + units, mask=in_units, other=0.0)[:, None]
    dh_n = tl.zeros((UNITS, BLOCK_B), tl.float32)
    if d_h is not None:
        dh_n = tl.load(d_h + out_tile, mask=in_tile, other=0.0)
    # The result of an earlier launch, where there was one.
    dc = tl.load(d_c_0 + out_tile, mask=in_tile & (t_end < steps), other=0.0)
    if d_c is not None:
        dc += tl.load(d_c + out_tile, mask=in_tile & (t_end == steps), other=0.0)
    summed = in_units & (t_end < steps)
    bias_i = tl.load(sums + units, mask=summed, other=0.0)
    bias_f = tl.load(sums + H + units, mask=summed, other=0.0)
    bias_g = tl.load(sums + 2 * H + units, mask=summed, other=0.0)
    bias_o = tl.load(sums + 3 * H + units, mask=summed, other=0.0)
    sum_i = tl.load(sums + 4 * H + units, mask=summed, other=0.0)
    sum_f = tl.load(sums + 5 * H + units, mask=summed, other=0.0)
    sum_g = tl.load(sums + 6 * H + units, mask=summed, other=0.0)
    sum_o = tl.load(sums + 7 * H + units, mask=summed, other=0.0)
    sum_gamma_c = tl.load(sums + 8 * H + units, mask=summed, other=0.0)
    sum_beta_c = tl.load(sums + 9 * H + units, mask=summed, other=0.0)

    for back in tl.range(0, t_end - t_start, num_stages=1):
        t = t_end - 1 - back
        active = count_active(active_rows, t, batch)
        in_batch = t < batch_steps
        live = in_units[:, None] & (rows < active)[None, :]
        at = t * batch + z_tile
        i = tl.load(gates + at, mask=live, other=0.0)
        f = tl.load(gates + at + of_gate, mask=live, other=0.0)
        g = tl.load(gates + at + 2 * of_gate, mask=live, other=0.0)
        o = tl.load(gates + at + 3 * of_gate, mask=live, other=0.0)
        if gamma_hh is not None and not LATE:
            hat_i = tl.load(hats + at, mask=live, other=0.0)
            hat_f = tl.load(hats + at + of_gate, mask=live, other=0.0)
            hat_g = tl.load(hats + at + 2 * of_gate, mask=live, other=0.0)
            hat_o = tl.load(hats + at + 3 * of_gate, mask=live, other=0.0)
            scales = scale_hh + t * (4 * H) + units
            scale_i = tl.load(scales, mask=in_units, other=0.0)
            scale_f = tl.load(scales + H, mask=in_units, other=0.0)
            scale_g = tl.load(scales + 2 * H, mask=in_units, other=0.0)
            scale_o = tl.load(scales + 3 * H, mask=in_units, other=0.0)
        if d_output is not None:
            dh_t = tl.load(d_output + t * stride + out_tile, mask=live, other=0.0)
        c_before = tl.load(cells + t * stride + cell_tile, mask=live, other=0.0)
        shown = f * c_before + i * g
        if gamma_c is not None:
            m_c = tl.load(shift_c + t * H + units, mask=in_units, other=0.0)
            s_c = tl.load(scale_c + t * H + units, mask=in_units, other=0.0)
            hat_c = (shown - m_c[:, None]) * s_c[:, None]
            shown = hat_c * g_c[:, None] + b_c
        shown = tanh(shown)

        active_next = 0
        if t + 1 < steps:
            active_next = count_active(active_rows, t + 1, batch)
        if BARRIER:
            wait(counter, back * programs)
        after = exchange + (t + 1) % 2 * (4 * of_slot)
        of_places = product(
            after, tiles, weight_hh, units, 4 * H, H, 1, H, BLOCK_B, UNITS, BLOCK_K, RESIDENT
        )
        dh = tl.sum(of_places, 1)
        dh = tl.where((rows < active_next)[None, :], dh, dh_n)
        if d_output is not None:
            dh += dh_t
        dh = tl.where(live, dh, 0.0)

        d_shown = dh * o * (1 - shown * shown)
        d_new = tl.where(live, dc, 0.0)
        if CELL_NORM == "update":
            d_shown += d_new
        if gamma_c is not None:
            d_cell, step_beta, step_gamma = normalize_backward(
                d_shown, hat_c, s_c, g_c, live, active, in_batch
            )
            sum_beta_c += step_beta
            sum_gamma_c += step_gamma
        else:
            d_cell = d_shown
        if CELL_NORM != "update":
            d_cell += d_new
        dc = tl.where(live, d_cell * f, dc)

        di = d_cell * g * i * (1 - i)
        df = d_cell * c_before * f * (1 - f)
        dg = d_cell * i * (1 - g * g)
        do = dh * shown * o * (1 - o)
        if gamma_hh is not None and LATE:
            hat_i = tl.load(hats + at, mask=live, other=0.0)
            hat_f = tl.load(hats + at + of_gate, mask=live, other=0.0)
            hat_g = tl.load(hats + at + 2 * of_gate, mask=live, other=0.0)
            hat_o = tl.load(hats + at + 3 * of_gate, mask=live, other=0.0)
            scales = scale_hh + t * (4 * H) + units
            scale_i = tl.load(scales, mask=in_units, other=0.0)
            scale_f = tl.load(scales + H, mask=in_units, other=0.0)
            scale_g = tl.load(scales + 2 * H, mask=in_units, other=0.0)
            scale_o = tl.load(scales + 3 * H, mask=in_units, other=0.0)
        wi, wf, wg, wo = di, df, dg, do
        if gamma_hh is not None:
            wi, of_i, step_i = normalize_backward(di, hat_i, scale_i, g_i, live, active, in_batch)
            wf, of_f, step_f = normalize_backward(df, hat_f, scale_f, g_f, live, active, in_batch)
            wg, of_g, step_g = normalize_backward(dg, hat_g, scale_g, g_g, live, active, in_batch)
            wo, of_o, step_o = normalize_backward(do, hat_o, scale_o, g_o, live, active, in_batch)
            sum_i += step_i
            sum_f += step_f
            sum_g += step_g
            sum_o += step_o
        else:
            of_i, of_f, of_g, of_o = tl.sum(di, 1), tl.sum(df, 1), tl.sum(dg, 1), tl.sum(do, 1)
        bias_i += of_i
        bias_f += of_f
        bias_g += of_g
        bias_o += of_o
        slot = exchange + t % 2 * (4 * of_slot) + slot_tile
        tl.store(slot, wi, mask=in_units[:, None])
        tl.store(slot + of_slot, wf, mask=in_units[:, None])
        tl.store(slot + 2 * of_slot, wg, mask=in_units[:, None])
        tl.store(slot + 3 * of_slot, wo, mask=in_units[:, None])
        if BARRIER:
            arrive(counter)
        # Nobody waits for the rest.
        tl.store(gates + at, di, mask=in_tile)
        tl.store(gates + at + of_gate, df, mask=in_tile)
        tl.store(gates + at + 2 * of_gate, dg, mask=in_tile)
        tl.store(gates + at + 3 * of_gate, do, mask=in_tile)
        tl.store(hats + at, wi, mask=in_tile)
        tl.store(hats + at + of_gate, wf, mask=in_tile)
        tl.store(hats + at + 2 * of_gate, wg, mask=in_tile)
        tl.store(hats + at + 3 * of_gate, wo, mask=in_tile)

    tl.store(d_c_0 + out_tile, dc, mask=in_tile)
    tl.store(sums + units, bias_i, mask=in_units)
    tl.store(sums + H + units, bias_f, mask=in_units)
    tl.store(sums + 2 * H + units, bias_g, mask=in_units)
    tl.store(sums + 3 * H + units, bias_o, mask=in_units)
    tl.store(sums + 4 * H + units, sum_i, mask=in_units)
    tl.store(sums + 5 * H + units, sum_f, mask=in_units)
    tl.store(sums + 6 * H + units, sum_g, mask=in_units)
    tl.store(sums + 7 * H + units, sum_o, mask=in_units)
    tl.store(sums + 8 * H + units, sum_gamma_c, mask=in_units)
    tl.store(sums + 9 * H + units, sum_beta_c, mask=in_units)
