"""Detects steps whose loss or gradient is not finite, without synchronising with the device.

The run ends at the next log point or checkpoint, before weights or records of such a step reach
the disk.
"""

from __future__ import annotations

from collections.abc import Sequence

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
