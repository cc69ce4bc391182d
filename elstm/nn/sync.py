"""Merges batch statistics of a batch that is spread over the processes of a data-parallel job.

Each process knows count, mean and variance of its sequences. One all-gather of mean and variance,
of a step or of many at once, gives those of the full batch (Chan et al. 1979, for any number of
parts):

    mean = Σ_r n_r mean_r / N        var = Σ_r n_r (var_r + (mean_r - mean)²) / N        N = Σ_r n_r

with no difference of large squares. Every process adds up the same numbers in the same order, so
all have the same bits. Backward, one all-reduce sums dL/dmean and dL/dvar over the processes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # torch.distributed.ProcessGroup, which a torch without distributed has not; None: all


class BatchCounts(NamedTuple):
    """Holds the number of sequences that each of R processes has at each step."""

    counts: list[int]  # (T,) of this process
    totals: list[int]  # (T,) of all; they do not increase
    weights: Tensor  # (R, T, 1), n_r / N in float64; 0 where no process has a sequence
    rank: int  # of this process
    group: Group

    def merge(self, mean: Tensor, var: Tensor, t: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns mean and biased variance over all processes from this one's, differentiably.

        They are (F,) of step t, or (T, F) of all steps, and zero for a step without a sequence
        here. All processes have to call this, and the backward pass, in the same order.
        """
        weights = self.weights if t is None else self.weights[:, t]
        merged: tuple[Tensor, Tensor] = _Merge.apply(mean, var, weights.to(mean.dtype), self)
        return merged


class _Merge(torch.autograd.Function):
    """Merges the moments; its backward pass consists of differentiable operations on saved tensors.

    So it can be differentiated again, as often as requested.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, weights: Tensor, counts: BatchCounts) -> Any:
        means, variances = gather(torch.stack((mean, var)), counts.group).unbind(1)  # (R, ..., F)
        total = (weights * means).sum(0)
        ctx.counts = counts
        ctx.save_for_backward(mean, total, weights[counts.rank])
        return total, (weights * (variances + (means - total).square())).sum(0)

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor) -> Any:
        mean, total, weight = ctx.saved_tensors
        d_mean, d_var = _Sum.apply(torch.stack((d_mean, d_var)), ctx.counts.group).unbind(0)
        return weight * (d_mean + 2 * (mean - total) * d_var), weight * d_var, None, None


class _Sum(torch.autograd.Function):
    """Sums a tensor over the processes; their losses count as one sum, so backward sums too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        summed = x.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None


def gather(x: Tensor, group: Group) -> Tensor:
    """Returns x of every process in the order of their ranks, (R, *shape)."""
    gathered = x.new_empty(dist.get_world_size(group), *x.shape)
    dist.all_gather(list(gathered.unbind(0)), x.contiguous(), group=group)
    return gathered


def several_processes(group: Group) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def exchange_counts(counts: list[int], group: Group, device: torch.device) -> BatchCounts:
    """Exchanges between all processes how many sequences each has at each step.

    Steps that only other processes have count as steps without sequences. This call synchronises
    with the device.
    """
    steps = int(gather(torch.tensor(len(counts), device=device), group).max())
    counts = counts + [0] * (steps - len(counts))
    each = gather(torch.tensor(counts, device=device), group)  # (R, T)
    totals = each.sum(0)
    weights = (each.double() / totals.clamp(min=1)).unsqueeze(2)
    return BatchCounts(counts, totals.tolist(), weights, dist.get_rank(group), group)
