import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference

from elstm.records.stored import RunFolder
from elstm.reporting.groups import Group
from elstm.reporting.measures import (
    area_under_curve,
    default_thresholds,
    first_reach,
    reach,
    to_best,
)
from elstm.reporting.runs import Curve, Run
from elstm.reporting.stats import Folds, band, holm, paired_test, summarize


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
def test_paired_test_is_scipys(n):
    rng = np.random.default_rng(n)
    a, b = 0.9 + 0.01 * rng.normal(size=(2, n))
    expected = reference.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    test = paired_test(a, b)
    assert test.n == n
    assert test.t == pytest.approx(expected.statistic, rel=1e-9)
    assert test.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_paired_test_by_hand():
    # Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 / (1 / sqrt(3)).
    test = paired_test([2, 4, 6], [1, 2, 3])
    assert (test.difference, test.effect) == pytest.approx((2, 2))
    assert test.t == pytest.approx(2 * math.sqrt(3))
    assert paired_test([1, 2, 3], [2, 4, 6]).t == pytest.approx(-2 * math.sqrt(3))


@pytest.mark.parametrize(
    ("a", "b"), [([0.9], [0.8]), ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]), ([0.5, 0.6], [0.5, 0.6])]
)
def test_no_p_from_one_pair_or_from_equal_differences(a, b):
    test = paired_test(a, b)
    assert test.difference == pytest.approx(a[0] - b[0])
    assert (test.t, test.p, test.low, test.effect) == (None, None, None, None)


def test_no_pairs():
    assert paired_test([], []) is None


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to what came before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]  # 1.2 is cut, 0.9 raised
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_summary_is_scipys_t_interval():
    x = [0.91, 0.93, 0.90, 0.95]
    summary = summarize([*x, None])
    low, high = reference.t.interval(0.95, 3, np.mean(x), reference.sem(x))
    assert (summary.n, summary.mean, summary.sd) == (4, np.mean(x), np.std(x, ddof=1))
    assert summary.mean - summary.half_width == pytest.approx(low)
    assert summary.mean + summary.half_width == pytest.approx(high)


def test_summary_of_one_value_knows_no_spread():
    summary = summarize([0.9])
    assert (summary.n, summary.mean, summary.sd, summary.half_width) == (1, 0.9, None, None)
    assert summarize([None]) is None


def test_band_over_curves_of_unequal_length():
    x = np.array([1.0, 2.0, 3.0])
    b = band([(x, 10 * x, np.array([1.0, 2.0, 3.0])), (x[:2], 20 * x[:2], np.array([3.0, 2.0]))])
    assert b.x.tolist() == [1, 2, 3]
    assert b.mean.tolist() == [2, 2, 3]
    assert b.n.tolist() == [2, 2, 1]
    assert b.seconds.tolist() == [15, 30, 30]
    half = reference.t.ppf(0.975, 1) * math.sqrt(2) / math.sqrt(2)  # values 1 and 3
    assert b.half_width[:2] == pytest.approx([half, 0])
    assert math.isnan(b.half_width[2])


def curve(*values, first=1, seconds=10.0):
    epoch = np.arange(first, first + len(values), dtype=float)
    return Curve(epoch, seconds * epoch, np.array(values, dtype=float))


def run(seed, *values, state="done", seconds=10.0):
    c = curve(*values, seconds=seconds)
    return Run(
        path="", stored=RunFolder("", Path()), config={}, model="m", data="d", seed=seed,
            fingerprint="", description="", fold=None,
        state=state, stalled=False, error="",
        epoch=float(len(values)), max_epochs=None, validation=c, loss=curve(),
        val_accuracy=None, val_accuracy_batch_stats=None,
        best_val_accuracy=max(values, default=None), test_accuracy=None,
        test_accuracy_batch_stats=None, test_balanced_accuracy=None, test_macro_f1=None,
        train_seconds=None, wall_seconds=None, parameters=None,
        made_with={}, started="", updated="", extensions="",
    )  # fmt: skip


def group(*runs):
    return Group("g", "m", {}, list(runs), [], [])


def test_area_by_hand():
    # Trapezoids of 0.5, 0.7, 0.9 over epochs 1 to 3: (0.6 + 0.8) / 2.
    assert area_under_curve(curve(0.5, 0.7, 0.9), 3) == pytest.approx(0.7)
    assert area_under_curve(curve(0.5, 0.7, 0.9), 2) == pytest.approx(0.6)
    assert area_under_curve(curve(0.5, 0.7, 0.9), 4) is None
    assert area_under_curve(curve(0.5), 1) is None


def test_reaching_is_the_first_evaluation_at_or_above():
    c = curve(0.5, 0.8, 0.7, 0.9)
    assert first_reach(c, 0.8) == (2, 20)
    assert first_reach(c, 0.81) == (4, 40)
    assert first_reach(c, 0.95) is None


def test_runs_that_do_not_reach_make_a_lower_bound():
    r = reach([run(0, 0.5, 0.9), run(1, 0.5, 0.6, 0.7)], [0.9, 0.9])
    assert (r.reached, r.runs, r.all_reached) == (1, 2, False)
    assert r.epochs.mean == 2.5  # 2, and at least 3
    assert r.seconds.mean == 25


def test_way_to_the_baselines_best_is_paired_by_seed():
    baseline = group(run(0, 0.5, 0.6, 0.7, 0.8), run(1, 0.5, 0.9), run(2, 0.5))
    ours = group(run(0, 0.7, 0.8, seconds=5), run(1, 0.8, 0.85, 0.9, seconds=5))
    way = to_best(ours, baseline)
    # Targets 0.8 and 0.9: ours in 2 and 3 epochs, the baseline's own in 4 and 2.
    assert way.paired
    assert way.epochs_ratio == pytest.approx(2.5 / 3)
    assert way.seconds_ratio == pytest.approx(12.5 / 30)
    assert to_best(baseline, baseline).epochs_ratio == 1


def test_way_without_shared_seeds_is_to_the_mean_best():
    way = to_best(group(run(5, 0.7, 0.76)), group(run(0, 0.7), run(1, 0.8)))
    assert not way.paired
    assert way.epochs_ratio is None
    assert way.reach.epochs.mean == 2  # 0.75


def test_default_thresholds_tell_the_groups_apart():
    groups = [group(run(0, best)) for best in (0.883, 0.912, 0.745)]
    assert default_thresholds(groups) == [0.70, 0.88, 0.91]
    assert default_thresholds([group(run(0, 0.991))]) == [0.98, 0.985, 0.99]
    assert default_thresholds([group()]) == []


def test_folds_share_training_data() -> None:
    """The corrected resampled t-test, on numbers that are worked out by hand."""
    a, b = [0.80, 0.90, 0.85, 0.95, 0.90], [0.78, 0.85, 0.85, 0.90, 0.83]
    differences = np.subtract(a, b)
    folds = Folds([0, 1, 2, 3, 4], 5)
    test, plain = paired_test(a, b, folds), paired_test(a, b)
    assert test is not None
    assert plain is not None
    scale = differences.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    assert test.t == pytest.approx(differences.mean() / scale)
    assert test.t == pytest.approx(plain.t / 1.5)  # (1/5 + 1/4) / (1/5) = 1.5²
    half = 2.7764451 * scale  # t of 4 degrees of freedom
    assert test.high == pytest.approx(differences.mean() + half)
    assert test.p is not None
    assert plain.p is not None
    assert test.p > plain.p

    # Seeds of a fold are no further observations: the same results twice prove no more.
    twice = paired_test(a + a, b + b, Folds([0, 1, 2, 3, 4] * 2, 5))
    assert twice == test
    summary = summarize([*a, *a, None], Folds([0, 1, 2, 3, 4] * 2 + [0], 5))
    assert summary is not None
    assert summary.n == 10
    assert summary.half_width == pytest.approx(
        2.7764451 * np.std(a, ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    )
    bands = band(
        [(np.array([1.0]), np.array([1.0]), np.array([value])) for value in a + a],
        Folds([0, 1, 2, 3, 4] * 2, 5),
    )
    assert bands.half_width == pytest.approx([summary.half_width])
    assert summarize([0.1, 0.2], Folds([0, 1], 5)).half_width is None
