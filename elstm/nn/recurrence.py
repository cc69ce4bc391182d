"""The recurrence as equations: a plain loop over time, the reference that every backend is held to.

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

    BN(x; γ, β) = (x - mean) / sqrt(var + eps) * γ + β                                (4)

with the mean and the biased variance of step t over the sequences that are active at t. (3a)
without any normalisation is the LSTM as torch.nn.LSTM computes it, (3b) is BN-LSTM (Cooijmans et
al. 2017, arXiv 1603.09025), (3c) is what this project takes for eLSTM-BN (Wang et al. 2019,
doi:10.1007/978-3-030-36708-4_61), and (3d) to (3g) are other variants of the cell update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elstm.nn.sync import Shares

# Which norms of the cell each reading has: norm_c, and norm_c2 for a second one.
CELL_NORMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "output": ("norm_c",),
    "update": ("norm_c",),
    "increment": ("norm_c",),
    "terms": ("norm_c", "norm_c2"),
    "carry": ("norm_c",),
    "update_output": ("norm_c", "norm_c2"),
}


class NormInputs(NamedTuple):
    """One normalisation as a recurrence sees it."""

    weight: Tensor  # γ, (F,)
    bias: Tensor | None  # β, (F,); the cell's norms alone have one
    mean: Tensor | None  # (T, F) population statistics, read where t >= batch_steps
    var: Tensor | None
    eps: float
    shares: Shares | None = None  # where the batch lies spread over several processes


class Statistics(NamedTuple):
    """Batch statistics of the steps t < batch_steps; no gradient flows through them."""

    mean: Tensor  # (batch_steps, F)
    var: Tensor  # (batch_steps, F), biased


Recurrence = Callable[..., tuple[Tensor, Tensor, Tensor, tuple[Statistics | None, ...]]]


class _Norm:
    """Equation (4), step after step; keeps the statistics of the batch."""

    def __init__(self, inputs: NormInputs | None, batch_steps: int) -> None:
        self.inputs = inputs
        self.batch_steps = batch_steps
        self.means: list[Tensor] = []
        self.vars: list[Tensor] = []
        self.known: Any = None  # mean and variance of every step, by `look_ahead`

    def look_ahead(self, x: Tensor) -> None:
        """x (T, B, F) of all steps: merges their statistics with the other processes' at once.

        One exchange for all steps, where __call__ has one for each. Nothing to do without others.
        """
        if self.inputs is None or self.inputs.shares is None:
            return
        shares = self.inputs.shares
        x = x.to(at_least_float32(x.dtype))
        counts = torch.tensor(shares.counts, device=x.device).view(-1, 1, 1)
        alive = torch.arange(x.shape[1], device=x.device).view(1, -1, 1) < counts
        some = counts[:, 0].clamp(min=1)
        mean = (x * alive).sum(1) / some
        var = ((x - mean.unsqueeze(1)) * alive).square().sum(1) / some
        merged = shares.merge(mean, var)
        self.known = tuple(part.unbind(0) for part in merged)

    def _moments(self, x: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, x - mean and variance of the batch at step t."""
        if self.known is not None:
            mean, var = (part[t] for part in self.known)
            return mean, x - mean, var
        # Sums, because torch.var_mean over the batch axis is several times slower on a CPU.
        count = max(x.shape[0], 1)
        mean = x.sum(0) / count
        centred = x - mean
        var = centred.square().sum(0) / count
        shares = self.inputs and self.inputs.shares
        if shares is not None:
            mean, var = shares.merge(mean, var, t)
            centred = x - mean
        return mean, centred, var

    def __call__(self, x: Tensor, t: int) -> Tensor:  # (n, F) -> (n, F)
        if self.inputs is None:
            return x
        weight, bias, means, variances, eps, _ = self.inputs
        x = x.to(at_least_float32(x.dtype))
        if t < self.batch_steps:
            mean, centred, var = self._moments(x, t)
            self.means.append(mean.detach())
            self.vars.append(var.detach())
        else:
            assert means is not None  # the layer passes them whenever batch_steps < T
            assert variances is not None
            centred, var = x - means[t], variances[t]
        y = centred * (torch.rsqrt(var + eps) * weight)
        return y if bias is None else y + bias

    def statistics(self) -> Statistics | None:
        if self.inputs is None:
            return None
        if not self.means:
            empty = self.inputs.weight.new_empty(0, self.inputs.weight.shape[0])
            return Statistics(empty, empty)
        return Statistics(torch.stack(self.means), torch.stack(self.vars))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def recurrence(
    x: Tensor,
    batch_sizes: list[int] | None,
    batch_steps: int,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    norm_ih: NormInputs | None,
    norm_hh: NormInputs | None,
    norm_c: NormInputs | None,
    norm_c2: NormInputs | None,
    cell_norm: str,
    recompute: bool = False,
    *,
    states: list[tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Statistics | None, ...]]:
    """One layer in one direction.

    Args:
        x: (T, B, I). Row b is alive at step t where b < batch_sizes[t]; other rows are ignored.
        batch_sizes: T numbers that do not increase, the first of them B; None: B at every step.
        batch_steps: steps t < batch_steps use the statistics of the batch, later ones the
            population's: 0 in eval mode, T in training.
        h_0, c_0: (B, H).
        weight_ih, weight_hh, bias: (4H, I), (4H, H), (4H,); gate order i, f, g, o.
        norm_ih, norm_hh: norms of the two projections in (1); None: the projection itself.
        norm_c, norm_c2: BN and BN2 of the cell, as `cell_norm` has them.
        cell_norm: a key of CELL_NORMS.
        recompute: for the backward pass keep little more than the states, and compute the rest
            again then. Here: the state after every sqrt(T)-th step, and what sqrt(T) steps keep.
        states: a list that is given every (h_t, c_t), of the rows alive at t, for looking inside;
            nothing is recomputed then.

    Returns:
        output (T, B, H), zero where a row is not alive; h_n and c_n (B, H), each row's state after
        its last step; the Statistics of norm_ih, norm_hh, norm_c and norm_c2, None where absent.
        The state is float32 at least inside; what is returned has the dtype of the projections.
    """
    weights = weight_ih, weight_hh, bias
    norms = norm_ih, norm_hh, norm_c, norm_c2
    state_dtype = at_least_float32(torch.promote_types(h_0.dtype, c_0.dtype))
    h, c = h_0.to(state_dtype), c_0.to(state_dtype)
    constants = (batch_sizes, batch_steps, weights, norms, cell_norm)
    if not recompute or states is not None or not torch.is_grad_enabled():
        output, h, c, statistics = _steps(0, x, h, c, *constants, states)
        return output, h.to(output.dtype), c.to(output.dtype), statistics
    outputs, found, length = [], [], max(1, math.isqrt(x.shape[0]))
    for first, part in zip(range(0, x.shape[0], length), x.split(length), strict=True):
        output, h, c, statistics = checkpoint(
            _steps, first, part, h, c, *constants, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(output)
        found.append(statistics)
    output = torch.cat(outputs)
    joined = tuple(
        parts[0] and Statistics(*(torch.cat(values) for values in zip(*parts, strict=True)))
        for parts in zip(*found, strict=True)
    )
    return output, h.to(output.dtype), c.to(output.dtype), joined


def _steps(
    first: int,
    x: Tensor,
    h_all: Tensor,
    c_all: Tensor,
    batch_sizes: list[int] | None,
    batch_steps: int,
    weights: tuple[Tensor, Tensor, Tensor | None],
    inputs: tuple[NormInputs | None, ...],
    cell_norm: str,
    states: list[tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Statistics | None, ...]]:
    """The steps of `x`, of which the first is step `first`; the state is float32 at least."""
    weight_ih, weight_hh, bias = weights
    bn_ih, bn_hh, bn_c, bn_c2 = norms = [_Norm(norm, batch_steps) for norm in inputs]
    batch = x.shape[1]
    projected = F.linear(x, weight_ih)  # W_x x_t for all t at once
    bn_ih.look_ahead(projected)
    outputs = []
    # unbind, not x[t]: the gradient of each x[t] is a zero tensor of x's full size, T times.
    for t, wx in enumerate(projected.unbind(0), first):
        alive = batch if batch_sizes is None else batch_sizes[t]
        wx, h, c = wx[:alive], h_all[:alive], c_all[:alive]
        wh = F.linear(h.to(weight_hh.dtype), weight_hh)
        z = (bn_hh(wh, t) + bn_ih(wx, t)).to(h.dtype)  # (1)
        if bias is not None:
            z = z + bias
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
            if cell_norm in ("update", "update_output"):
                c = bn_c(c, t)  # (3c), (3g)
        if cell_norm == "output":
            h = o * bn_c(c, t).tanh()  # (3b)
        elif cell_norm == "update_output":
            h = o * bn_c2(c, t).tanh()  # (3g)
        else:
            h = o * c.tanh()

        if alive == batch:
            h_all, c_all, output = h, c, h
        else:  # sequences that have ended keep their last state and put out zeros
            h_all, c_all = torch.cat((h, h_all[alive:])), torch.cat((c, c_all[alive:]))
            output = F.pad(h, (0, 0, 0, batch - alive))
        outputs.append(output)
        if states is not None:
            states.append((h, c))
    statistics = tuple(norm.statistics() for norm in norms)
    return torch.stack(outputs).to(projected.dtype), h_all, c_all, statistics
