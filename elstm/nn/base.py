"""What the layers share: options, initial state, the walk over layers and directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.backends import check_backend, choose
from elstm.nn.norm import StepBatchNorm
from elstm.nn.recurrence import Recurrence
from elstm.nn.sequences import pack_like, reverse_alive, unpack

State = tuple[Tensor, Tensor]


def check_size(name: str, value: int) -> None:
    """Raises ValueError unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


class Direction(NamedTuple):
    """The weights and norms of one layer in one direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    norms: tuple[StepBatchNorm | None, ...]  # ih, hh, c, c2
    cell_norm: str


class RecurrentBase(nn.Module):
    """What the layers share: the initial state, and the walk over layers and directions.

    A mix-in for modules with torch.nn.LSTM's attributes; `_direction` gives the weights.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: Any
    batch_first: bool
    dropout: float
    bidirectional: bool
    max_steps: int
    forget_bias: float | str
    input_bias: float | str
    recurrent_init: str
    state_noise: float
    learn_initial_state: bool
    backend: str
    last_backend: str | None
    _batch_statistics: bool

    def _set_options(
        self,
        max_steps: int,
        forget_bias: float | str,
        input_bias: float | str,
        recurrent_init: str,
        state_noise: float,
        learn_initial_state: bool,
        backend: str,
    ) -> None:
        check_size("max_steps", max_steps)
        init.check_gate_bias("forget_bias", forget_bias)
        init.check_gate_bias("input_bias", input_bias)
        if recurrent_init not in init.RECURRENT_INITS:
            allowed = ", ".join(init.RECURRENT_INITS)
            raise ValueError(f"recurrent_init must be one of {allowed}; got {recurrent_init!r}")
        if not init.is_number(state_noise) or state_noise < 0:
            raise ValueError(f"state_noise must be a number >= 0, got {state_noise!r}")
        check_backend(backend)
        self.max_steps = max_steps
        self.forget_bias, self.input_bias = forget_bias, input_bias
        self.recurrent_init = recurrent_init
        self.state_noise = state_noise
        self.learn_initial_state = learn_initial_state
        self.backend = backend
        self.last_backend = None
        self._batch_statistics = False

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[str]:
        reverse = ("", "_reverse")[: self._directions]
        return [f"l{layer}{end}" for layer in range(self.num_layers) for end in reverse]

    def _add_initial_state(self, state_size: int, **factory: Any) -> None:
        """Parameters h_0 (L * D, 1, state_size) and c_0 (L * D, 1, H), zero at first."""
        rows = self.num_layers * self._directions
        self.h_0 = nn.Parameter(torch.zeros(rows, 1, state_size, **factory))
        self.c_0 = nn.Parameter(torch.zeros(rows, 1, self.hidden_size, **factory))

    def _reset_initial_state(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name in ("h_0", "c_0"):
                nn.init.zeros_(parameter)

    def _direction(self, suffix: str) -> Direction:
        raise NotImplementedError

    def _initial_state(self, hx: State | None, x: Tensor, size: int, width: int) -> State:
        """h_0 (L * D, B, width) and c_0 (L * D, B, H) in the input's order of sequences.

        Given, learned or zero, with Gaussian noise on h_0 in training. B is `size`; `x` gives
        dtype and device.
        """
        rows = self.num_layers * self._directions
        if hx is not None:
            h_0, c_0 = hx
            for name, state, features in (("h_0", h_0, width), ("c_0", c_0, self.hidden_size)):
                if state.shape != (rows, size, features):
                    raise ValueError(
                        f"{name} must have shape {(rows, size, features)} (for an unbatched input"
                        f" without the second dimension), got {tuple(state.shape)}"
                    )
        elif self.learn_initial_state:
            h_0, c_0 = self.h_0.expand(-1, size, -1), self.c_0.expand(-1, size, -1)
        else:
            h_0 = x.new_zeros(rows, size, width)
            c_0 = x.new_zeros(rows, size, self.hidden_size)
        if self.state_noise and self.training:
            h_0 = h_0 + self.state_noise * torch.randn_like(h_0)
        return h_0, c_0

    def _run(
        self, input: Tensor | PackedSequence, hx: State | None, recurrence: Recurrence | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """All layers and directions, by the backend chosen or by `recurrence` where it is given."""
        batch = unpack(input, self.batch_first, self.input_size)
        x = batch.x
        if batch.unbatched and hx is not None:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        h_0, c_0 = self._initial_state(hx, x, x.shape[1], self.hidden_size)
        if batch.order is not None:
            h_0, c_0 = h_0.index_select(1, batch.order), c_0.index_select(1, batch.order)
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for backward in (False, True)[: self._directions]:
                row = len(h_n)
                direction = self._direction(self._suffixes()[row])
                steps = reverse_alive(x, batch.sizes) if backward else x
                output, h, c = self._recur(
                    steps, batch.sizes, h_0[row], c_0[row], direction, recurrence
                )
                outputs.append(reverse_alive(output, batch.sizes) if backward else output)
                h_n.append(h)
                c_n.append(c)
            x = torch.cat(outputs, dim=2) if self.bidirectional else outputs[0]
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout)
        return pack_like(batch, x, torch.stack(h_n), torch.stack(c_n), self.batch_first)

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        h_0: Tensor,
        c_0: Tensor,
        direction: Direction,
        recurrence: Recurrence | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, size = x.shape[:2]
        norms = direction.norms
        in_batch = (self.training or self._batch_statistics) and any(n is not None for n in norms)
        if in_batch and size < 2:
            raise ValueError(
                "a training batch needs at least 2 sequences (the variance of one is zero), got 1;"
                " use larger batches, drop_last=True in the DataLoader, or call .eval()"
            )
        counts = sizes or [size] * steps
        # A step at which one sequence is left takes the population's statistics.
        batch_steps = sum(n > 1 for n in counts) if in_batch else 0
        call = (
            x,
            sizes,
            batch_steps,
            h_0,
            c_0,
            direction.weight_ih,
            direction.weight_hh,
            direction.bias,
            *(norm and norm.inputs(steps, batch_steps) for norm in norms),
            direction.cell_norm,
        )
        if recurrence is None:
            self.last_backend, recurrence = choose(self.backend, *call)
        output, h_n, c_n, statistics = recurrence(*call)
        alive = None
        for norm, batch_stats in zip(norms, statistics, strict=True):
            if norm is None or batch_stats is None or not batch_steps:
                continue
            if alive is None:
                alive = torch.tensor(counts[:batch_steps], device=x.device)
            if norm.pool is not None:
                norm.pool.add(batch_stats, alive)
            elif self.training and not self._batch_statistics:
                norm.track(batch_stats, alive)
        return output, h_n, c_n
