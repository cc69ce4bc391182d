"""Computes means, intervals and tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # scipy.stats takes longer to import than a report to make

LEVEL = 0.95
# With fewer seeds or pairs a report gives means and differences, but no interval and no test,
# because the t distribution with one degree of freedom makes intervals too wide to be useful.
MIN_SEEDS = 3


@dataclass(frozen=True)
class Summary:
    """Holds number, mean, standard deviation and half a 95 % t interval of values over seeds."""

    n: int
    mean: float
    sd: float | None  # with n - 1; None for one seed, whose spread is unknown
    half_width: float | None


@dataclass(frozen=True)
class Folds:
    """Holds the fold of a cross-validation for each value.

    The training sets of two folds share most of their sequences, so that results of folds depend on
    each other, and a plain t-test would be too optimistic. Intervals and tests over folds therefore
    take (1/k + 1/(K - 1)) s² as the variance of a mean over k of K folds, where independent values
    have s²/k. This is the corrected resampled t-test of Nadeau and Bengio, "Inference for the
    Generalization Error", Machine Learning 52, 2003, whose term n_test / n_train is 1/(K - 1) here.
    Values of one fold, which differ in the seed, are averaged first.
    """

    of: Sequence[int]
    count: int  # K

    def means(self, values: np.ndarray) -> np.ndarray:
        """Averages values (n, ...) within each fold; NaN does not count."""
        of = np.asarray(self.of)
        return np.array([_mean(values[of == fold]) for fold in np.unique(of)])

    def variance_factor(self, folds: Any) -> Any:
        """Returns the factor of s² in the variance of a mean over `folds` folds."""
        return 1 / folds + 1 / (self.count - 1)


def summarize(values: Sequence[float | None], folds: Folds | None = None) -> Summary | None:
    """Summarises the values that are not None; returns None if there are none."""
    known = [value is not None for value in values]
    x = np.array([value for value in values if value is not None], dtype=float)
    if not len(x):
        return None
    if folds is not None:
        of = [fold for fold, kept in zip(folds.of, known, strict=True) if kept]
        return _over_folds(x, Folds(of, folds.count))
    if len(x) == 1:
        return Summary(1, float(x[0]), None, None)
    sd = float(x.std(ddof=1))
    return Summary(len(x), float(x.mean()), sd, t_quantile(len(x) - 1) * sd / math.sqrt(len(x)))


def _over_folds(x: np.ndarray, folds: Folds) -> Summary:
    means = folds.means(x)
    k, half = len(means), None
    if k >= MIN_SEEDS:
        deviation = float(means.std(ddof=1)) * math.sqrt(folds.variance_factor(k))
        half = t_quantile(k - 1) * deviation
    sd = float(x.std(ddof=1)) if len(x) > 1 else None
    return Summary(len(x), float(means.mean()), sd, half)


def t_quantile(df: float, level: float = LEVEL) -> float:
    """Returns the t for which `level` of Student's distribution lies between -t and t."""
    return float(special.stdtrit(df, (1 + level) / 2))


@dataclass(frozen=True)
class PairedTest:
    """Holds the result of a two-sided paired t-test of a - b over shared seeds, or over folds.

    `t`, `p` and `effect` (Cohen's d_z: mean difference by its standard deviation) are None where
    there is one pair, or where all differences are equal.
    """

    n: int
    difference: float
    low: float | None  # 95 % interval of the mean difference
    high: float | None
    t: float | None
    p: float | None
    effect: float | None
    p_holm: float | None = None

    def without_verdict(self) -> PairedTest:
        """Returns the number of pairs and their mean difference alone."""
        return PairedTest(self.n, self.difference, None, None, None, None, None)


def paired_test(
    a: Sequence[float], b: Sequence[float], folds: Folds | None = None
) -> PairedTest | None:
    """Tests the pairs (a[k], b[k]); returns None if there are none.

    With `folds`, the difference of a fold is one observation, and the test is the corrected one.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if folds is not None and len(difference):
        difference = folds.means(difference)
    n = len(difference)
    if n == 0:
        return None
    mean = float(difference.mean())
    if n == 1:
        return PairedTest(n, mean, None, None, None, None, None)
    sd = float(difference.std(ddof=1))
    # Equal differences of accuracies differ by rounding: t would be 1e15 instead of undefined.
    if sd <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        return PairedTest(n, mean, None, None, None, None, None)
    effect = mean / sd
    scale = math.sqrt(1 / n if folds is None else folds.variance_factor(n))
    t = effect / scale
    half = t_quantile(n - 1) * sd * scale
    p = 2 * float(special.stdtr(n - 1, -abs(t)))
    return PairedTest(n, mean, mean - half, mean + half, t, p, effect)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values by Holm's step-down: the k-th smallest of m times (m - k + 1), monotone."""
    m = len(p_values)
    adjusted = [0.0] * m
    largest = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Band:
    """Holds the mean over seeds along a curve; all arrays are (points,)."""

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray  # of the 95 % t interval; NaN where there are too few seeds or folds
    n: np.ndarray
    seconds: np.ndarray  # mean over the seeds of the clock at x; NaN where not logged


def band(
    curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], folds: Folds | None = None
) -> Band:
    """Averages curves given as (x, seconds, value) at every x that occurs."""
    x = np.unique(np.concatenate([curve[0] for curve in curves])) if curves else np.empty(0)
    values = np.full((len(curves), len(x)), np.nan)
    seconds = np.full((len(curves), len(x)), np.nan)
    for row, (at, clock, value) in enumerate(curves):
        column = np.searchsorted(x, at)
        values[row, column] = value
        seconds[row, column] = clock
    if folds is not None and len(curves):
        values, seconds = folds.means(values), folds.means(seconds)
    n = np.isfinite(values).sum(axis=0)
    mean = _mean(values)
    squares = np.nansum((values - mean) ** 2, axis=0)
    half = np.full(len(x), np.nan)
    several = n >= (2 if folds is None else MIN_SEEDS)
    df = n[several] - 1
    sd = np.sqrt(squares[several] / df)
    factor = 1 / n[several] if folds is None else folds.variance_factor(n[several])
    half[several] = special.stdtrit(df, (1 + LEVEL) / 2) * sd * np.sqrt(factor)
    return Band(x, mean, half, n, _mean(seconds))


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over rows of the values that are not NaN."""
    n = np.isfinite(values).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)
