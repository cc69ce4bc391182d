"""Defines the Triton kernels that compute all steps at once, before and after those of `kernels`.

`before_forward` and `before_backward` run before the launch that goes step by step, and
`normalize_inputs_backward` after the backward one. A program computes one step of some features,
for the full batch or, without batch statistics, for a chunk of it.
"""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

from elstm.nn.backends.cuda.parts import count_active, normalize_backward, normalized, tanh

_DYNAMIC = ["steps", "batch_steps", "batch"]  # no binary for special values


@triton.jit(do_not_specialize=_DYNAMIC)
def before_forward(
    wx,  # (F, T, B) replaced by BN(wx) + bias
    bias, gamma_ih, mean_ih, var_ih,  # (F,) or None; (T, F) written at t < batch_steps, else read
    h_0, c_0,  # (B, H)
    states, cells,  # (T + 1, B, H), (T + 1, H, B): row 0 is written
    exchange,  # (chunks, 2, H, BLOCK_B): slot 0 is written
    counter,  # int32 (chunks, BETWEEN_COUNTERS): set to zero
    active_rows,  # (T,) int32, or None: B at every step
    steps, batch_steps, batch, eps_ih,
    F: tl.constexpr, H: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr,
    BETWEEN_COUNTERS: tl.constexpr,
):  # fmt: skip
    """Copies the initial state and normalises W_x x_t of all steps.

    The grid is (T + 1, cdiv(F, BLOCK_F), chunks). The first program of the first axis copies, and
    the others have a step each. Where nothing is to be normalised, the first axis is 1.
    """
    chunk = tl.program_id(2)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    columns = tl.arange(0, BLOCK_B)
    rows = chunk * BLOCK_B + columns
    if tl.program_id(0) == 0:
        in_units = (features < H)[:, None]
        in_tile = in_units & (rows < batch)[None, :]
        of_state = rows[None, :] * H + features[:, None]
        h = tl.load(h_0 + of_state, mask=in_tile, other=0.0)
        tl.store(states + of_state, h, mask=in_tile)
        slot = exchange + chunk * (2 * H * BLOCK_B)
        tl.store(slot + features[:, None] * BLOCK_B + columns[None, :], h, mask=in_units)
        c = tl.load(c_0 + of_state, mask=in_tile, other=0.0)
        tl.store(cells + features[:, None] * batch + rows[None, :], c, mask=in_tile)
        if tl.program_id(1) == 0:
            tl.store(counter + chunk * BETWEEN_COUNTERS, 0)
    elif gamma_ih is not None or bias is not None:
        t = tl.program_id(0) - 1
        in_features = features < F
        active = count_active(active_rows, t, batch)
        mask = in_features[:, None] & (rows < active)[None, :]
        at = (features.to(tl.int64) * steps + t)[:, None] * batch + rows[None, :]
        x = tl.load(wx + at, mask=mask, other=0.0)
        if gamma_ih is not None:
            x, _, _ = normalized(
                x, mask, mean_ih, var_ih, t * F + features, in_features, eps_ih, active,
                t < batch_steps, True,
            )  # fmt: skip
            x *= tl.load(gamma_ih + features, mask=in_features, other=0.0)[:, None]
        if bias is not None:
            x += tl.load(bias + features, mask=in_features, other=0.0)[:, None]
        tl.store(wx + at, x, mask=mask)


@triton.jit(do_not_specialize=[*_DYNAMIC, "t_first", "wx_steps"])
def normalize_inputs_backward(
    dz,  # (F, T, B) replaced by the gradient of wx
    wx,  # (F, wx_steps, B), of steps from t_first on
    gamma_ih, mean_ih, var_ih,  # (F,); (T, F), read at t >= batch_steps
    d_gamma,  # (chunks, T, F) written
    active_rows, t_first, wx_steps, steps, batch_steps, batch, eps_ih,
    F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Replaces the gradient of BN(wx) by that of wx.

    The grid is (wx_steps, cdiv(F, BLOCK_F), chunks).
    """
    t = t_first + tl.program_id(0)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_features = features < F
    active = count_active(active_rows, t, batch)
    mask = in_features[:, None] & (rows < active)[None, :]
    wide = features.to(tl.int64)
    at = (wide * steps + t)[:, None] * batch + rows[None, :]
    x_at = (wide * wx_steps + tl.program_id(0))[:, None] * batch + rows[None, :]
    in_batch = t < batch_steps
    x = tl.load(wx + x_at, mask=mask, other=0.0)
    hat, _, scale = normalized(
        x, mask, mean_ih, var_ih, t * F + features, in_features, eps_ih, active, in_batch, False
    )
    dy = tl.load(dz + at, mask=mask, other=0.0)
    g = tl.load(gamma_ih + features, mask=in_features, other=0.0)
    dx, _, of_gamma = normalize_backward(dy, hat, scale, g, mask, active, in_batch)
    tl.store(dz + at, dx, mask=mask)
    sums = d_gamma + (tl.program_id(2) * steps + t).to(tl.int64) * F
    tl.store(sums + features, of_gamma, mask=in_features)


@triton.jit
def _gate(
    wx, wh, at, mask, gate: tl.constexpr, t, units, in_units, bias,
    gamma_ih, mean_ih, var_ih, eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh,
    active, in_batch, H: tl.constexpr,
):  # fmt: skip
    """Returns z of a gate; writes the normalised W_h h to wh, 1 / sqrt(var + eps) to scale_hh."""
    features = gate * H + units
    z = tl.load(wx + at, mask=mask, other=0.0)
    if gamma_ih is not None:
        z, _, _ = normalized(
            z, mask, mean_ih, var_ih, t * (4 * H) + features, in_units, eps_ih, active, in_batch,
            False,
        )  # fmt: skip
        z *= tl.load(gamma_ih + features, mask=in_units, other=0.0)[:, None]
    if bias is not None:
        z += tl.load(bias + features, mask=in_units, other=0.0)[:, None]
    x = tl.load(wh + at, mask=mask, other=0.0)
    if gamma_hh is not None:
        x, _, scale = normalized(
            x, mask, mean_hh, var_hh, t * (4 * H) + features, in_units, eps_hh, active, in_batch,
            False,
        )  # fmt: skip
        tl.store(wh + at, x, mask=mask)
        tl.store(scale_hh + t * (4 * H) + features, scale, mask=in_units)
        x *= tl.load(gamma_hh + features, mask=in_units, other=0.0)[:, None]
    return z + x


@triton.jit(do_not_specialize=_DYNAMIC)
def before_backward(
    wx, wh,  # (4H, T, B) W_x x_t and W_h h_{t-1}; replaced by (i, f, g, o) and BN(wh; 1, 0)
    bias, cells, gamma_ih, mean_ih, var_ih, gamma_hh, mean_hh, var_hh, gamma_c, mean_c, var_c,
    scale_hh,  # (T, 4H) written: 1 / sqrt(var + eps)
    shift_c, scale_c,  # (T, H) written: mean and 1 / sqrt(var + eps)
    counter,  # int32 (chunks, BETWEEN_COUNTERS): set to zero
    active_rows, steps, batch_steps, batch, eps_ih, eps_hh, eps_c,
    H: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr, BETWEEN_COUNTERS: tl.constexpr,
):  # fmt: skip
    """Computes what the backward pass needs of each step.

    The grid is (T, cdiv(H, BLOCK_F), chunks).
    """
    t = tl.program_id(0)
    if (t == 0) & (tl.program_id(1) == 0):
        tl.store(counter + tl.program_id(2) * BETWEEN_COUNTERS, 0)
    units = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_units = units < H
    active = count_active(active_rows, t, batch)
    in_batch = t < batch_steps
    mask = in_units[:, None] & (rows < active)[None, :]
    at = (units.to(tl.int64) * steps + t)[:, None] * batch + rows[None, :]
    of_gate = batch.to(tl.int64) * H * steps
    z_i = _gate(
        wx, wh, at, mask, 0, t, units, in_units, bias, gamma_ih, mean_ih, var_ih, eps_ih,
        gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, active, in_batch, H,
    )  # fmt: skip
    z_f = _gate(
        wx, wh, at + of_gate, mask, 1, t, units, in_units, bias, gamma_ih, mean_ih, var_ih, eps_ih,
        gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, active, in_batch, H,
    )  # fmt: skip
    z_g = _gate(
        wx, wh, at + 2 * of_gate, mask, 2, t, units, in_units, bias, gamma_ih, mean_ih, var_ih,
        eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, active, in_batch, H,
    )  # fmt: skip
    z_o = _gate(
        wx, wh, at + 3 * of_gate, mask, 3, t, units, in_units, bias, gamma_ih, mean_ih, var_ih,
        eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, active, in_batch, H,
    )  # fmt: skip
    i, f, g, o = tl.sigmoid(z_i), tl.sigmoid(z_f), tanh(z_g), tl.sigmoid(z_o)  # (2)
    tl.store(wx + at, i, mask=mask)
    tl.store(wx + at + of_gate, f, mask=mask)
    tl.store(wx + at + 2 * of_gate, g, mask=mask)
    tl.store(wx + at + 3 * of_gate, o, mask=mask)
    if gamma_c is not None:
        cell = cells + batch.to(tl.int64) * H * t + units[:, None] * batch + rows[None, :]
        new = f * tl.load(cell, mask=mask, other=0.0) + i * g
        of_step = t * H + units
        _, m, scale = normalized(
            new, mask, mean_c, var_c, of_step, in_units, eps_c, active, in_batch, False
        )
        tl.store(shift_c + of_step, m, mask=in_units)
        tl.store(scale_c + of_step, scale, mask=in_units)
