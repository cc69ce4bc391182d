"""Compares two groups image by image on the test set that all of their runs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy import special

from elstm.files.bounded import Damaged
from elstm.records.correct import read_correct
from elstm.reporting.groups import Group
from elstm.reporting.runs import Run
from elstm.reporting.stats import t_quantile


@dataclass(frozen=True)
class ImageTest:
    """Holds a comparison of runs with those of a baseline with the same seeds, image by image.

    With c = 1 where a run classifies an image correctly, and else 0, the difference of an image is
    the mean of c - c_baseline over the pairs. `difference` is its mean over the N images, and `low`
    to `high` is the 95 % t interval of that mean over images. The interval covers the choice of the
    test images, not that of the seeds.

    Attributes:
        only_group, only_baseline: mean number of images that one of the two runs alone classifies
            correctly.
        p: the median over the pairs of the p of McNemar's exact test ("Note on the sampling error
            of the difference between correlated proportions", Psychometrika 12, 1947).
    """

    pairs: int
    images: int
    difference: float
    low: float
    high: float
    only_group: float
    only_baseline: float
    p: float


Correct = dict[tuple[int, int], np.ndarray]  # by fold and seed: one truth value (N,) per image


def correct_images(group: Group) -> Correct:
    """Returns the images that each run of a group classifies correctly, where recorded.

    Runs on several folds of a cross-validation have different test sets, and so have runs whose
    split is drawn with an interpolation, as data.split_seed=${seed}. Such groups have none. A
    damaged record is left out.
    """
    if group.folds is not None:
        return {}
    found: Correct = {}
    for run in group.runs:
        if run.test_accuracy is None or splits_differ(run):
            continue
        with suppress(Damaged):
            correct = read_correct(run.stored)
            if correct is not None:
                found[run.pair] = correct
    return found


def splits_differ(run: Run) -> bool:
    """Returns whether each seed of the run's group has splits of its own."""
    return isinstance(run.config.get("data.split_seed"), str)


def image_tests(groups: Sequence[Correct], baseline: Correct) -> list[ImageTest | None]:
    """Compares each group with the baseline; None where no pair of runs has recorded the images."""
    tests: list[ImageTest | None] = []
    for ours in groups:
        shared = sorted(ours.keys() & baseline.keys()) if ours is not baseline else []
        tests.append(image_test([ours[p] for p in shared], [baseline[p] for p in shared]))
    return tests


def image_test(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> ImageTest | None:
    """Compares pairs of runs, each as one truth value (N,) per image; None without any."""
    lengths = {len(each) for each in (*ours, *theirs)}
    if len(lengths) != 1 or (n := lengths.pop()) < 2:
        return None
    a, b = np.stack(ours), np.stack(theirs)  # (pairs, N)
    only_a, only_b = (a & ~b).sum(axis=1), (b & ~a).sum(axis=1)
    difference = (a.astype(float) - b).mean(axis=0)
    mean = float(difference.mean())
    half = t_quantile(n - 1) * float(difference.std(ddof=1)) / math.sqrt(n)
    p = [mcnemar(int(x), int(y)) for x, y in zip(only_a, only_b, strict=True)]
    return ImageTest(
        pairs=len(a),
        images=n,
        difference=mean,
        low=mean - half,
        high=mean + half,
        only_group=float(only_a.mean()),
        only_baseline=float(only_b.mean()),
        p=float(np.median(p)),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided p of McNemar's test, exact by the binomial distribution."""
    n = only_a + only_b
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), n, 0.5)))
