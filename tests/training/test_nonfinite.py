"""Tests the message about the cause of a loss or gradient that is not finite."""

from __future__ import annotations

from elstm.training.nonfinite import culprit


def test_the_culprit() -> None:
    nan, inf = float("nan"), float("inf")
    names = ["a", "b", "c"]
    assert culprit(names, 0.5, [1, inf, nan], [1, 1, 1]) == "the gradient of b and 1 more"
    assert culprit(names, 0.5, [1, 1, nan], [1, 1, 1]) == "the gradient of c"
    assert culprit(names, nan, [nan] * 3, [0, 0, 0]) == "the loss"
    assert culprit(names, inf, [nan] * 3, [1, 9, 2]) == (
        "the loss (the step before had its largest gradient in b)"
    )
