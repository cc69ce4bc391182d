"""Scores are those of scikit-learn, also where classes are missing."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics

from elstm.training.scores import balanced_accuracy, f1_scores, macro_f1, precisions, recalls


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    true = draw.choice([0, 1, 2, 4], 60, p=[0.7, 0.2, 0.05, 0.05])  # class 3 does not occur
    predicted = np.where(draw.random(60) < 0.6, true, draw.integers(0, 5 if seed else 3, 60))
    confusion = torch.from_numpy(metrics.confusion_matrix(true, predicted, labels=range(6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that do not occur
        assert balanced_accuracy(confusion) == pytest.approx(
            metrics.balanced_accuracy_score(true, predicted)
        )
        assert macro_f1(confusion) == pytest.approx(
            metrics.f1_score(true, predicted, average="macro")
        )
    assert math.isnan(recalls(confusion)[3])
    assert math.isnan(f1_scores(confusion)[5])
    assert math.isnan(precisions(confusion)[5])
