"""Kernels that take all steps side by side: before and after those of triton_kernels.

`normalize_inputs` before the forward launch, `prepare` before the backward one, and
`normalize_inputs_backward` after it. A program has one step and some features, with the whole batch
or, without batch statistics, a chunk of it.
"""

# mypy: ignore-errors
# Triton's language has types of its own.

import triton
import triton.language as tl

from elstm.nn.backends.triton_parts import count_alive, normalize_backward, normalized, tanh

_DYNAMIC = ["steps", "batch_steps", "batch"]  # no binary for special values


@triton.jit(do_not_specialize=_DYNAMIC)
def normalize_inputs(
    wx,  # (F, T, B) replaced by BN(wx) + bias
    bias, gamma, mean, var,  # (F,) or None; (T, F), written at t < batch_steps, read at others
    alive_rows,  # (T,) int32, or None: B at every step
    steps, batch_steps, batch, eps,
    F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """On a grid (T, cdiv(F, BLOCK_F), chunks)."""
    t = tl.program_id(0)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_features = features < F
    alive = count_alive(alive_rows, t, batch)
    mask = in_features[:, None] & (rows < alive)[None, :]
    at = (features.to(tl.int64) * steps + t)[:, None] * batch + rows[None, :]
    x = tl.load(wx + at, mask=mask, other=0.0)
    if gamma is not None:
        x, _, _ = normalized(
            x, mask, mean, var, t * F + features, in_features, eps, alive, t < batch_steps, True
        )
        x *= tl.load(gamma + features, mask=in_features, other=0.0)[:, None]
    if bias is not None:
        x += tl.load(bias + features, mask=in_features, other=0.0)[:, None]
    tl.store(wx + at, x, mask=mask)


@triton.jit(do_not_specialize=[*_DYNAMIC, "t_first", "wx_steps"])
def normalize_inputs_backward(
    dz,  # (F, T, B) replaced by the gradient of wx
    wx,  # (F, wx_steps, B), of steps from t_first on
    gamma, mean, var,  # (F,); (T, F), read at t >= batch_steps
    d_gamma,  # (T, F) written
    alive_rows, t_first, wx_steps, steps, batch_steps, batch, eps,
    F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """On a grid (wx_steps, cdiv(F, BLOCK_F), chunks); d_gamma (chunks, T, F)."""
    t = t_first + tl.program_id(0)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_features = features < F
    alive = count_alive(alive_rows, t, batch)
    mask = in_features[:, None] & (rows < alive)[None, :]
    wide = features.to(tl.int64)
    at = (wide * steps + t)[:, None] * batch + rows[None, :]
    x_at = (wide * wx_steps + tl.program_id(0))[:, None] * batch + rows[None, :]
    in_batch = t < batch_steps
    x = tl.load(wx + x_at, mask=mask, other=0.0)
    hat, _, scale = normalized(
        x, mask, mean, var, t * F + features, in_features, eps, alive, in_batch, False
    )
    dy = tl.load(dz + at, mask=mask, other=0.0)
    g = tl.load(gamma + features, mask=in_features, other=0.0)
    dx, _, of_gamma = normalize_backward(dy, hat, scale, g, mask, alive, in_batch)
    tl.store(dz + at, dx, mask=mask)
    sums = d_gamma + (tl.program_id(2) * steps + t).to(tl.int64) * F
    tl.store(sums + features, of_gamma, mask=in_features)


@triton.jit
def _gate(
    wx, wh, at, mask, gate: tl.constexpr, t, units, in_units, bias,
    gamma_ih, mean_ih, var_ih, eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh,
    alive, in_batch, H: tl.constexpr,
):  # fmt: skip
    """z of a gate; leaves the normalised W_h h in `wh` and its 1 / sqrt(var + eps) in scale_hh."""
    features = gate * H + units
    z = tl.load(wx + at, mask=mask, other=0.0)
    if gamma_ih is not None:
        z, _, _ = normalized(
            z, mask, mean_ih, var_ih, t * (4 * H) + features, in_units, eps_ih, alive, in_batch,
            False,
        )  # fmt: skip
        z *= tl.load(gamma_ih + features, mask=in_units, other=0.0)[:, None]
    if bias is not None:
        z += tl.load(bias + features, mask=in_units, other=0.0)[:, None]
    x = tl.load(wh + at, mask=mask, other=0.0)
    if gamma_hh is not None:
        x, _, scale = normalized(
            x, mask, mean_hh, var_hh, t * (4 * H) + features, in_units, eps_hh, alive, in_batch,
            False,
        )  # fmt: skip
        tl.store(wh + at, x, mask=mask)
        tl.store(scale_hh + t * (4 * H) + features, scale, mask=in_units)
        x *= tl.load(gamma_hh + features, mask=in_units, other=0.0)[:, None]
    return z + x


@triton.jit(do_not_specialize=_DYNAMIC)
def prepare(
    wx, wh,  # (4H, T, B) W_x x_t and W_h h_{t-1}; replaced by (i, f, g, o) and BN(wh; 1, 0)
    bias, cells, gamma_ih, mean_ih, var_ih, gamma_hh, mean_hh, var_hh, gamma_c, mean_c, var_c,
    scale_hh,  # (T, 4H) written: 1 / sqrt(var + eps)
    shift_c, scale_c,  # (T, H) written: mean and 1 / sqrt(var + eps)
    alive_rows, steps, batch_steps, batch, eps_ih, eps_hh, eps_c,
    H: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of each step, on a grid (T, cdiv(H, BLOCK_F), chunks)."""
    t = tl.program_id(0)
    units = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_units = units < H
    alive = count_alive(alive_rows, t, batch)
    in_batch = t < batch_steps
    mask = in_units[:, None] & (rows < alive)[None, :]
    at = (units.to(tl.int64) * steps + t)[:, None] * batch + rows[None, :]
    of_gate = batch.to(tl.int64) * H * steps
    z_i = _gate(
        wx, wh, at, mask, 0, t, units, in_units, bias, gamma_ih, mean_ih, var_ih, eps_ih,
        gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, alive, in_batch, H,
    )  # fmt: skip
    z_f = _gate(
        wx, wh, at + of_gate, mask, 1, t, units, in_units, bias, gamma_ih, mean_ih, var_ih, eps_ih,
        gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, alive, in_batch, H,
    )  # fmt: skip
    z_g = _gate(
        wx, wh, at + 2 * of_gate, mask, 2, t, units, in_units, bias, gamma_ih, mean_ih, var_ih,
        eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, alive, in_batch, H,
    )  # fmt: skip
    z_o = _gate(
        wx, wh, at + 3 * of_gate, mask, 3, t, units, in_units, bias, gamma_ih, mean_ih, var_ih,
        eps_ih, gamma_hh, mean_hh, var_hh, eps_hh, scale_hh, alive, in_batch, H,
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
            new, mask, mean_c, var_c, of_step, in_units, eps_c, alive, in_batch, False
        )
        tl.store(shift_c + of_step, m, mask=in_units)
        tl.store(scale_c + of_step, scale, mask=in_units)
