"""Computes scores of a classifier from its confusion matrix, as scikit-learn defines them.

A confusion matrix is (C, C): rows are true classes, columns are predicted ones.
"""

from __future__ import annotations

from torch import Tensor


def recalls(confusion: Tensor) -> Tensor:
    """Returns the recall of each class, (C,); NaN for a class without sequences."""
    counts = confusion.double()
    return counts.diagonal() / counts.sum(1)


def precisions(confusion: Tensor) -> Tensor:
    """Returns the precision of each class, (C,); NaN for a class without predictions."""
    counts = confusion.double()
    return counts.diagonal() / counts.sum(0)


def f1_scores(confusion: Tensor) -> Tensor:
    """Returns the harmonic mean of precision and recall of each class.

    It is NaN for a class that neither occurs nor is predicted.
    """
    counts = confusion.double()
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def balanced_accuracy(confusion: Tensor) -> float:
    """Returns the mean recall of the classes that occur."""
    return float(recalls(confusion).nanmean())


def macro_f1(confusion: Tensor) -> float:
    """Returns the mean F1 of the classes that occur or are predicted."""
    return float(f1_scores(confusion).nanmean())
