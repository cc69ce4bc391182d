"""Defines the recurrence as a plain loop over time, the reference for every backend.

Notation: T steps, B sequences, I input features, H hidden units, σ the logistic sigmoid,
* elementwise.

    z_t = BN(W_h h_{t-1}; γ_h, 0) + BN(W_x x_t; γ_x, 0) + b                          (1)
    (i, f, g, o) = (σ, σ, tanh, σ)(z_t)                 gate order as torch.nn.LSTM   (2)

and the cell, in which the variants differ:

    none           c_t = f * c_{t-1} + i * g            h_t = o * tanh(c_t)           (3a)
    output         c_t = f * c_{t-1} + i * g            h_t = o * tanh(BN(c_t))       (3b)
    update         c_t = BN(f * c_{t-1} + i * g)        h_t = o * tanh(c_t)           (3c)
    increment      c_t = f * c_{t-1} + BN(i * g)        h_t = o * tanh(c_t)           (3d)
    terms          c_t = BN(f * c_{t-1}) + BN2(i * g)   h_t = o * tanh(c_t)           (3e)
    carry          c_t = f * BN(c_{t-1}) + i * g        h_t = o * tanh(c_t)           (3f)
    update_output  c_t = BN(f * c_{t-1} + i * g)        h_t = o * tanh(BN2(c_t))      (3g)
    center         c_t = CN(f * c_{t-1} + i * g)        h_t = o * tanh(c_t)           (3h)

    BN(x; γ, β) = (x - mean) / sqrt(var + eps) * γ + β                                (4)
    CN(x; β) = x - mean + β                                                           (5)

with the mean and the biased variance of step t over the sequences that are active at t. (3a)
without any normalisation is the LSTM as torch.nn.LSTM computes it, (3b) is BN-LSTM (Cooijmans et
al. 2017, arXiv 1603.09025). (3c) is eLSTM-BN (Wang et al. 2019, doi:10.1007/978-3-030-36708-4_61)
as this project infers it from the abstract. (3d) to (3h) are other variants of the cell update;
(3h) is (3c) without the scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elstm.nn.sequences import keep_ended, zero_ended
from elstm.nn.sync import BatchCounts

# The norms of the cell in each variant of its update: norm_c, and norm_c2 for a second one.
CELL_NORMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "output": ("norm_c",),
    "update": ("norm_c",),
    "increment": ("norm_c",),
    "terms": ("norm_c", "norm_c2"),
    "carry": ("norm_c",),
    "update_output": ("norm_c", "norm_c2"),
    "center": ("norm_c",),
}


class NormInputs(NamedTuple):
    """Holds one normalisation as a recurrence takes it.

    Attributes:
        weight: γ, (F,). None: equation (5), which has neither γ nor variance.
        bias: β, (F,), or None. Only the norms of the cell have one.
        mean, var: population statistics (T, F), which steps t >= batch_steps read; may be None
            where there is no such step. `var` is None without γ.
        eps: added to the variance.
        batch_steps: steps t < batch_steps use the statistics of the batch: 0 in eval mode, T in
            training, fewer where a packed batch ends with a single sequence.
        counts: how the batch is spread over several processes; None for one process.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    batch_steps: int
    counts: BatchCounts | None = None


class Call(NamedTuple):
    """Holds the arguments of a recurrence: one layer in one direction, T steps of B sequences.

    Attributes:
        x: (T, B, I). Row b is active at step t where b < batch_sizes[t]; other rows are ignored.
        batch_sizes: T numbers that do not increase, the first of them B; None: B at every step.
        h_0, c_0: initial state, (B, H) each.
        weight_ih, weight_hh: (4H, I) and (4H, H), gate order i, f, g, o.
        bias: (4H,), or None.
        norm_ih, norm_hh: norms of the two projections in equation (1), F = 4H; None: no norm.
        norm_c, norm_c2: BN and BN2 of the cell, F = H; None where `cell_norm` has none.
        cell_norm: a key of CELL_NORMS.
        recompute: save little more than the states for the backward pass, and compute the rest
            again there.
    """

    x: Tensor
    batch_sizes: list[int] | None
    h_0: Tensor
    c_0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    norm_ih: NormInputs | None
    norm_hh: NormInputs | None
    norm_c: NormInputs | None
    norm_c2: NormInputs | None
    cell_norm: str
    recompute: bool = False

    @property
    def norms(self) -> tuple[NormInputs | None, ...]:
        """Returns norm_ih, norm_hh, norm_c and norm_c2."""
        return self.norm_ih, self.norm_hh, self.norm_c, self.norm_c2

    @property
    def batch_steps(self) -> int:
        """Returns the number of steps at which any norm uses the statistics of the batch."""
        return max((norm.batch_steps for norm in self.norms if norm is not None), default=0)


class Statistics(NamedTuple):
    """Holds batch statistics of the steps t < batch_steps; no gradient flows through them."""

    mean: Tensor  # (batch_steps, F)
    var: Tensor | None  # (batch_steps, F), biased; None for a norm without γ


class Results(NamedTuple):
    """Holds the results of a recurrence.

    Attributes:
        output: (T, B, H), zero where a row is not active.
        h_n, c_n: (B, H), each row's state after its last step.
        statistics: those of norm_ih, norm_hh, norm_c and norm_c2; None where there is no norm.
    """

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    statistics: tuple[Statistics | None, ...]


Recurrence = Callable[[Call], Results]
ExpectedShape = tuple[str, Tensor | None, tuple[int, ...]]  # a tensor of a call, by name


def check_shapes(call: Call) -> None:
    """Raises ValueError unless all tensors of a call fit its input and state."""
    steps, units = call.x.shape[0], call.h_0.shape[-1]
    check_dtype(call.x, call.weight_ih)
    expected = cell_shapes(call)
    for name, norm in zip(("norm_ih", "norm_hh", "norm_c", "norm_c2"), call.norms, strict=True):
        if norm is not None:
            features = units if name.startswith("norm_c") else 4 * units
            parts: list[ExpectedShape] = [
                (f"{name}.weight", norm.weight, (features,)),
                (f"{name}.bias", norm.bias, (features,)),
                (f"{name}.running_mean", norm.mean, (steps, features)),
                (f"{name}.running_var", norm.var, (steps, features)),
            ]
            expected += [part for part in parts if part[1] is not None]
    check_expected(expected)


def check_dtype(x: Tensor, weight: Tensor | None) -> None:
    """Raises ValueError if the input and the weights differ in dtype and autocast is off."""
    if weight is None or x.dtype == weight.dtype:
        return
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        raise ValueError(
            f"input must have the dtype of the weights, {weight.dtype}, got {x.dtype}; convert it"
            f" by input.to({weight.dtype})"
        )


def cell_shapes(call: Any) -> list[ExpectedShape]:
    """Returns the state, weights and bias of a call with the shapes that they must have."""
    _, batch, inputs = call.x.shape
    units = call.h_0.shape[-1]
    expected: list[ExpectedShape] = [
        ("h_0", call.h_0, (batch, units)),
        ("c_0", call.c_0, (batch, units)),
        ("weight_ih", call.weight_ih, (4 * units, inputs)),
        ("weight_hh", call.weight_hh, (4 * units, units)),
    ]
    return expected if call.bias is None else [*expected, ("bias", call.bias, (4 * units,))]


def check_expected(expected: Sequence[ExpectedShape]) -> None:
    """Raises ValueError unless each tensor has its shape; compiled code would read past its end."""
    for name, tensor, shape in expected:
        if tensor is None or tensor.shape != shape:
            given = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{name} must have shape {shape}, got {given}")


class _Norm:
    """Computes equation (4) or (5) step by step, and stores the batch statistics."""

    def __init__(self, inputs: NormInputs | None) -> None:
        self.inputs = inputs
        self.means: list[Tensor] = []
        self.vars: list[Tensor] = []
        self.merged_moments: Any = None  # mean and variance of every step, by `merge_all_steps`

    def merge_all_steps(self, x: Tensor) -> None:
        """Merges the statistics of x (T, B, F) with those of the other processes.

        It takes one exchange for all steps, where __call__ has one for each. It does nothing for a
        batch of a single process.
        """
        if self.inputs is None or self.inputs.counts is None:
            return
        others = self.inputs.counts
        x = x.to(at_least_float32(x.dtype))
        counts = torch.tensor(others.counts, device=x.device).view(-1, 1, 1)
        active = torch.arange(x.shape[1], device=x.device).view(1, -1, 1) < counts
        some = counts[:, 0].clamp(min=1)
        mean = (x * active).sum(1) / some
        var = ((x - mean.unsqueeze(1)) * active).square().sum(1) / some
        merged = others.merge(mean, var)
        self.merged_moments = tuple(part.unbind(0) for part in merged)

    def _moments(self, x: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean, x - mean and variance of the batch at step t; without γ, variance 0."""
        if self.merged_moments is not None:
            mean, var = (part[t] for part in self.merged_moments)
            return mean, x - mean, var
        # Sums, because torch.var_mean over the batch axis is several times slower on a CPU.
        count = max(x.shape[0], 1)
        mean = x.sum(0) / count
        centred = x - mean
        scaled = self.inputs is not None and self.inputs.weight is not None
        var = centred.square().sum(0) / count if scaled else torch.zeros_like(mean)
        others = self.inputs and self.inputs.counts
        if others is not None:
            mean, var = others.merge(mean, var, t)
            centred = x - mean
        return mean, centred, var

    def __call__(self, x: Tensor, t: int) -> Tensor:  # (n, F) -> (n, F)
        if self.inputs is None:
            return x
        weight, bias, means, variances, eps, batch_steps, _ = self.inputs
        x = x.to(at_least_float32(x.dtype))
        if t < batch_steps:
            mean, centred, var = self._moments(x, t)
            self.means.append(mean.detach())
            self.vars.append(var.detach())
        else:
            assert means is not None  # the layer passes them whenever batch_steps < T
            centred = x - means[t]
            if weight is not None:
                assert variances is not None
                var = variances[t]
        y = centred if weight is None else centred * (torch.rsqrt(var + eps) * weight)
        return y if bias is None else y + bias

    def statistics(self) -> Statistics | None:
        if self.inputs is None:
            return None
        scaled = self.inputs.weight is not None
        if not self.means:
            like = self.inputs.weight if scaled else self.inputs.bias
            assert like is not None
            empty = like.new_empty(0, like.shape[0])
            return Statistics(empty, empty if scaled else None)
        return Statistics(torch.stack(self.means), torch.stack(self.vars) if scaled else None)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def recurrence(call: Call, *, states: list[tuple[Tensor, ...]] | None = None) -> Results:
    """Runs one layer in one direction.

    Args:
        call: the arguments. With `recompute`, the state after every sqrt(T)-th step is saved, and
            the intermediate results of sqrt(T) steps at a time.
        states: a list to which every (h_t, c_t) of the rows active at t is appended, for
            diagnostics; nothing is recomputed then.

    Returns:
        Results with the dtype of the projections; the state is float32 at least inside.
    """
    state_dtype = at_least_float32(torch.promote_types(call.h_0.dtype, call.c_0.dtype))
    h, c = call.h_0.to(state_dtype), call.c_0.to(state_dtype)
    if not call.recompute or states is not None or not torch.is_grad_enabled():
        output, h, c, statistics = _steps(call, 0, call.x, h, c, states)
        return Results(output, h.to(output.dtype), c.to(output.dtype), statistics)
    outputs, found, length = [], [], max(1, math.isqrt(call.x.shape[0]))
    for first, part in zip(range(0, call.x.shape[0], length), call.x.split(length), strict=True):
        output, h, c, statistics = checkpoint(
            _steps, call, first, part, h, c, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(output)
        found.append(statistics)
    if not torch.compiler.is_compiling():  # the compiler's code checks the tensors that it saves
        *outputs, h, c = _Unchanged.apply(len(outputs) + 2, *outputs, h, c, *_read_again(call))
    output = torch.cat(outputs)
    joined = tuple(parts[0] and _concatenated(parts) for parts in zip(*found, strict=True))
    return Results(output, h.to(output.dtype), c.to(output.dtype), joined)


def _read_again(call: Call) -> list[Tensor]:
    """Returns what the second forward pass reads, without connecting it to the graph."""
    norms = [norm for norm in call.norms if norm is not None]
    tensors = [call.x, call.h_0, call.c_0, call.weight_ih, call.weight_hh, call.bias]
    tensors += [part for norm in norms for part in (norm.weight, norm.bias)]
    return [tensor.detach() for tensor in tensors if tensor is not None]


class _Unchanged(torch.autograd.Function):
    """Passes the first `count` tensors on, and saves the others only so that torch checks them.

    Checkpointing reads them again in the backward pass and would not notice an in-place change.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[count:])
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # raises RuntimeError if one was changed in place
        return None, *gradients, *[None] * len(saved)


def _concatenated(parts: Sequence[Statistics]) -> Statistics:
    means, variances = zip(*parts, strict=True)
    return Statistics(torch.cat(means), None if variances[0] is None else torch.cat(variances))


def _steps(
    call: Call,
    first: int,
    x: Tensor,
    h_all: Tensor,
    c_all: Tensor,
    states: list[tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Statistics | None, ...]]:
    """Runs the steps of `x`, which are those of call.x from `first` on, in float32 at least."""
    weight_hh, cell_norm = call.weight_hh, call.cell_norm
    bn_ih, bn_hh, bn_c, bn_c2 = norms = [_Norm(norm) for norm in call.norms]
    batch = x.shape[1]
    projected = F.linear(x, call.weight_ih)  # W_x x_t for all t at once
    bn_ih.merge_all_steps(projected)
    outputs = []
    # unbind, not x[t]: the gradient of each x[t] is a zero tensor of x's full size, T times.
    for t, wx in enumerate(projected.unbind(0), first):
        active = batch if call.batch_sizes is None else call.batch_sizes[t]
        wx, h, c = wx[:active], h_all[:active], c_all[:active]
        wh = F.linear(h.to(weight_hh.dtype), weight_hh)
        z = (bn_hh(wh, t) + bn_ih(wx, t)).to(h.dtype)  # (1)
        if call.bias is not None:
            z = z + call.bias
        i, f, g, o = z.chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()  # (2)

        if cell_norm == "increment":
            c = f * c + bn_c(i * g, t)  # (3d)
        elif cell_norm == "terms":
            c = bn_c(f * c, t) + bn_c2(i * g, t)  # (3e)
        elif cell_norm == "carry":
            c = f * bn_c(c, t) + i * g  # (3f)
        else:
            c = f * c + i * g  # (3a), (3b)
            if cell_norm in ("update", "update_output", "center"):
                c = bn_c(c, t)  # (3c), (3g), (3h)
        if cell_norm == "output":
            h = o * bn_c(c, t).tanh()  # (3b)
        elif cell_norm == "update_output":
            h = o * bn_c2(c, t).tanh()  # (3g)
        else:
            h = o * c.tanh()

        if states is not None:
            states.append((h, c))
        h_all, c_all = keep_ended(h, h_all), keep_ended(c, c_all)
        outputs.append(zero_ended(h, batch))
    statistics = tuple(norm.statistics() for norm in norms)
    return torch.stack(outputs).to(projected.dtype), h_all, c_all, statistics
