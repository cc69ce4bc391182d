"""Computes recurrent layers in eval mode, for programs of torch.export and ONNX.

The programs need torch alone to run. In eval mode a normalisation is an affine map of each step:

    y_t = x_t * scale_t + shift_t
    scale_t = γ / sqrt(var_t + eps)        shift_t = β - mean_t * scale_t

It is therefore folded into two tensors, for W_x x_t together with the bias. The time loop is
torch's scan. It is one node of the graph for any number of steps, and becomes ONNX's Scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elstm.nn import GRU, LSTM, LayerNormLSTM
from elstm.nn.base import RecurrentBase
from elstm.nn.bn_lstm import NormalizedLSTM
from elstm.nn.norm import StepBatchNorm
from elstm.training.torch_private import scan

State = list[Tensor]
Step = Callable[[State, State], State]


class Layers(nn.Module):
    """Runs all layers and directions: x (T, B, F) to the last layer's h_T (B, D * H).

    Args:
        rnn: the layers of the model.
        steps: number of steps with separate statistics; later ones use those of the last.

    Raises:
        TypeError: they are of a kind that is not known here.
    """

    def __init__(self, rnn: RecurrentBase, steps: int) -> None:
        super().__init__()
        kinds = {
            LSTM: _FoldedLSTM,
            NormalizedLSTM: _FoldedLSTM,
            LayerNormLSTM: _LayerNormLSTM,
            GRU: _GRU,
        }
        kind = next((kinds[base] for base in type(rnn).__mro__ if base in kinds), None)
        if kind is None:
            raise TypeError(f"{type(rnn).__name__} is not known to the export")
        self.directions = 2 if rnn.bidirectional else 1
        self.num_layers = rnn.num_layers
        self.cells = nn.ModuleList(
            kind(rnn._direction(suffix), steps) for suffix in rnn._suffixes()
        )
        for name, features in rnn._state_sizes.items():
            rows = self.num_layers * self.directions
            zeros = torch.zeros(rows, 1, features)
            self.register_buffer(name, getattr(rnn, name) if rnn.learn_initial_state else zeros)
        self.names = tuple(rnn._state_sizes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the state after the last step, or after `lengths` (B,) steps of each sequence."""
        size = x.shape[1]
        active = back = None
        if lengths is not None:
            t = torch.arange(x.shape[0]).unsqueeze(1)
            active = t < lengths  # (T, B)
            back = torch.where(active, lengths - 1 - t, t).unsqueeze(2)
        for layer in range(self.num_layers):
            outputs, last = [], []
            for direction in range(self.directions):
                row = layer * self.directions + direction
                state = [getattr(self, name)[row].expand(size, -1).clone() for name in self.names]
                output, h = self._run(row, _turned(x, back) if direction else x, state, active)
                outputs.append(_turned(output, back) if direction else output)
                last.append(h)
            x = torch.cat(outputs, dim=2)
        return torch.cat(last, dim=1)

    def _run(
        self, row: int, x: Tensor, state: State, active: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the output (T, B, H) and the last h; the state of a sequence that ended stays.

        The output past a sequence's end is undefined, and no later layer reads it.
        """
        cell: Any = self.cells[row]
        step = cell.step

        def body(carry: State, inputs: State) -> tuple[State, State]:
            carry = step(carry, inputs)
            return [part.clone() for part in carry], [carry[0].clone()]

        def masked(carry: State, inputs: State) -> tuple[State, State]:
            now, *rest = inputs
            new = step(carry, rest)
            carry = [torch.where(now, a, b) for a, b in zip(new, carry, strict=True)]
            return carry, [carry[0].clone()]

        inputs = cell.inputs(x)
        if active is None:
            (h, *_), (output,) = scan(body, state, inputs)
        else:
            (h, *_), (output,) = scan(masked, state, [active.unsqueeze(2), *inputs])
        return output, h


def _turned(x: Tensor, back: Tensor | None) -> Tensor:
    """Reverses each sequence of x (T, B, F), within its length by the indices `back` (T, B, 1)."""
    return x.flip(0) if back is None else x.gather(0, back.expand(-1, -1, x.shape[2]))


class _FoldedLSTM(nn.Module):
    """Computes the equations of elstm.nn.recurrence in eval mode, with or without norms."""

    weight_ih: Tensor
    weight_hh: Tensor
    scale_ih: Tensor
    shift: Tensor

    def __init__(self, direction: Any, steps: int) -> None:
        super().__init__()
        weight_ih, weight_hh, bias, norms, self.cell_norm = direction
        (scale_ih, shift_ih), (scale_hh, shift_hh) = (_fold(norm, steps) for norm in norms[:2])
        shift = shift_ih + shift_hh + (0 if bias is None else bias)
        zeros = torch.zeros(steps, len(weight_ih))
        parts = {
            "weight_ih": weight_ih,
            "weight_hh": weight_hh,
            "scale_ih": zeros + scale_ih,
            "shift": zeros + shift,
        }
        varying = [] if norms[1] is None else [scale_hh]  # differs from step to step
        for norm in norms[2:]:
            if norm is not None:
                varying += _fold(norm, steps)
        self.names = tuple(f"varying_{i}" for i in range(len(varying)))
        parts |= dict(zip(self.names, varying, strict=True))
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.scaled = norms[1] is not None
        self.first = 2 if self.scaled else 1  # index of the first input of the cell's norms

    def inputs(self, x: Tensor) -> State:
        def rows(part: Tensor) -> Tensor:
            steps, known = x.shape[0], part.shape[0]
            if isinstance(steps, int) and steps == known:
                return part
            return part[torch.arange(steps).clamp(max=known - 1)]

        scale_ih, shift = rows(self.scale_ih).unsqueeze(1), rows(self.shift).unsqueeze(1)
        wx = F.linear(x, self.weight_ih) * scale_ih + shift
        return [wx, *(rows(getattr(self, name)) for name in self.names)]

    def step(self, state: State, inputs: State) -> State:
        h, c = state
        wh = F.linear(h, self.weight_hh)
        z = inputs[0] + (wh * inputs[1] if self.scaled else wh)
        i, f, g, o = z.chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        kind = self.cell_norm

        def bn(x: Tensor, number: int = 0) -> Tensor:
            at = self.first + 2 * number
            return x * inputs[at] + inputs[at + 1]

        if kind == "increment":
            c = f * c + bn(i * g)
        elif kind == "terms":
            c = bn(f * c) + bn(i * g, 1)
        elif kind == "carry":
            c = f * bn(c) + i * g
        else:
            c = f * c + i * g
            if kind in ("update", "update_output", "center"):
                c = bn(c)
        shown = bn(c) if kind == "output" else bn(c, 1) if kind == "update_output" else c
        return [o * shown.tanh(), c]


def _fold(norm: StepBatchNorm | None, steps: int) -> tuple[Any, Any]:
    """Returns scale and shift of each step, (T, F); 1 and 0 without a norm."""
    if norm is None:
        return 1.0, 0.0
    given = norm.inputs(steps, 0, 0)
    assert given.mean is not None
    # In float64, because the sum cancels where mean * scale is large.
    scale = torch.ones_like(given.mean, dtype=torch.float64)
    if given.weight is not None and given.var is not None:
        scale = given.weight.double() * torch.rsqrt(given.var.double() + given.eps)
    shift = -given.mean.double() * scale
    if given.bias is not None:
        shift = shift + given.bias
    return scale.float(), shift.float()


class _LayerNormLSTM(nn.Module):
    """Computes the equations of LayerNormLSTM."""

    def __init__(self, direction: Any, steps: int) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh, bias, self.ih, self.hh, self.c = direction
        self.register_buffer("bias", torch.zeros(()) if bias is None else bias)

    def inputs(self, x: Tensor) -> State:
        return [self.ih(F.linear(x, self.weight_ih)) + self.bias]

    def step(self, state: State, inputs: State) -> State:
        i, f, g, o = (self.hh(F.linear(state[0], self.weight_hh)) + inputs[0]).chunk(4, dim=1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * self.c(c).tanh(), c]


class _GRU(nn.Module):
    """Computes the equations of GRU."""

    def __init__(self, direction: Any, steps: int) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = direction

    def inputs(self, x: Tensor) -> State:
        return [F.linear(x, self.weight_ih, self.bias_ih)]

    def step(self, state: State, inputs: State) -> State:
        (h,), (wx,) = state, inputs
        x_r, x_z, x_n = wx.chunk(3, dim=1)
        h_r, h_z, h_n = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        return [(1 - z) * (x_n + r * h_n).tanh() + z * h]
