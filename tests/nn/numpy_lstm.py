"""The batch-normalised LSTM in NumPy float64, from the equations alone: what elstm.nn is held to.

Nothing here is taken from elstm.nn but the names of a layer's parameters. Sequences are handled
through their lengths and a mask, in the order given; every step's normalised values are kept, so
that statistics can be taken from the values themselves instead of from merged moments.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence

Values = dict[str, list[np.ndarray]]  # norm's name -> for each step in batch mode, (alive, F)


class Result(NamedTuple):
    output: np.ndarray  # (T, B, D * H), zero after a sequence's end
    h_n: np.ndarray  # (L * D, B, H)
    c_n: np.ndarray
    values: Values


def to_numpy(layer):
    """The layer's parameters and buffers in float64."""
    return {name: tensor.double().numpy().copy() for name, tensor in layer.state_dict().items()}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def population_row(state, name, t):
    """The row of population statistics for step t: its own, or the last one that was tracked."""
    tracked = int((state[f"{name}.num_batches_tracked"] > 0).sum())
    rows = len(state[f"{name}.num_batches_tracked"])
    return min(t, (tracked or rows) - 1)


def lstm(layer, x, h_0=None, c_0=None, *, lengths=None, batch_mode=None, state=None) -> Result:
    """All layers and directions of an elstm.nn layer, on x (T, B, I) in float64.

    batch_mode: batch statistics (default: layer.training); a step at which one sequence is alive
    uses the population's. state: parameters in place of the layer's own.
    """
    state = to_numpy(layer) if state is None else state
    batch_mode = layer.training if batch_mode is None else batch_mode
    steps, size, _ = x.shape
    lengths = np.full(size, steps) if lengths is None else np.asarray(lengths)
    directions = 2 if layer.bidirectional else 1
    shape = (layer.num_layers * directions, size, layer.hidden_size)
    learned = layer.learn_initial_state
    if h_0 is None:
        h_0 = np.broadcast_to(state["h_0"], shape) if learned else np.zeros(shape)
        c_0 = np.broadcast_to(state["c_0"], shape) if learned else np.zeros(shape)
    values: Values = defaultdict(list)
    run = partial(one_direction, layer, state, lengths, batch_mode, values)
    h_n, c_n = np.zeros(shape), np.zeros(shape)
    row = 0
    for k in range(layer.num_layers):
        outputs = []
        for end in ("", "_reverse")[:directions]:
            x_in = turn_round(x, lengths) if end else x
            output, h_n[row], c_n[row] = run(f"l{k}{end}", x_in, h_0[row], c_0[row])
            outputs.append(turn_round(output, lengths) if end else output)
            row += 1
        x = np.concatenate(outputs, axis=2)
    return Result(x, h_n, c_n, dict(values))


def turn_round(x, lengths):
    turned = np.zeros_like(x)
    for b, n in enumerate(lengths):
        turned[:n, b] = x[:n, b][::-1]
    return turned


def one_direction(layer, state, lengths, batch_mode, values, suffix, x, h, c):
    bias = state.get(f"bias_{suffix}", 0.0)
    if f"bias_ih_{suffix}" in state:  # the plain LSTM has torch's two biases
        bias = state[f"bias_ih_{suffix}"] + state[f"bias_hh_{suffix}"]
    w_x, w_h = state[f"weight_ih_{suffix}"], state[f"weight_hh_{suffix}"]
    cell_norm = getattr(layer, "cell_norm", "none")
    units = w_h.shape[1]
    output = np.zeros((len(x), x.shape[1], units))
    h, c = h.copy(), c.copy()
    for t in range(len(x)):
        alive = lengths > t
        in_batch = batch_mode and alive.sum() > 1

        def norm(name, v, t=t, in_batch=in_batch):
            name = f"{name}_{suffix}"
            if f"{name}.running_mean" not in state:
                return v
            if in_batch:
                values[name].append(v)
            else:
                row = population_row(state, name, t)
            mean = v.mean(0) if in_batch else state[f"{name}.running_mean"][row]
            beta = state.get(f"{name}.bias", 0.0)
            if cell_norm == "center" and "norm_c" in name:
                return v - mean + beta
            var = ((v - mean) ** 2).mean(0) if in_batch else state[f"{name}.running_var"][row]
            gamma = state[f"{name}.weight"]
            return (v - mean) / np.sqrt(var + layer.get_submodule(name).eps) * gamma + beta

        z = norm("norm_hh", h[alive] @ w_h.T) + norm("norm_ih", x[t, alive] @ w_x.T) + bias
        i, f, g, o = (z[:, k * units : (k + 1) * units] for k in range(4))
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        old = c[alive]
        if cell_norm == "none":
            new = f * old + i * g
            hidden = o * np.tanh(new)
        elif cell_norm == "output":
            new = f * old + i * g
            hidden = o * np.tanh(norm("norm_c", new))
        elif cell_norm in ("update", "center"):
            new = norm("norm_c", f * old + i * g)
            hidden = o * np.tanh(new)
        elif cell_norm == "increment":
            new = f * old + norm("norm_c", i * g)
            hidden = o * np.tanh(new)
        elif cell_norm == "terms":
            new = norm("norm_c", f * old) + norm("norm_c2", i * g)
            hidden = o * np.tanh(new)
        elif cell_norm == "carry":
            new = f * norm("norm_c", old) + i * g
            hidden = o * np.tanh(new)
        elif cell_norm == "update_output":
            new = norm("norm_c", f * old + i * g)
            hidden = o * np.tanh(norm("norm_c2", new))
        else:
            raise AssertionError(cell_norm)
        h[alive], c[alive], output[t, alive] = hidden, new, hidden
    return output, h, c


def rows_of(per_step, max_steps):
    """The values of each row of statistics: the last row has all steps from max_steps - 1 on."""
    rows = [[v] for v in per_step[: max_steps - 1]]
    if len(per_step) >= max_steps:
        rows.append(per_step[max_steps - 1 :])
    return rows


def track(state, values: Values, max_steps, momentum):
    """Moves the running statistics in `state` by one training batch."""
    for name, per_step in values.items():
        for row, parts in enumerate(rows_of(per_step, max_steps)):
            v = np.concatenate(parts)
            state[f"{name}.num_batches_tracked"][row] += 1
            rate = momentum or 1 / state[f"{name}.num_batches_tracked"][row]
            moments = {"running_mean": v.mean(0), "running_var": v.var(0, ddof=1)}
            for kind, new in moments.items():
                if f"{name}.{kind}" in state:
                    old = state[f"{name}.{kind}"]
                    old[row] = (1 - rate) * old[row] + rate * new


def pool(state, batches: list[Values], max_steps):
    """Replaces the statistics in `state` by those of all the batches' values together."""
    for name in batches[0]:
        per_batch = [rows_of(values[name], max_steps) for values in batches]
        state[f"{name}.num_batches_tracked"][:] = 0
        state[f"{name}.running_mean"][:] = 0
        scaled = f"{name}.running_var" in state
        if scaled:
            state[f"{name}.running_var"][:] = 1
        for row in range(max(len(rows) for rows in per_batch)):
            reached = [rows[row] for rows in per_batch if row < len(rows)]
            v = np.concatenate([part for parts in reached for part in parts])
            state[f"{name}.running_mean"][row] = v.mean(0)
            if scaled:
                state[f"{name}.running_var"][row] = v.var(0)
            state[f"{name}.num_batches_tracked"][row] = len(reached)


# --- what the tests of the layers share


def randomize(layer, seed=0, rows_tracked=None):
    """Random parameters and statistics, so that no part of an equation can hide behind a 0 or a 1.

    rows_tracked: rows of statistics that training has reached (default all).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like):
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return noise.to(like)

    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(0.6 * normal(parameter))
            if "norm_" in name and name.endswith(".weight"):
                parameter.add_(1.0)
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.2 + normal(buffer).square())
            elif name.endswith(("num_batches_tracked", "num_batches_trained")):
                reached = buffer.shape[0] if rows_tracked is None else rows_tracked
                buffer.zero_()[:reached] = 3
    return layer


def sequences(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def packed(x, lengths):
    """Returns an unsorted PackedSequence of x (T, B, I)."""
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)


def assert_close(actual, expected, rtol=1e-10, atol=1e-11):
    """Tensors (or arrays) against arrays, with shapes."""
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
