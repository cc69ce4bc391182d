"""Defines the LSTM, by torch's code or by a backend."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.backends import choose
from elstm.nn.backends.compiling import untraced
from elstm.nn.base import Direction, RecurrentBase, State, check_shape
from elstm.nn.recurrence import Call, Recurrence
from elstm.nn.sequences import check_input, mostly_padding


class LSTM(RecurrentBase, nn.LSTM):
    """Computes torch.nn.LSTM with its parameters' names and this project's initialisation.

        z_t = W_x x_t + b_x + W_h h_{t-1} + b_h        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = f * c_{t-1} + i * g                      h_t = o * tanh(c_t)

    The equations are those of Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al.
    (2000).

    Args:
        input_size: number of input features I.
        hidden_size: number of hidden units H.
        num_layers: number of stacked layers.
        bias: whether there are biases b_x and b_h.
        batch_first: input and output are (B, T, F) instead of (T, B, F).
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: a second set of weights reads each sequence from its end.
        proj_size: size P of a projection of h_t as in torch.nn.LSTM, 0 for none. It needs
            backend="auto" and recompute=False.
        device, dtype: of the parameters.
        max_steps: T of the chrono biases; the plain LSTM uses it for nothing else.
        forget_bias, input_bias: initial values in the forget and input gates' blocks of the bias,
            or "chrono" (see elstm.nn.init.init_gate_bias). The default forget bias of 1 lets
            c_t's gradient pass at the start (Jozefowicz et al. 2015). The default input bias of 0
            starts with a gate that is half open.
        recurrent_init: "orthogonal", which preserves the length of h_{t-1}, or "identity" (the
            identity for gate g); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training. The default 0 adds
            none, as torch.nn.LSTM.
        learn_initial_state: h_0 and c_0 are parameters, used where the call gives no state. By
            default such a call starts from zeros, as torch.nn.LSTM.
        backend: "auto", which is torch's LSTM (on a CPU the C code for packed sequences, which
            takes half of torch's time or less), or a name from elstm.nn.BACKENDS.
        recompute: save fewer values for the backward pass, and compute them again there, as BNLSTM
            does; "auto" then takes the fastest of elstm.nn.BACKENDS.

    Call: output, (h_n, c_n) = layer(x, (h_0, c_0)) with the shapes of torch.nn.LSTM.
    x is (T, B, I), or (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence.
    output is (T, B, D * H), and h_n and c_n are (L * D, B, H), for D directions and L layers.
    With proj_size, output and h_n have P in place of H.

    Parameters, for layer k (the reverse direction ends in _reverse), are as in torch.nn.LSTM, with
    gate order i, f, g, o: weight_ih_lk (4H, I), where I is D * H above the first layer,
    weight_hh_lk (4H, H), bias_ih_lk and bias_hh_lk (4H,).

    Raises:
        ValueError: an argument is out of range, an input or a state has another size, or a backend
            requested by name cannot serve the call.
        TypeError: an input or a state is no tensor.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_steps: int = 1024,
        forget_bias: float | str = 1.0,
        input_bias: float | str = 0.0,
        recurrent_init: str = "orthogonal",
        state_noise: float = 0.0,
        learn_initial_state: bool = False,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        check_shape(input_size, hidden_size, num_layers, dropout)
        # Before torch's constructor, because that one ends with reset_parameters.
        self._set_options(
            max_steps, recurrent_init, state_noise, learn_initial_state, backend, recompute,
            forget_bias=forget_bias, input_bias=input_bias,
        )  # fmt: skip
        nn.LSTM.__init__(
            self, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype,
        )  # fmt: skip
        if proj_size and not self._by_torch:
            options = f"backend={backend!r} and recompute={recompute}"
            raise ValueError(f"proj_size must be 0 with {options}, got {proj_size}")
        if learn_initial_state:
            self._add_initial_state(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.LSTM.reset_parameters(self)  # weight_hr, with proj_size, keeps torch's
        biases = self.forget_bias, self.input_bias, self.max_steps
        for suffix in self._suffixes():
            self._draw(f"weight_ih_{suffix}", init.init_weight_ih)
            self._draw(f"weight_hh_{suffix}", init.init_weight_hh, self.recurrent_init)
            if self.bias:
                self._draw(f"bias_ih_{suffix}", init.init_gate_bias, *biases)
                self._draw(f"bias_hh_{suffix}", nn.init.zeros_)
        self._reset_initial_state()

    @property
    def _by_torch(self) -> bool:
        return self.backend == "auto" and not self.recompute

    def _packed_for_c(self, input: Tensor | PackedSequence) -> bool:
        """Returns whether the C code runs a packed batch, for which torch takes longer on a CPU.

        It pads the batch, so torch runs one whose lengths are so unequal that the padding would
        take most of the memory. Any other one runs on the same code, so that no result depends on
        the other lengths.
        """
        if (
            not isinstance(input, PackedSequence)
            or input.data.device.type != "cpu"
            or self.proj_size
            or torch.compiler.is_compiling()
        ):
            return False
        x, direction = input.data.unsqueeze(0), self._direction("l0")
        call = Call(x, None, x, x, *direction[:3], None, None, None, None, "none")
        # Lengths are read last, because tensors that torch traces may have none.
        return choose("auto", call)[0] == "cpu" and not mostly_padding(input)

    @property
    def _state_sizes(self) -> dict[str, int]:
        return {"h_0": self.proj_size or self.hidden_size, "c_0": self.hidden_size}

    def _direction(self, suffix: str) -> Direction:
        if self.proj_size:
            raise ValueError("only torch's LSTM (backend='auto') has projections (proj_size)")
        bias = None
        if self.bias:
            bias = getattr(self, f"bias_ih_{suffix}") + getattr(self, f"bias_hh_{suffix}")
        weights = getattr(self, f"weight_ih_{suffix}"), getattr(self, f"weight_hh_{suffix}")
        return Direction(*weights, bias, (None,) * 4, "none")

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        state: State,
        suffix: str,
        recurrence: Recurrence | None,
        start_step: int,
    ) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias, _, cell_norm = self._direction(suffix)
        (h_0, c_0), weights, norms = state, (weight_ih, weight_hh, bias), (None, None, None, None)
        call = Call(x, sizes, h_0, c_0, *weights, *norms, cell_norm, self.recompute)
        output, h_n, c_n, _ = self._by_backend(call, recurrence)
        return output, (h_n, c_n)

    def forward(  # type: ignore[override]
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            # torch.compile leaves torch.nn.LSTM out, but it would trace what is called here.
            return untraced(LSTM._forward)(self, input, hx)
        return self._forward(input, hx)

    def _forward(
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        if not self._by_torch or self._packed_for_c(input):
            return self._run(input, hx)
        self.last_backend = "torch"
        check_input(input, self.input_size)
        if hx is not None or self.state_noise or self.learn_initial_state:
            hx = self._torch_state(input, hx)
        return nn.LSTM.forward(self, input, hx)  # type: ignore[arg-type]
