"""Defines batch normalisation with statistics for each time step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from elstm.nn import init
from elstm.nn.backends.plain import running_transform, why_unreadable
from elstm.nn.recurrence import NormInputs, Statistics, at_least_float32
from elstm.nn.sync import BatchCounts

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Counts = int | Tensor  # active sequences: the same at all steps, or (batch_steps,)


class TooFewSequences(ValueError):
    """Reports a batch of one sequence, which has no variance, or of none."""


class Pool(Protocol):
    """Collects the statistics of batches; elstm.nn.statistics implements it."""

    def add(self, batch: Statistics, counts: Counts, start_step: int) -> None: ...


class StepBatchNorm(nn.Module):
    """Holds γ, β and the statistics of batch normalisation with statistics per step.

    BN(x_t; γ, β) = (x_t - mean_t) / sqrt(var_t + eps) * γ + β, feature by feature. γ and β are
    shared by all steps; the population statistics are per step. A recurrence reads them and
    computes. With gamma=None it centres alone, x_t - mean_t + β, and has neither γ nor variance.

    Args:
        features: number of features F.
        max_steps: number of rows of the statistics.
        eps: added to the variance.
        momentum: weight of a new batch in the moving averages; None: the cumulative average.
        gamma: initial γ; None: no γ.
        bias: whether there is a β, which starts at zero.
        device, dtype: of γ and β; statistics are float32 at least.

    Attributes:
        weight: γ, (features,), or None.
        bias: β, (features,), or None.
        running_mean, running_var: (max_steps, features), float32 at least whatever the module's
            dtype: statistics of half precision are useless. running_var is None without γ.
        num_batches_tracked: (max_steps,), the number of batches that reached each step.

    Training moves row t by `momentum` towards the batch's statistics of step t (the unbiased
    variance, as torch.nn.BatchNorm1d does; None: the cumulative average). The last row serves step
    max_steps - 1 and all later ones. A longer batch moves it once, towards the mean and variance
    pooled over those steps. Evaluation reads row t, or, for steps beyond those that any batch has
    reached, the last row that one has. In eval mode of this module (not of the layer that holds it)
    the population statistics are used and stay as they are.

    A state dict leaves out the last rows if no batch has reached them. One that was saved with
    another max_steps can be loaded: rows beyond max_steps are dropped, and missing rows repeat the
    last one, with a warning if training had reached these rows. Where rows are left out, the
    statistics in a state dict are copies: a change of them in place does not reach the layer. An
    average of weights changes the buffers, as torch.optim.swa_utils.AveragedModel does. Tools that
    need state dicts of fixed shapes, such as torch.distributed.checkpoint and
    torch.func.functional_call, need max_steps to be the length of the sequences.

    A recurrence does not call this module, so its forward hooks do not run.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor | None
    num_batches_tracked: Tensor

    def __init__(
        self,
        features: int,
        *,
        max_steps: int,
        eps: float,
        momentum: float | None,
        gamma: float | None,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features, self.max_steps = features, max_steps
        self.eps, self.momentum, self.gamma = eps, momentum, gamma
        self.pool: Pool | None = None  # set by recompute_statistics while it runs
        for name, present in {"weight": gamma is not None, "bias": bias}.items():
            values = torch.empty(features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if present else None)
        rows = torch.empty(max_steps, features, device=device, dtype=at_least_float32(values.dtype))
        self.register_buffer("running_mean", rows)
        self.register_buffer("running_var", None if gamma is None else rows.clone())
        counts = torch.empty(max_steps, device=device, dtype=torch.int64)
        self.register_buffer("num_batches_tracked", counts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None and self.gamma is not None:
            init.draw(self, "weight", nn.init.constant_, self.gamma)
        if self.bias is not None:
            init.draw(self, "bias", nn.init.zeros_)
        self.reset_statistics()

    def reset_statistics(self, rows: slice | Tensor = slice(None)) -> None:
        self.running_mean[rows] = 0
        if self.running_var is not None:
            self.running_var[rows] = 1
        self.num_batches_tracked[rows] = 0

    def _statistics(self) -> dict[str, Tensor]:
        """Returns the statistics that this norm has, by name."""
        found = {name: getattr(self, name) for name in STATISTICS}
        return {name: part for name, part in found.items() if part is not None}

    def inputs(
        self, steps: int, batch_steps: int, start_step: int, counts: BatchCounts | None = None
    ) -> NormInputs:
        """Returns the norm's inputs to a recurrence over T = `steps` steps from `start_step` on.

        They hold population statistics only if a step needs them.
        """
        weight, bias = self.weight, self.bias
        self._check_parts(weight, bias)
        mean = var = None
        if batch_steps < steps:
            mean, var = self._population(start_step, steps)
        return NormInputs(weight, bias, mean, var, self.eps, batch_steps, counts)

    def _check_parts(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Raises ValueError unless this norm has the parts, and the shapes, it was made with."""
        scales, mean, var = self.gamma is not None, self.running_mean, self.running_var
        if (weight is None) == scales or (var is None) == scales or (bias is None and not scales):
            parts = (
                "a weight and a running_var" if scales else "a bias, no weight and no running_var"
            )
            raise ValueError(f"a norm with gamma={self.gamma} must have {parts}")
        if mean is None or self.num_batches_tracked is None:
            raise ValueError("a norm must have a running_mean and num_batches_tracked, got None")
        rows = self.max_steps, self.features
        for name, part in self._statistics().items():
            shape = rows[:1] if name == "num_batches_tracked" else rows
            if part.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")

    def _population(self, start: int, steps: int) -> tuple[Tensor, Tensor | None]:
        var, tracked = self.running_var, self.num_batches_tracked
        if torch.jit.is_tracing():
            steps = int(steps)  # the trace holds as many steps as its example has
        end = start + steps
        # A view cannot be saved for backward, since training moves the statistics in place.
        saved = torch.is_grad_enabled() and not torch.jit.is_tracing()
        copied = saved or torch.compiler.is_compiling()
        if not copied and not torch.jit.is_tracing():
            copied = (
                why_unreadable(tracked) is not None
            )  # torch.func.vmap, for one, has no `if` on values
        if not copied and tracked.is_cpu and end <= self.max_steps and tracked[start:end].all():
            return self.running_mean[start:end], None if var is None else var[start:end]
        index = torch.arange(self.max_steps, device=tracked.device)
        last = torch.where(tracked > 0, index, -1).amax()
        last = torch.where(last < 0, self.max_steps - 1, last)
        row = torch.arange(start, end, device=tracked.device).clamp(max=last)
        return self.running_mean[row], None if var is None else var[row]

    def fold(
        self, batch: Statistics, counts: Counts, start_step: int
    ) -> tuple[int, Tensor, Tensor | None, Counts]:
        """Pools the steps from max_steps - 1 on into the last row.

        Returns:
            The first row of the statistics, and mean, variance and number of sequences for it and
            those after it.
        """
        mean, var = batch
        first = min(start_step, self.max_steps - 1)
        own = self.max_steps - 1 - first  # steps before the last row
        if mean.shape[0] <= own + 1:
            return first, mean, var, counts
        if isinstance(counts, int):
            counts = torch.full(mean.shape[:1], counts, dtype=mean.dtype, device=mean.device)
        total = counts[own:].sum()
        share = (counts[own:] / total).unsqueeze(1)
        pooled = (share * mean[own:]).sum(0)
        if var is not None:
            spread = (share * (var[own:] + (mean[own:] - pooled).square())).sum(0)
            var = torch.cat((var[:own], spread[None]))
        return (
            first,
            torch.cat((mean[:own], pooled[None])),
            var,
            torch.cat((counts[:own], total[None])),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StepBatchNorm:
        """Moves and casts as nn.Module does, but keeps the statistics float32 at least."""
        before = self._statistics()
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.is_floating_point() and new.dtype != at_least_float32(new.dtype):
                setattr(self, name, old.to(new.device))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Saves as nn.Module does, without the last rows that no batch has reached."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        names = list(self._statistics())
        saved: list[Any] = [destination.get(prefix + name) for name in names]
        if keep_vars or any(type(s) is not Tensor or s.is_meta for s in saved):
            return
        mean, *variances, tracked = saved
        if len({len(part) for part in saved}) > 1 or not tracked.any():
            return
        touched = (mean != 0).any(1) | (tracked != 0)
        for var in variances:
            touched |= (var != 1).any(1)
        rows = int(touched.nonzero().max()) + 2  # one more, so that loading repeats an initial row
        if 2 * rows <= len(tracked):
            for name, part in zip(names, saved, strict=True):
                destination[prefix + name] = part[:rows].clone()

    def _fit_rows(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Cuts the statistics of a state dict to `max_steps` rows, or repeats the last row."""
        own = self._statistics()
        given: list[Any] = [state_dict.get(prefix + name) for name in own]
        if not all(
            isinstance(g, Tensor) and g.dim() and g.shape[1:] == part.shape[1:] and len(g)
            for g, part in zip(given, own.values(), strict=True)
        ):
            return  # torch reports what is wrong
        tracked = given[-1]
        rows = len(tracked)
        if rows == self.max_steps or any(len(g) != rows for g in given):
            return
        for name, part in zip(own, given, strict=True):
            more = part[-1:].expand(max(self.max_steps - rows, 0), *part.shape[1:])
            state_dict[prefix + name] = torch.cat((part[: self.max_steps], more))
        if tracked.is_meta or not tracked[min(rows, self.max_steps + 1) - 1 :].any():
            return
        what = "those of the last step are repeated"
        if rows > self.max_steps:
            what = "those of later steps are dropped"
        warnings.warn(
            f"{prefix.rstrip('.') or 'the norm'} has max_steps={self.max_steps} and loads the"
            f" statistics of {rows} steps: {what}; recompute_statistics replaces them",
            stacklevel=2,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """Loads as nn.Module does; loaded statistics become float32."""
        self._fit_rows(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
        for name, loaded in self._statistics().items():  # other tensors after assign=True
            if loaded.is_floating_point():
                setattr(self, name, loaded.to(at_least_float32(loaded.dtype)))

    def extra_repr(self) -> str:
        scaling = "gamma=None" if self.weight is None else f"eps={self.eps}"
        return f"{self.features}, max_steps={self.max_steps}, {scaling}, momentum={self.momentum}"


@torch.no_grad()
def take_statistics(
    seen: Sequence[tuple[StepBatchNorm, Statistics]], counts: Counts, start_step: int
) -> None:
    """Tracks the statistics of one batch, or adds them to the pools of norms that collect.

    All norms of a layer are updated together, because on a GPU each small operation costs more to
    launch than to run.

    Args:
        seen: the norms of one layer, with the batch statistics of the steps from `start_step` on.
        counts: active sequences at each of these steps.
        start_step: the step of a longer sequence with which the batch starts.
    """
    for norm, batch in seen:
        if norm.pool is not None:
            norm.pool.add(batch, counts, start_step)
    norms = [norm for norm, _ in seen if norm.pool is None and norm.training]
    if not norms:
        return
    folded = [norm.fold(batch, counts, start_step) for norm, batch in seen if norm in norms]
    first, mean, _, counts = folded[0]  # the same rows for all norms of a layer

    def rows(statistics: Tensor) -> Tensor:
        return statistics.narrow(0, first, mean.shape[0])  # torch.compile makes a slice's end fixed

    tracked = [rows(norm.num_batches_tracked) for norm in norms]
    means = [mean for _, mean, _, _ in folded]
    variances = [var for _, _, var, _ in folded if var is not None]
    together = running_transform() is None  # torch.func.vmap has no operations on lists of tensors
    if isinstance(counts, int) and together and variances:
        unbiased = list(torch._foreach_mul(variances, counts / (counts - 1)))
    else:
        factor = counts / (counts - 1)
        factor = factor.unsqueeze(1) if isinstance(factor, Tensor) else factor
        unbiased = [var * factor for var in variances]
    running = [rows(norm.running_mean) for norm in norms]
    running += [rows(norm.running_var) for norm in norms if norm.running_var is not None]
    towards = [new.to(old) for new, old in zip((*means, *unbiased), running, strict=True)]
    counted = [*zip(norms, tracked, strict=True)]
    counted += [pair for pair in counted if pair[0].running_var is not None]
    moves = [*zip(running, towards, counted, strict=True)]
    for momentum in dict.fromkeys([norm.momentum for norm in norms]):  # mostly one
        chosen = [(old, new, n) for old, new, (norm, n) in moves if norm.momentum == momentum]
        if not together:
            _move_transformed(chosen, momentum)
        elif momentum is not None:
            torch._foreach_lerp_(
                [old for old, *_ in chosen], [new for _, new, _ in chosen], momentum
            )
        else:
            for old, new, count in chosen:
                old.lerp_(new, _cumulative(count, new))
    # Last, so that an error above leaves the counts as they were.
    if together:
        torch._foreach_add_(tracked, 1)
    else:
        for count in tracked:
            count.add_(1)


def _cumulative(count: Tensor, new: Tensor) -> Tensor:
    """Returns the weight of a batch in the average of it and the `count` batches before it."""
    return (count + 1).to(new.dtype).reciprocal().unsqueeze(1)


def _move_transformed(
    moves: Sequence[tuple[Tensor, Tensor, Tensor]], momentum: float | None
) -> None:
    """Moves statistics by operations that torch.func.vmap has: it has neither lists nor lerp_."""
    try:
        for old, new, count in moves:
            old.add_((new - old) * (_cumulative(count, new) if momentum is None else momentum))
    except RuntimeError as error:
        raise RuntimeError(
            "the running statistics of a layer that trains cannot be updated in place here; inside"
            " torch.func.vmap each model needs its own (torch.func.stack_module_state), or call"
            " .eval() before"
        ) from error
