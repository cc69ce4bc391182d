"""Defines the GRU, by torch's code or as a plain loop over its equations."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.backends.compiling import untraced
from elstm.nn.backends.plain import why_unreadable
from elstm.nn.base import RecurrentBase, State, check_auto_or_reference, check_shape
from elstm.nn.recurrence import at_least_float32, check_dtype
from elstm.nn.sequences import check_input, keep_ended, mostly_padding, zero_ended


class GRUCall(NamedTuple):
    """Holds the arguments of the recurrence of a GRU: one layer in one direction.

    Attributes:
        x: (T, B, I). Row b is active at step t where b < batch_sizes[t]; other rows are ignored.
        batch_sizes: T numbers that do not increase, the first of them B; None: B at every step.
        h_0: (B, H).
        weight_ih, weight_hh: (3H, I) and (3H, H), gate order r, z, n.
        bias_ih, bias_hh: (3H,) each, or None.
    """

    x: Tensor
    batch_sizes: list[int] | None
    h_0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def gru_recurrence(
    call: GRUCall, *, states: list[tuple[Tensor, ...]] | None = None
) -> tuple[Tensor, Tensor]:
    """Runs one layer in one direction; the equations are those of GRU.

    Args:
        call: what to run.
        states: a list to which every (h_t,) of the rows active at t is appended, for diagnostics.

    Returns:
        output (T, B, H), zero where a row is not active; h_n (B, H).
    """
    x, batch_sizes, h_0, weight_ih, weight_hh, bias_ih, bias_hh = call
    batch = x.shape[1]
    projected = F.linear(x, weight_ih, bias_ih)  # W_x x_t + b_x for all t at once
    dtype, state_dtype = projected.dtype, at_least_float32(projected.dtype)
    h_all = h_0.to(state_dtype)
    outputs = []
    for t, wx in enumerate(projected.unbind(0)):
        active = batch if batch_sizes is None else batch_sizes[t]
        h = h_all[:active]
        wh = F.linear(h.to(weight_hh.dtype), weight_hh, bias_hh)
        x_r, x_z, x_n = wx[:active].to(state_dtype).chunk(3, dim=1)
        h_r, h_z, h_n = wh.to(state_dtype).chunk(3, dim=1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        h = (1 - z) * n + z * h
        if states is not None:
            states.append((h,))
        h_all = keep_ended(h, h_all)
        outputs.append(zero_ended(h, batch))
    return torch.stack(outputs).to(dtype), h_all.to(dtype)


def _padded_by_torch(call: GRUCall) -> tuple[Tensor, Tensor]:
    """Does what gru_recurrence does with torch's GRU, for sequences of several lengths on a CPU.

    Steps past the end of a sequence are computed and not used, because torch's code for packed
    batches takes up to twice as long. torch.gru is what torch.nn.GRU calls; torch documents it
    nowhere, and tests/nn/test_gru.py fails if it changes.
    """
    x, batch_sizes, h_0, *weights = call
    given = [weight for weight in weights if weight is not None]
    output, h_n = torch.gru(
        x, h_0.unsqueeze(0), given, len(given) == 4, 1, 0.0, torch.is_grad_enabled(), False, False
    )
    if batch_sizes is None:
        return output, h_n[0]
    rows = torch.arange(x.shape[1], device=x.device)
    ends = (torch.tensor(batch_sizes, device=x.device).unsqueeze(1) > rows).sum(0) - 1
    return output, output[ends, rows]


class GRU(RecurrentBase, nn.GRU):
    """Computes torch.nn.GRU with its parameters' names and this project's initialisation.

        (r, z)_t = σ(W_x x_t + b_x + W_h h_{t-1} + b_h)
        n_t = tanh(W_xn x_t + b_xn + r * (W_hn h_{t-1} + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}                                (Cho et al. 2014)

    As in torch.nn.GRU, r multiplies W_hn h_{t-1} + b_hn, and not h_{t-1} as in the paper.

    Args:
        input_size: number of input features I.
        hidden_size: number of hidden units H.
        num_layers: number of stacked layers.
        bias: whether there are biases b_x and b_h.
        batch_first: input and output are (B, T, F) instead of (T, B, F).
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: a second set of weights reads each sequence from its end.
        device, dtype: of the parameters.
        max_steps: T of the chrono biases; used for nothing else.
        update_bias: initial value in gate z's block of the bias, or "chrono" (see
            elstm.nn.init.init_update_bias). The default 1 equals LSTM's forget_bias, because z
            retains h_{t-1} as the forget gate retains c_{t-1}.
        recurrent_init: "orthogonal", which preserves the length of h_{t-1}, or "identity" (the
            identity for n); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training. The default 0 adds
            none, as torch.nn.GRU.
        learn_initial_state: h_0 is a parameter, used where the call gives no state. By default such
            a call starts from zeros, as torch.nn.GRU.
        backend: "auto", torch's code (on a CPU with packed sequences padded, which is faster unless
            most of it is padding), or "reference", the equations as a loop.

    Call: output, h_n = layer(x, h_0) with the shapes of torch.nn.GRU. x is (T, B, I), or (B, T, I)
    with batch_first, (T, I) for one sequence, or a PackedSequence. output is (T, B, D * H), and h_n
    is (L * D, B, H), for D directions and L layers.

    Parameters, for layer k (the reverse direction ends in _reverse), are as in torch.nn.GRU, with
    gate order r, z, n: weight_ih_lk (3H, I), where I is D * H above the first layer,
    weight_hh_lk (3H, H), bias_ih_lk and bias_hh_lk (3H,).

    Raises:
        ValueError: an argument is out of range, an input or a state has another size, or `backend`
            is none of these.
        TypeError: an input or a state is no tensor.
    """

    _torch_class = nn.GRU
    _reference = staticmethod(gru_recurrence)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_steps: int = 1024,
        update_bias: float | str = 1.0,
        recurrent_init: str = "orthogonal",
        state_noise: float = 0.0,
        learn_initial_state: bool = False,
        backend: str = "auto",
    ) -> None:
        check_shape(input_size, hidden_size, num_layers, dropout)
        check_auto_or_reference(backend)
        self.update_bias: float | str
        # Before torch's constructor, because that one ends with reset_parameters.
        self._set_options(
            max_steps, recurrent_init, state_noise, learn_initial_state, backend,
            update_bias=update_bias,
        )  # fmt: skip
        nn.GRU.__init__(
            self, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, device=device, dtype=dtype,
        )  # fmt: skip
        if learn_initial_state:
            self._add_initial_state(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        for suffix in self._suffixes():
            self._draw(f"weight_ih_{suffix}", init.init_weight_ih)
            self._draw(f"weight_hh_{suffix}", init.init_weight_hh, self.recurrent_init, 3)
            if self.bias:
                chosen = self.update_bias, self.max_steps
                self._draw(f"bias_ih_{suffix}", init.init_update_bias, *chosen)
                self._draw(f"bias_hh_{suffix}", nn.init.zeros_)
        self._reset_initial_state()

    @property
    def _state_sizes(self) -> dict[str, int]:
        return {"h_0": self.hidden_size}

    def _direction(self, suffix: str) -> tuple[Any, ...]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, f"{name}_{suffix}", None) for name in names)

    @staticmethod
    def _packed_on_cpu(input: Tensor | PackedSequence) -> bool:
        """Returns whether to pad a packed batch: one on a CPU that torch does not trace.

        Torch runs one whose lengths are so unequal that padding would take most of the time.
        """
        return (
            isinstance(input, PackedSequence)
            and input.data.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and why_unreadable(input.data) is None
            and not torch.compiler.is_compiling()
            and not mostly_padding(input)
        )

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        state: State,
        suffix: str,
        recurrence: Any,
        start_step: int,
    ) -> tuple[Tensor, State]:
        if recurrence is None:
            check_auto_or_reference(self.backend)
            self.last_backend, recurrence = "reference", gru_recurrence
            if self.backend == "auto":
                self.last_backend, recurrence = "torch", _padded_by_torch
        (h_0,) = state
        check_dtype(x, self._direction(suffix)[0])
        output, h_n = recurrence(GRUCall(x, sizes, h_0, *self._direction(suffix)))
        return output, (h_n,)

    def _run(  # type: ignore[override]  # the state is h_n alone
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None,
        recurrence: Any = None,
        start_step: int = 0,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        output, (h_n,) = super()._run(input, None if hx is None else (hx,), recurrence, start_step)
        return output, h_n

    def forward(  # type: ignore[override]
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            # torch.compile leaves torch.nn.GRU out, but it would trace what is called here.
            return untraced(GRU._forward)(self, input, hx)
        return self._forward(input, hx)

    def _forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if self.backend != "auto" or self._packed_on_cpu(input):
            return self._run(input, hx)
        self.last_backend = "torch"
        check_input(input, self.input_size)
        if hx is not None or self.state_noise or self.learn_initial_state:
            (hx,) = self._torch_state(input, None if hx is None else (hx,))
        return nn.GRU.forward(self, input, hx)
