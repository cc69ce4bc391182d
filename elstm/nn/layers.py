"""Recurrent layers with the constructor, the call and the shapes of torch.nn.LSTM."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.base import Direction, OwnWeights, RecurrentBase, State, check_shape
from elstm.nn.norm import StepBatchNorm
from elstm.nn.recurrence import CELL_NORMS
from elstm.nn.sequences import check_input
from elstm.nn.sync import Group


class LSTM(RecurrentBase, nn.LSTM):
    """torch.nn.LSTM, with its parameters' names and this project's initialisation.

        z_t = W_x x_t + b_x + W_h h_{t-1} + b_h        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = f * c_{t-1} + i * g                      h_t = o * tanh(c_t)

    Args:
        input_size ... dtype: as torch.nn.LSTM.
        max_steps: T of the chrono biases; the plain LSTM uses it for nothing else.
        forget_bias, input_bias: initial values in the forget and input gates' blocks of the bias,
            or "chrono" (see elstm.nn.init.init_gate_bias). The default forget bias of 1 keeps
            c_t's gradient alive at the start (Jozefowicz et al. 2015).
        recurrent_init: "orthogonal" or "identity" (the identity for gate g); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training.
        learn_initial_state: h_0 and c_0 are parameters, used where the call gives no state.
        backend: "auto", or a name from elstm.nn.BACKENDS.
        recompute: as NormalizedLSTM has it; "auto" then means the fastest of elstm.nn.BACKENDS.

    Call: output, (h_n, c_n) = layer(x, (h_0, c_0)) with torch.nn.LSTM's shapes: x (T, B, I), or
    (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence; output (T, B, D * H),
    h_n and c_n (L * D, B, H), for D directions and L layers.

    Raises:
        ValueError: an argument out of range, or an input of another size.
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
        for suffix in self._suffixes():
            init.init_weight_ih(getattr(self, f"weight_ih_{suffix}"))
            init.init_weight_hh(getattr(self, f"weight_hh_{suffix}"), self.recurrent_init)
            if self.bias:
                gate_bias = getattr(self, f"bias_ih_{suffix}")
                init.init_gate_bias(gate_bias, self.forget_bias, self.input_bias, self.max_steps)
                nn.init.zeros_(getattr(self, f"bias_hh_{suffix}"))
        self._reset_initial_state()

    @property
    def _by_torch(self) -> bool:
        return self.backend == "auto" and not self.recompute

    @property
    def _state_sizes(self) -> dict[str, int]:
        return {"h_0": self.proj_size or self.hidden_size, "c_0": self.hidden_size}

    def _direction(self, suffix: str) -> Direction:
        if self.proj_size:
            raise ValueError("only torch's own LSTM (backend='auto') has projections (proj_size)")
        bias = None
        if self.bias:
            bias = getattr(self, f"bias_ih_{suffix}") + getattr(self, f"bias_hh_{suffix}")
        weight_ih, weight_hh = (getattr(self, f"weight_{kind}_{suffix}") for kind in ("ih", "hh"))
        return Direction(weight_ih, weight_hh, bias, (None,) * 4, "none")

    def forward(  # type: ignore[override]
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        if not self._by_torch:
            return self._run(input, hx)
        self.last_backend = "torch"
        check_input(input, self.input_size)
        if hx is not None or self.state_noise or self.learn_initial_state:
            hx = self._torch_state(input, hx)
        return nn.LSTM.forward(self, input, hx)  # type: ignore[arg-type]


DEFAULT_EPS = 0.1
CARRIED_GAMMA = 3.0
CARRIED = ("update", "terms", "carry", "update_output")  # norm_c's result goes on to the next step


class NormalizedLSTM(OwnWeights):
    """The recurrence with batch normalisation; BNLSTM and ELSTMBN say where it stands.

    Normalisation at step t is BN(x; γ, β) = (x - mean_t) / sqrt(var_t + eps) * γ + β. In training,
    mean_t and var_t (biased) are those of the batch's sequences alive at t; in eval mode they are
    population statistics, one row per step (see elstm.nn.norm.StepBatchNorm for how training moves
    them, and for sequences longer than max_steps). The moving averages lag behind the weights, so
    before an evaluation call elstm.nn.recompute_statistics(model, [x]) with a large training batch.

    Args:
        input_size ... dtype: as torch.nn.LSTM; proj_size must be 0.
        max_steps: steps that have statistics of their own; later ones share the last row. 1024
            rows cover pixel-by-pixel MNIST (784); a row takes 2 * (4H + 4H + H) numbers.
        eps: added to the variance, in every norm; None: DEFAULT_EPS, but for a norm whose result is
            carried to the next step no less than gamma_c ** 2, which is 9 by default. Both are of
            the order of the activations' variance or above, because features that are constant over
            most of a batch (MNIST's blank rows and borders) would otherwise be blown up by
            1 / sqrt(eps) where one sequence differs: training is then unstable, and no population
            statistics stand for a batch's. In a carried cell a step multiplies small deviations by
            up to gamma_c / sqrt(eps): above 1, they grow from step to step until outliers rule the
            variance. scripts/stability.py shows both.
        momentum: of the moving averages, 0.1 as in torch.nn.BatchNorm1d; None: cumulative average.
        gamma_ih, gamma_hh, gamma_c: initial γ of the input's, the hidden state's and the cell's
            norms. Default 1: 0.1, which Cooijmans et al. used, trains more slowly at 28 steps, and
            in a carried cell it cuts the memory to about two steps. gamma_c=None: 1, but 3 for a
            norm whose result is carried to the next step. With its eps such a norm divides by
            sqrt(1 + var / gamma_c ** 2): it lets the cell's standard deviation grow to about
            gamma_c before it shrinks what is remembered. At 784 steps of MNIST 1 forgets too soon
            (outputs/paper/pixels); far above 1 the cell is hardly normalised.
        forget_bias, input_bias: initial biases of the two gates, or "chrono" (over max_steps). In a
            cell that is normalised at each step, forgetting is relative: the ratio of the two gates
            decides. From a hundred steps on, and where the length is known, take "chrono" for both
            and max_steps = T: with 1 and 0 the memory is too short to learn from the first steps.
            They are ignored with bias=False.
        recurrent_init: "orthogonal" or "identity" (the identity for gate g); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training; 0.1 is Cooijmans et
            al.'s remedy for blank first steps, which the default eps makes unnecessary.
        learn_initial_state: h_0 and c_0 are parameters, used where the call gives no state.
        normalize_input, normalize_hidden: BN of W_x x_t and of W_h h_{t-1}; off: as they are.
        cell_norm: where BN stands in the cell, a key of elstm.nn.CELL_NORMS (equations there).
        backend: "auto" takes the fastest that serves a call; or a name from elstm.nn.BACKENDS.
        recompute: keep less for the backward pass and compute it again there, for long sequences.
            The results are the same; in numbers of T * B * H beside the output, float32:
            "cpu" keeps 1 instead of 5 (9 where input_size > 16) for one more product W_h h per
            step; "reference" keeps what sqrt(T) steps need, for a second forward pass; "triton"
            keeps 1 in any case. Not with sync_batch_stats.
        sync_batch_stats: in training with torch.distributed, take the statistics over the
            processes' sequences together, as torch.nn.SyncBatchNorm does: the gradients, summed
            over the processes, and the running statistics are those of one process with the whole
            batch. One all-gather for each norm and step (for norm_ih one for all steps), and as
            many all-reduces backward; the processes' packed sequences may differ in number and
            length. Only the reference recurrence does it; every process has to call the layer.
        process_group: of sync_batch_stats, a torch.distributed.ProcessGroup; None: all processes.

    Call: output, (h_n, c_n) = layer(x, (h_0, c_0)) with torch.nn.LSTM's shapes: x (T, B, I), or
    (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence; output (T, B, D * H),
    h_n and c_n (L * D, B, H), for D directions and L layers. The reverse direction counts its steps
    from the end of each sequence.

    Parameters, for layer k (the reverse direction ends in _reverse), gate order i, f, g, o:
    weight_ih_lk (4H, I), weight_hh_lk (4H, H), bias_lk (4H,); norm_ih_lk and norm_hh_lk with weight
    (4H,); norm_c_lk, and norm_c2_lk for `terms` and `update_output`, with weight and bias (H,).

    Raises:
        ValueError: an argument out of range, an input of another size, or one sequence in training.
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
        cell_norm: str = "update",
        max_steps: int = 1024,
        eps: float | None = None,
        momentum: float | None = 0.1,
        gamma_ih: float = 1.0,
        gamma_hh: float = 1.0,
        gamma_c: float | None = None,
        forget_bias: float | str = 1.0,
        input_bias: float | str = 0.0,
        recurrent_init: str = "orthogonal",
        state_noise: float = 0.0,
        learn_initial_state: bool = False,
        normalize_input: bool = True,
        normalize_hidden: bool = True,
        backend: str = "auto",
        recompute: bool = False,
        sync_batch_stats: bool = False,
        process_group: Group = None,
    ) -> None:
        super().__init__()
        if proj_size != 0:
            raise ValueError(f"proj_size must be 0 on a batch-normalised LSTM, got {proj_size}")
        if cell_norm not in CELL_NORMS:
            raise ValueError(f"cell_norm must be one of {', '.join(CELL_NORMS)}; got {cell_norm!r}")
        if eps is not None and (not init.is_number(eps) or eps <= 0):
            raise ValueError(f"eps must be a number > 0, or None; got {eps!r}")
        if momentum is not None and not (init.is_number(momentum) and 0 < momentum <= 1):
            raise ValueError(f"momentum must be in (0, 1], or None; got {momentum!r}")
        if recompute and sync_batch_stats:
            raise ValueError("recompute must be False with sync_batch_stats")
        gammas = {"ih": gamma_ih, "hh": gamma_hh}
        init.check_gammas(gammas if gamma_c is None else gammas | {"c": gamma_c})
        self._set_options(
            max_steps, recurrent_init, state_noise, learn_initial_state, backend, recompute,
            forget_bias=forget_bias, input_bias=input_bias,
        )  # fmt: skip
        self._set_shape(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        self.cell_norm, self.eps, self.momentum = cell_norm, eps, momentum
        self.gamma_c = gamma_c
        self.sync_batch_stats, self.process_group = sync_batch_stats, process_group
        self.normalize_input, self.normalize_hidden = normalize_input, normalize_hidden

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._add_weights(**factory)
        norms = {"norm_ih": normalize_input, "norm_hh": normalize_hidden}
        norms |= dict.fromkeys(CELL_NORMS[cell_norm], True)
        for suffix in self._suffixes():
            for name, wanted in norms.items():
                of_cell = name.startswith("norm_c")
                norm = StepBatchNorm(
                    hidden_size if of_cell else 4 * hidden_size,
                    max_steps=max_steps,
                    eps=self._eps(name),
                    momentum=momentum,
                    gamma=self._gamma_c(name) if of_cell else gammas[name.removeprefix("norm_")],
                    bias=of_cell,
                    **factory,
                )
                self.register_module(f"{name}_{suffix}", norm if wanted else None)
        if learn_initial_state:
            self._add_initial_state(**factory)
        self.reset_parameters()

    def _carries(self, norm: str) -> bool:
        return norm == "norm_c" and self.cell_norm in CARRIED

    def _gamma_c(self, norm: str) -> float:
        if self.gamma_c is not None:
            return self.gamma_c
        return CARRIED_GAMMA if self._carries(norm) else 1.0

    def _eps(self, norm: str) -> float:
        if self.eps is not None:
            return self.eps
        return max(DEFAULT_EPS, self._gamma_c(norm) ** 2) if self._carries(norm) else DEFAULT_EPS

    def reset_parameters(self) -> None:
        self._reset_weights()
        for module in self.children():
            if isinstance(module, StepBatchNorm):
                module.reset_parameters()
        self._reset_initial_state()

    def _direction(self, suffix: str) -> Direction:
        def part(name: str) -> Any:
            return getattr(self, f"{name}_{suffix}", None)

        norms = tuple(part(name) for name in ("norm_ih", "norm_hh", "norm_c", "norm_c2"))
        return Direction(part("weight_ih"), part("weight_hh"), part("bias"), norms, self.cell_norm)

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        return self._run(input, hx)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cell_norm={self.cell_norm}"


class BNLSTM(NormalizedLSTM):
    """BN-LSTM (Cooijmans et al. 2017, arXiv 1603.09025): `cell_norm` is "output".

        z_t = BN(W_h h_{t-1}; γ_h, 0) + BN(W_x x_t; γ_x, 0) + b
        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(BN(c_t; γ_c, β_c))

    Arguments, shapes and errors: see NormalizedLSTM.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        if "cell_norm" in options:
            raise ValueError("BNLSTM has cell_norm='output'; ELSTMBN takes the others")
        super().__init__(*args, cell_norm="output", **options)


_parameters = inspect.signature(NormalizedLSTM).parameters.values()
BNLSTM.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # for help() and editors
    [parameter for parameter in _parameters if parameter.name != "cell_norm"]
)


class ELSTMBN(NormalizedLSTM):
    """eLSTM-BN (Wang et al. 2019, doi:10.1007/978-3-030-36708-4_61): BN in the cell's update.

        z_t = BN(W_h h_{t-1}; γ_h, 0) + BN(W_x x_t; γ_x, 0) + b
        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = BN(f * c_{t-1} + i * g; γ_c, β_c)
        h_t = o * tanh(c_t)

    The paper's equations are not to be had; this is the plain reading of its abstract, "BN in the
    update of the LSTM cell". Other readings: `cell_norm`.

    Arguments, shapes and errors: see NormalizedLSTM.
    """
