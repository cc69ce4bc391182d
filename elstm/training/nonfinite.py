"""Steps whose loss or gradient is not finite: found without waiting for the device, named, skipped.

stop   the run ends at the next log point or checkpoint, before any of it reaches the disk
skip   the step changes nothing, weights, optimizer state and running statistics; it is counted
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def clip_gradients(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], max_norm: float
) -> Tensor:
    """Clips the norm of the whole gradient, as torch.nn.utils.clip_grad_norm_ does.

    Returns: the norm of each parameter's gradient before, (P,), of those that have one.
    """
    accelerator.unscale_gradients()  # in fp16
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.linalg.vector_norm(norms))
    return norms


class Skipping:
    """Takes an optimizer's step, or none where the gradient is not finite.

    Adam and SGD are told by a flag on the device and change nothing themselves; RMSprop, which has
    no fused form, and the first step of all, which makes the optimizer's state, are waited for.

    Args:
        model: its buffers, the running statistics, have seen the bad batch and are put back.
        optimizer: as Accelerate wraps it.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.buffers, self.optimizer = list(model.buffers()), optimizer
        self.before: list[Tensor] = []

    def begin(self) -> None:
        """Before the forward pass."""
        self.before = [buffer.clone() for buffer in self.buffers]

    def step(self, norms: Tensor) -> Tensor:
        """After the backward pass; returns whether the step was skipped, a truth value ()."""
        skip = ~norms.isfinite().all()
        for buffer, before in zip(self.buffers, self.before, strict=True):
            torch.where(skip, before, buffer, out=buffer)
        inner = self.optimizer.optimizer
        if getattr(inner, "_step_supports_amp_scaling", False) and inner.state:
            inner.grad_scale, inner.found_inf = None, skip.float()  # torch.amp's protocol
            self.optimizer.step()
            del inner.grad_scale, inner.found_inf
        elif not skip:
            self.optimizer.step()
        return skip


def culprit(
    names: Sequence[str], loss: float, norms: Sequence[float], before: Sequence[float]
) -> str:
    """What was not finite in a step, in words.

    Args:
        names: of the parameters, as are `norms`, those of their gradients.
        before: the norms in the step before; zeros where there was none.
    """
    bad = [name for name, norm in zip(names, norms, strict=True) if not _finite(norm)]
    if _finite(loss) and bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"the gradient of {bad[0]}{more}"
    largest = max(range(len(names)), key=lambda i: before[i])
    if not before[largest]:
        return "the loss"
    return f"the loss (the step before had its largest gradient in {names[largest]})"


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
