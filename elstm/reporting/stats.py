"""Computes means, intervals and tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes longer to import than a report to make

LEVEL = 0.95
# With fewer seeds or pairs a report gives means and differences, but no interval and no test: the t
# distribution with one degree of freedom makes them too wide to say anything.
MIN_SEEDS = 3


@dataclass(frozen=True)
class Summary:
    """Values over seeds: their number, mean, standard deviation and half a 95 % t interval."""

    n: int
    mean: float
    sd: float | None  # with n - 1; None for one seed: nothing is known about the spread
    half_width: float | None


def summarize(values: Sequence[float | None]) -> Summary | None:
    """Summarises the values that are not None; returns None if there are none."""
    x = np.array([value for value in values if value is not None], dtype=float)
    if not len(x):
        return None
    if len(x) == 1:
        return Summary(1, float(x[0]), None, None)
    sd = float(x.std(ddof=1))
    return Summary(len(x), float(x.mean()), sd, t_quantile(len(x) - 1) * sd / math.sqrt(len(x)))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """Returns the t for which `level` of Student's distribution lies between -t and t."""
    return float(special.stdtrit(df, (1 + level) / 2))


@dataclass(frozen=True)
class PairedTest:
    """The result of a two-sided paired t-test of a - b over shared seeds.

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


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest | None:
    """Tests the pairs (a[k], b[k]); returns None if there are none."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
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
    t = effect * math.sqrt(n)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
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
    """The mean over seeds along a curve; all arrays (points,)."""

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray  # of the 95 % t interval; NaN where fewer than two seeds are there
    n: np.ndarray
    seconds: np.ndarray  # mean over the seeds of the clock at x; NaN where not logged


def band(curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Band:
    """Averages curves given as (x, seconds, value) at every x that occurs."""
    x = np.unique(np.concatenate([curve[0] for curve in curves])) if curves else np.empty(0)
    values = np.full((len(curves), len(x)), np.nan)
    seconds = np.full((len(curves), len(x)), np.nan)
    for row, (at, clock, value) in enumerate(curves):
        column = np.searchsorted(x, at)
        values[row, column] = value
        seconds[row, column] = clock
    n = np.isfinite(values).sum(axis=0)
    mean = _mean(values)
    squares = np.nansum((values - mean) ** 2, axis=0)
    half = np.full(len(x), np.nan)
    several = n >= 2
    df = n[several] - 1
    sd = np.sqrt(squares[several] / df)
    half[several] = special.stdtrit(df, (1 + LEVEL) / 2) * sd / np.sqrt(n[several])
    return Band(x, mean, half, n, _mean(seconds))


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over rows of the values that are not NaN."""
    n = np.isfinite(values).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)
