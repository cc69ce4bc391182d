"""Names the cause of a step whose loss or gradient is not finite.

The run ends at the next log point or checkpoint, before weights or records of such a step reach
the disk (`Checkpoints.check_finite`).
"""

from __future__ import annotations

from collections.abc import Sequence


def culprit(
    names: Sequence[str], loss: float, norms: Sequence[float], before: Sequence[float]
) -> str:
    """Describes the first loss or gradient that was not finite in a step.

    Args:
        names: names of the parameters.
        norms: the norms of their gradients in the step.
        before: the norms in the step before; zeros if there was none.
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
