"""Defines the LSTM with layer normalisation (Ba et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.backends import choose_layer_norm
from elstm.nn.base import SingleBiasWeights, State
from elstm.nn.layer_norm import (
    LayerNorm,
    LayerNormCall,
    check_layer_norm_shapes,
    layer_norm_recurrence,
)


class LayerNormLSTM(SingleBiasWeights):
    """Computes the LSTM with layer normalisation (Ba et al. 2016, arXiv 1607.06450, 20 to 22).

        z_t = LN(W_h h_{t-1}; a_1, b_1) + LN(W_x x_t; a_2, b_2) + b                (20)
        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = f * c_{t-1} + i * g                                                  (21)
        h_t = o * tanh(LN(c_t; a_3, b_3))                                          (22)

    LN takes mean and variance over the units of one sequence at one step, in training and
    evaluation alike. So there are no population statistics, and a batch may hold a single sequence.

    Args:
        input_size: number of input features I.
        hidden_size: number of hidden units H.
        num_layers: number of stacked layers.
        bias: whether there is a bias b.
        batch_first: input and output are (B, T, F) instead of (T, B, F).
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: a second set of weights reads each sequence from its end.
        proj_size: must be 0; it has the same position as in torch.nn.LSTM.
        device, dtype: of the parameters.
        max_steps: T of the chrono biases; used for nothing else.
        eps: added to the variance, 1e-5 as in torch.nn.LayerNorm.
        gamma_ih, gamma_hh, gamma_c: initial a_2, a_1 and a_3; 1 as in torch.nn.LayerNorm.
        forget_bias, input_bias: initial biases of the two gates, or "chrono", with the defaults of
            LSTM; ignored with bias=False.
        recurrent_init: "orthogonal", which preserves the length of h_{t-1}, or "identity" (the
            identity for gate g); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training. The default 0 adds
            none, as torch.nn.LSTM.
        learn_initial_state: h_0 and c_0 are parameters, used where the call gives no state. By
            default such a call starts from zeros, as torch.nn.LSTM.
        backend: "auto" uses "cpu" if it serves a call, else "reference". "cpu" is C code, which is
            compiled at first use. "triton" is one kernel for all steps on CUDA, each way, which has
            not been timed on a GPU yet. "reference" is a loop of torch's operators.

    Call: output, (h_n, c_n) = layer(x, (h_0, c_0)) with the shapes of torch.nn.LSTM.
    x is (T, B, I), or (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence.
    output is (T, B, D * H), and h_n and c_n are (L * D, B, H), for D directions and L layers.

    Parameters, for layer k (the reverse direction ends in _reverse), gate order i, f, g, o:
    weight_ih_lk (4H, I), where I is D * H above the first layer, weight_hh_lk (4H, H), bias_lk
    (4H,); norm_ih_lk and norm_hh_lk with weight and bias (4H,); norm_c_lk with both (H,).

    Raises:
        ValueError: an argument is out of range, an input or a state has another size, or a backend
            requested by name cannot serve the call.
        TypeError: an input or a state is no tensor.
    """

    _reference = staticmethod(layer_norm_recurrence)

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
        eps: float = 1e-5,
        gamma_ih: float = 1.0,
        gamma_hh: float = 1.0,
        gamma_c: float = 1.0,
        forget_bias: float | str = 1.0,
        input_bias: float | str = 0.0,
        recurrent_init: str = "orthogonal",
        state_noise: float = 0.0,
        learn_initial_state: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if proj_size != 0:
            raise ValueError(f"proj_size must be 0 on a layer-normalised LSTM, got {proj_size}")
        if not init.is_number(eps) or eps <= 0:
            raise ValueError(f"eps must be a number > 0, got {eps!r}")
        gammas = {"ih": gamma_ih, "hh": gamma_hh, "c": gamma_c}
        init.check_gammas(gammas)
        self._set_options(
            max_steps, recurrent_init, state_noise, learn_initial_state, backend,
            forget_bias=forget_bias, input_bias=input_bias,
        )  # fmt: skip
        self._set_shape(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._add_weights(**factory)
        for suffix in self._suffixes():
            for name, gamma in gammas.items():
                features = hidden_size if name == "c" else 4 * hidden_size
                norm = LayerNorm(features, eps=eps, gamma=gamma, **factory)
                self.register_module(f"norm_{name}_{suffix}", norm)
        if learn_initial_state:
            self._add_initial_state(**factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_weights()
        for module in self.children():
            if isinstance(module, LayerNorm):
                module.reset_parameters()
        self._reset_initial_state()

    def _direction(self, suffix: str) -> tuple[Any, ...]:
        names = ("weight_ih", "weight_hh", "bias", "norm_ih", "norm_hh", "norm_c")
        return tuple(getattr(self, f"{name}_{suffix}", None) for name in names)

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        state: State,
        suffix: str,
        recurrence: Any,
        start_step: int,
    ) -> tuple[Tensor, State]:
        h_0, c_0 = state
        call = LayerNormCall(x, sizes, h_0, c_0, *self._direction(suffix))
        check_layer_norm_shapes(call)
        if recurrence is None:
            self.last_backend, recurrence = choose_layer_norm(self.backend, call)
        output, h_n, c_n = recurrence(call)
        return output, (h_n, c_n)

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        return self._run(input, hx)
