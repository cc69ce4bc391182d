"""Measures each group: accuracy, convergence, cost, and tests against baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from elstm.reporting.groups import Group, Section, folds_of, matches
from elstm.reporting.images import Correct, ImageTest, correct_images, image_tests
from elstm.reporting.runs import Curve, Run
from elstm.reporting.stats import (
    MIN_SEEDS,
    Folds,
    PairedTest,
    Summary,
    holm,
    paired_test,
    summarize,
)

# Accuracies in percent from which the default thresholds are chosen.
ROUND_ACCURACIES = (
    *range(10, 80, 10), 75, 80, 82, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97,
    97.5, 98, 98.5, 99, 99.2, 99.5, 99.7,
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """Holds the first evaluations of a group's runs at or above an accuracy.

    Runs that do not reach it count with all that they have trained so far, so the means are then
    lower bounds.
    """

    reached: int
    runs: int
    epochs: Summary
    seconds: Summary | None

    @property
    def all_reached(self) -> bool:
        return self.reached == self.runs


@dataclass(frozen=True)
class Comparison:
    """Holds a comparison of a group with a baseline, over the seeds (and folds) that both have."""

    test_accuracy: PairedTest | None
    area: PairedTest | None
    images: ImageTest | None


@dataclass(frozen=True)
class ToBest:
    """Holds when runs reach the baseline's best validation accuracy, seed by seed.

    The ratios are to the baseline's epochs and seconds, as means over the same seeds. They are None
    without shared seeds or a clock.
    """

    reach: Reach | None
    paired: bool  # False: no shared seeds; the target is the mean of the baseline's bests
    epochs_ratio: float | None
    seconds_ratio: float | None


@dataclass(frozen=True)
class GroupResult:
    """Holds the measures of one group."""

    group: Group
    test_accuracy: Summary | None
    balanced_accuracy: Summary | None  # of the test, as the next
    macro_f1: Summary | None
    best_validation: Summary | None
    area: Summary | None
    reaches: list[Reach | None]  # one per threshold
    to_best: ToBest
    validation: tuple[Summary, Summary, Summary] | None  # population, batch, batch - population
    test: tuple[Summary, Summary, Summary] | None
    train_seconds: Summary | None  # per epoch
    wall_seconds: Summary | None  # per epoch, with evaluation
    parameters: list[int]
    comparisons: dict[str, Comparison]  # by the label of the baseline


@dataclass(frozen=True)
class Analysis:
    """Holds a section with its numbers."""

    section: Section
    thresholds: list[float]  # fractions
    horizon: float | None  # last epoch that the area under the curve covers
    baselines: list[Group]
    results: list[GroupResult]
    start: float | None = None  # its first epoch


def analyse(
    section: Section, baselines: Sequence[str] = (), thresholds: Sequence[float] | None = None
) -> Analysis:
    """Measures all groups of a section whose baseline is chosen; thresholds are fractions."""
    named = [matches(section, spec) for spec in baselines[1:]]
    chosen = [section.baseline]
    for group in named:
        if group is not None and group not in chosen:
            chosen.append(group)
    chosen_thresholds = default_thresholds(section.groups) if thresholds is None else thresholds
    horizon, start = common_horizon(section.groups), common_start(section.groups)
    correct = [correct_images(group) for group in section.groups]
    comparisons = {
        baseline.label: _compare_all(section.groups, baseline, (start, horizon), correct)
        for baseline in chosen
    }
    results = [
        GroupResult(
            group=group,
            test_accuracy=_summary(group, group.runs, lambda run: run.test_accuracy),
            balanced_accuracy=_summary(group, group.runs, lambda run: run.test_balanced_accuracy),
            macro_f1=_summary(group, group.runs, lambda run: run.test_macro_f1),
            best_validation=_summary(group, group.counted_runs, lambda run: run.best_val_accuracy),
            area=_summary(group, group.runs, lambda run: _area(run, (start, horizon))),
            reaches=[
                reach(group.counted_runs, [threshold] * len(group.counted_runs), group.folds)
                for threshold in chosen_thresholds
            ],
            to_best=to_best(group, section.baseline),
            validation=_gap(group, lambda run: (run.val_accuracy, run.val_accuracy_batch_stats)),
            test=_gap(group, lambda run: (run.test_accuracy, run.test_accuracy_batch_stats)),
            train_seconds=_summary(
                group, group.counted_runs, lambda run: run.per_epoch(run.train_seconds)
            ),
            wall_seconds=_summary(
                group, group.counted_runs, lambda run: run.per_epoch(run.wall_seconds)
            ),
            parameters=sorted({r.parameters for r in group.runs if r.parameters is not None}),
            comparisons={label: of[index] for label, of in comparisons.items()},
        )
        for index, group in enumerate(section.groups)
    ]
    return Analysis(section, list(chosen_thresholds), horizon, chosen, results, start)


def first_reach(curve: Curve, accuracy: float) -> tuple[float, float] | None:
    """Returns (epoch, seconds) of the first evaluation at or above the accuracy, uninterpolated."""
    at = np.flatnonzero(curve.value >= accuracy - 1e-9)
    return (float(curve.epoch[at[0]]), float(curve.seconds[at[0]])) if len(at) else None


def _summary(
    group: Group, runs: Sequence[Run], value: Callable[[Run], float | None]
) -> Summary | None:
    return summarize([value(run) for run in runs], folds_of(runs, group.folds))


def reach(
    runs: Sequence[Run], accuracies: Sequence[float], folds: int | None = None
) -> Reach | None:
    """Measures when each run reaches its accuracy; None if no run has been evaluated.

    Args:
        folds: of the group (`Group.folds`).
    """
    measured: list[Run] = []
    epochs: list[float] = []
    seconds: list[float] = []
    reached = 0
    for run, accuracy in zip(runs, accuracies, strict=True):
        if not len(run.validation):
            continue
        first = first_reach(run.validation, accuracy)
        reached += first is not None
        at = first or (float(run.validation.epoch[-1]), float(run.validation.seconds[-1]))
        measured.append(run)
        epochs.append(at[0])
        seconds.append(at[1])
    of = folds_of(measured, folds)
    over_epochs = summarize(epochs, of)
    if over_epochs is None:
        return None
    over_seconds = summarize(seconds, of) if np.isfinite(seconds).all() else None
    return Reach(reached, len(epochs), over_epochs, over_seconds)


def to_best(group: Group, baseline: Group) -> ToBest:
    """Measures when the group reaches the best validation accuracy of the baseline."""
    targets = {
        run.pair: (run.best_val_accuracy, run)
        for run in baseline.counted_runs
        if run.best_val_accuracy is not None
    }
    if not targets:
        return ToBest(None, False, None, None)
    runs = group.counted_runs
    shared = [run for run in runs if run.pair in targets and len(run.validation)]
    if not shared:
        of = folds_of([run for _, run in targets.values()], baseline.folds)
        summary = summarize([best for best, _ in targets.values()], of)
        assert summary is not None  # `targets` is not empty
        return ToBest(reach(runs, [summary.mean] * len(runs), group.folds), False, None, None)
    bests = [targets[run.pair][0] for run in shared]
    ours = reach(shared, bests, group.folds)
    theirs = reach([targets[run.pair][1] for run in shared], bests, group.folds)
    return ToBest(ours, True, *_ratios(ours, theirs))


def _ratios(ours: Reach | None, theirs: Reach | None) -> tuple[float | None, float | None]:
    if ours is None or theirs is None:
        return None, None
    epochs = ours.epochs.mean / theirs.epochs.mean if theirs.epochs.mean else None
    if ours.seconds is None or theirs.seconds is None or not theirs.seconds.mean:
        return epochs, None
    return epochs, ours.seconds.mean / theirs.seconds.mean


def area_under_curve(curve: Curve, horizon: float, start: float | None = None) -> float | None:
    """Returns the mean height of the curve from `start` to the horizon (trapezoids).

    Between its points the curve is a straight line. None where it does not cover these epochs.

    Args:
        start: the first epoch; None: that of the curve.
    """
    if not len(curve):
        return None
    first = float(curve.epoch[0]) if start is None else start
    if curve.epoch[0] > first + 1e-6 or curve.epoch[-1] < horizon - 1e-6 or horizon <= first:
        return None
    inside = curve.epoch[(curve.epoch > first) & (curve.epoch < horizon)]
    x = np.array([first, *inside, horizon])
    y = np.interp(x, curve.epoch, curve.value)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (horizon - first))


def common_horizon(groups: Sequence[Group]) -> float | None:
    """Returns the last epoch that every finished run has, so that areas cover the same epochs."""
    ends = [
        float(run.validation.epoch[-1])
        for group in groups
        for run in group.runs
        if run.state == "done" and len(run.validation)
    ]
    return min(ends, default=None)


def common_start(groups: Sequence[Group]) -> float | None:
    """Returns the first epoch from which every finished run has a curve.

    A curve of a run that is evaluated every 5 epochs starts at epoch 5, and its mean height would
    be too high beside one that starts at epoch 1.
    """
    starts = [
        float(run.validation.epoch[0])
        for group in groups
        for run in group.runs
        if run.state == "done" and len(run.validation) > 1  # a single point is no curve
    ]
    return max(starts, default=None)


def default_thresholds(groups: Sequence[Group]) -> list[float]:
    """Returns up to three round accuracies that the weakest, middle and best group reach."""
    bests = sorted(group.best_validation for group in groups if group.best_validation > 0)
    if not bests:
        return []
    candidates = [a / 100 for a in ROUND_ACCURACIES if a / 100 <= bests[-1]]
    chosen: set[float] = set()
    for best in (bests[-1], bests[len(bests) // 2], bests[0]):
        below = [c for c in candidates if c <= best and c not in chosen]
        chosen.update(below[-1:])
    return sorted(chosen)


def _area(run: Run, epochs: tuple[float | None, float | None]) -> float | None:
    start, horizon = epochs
    if horizon is None or run.state != "done":
        return None
    return area_under_curve(run.validation, horizon, start)


def _gap(
    group: Group, values: Callable[[Run], tuple[float | None, float | None]]
) -> tuple[Summary, Summary, Summary] | None:
    """Summarises accuracies with population and with batch statistics, and their difference."""
    runs = [run for run in group.counted_runs if None not in values(run)]
    pairs = [(p, b) for p, b in map(values, runs) if p is not None and b is not None]
    folds = folds_of(runs, group.folds)
    population = summarize([p for p, _ in pairs], folds)
    batch = summarize([b for _, b in pairs], folds)
    gap = summarize([b - p for p, b in pairs], folds)
    if population is None or batch is None or gap is None:
        return None
    return population, batch, gap


def _compare_all(
    groups: Sequence[Group],
    baseline: Group,
    epochs: tuple[float | None, float | None],
    correct: Sequence[Correct],
) -> list[Comparison]:
    """Tests each group with enough pairs against the baseline; Holm's correction covers these."""
    test_accuracy = _tests(groups, baseline, lambda run: run.test_accuracy)
    area = _tests(groups, baseline, lambda run: _area(run, epochs))
    images = image_tests(correct, correct[list(groups).index(baseline)])
    return list(map(Comparison, test_accuracy, area, images))


def _tests(
    groups: Sequence[Group], baseline: Group, value: Callable[[Run], float | None]
) -> list[PairedTest | None]:
    theirs = {run.pair: v for run in baseline.runs if (v := value(run)) is not None}
    tests: list[PairedTest | None] = []
    for group in groups:
        if group is baseline:
            tests.append(None)
            continue
        ours = {run.pair: v for run in group.runs if (v := value(run)) is not None}
        pairs = sorted(ours.keys() & theirs.keys())
        folds = None if group.folds is None else Folds([fold for fold, _ in pairs], group.folds)
        test = paired_test([ours[p] for p in pairs], [theirs[p] for p in pairs], folds)
        few = test is not None and test.n < MIN_SEEDS
        tests.append(test.without_verdict() if test is not None and few else test)
    p_values = [test.p for test in tests if test is not None and test.p is not None]
    adjusted = iter(holm(p_values))
    return [
        replace(test, p_holm=next(adjusted)) if test is not None and test.p is not None else test
        for test in tests
    ]
