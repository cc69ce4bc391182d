"""Defines BNLSTM (Cooijmans et al. 2017) and ELSTMBN (Wang et al. 2019)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.base import Direction, SingleBiasWeights, State
from elstm.nn.norm import Counts, StepBatchNorm, TooFewSequences, take_statistics
from elstm.nn.recurrence import CELL_NORMS, Call, Recurrence
from elstm.nn.sequences import packed_indices
from elstm.nn.sync import Group, exchange_counts, several_processes

DEFAULT_EPS = 0.1
CARRIED_GAMMA = 3.0
# Variants in which norm_c scales, and its result is carried to the next step.
CARRIED = ("update", "terms", "carry", "update_output")
NORMS = ("norm_ih", "norm_hh", "norm_c", "norm_c2")

# Parts of the docstrings of BNLSTM and ELSTMBN, so that help() of each explains every argument.
_STATISTICS = """
    BN at step t is (x - mean_t) / sqrt(var_t + eps) * γ + β. In training, mean_t and var_t (biased)
    are those of the batch's sequences that are active at t. In eval mode they are population
    statistics, one row per step (see elstm.nn.norm.StepBatchNorm for how training moves them, and
    for sequences longer than max_steps). These moving averages lag behind the weights, so call
    elstm.nn.recompute_statistics(model, [x]) with a large training batch before an evaluation; it
    takes the place of torch.optim.swa_utils.update_bn. Each norm follows its own mode, as
    torch.nn.BatchNorm1d does: a norm set to .eval() uses its population statistics and leaves them
    as they are, also while the layer trains.
"""
_TORCH_ARGUMENTS = """
    Args:
        input_size: number of input features I.
        hidden_size: number of hidden units H.
        num_layers: number of stacked layers L.
        bias: whether there is a bias b.
        batch_first: input and output are (B, T, F) instead of (T, B, F).
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: a second set of weights and statistics reads each sequence from its end; its
            steps are counted from there.
        proj_size: must be 0; it has the same position as in torch.nn.LSTM.
        device, dtype: of the parameters; statistics are float32 at least.
"""
_CELL_NORM_ARGUMENT = """
        cell_norm: where BN stands in the cell, a key of elstm.nn.CELL_NORMS. "update" is the
            equation above; the others are in elstm.nn.recurrence, (3a) to (3h). "center" is
            "update" without the scaling, c_t = f * c_{t-1} + i * g - mean_t + β_c. Its norm_c has
            no weight and no running_var, and gamma_c must be None.
"""
_ARGUMENTS = """
        max_steps: number of steps that have separate statistics; later ones share the last
            row. 1024 rows cover pixel-by-pixel MNIST (784); a row takes 2 * (4H + 4H + H) numbers.
            state_dict() leaves unused rows out, and one saved with another max_steps loads.
        eps: added to the variance, in every norm. None: 0.1; for a norm whose result is carried to
            the next step max(0.1, gamma_c ** 2), which is 9 by default. A small eps is unstable: if
            a feature is constant over most of a batch (MNIST's blank rows and borders), 1 /
            sqrt(eps) amplifies the one sequence that differs. Then no population statistics
            describe a batch. In a carried cell a step multiplies small deviations by up to
            gamma_c / sqrt(eps). Above 1, they grow from step to step until outliers dominate the
            variance. scripts/stability.py shows both.
        momentum: of the moving averages, 0.1 as in torch.nn.BatchNorm1d; None: cumulative average.
            Setting layer.momentum or layer.eps later sets it in all norms.
        gamma_ih, gamma_hh, gamma_c: initial γ of the norms of the input, the hidden state and the
            cell. The default is 1. The 0.1 of Cooijmans et al. trains more slowly at 28 steps, and
            in a carried cell it cuts the memory to about two steps. gamma_c=None: 1, but 3 for a
            norm whose result is carried to the next step. With its eps such a norm divides by
            sqrt(1 + var / gamma_c ** 2), so the cell's standard deviation grows to about gamma_c
            before the norm shrinks the memory. At 784 steps of MNIST, 1 forgets too soon
            (outputs/paper/pixels); far above 1 the cell is hardly normalised.
        forget_bias, input_bias: initial biases of the two gates, or "chrono" (over max_steps). In a
            cell that is normalised at each step, forgetting is relative: the ratio of the two gates
            decides. From a hundred steps on, and where the length is known, use "chrono" for both
            and max_steps = T, because with 1 and 0 the memory is too short to learn from the first
            steps. They are ignored with bias=False.
        recurrent_init: "orthogonal", which preserves the length of h_{t-1}, or "identity" (the
            identity for gate g); see elstm.nn.init.
        state_noise: standard deviation of Gaussian noise on h_0 in training. Cooijmans et al. add
            0.1 against blank first steps, which the default eps makes unnecessary.
        learn_initial_state: h_0 and c_0 are parameters, used where the call gives no state. By
            default such a call starts from zeros, as torch.nn.LSTM.
        normalize_input, normalize_hidden: BN of W_x x_t and of W_h h_{t-1}; False: no norm there.
        backend: "auto", which uses the fastest that serves a call, or a name from
            elstm.nn.BACKENDS.
        recompute: save fewer values for the backward pass, and compute them again there, for long
            sequences. The results are the same. In units of T * B * H numbers beside the output,
            "cpu" in float32 saves 1 instead of 5, or of 9 if input_size > 16, and computes W_h h
            once more per step. "reference" saves the values of sqrt(T) steps, for a second forward
            pass. "triton" saves 1 in any case. It cannot be combined with sync_batch_stats.
        sync_batch_stats: in training with torch.distributed, use the statistics over the sequences
            of all processes, as torch.nn.SyncBatchNorm does. (Its convert_sync_batchnorm does not
            convert these layers; this option takes its place.) The gradients, summed over the
            processes, and the running statistics equal those of one process with the full batch.
            This costs one all-gather for each norm and step (for norm_ih one for all steps), and as
            many all-reduces backward. The processes' packed sequences may differ in number and
            length. Only the reference recurrence supports it, and every process has to call the
            layer.
        process_group: for sync_batch_stats, a torch.distributed.ProcessGroup; None: all processes.
"""
_CALL = """
    Call: output, (h_n, c_n) = layer(x, (h_0, c_0), start_step=0) with the shapes of torch.nn.LSTM.
    x is (T, B, I), or (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence.
    output is (T, B, D * H), and h_n and c_n are (L * D, B, H), for D directions and L layers.

    To run a long sequence in parts, pass each part the state of the part before it and its
    position: output, state = layer(x[5:], state, start_step=5). Step t of such a call uses and
    moves the statistics of step start_step + t, alike for all sequences of a packed batch. A
    bidirectional layer takes start_step=0 alone, because its reverse direction starts at the end
    of the sequence.

    Parameters, for layer k (the reverse direction ends in _reverse), gate order i, f, g, o:
    weight_ih_lk (4H, I), where I is D * H above the first layer, weight_hh_lk (4H, H), bias_lk
    (4H,); norm_ih_lk and norm_hh_lk with weight (4H,); norm_c_lk, and norm_c2_lk for `terms` and
    `update_output`, with weight and bias (H,).

    Raises:
        ValueError: an argument is out of range, an input or a state has another size, a training
            batch has fewer than two sequences, or a backend requested by name cannot serve the
            call.
        TypeError: an input or a state is no tensor, or a norm was replaced by another module.
"""


class NormalizedLSTM(SingleBiasWeights):
    """Implements BNLSTM and ELSTMBN, whose docstrings explain equations and arguments."""

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
        if cell_norm == "center" and gamma_c is not None:
            raise ValueError(
                "gamma_c must be None with cell_norm='center', which does not scale; got"
                f" {gamma_c!r}"
            )
        if recompute and sync_batch_stats:
            raise ValueError("recompute must be False with sync_batch_stats=True")
        gammas = {"ih": gamma_ih, "hh": gamma_hh}
        init.check_gammas(gammas if gamma_c is None else gammas | {"c": gamma_c})
        self._set_options(
            max_steps, recurrent_init, state_noise, learn_initial_state, backend, recompute,
            forget_bias=forget_bias, input_bias=input_bias,
        )  # fmt: skip
        self._set_shape(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        self.cell_norm, self.gamma_c = cell_norm, gamma_c
        self.eps, self.momentum = eps, momentum
        self.sync_batch_stats, self.process_group = sync_batch_stats, process_group

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._add_weights(**factory)
        norms = {"norm_ih": normalize_input, "norm_hh": normalize_hidden}
        norms |= dict.fromkeys(CELL_NORMS[cell_norm], True)
        for suffix in self._suffixes():
            for name, enabled in norms.items():
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
                self.register_module(f"{name}_{suffix}", norm if enabled else None)
        if learn_initial_state:
            self._add_initial_state(**factory)
        self.reset_parameters()

    # Each norm holds its own eps and momentum. Setting those of the layer sets them in all norms.
    # The values lie in __dict__ by their own names, as in pickles of earlier versions.
    @property
    def eps(self) -> float | None:
        value: float | None = self.__dict__["eps"]
        return value

    @eps.setter
    def eps(self, value: float | None) -> None:
        if value is not None and (not init.is_number(value) or value <= 0):
            raise ValueError(f"eps must be a number > 0, or None; got {value!r}")
        self.__dict__["eps"] = value
        for name, norm in self._norms():
            norm.eps = self._eps(name)

    @property
    def momentum(self) -> float | None:
        value: float | None = self.__dict__["momentum"]
        return value

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        if value is not None and not (init.is_number(value) and 0 < value <= 1):
            raise ValueError(f"momentum must be in (0, 1], or None; got {value!r}")
        self.__dict__["momentum"] = value
        for _, norm in self._norms():
            norm.momentum = value

    # Read-only, because a norm that was not built cannot be switched on.
    @property
    def normalize_input(self) -> bool:
        """Returns whether the input projection has a norm."""
        return getattr(self, f"norm_ih_{self._suffixes()[0]}") is not None

    @property
    def normalize_hidden(self) -> bool:
        """Returns whether the hidden projection has a norm."""
        return getattr(self, f"norm_hh_{self._suffixes()[0]}") is not None

    def _norms(self) -> list[tuple[str, StepBatchNorm]]:
        """Lists the norms after names such as norm_ih."""
        return [
            (name.rpartition("_l")[0], module)
            for name, module in self.named_children()
            if isinstance(module, StepBatchNorm)
        ]

    def _carries(self, norm: str) -> bool:
        return norm == "norm_c" and self.cell_norm in CARRIED

    def _gamma_c(self, norm: str) -> float | None:
        """Returns the initial γ of a norm of the cell; None for one that centres alone."""
        if self.cell_norm == "center":
            return None
        if self.gamma_c is not None:
            return self.gamma_c
        return CARRIED_GAMMA if self._carries(norm) else 1.0

    def _eps(self, norm: str) -> float:
        if self.eps is not None:
            return self.eps
        gamma = self._gamma_c(norm) if self._carries(norm) else None
        return DEFAULT_EPS if gamma is None else max(DEFAULT_EPS, gamma**2)

    def reset_parameters(self) -> None:
        self._reset_weights()
        for _, norm in self._norms():
            norm.reset_parameters()
        self._reset_initial_state()

    def _direction(self, suffix: str) -> Direction:
        weights = getattr(self, f"weight_ih_{suffix}"), getattr(self, f"weight_hh_{suffix}")
        norms = tuple(getattr(self, f"{name}_{suffix}", None) for name in NORMS)
        return Direction(*weights, getattr(self, f"bias_{suffix}", None), norms, self.cell_norm)

    def _check_norms(self, suffix: str, norms: tuple[Any, ...]) -> None:
        """Raises an error unless the norms are those that `cell_norm` has."""
        for name, norm in zip(NORMS, norms, strict=True):
            if norm is not None and not isinstance(norm, StepBatchNorm):
                kind = type(norm).__name__
                raise TypeError(f"{name}_{suffix} must be a StepBatchNorm or None, got a {kind}")
        lengths = [norm.max_steps for norm in norms if norm is not None]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the norms of {suffix} must have the same max_steps, got {lengths}; build another"
                " layer instead of replacing a norm"
            )
        built = tuple(name for name in NORMS[2:] if hasattr(self, f"{name}_{suffix}"))
        centres, norm_c = self.cell_norm == "center", norms[2]
        scales = norm_c is not None and norm_c.gamma is not None
        unfit = norm_c is not None and scales == centres
        if CELL_NORMS.get(self.cell_norm) != built or unfit:
            raise ValueError(
                f"this layer was not built for cell_norm={self.cell_norm!r}, which needs other"
                " norms of the cell; build another layer with it"
            )

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        state: State,
        suffix: str,
        recurrence: Recurrence | None,
        start_step: int,
    ) -> tuple[Tensor, State]:
        steps, size = x.shape[:2]
        weight_ih, weight_hh, bias, norms, cell_norm = self._direction(suffix)
        self._check_norms(suffix, norms)
        active, counts = sizes, None
        by_batch = [n is not None and (n.training or self._batch_statistics) for n in norms]
        together = any(by_batch) and self.sync_batch_stats and not self._batch_statistics
        if together and several_processes(self.process_group):
            counts = exchange_counts(active or [size] * steps, self.process_group, x.device)
            active, missing = counts.totals, len(counts.counts) - steps
            if missing:  # other processes have longer sequences
                x, sizes = F.pad(x, (0, 0, 0, 0, 0, missing)), counts.counts
        batch_steps = _batch_steps(active, steps, size) if any(by_batch) else 0
        ih, hh, c, c2 = [
            norm and norm.inputs(x.shape[0], batch_steps * use, start_step, counts)
            for norm, use in zip(norms, by_batch, strict=True)
        ]
        h_0, c_0 = state
        weights = weight_ih, weight_hh, bias
        call = Call(x, sizes, h_0, c_0, *weights, ih, hh, c, c2, cell_norm, self.recompute)
        output, h_n, c_n, statistics = self._by_backend(call, recurrence)
        if batch_steps:
            seen = [
                (norm, found)
                for norm, use, found in zip(norms, by_batch, statistics, strict=True)
                if norm is not None and use and found is not None
            ]
            numbers: Counts = size if active is None else active[0]
            if active is not None and active[batch_steps - 1] != active[0]:  # they do not increase
                numbers = packed_indices(active, x).counts[:batch_steps].to(seen[0][1].mean.dtype)
            take_statistics(seen, numbers, start_step)
        return output if counts is None else output[:steps], (h_n, c_n)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        start_step: int | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        # None and not 0, which the TorchScript exporter of torch.onnx would make an input.
        if start_step is None:
            start_step = 0
        whole = isinstance(start_step, int | torch.SymInt) and not isinstance(start_step, bool)
        if not whole or start_step < 0:
            raise ValueError(
                f"start_step must be an integer of at least 0, the same for all sequences; got"
                f" {start_step!r}"
            )
        if start_step and self.bidirectional:
            raise ValueError(
                f"start_step must be 0 for a bidirectional layer, whose reverse direction starts at"
                f" the end of the sequence; got {start_step}"
            )
        return self._run(input, hx, start_step=start_step)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cell_norm={self.cell_norm}"


def _batch_steps(active: list[int] | None, steps: int, size: int) -> int:
    """Returns the number of steps with at least two sequences, which have a variance.

    `active` are the sequences at each step; None: `size` at all `steps`, which may be symbols.

    Raises:
        ValueError: there is none.
    """
    if (size if active is None else active[0]) < 2:
        raise TooFewSequences(
            "a training batch needs at least 2 sequences (the variance of one is zero), got"
            f" {size}; use larger batches, drop_last=True in the DataLoader, or call .eval()"
        )
    return steps if active is None else len(active) - active.count(1) - active.count(0)


class BNLSTM(NormalizedLSTM):
    __doc__ = f"""Computes BN-LSTM (Cooijmans et al. 2017), BN in the output of the cell.

        z_t = BN(W_h h_{{t-1}}; γ_h, 0) + BN(W_x x_t; γ_x, 0) + b
        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = f * c_{{t-1}} + i * g
        h_t = o * tanh(BN(c_t; γ_c, β_c))

    The equations are those of arXiv 1603.09025.
{_STATISTICS}{_TORCH_ARGUMENTS.rstrip()}{_ARGUMENTS}{_CALL}"""

    def __init__(self, *args: Any, **options: Any) -> None:
        if "cell_norm" in options:
            raise ValueError("BNLSTM has cell_norm='output'; ELSTMBN takes the others")
        super().__init__(*args, cell_norm="output", **options)


_parameters = inspect.signature(NormalizedLSTM).parameters.values()
BNLSTM.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # for help() and editors
    [parameter for parameter in _parameters if parameter.name != "cell_norm"]
)


class ELSTMBN(NormalizedLSTM):
    __doc__ = f"""Computes eLSTM-BN (Wang et al. 2019), BN in the update of the cell.

        z_t = BN(W_h h_{{t-1}}; γ_h, 0) + BN(W_x x_t; γ_x, 0) + b
        (i, f, g, o) = (σ, σ, tanh, σ)(z_t)
        c_t = BN(f * c_{{t-1}} + i * g; γ_c, β_c)
        h_t = o * tanh(c_t)

    The equations of the paper (doi:10.1007/978-3-030-36708-4_61) are not available. This is the
    plain meaning of its abstract, "BN in the update of the LSTM cell"; `cell_norm` has other
    variants of the update.
{_STATISTICS}{_TORCH_ARGUMENTS.rstrip()}{_CELL_NORM_ARGUMENT.rstrip()}{_ARGUMENTS}{_CALL}"""
