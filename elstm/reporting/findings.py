"""Writes the findings of a section as sentences that its numbers support."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from elstm.cli import plural
from elstm.reporting import wording
from elstm.reporting.document import Bold, Inline
from elstm.reporting.groups import Group, leading_groups
from elstm.reporting.images import splits_differ
from elstm.reporting.measures import Analysis, GroupResult
from elstm.reporting.runs import Run
from elstm.reporting.stats import MIN_SEEDS, PairedTest

MAX_LINES = 12  # groups in a figure ...
LINES_OF_MANY = 8  # ... and of more than that, as many as can be followed by eye


def drawn_groups(analysis: Analysis) -> list[Group]:
    """Returns the groups in the figures, the baseline first."""
    return leading_groups(analysis.section, MAX_LINES, LINES_OF_MANY)


def findings(analysis: Analysis) -> list[Inline]:
    """Returns a sentence for each group in the figures, then the cautions."""
    baseline = analysis.section.baseline
    unit = "seed" if analysis.section.folds is None else "run"
    drawn = drawn_groups(analysis)
    rows = [result for result in analysis.results if result.group in drawn]
    rows.sort(key=lambda result: drawn.index(result.group))
    items: list[Inline] = []
    for result in rows:
        if result.group is baseline:
            accuracy = result.test_accuracy
            if accuracy is None:
                rest = " is the baseline; none of its runs is finished."
            else:
                rest = f" is the baseline: test accuracy {wording.percent(accuracy)} %"
                rest += f" ({plural(accuracy.n, unit)})."
            items.append([Bold(baseline.label), rest])
        else:
            rough = _rough(result.group) or _rough(baseline)
            mixed = _mixed([result.group, baseline])
            said = _finding(result, baseline.label, rough=rough, mixed=mixed)
            items.append([Bold(result.group.label), f": {said}"])
    items += [_against(rows, other.label) for other in analysis.baselines[1:]]
    tested = [r for r in analysis.results if r.test_accuracy is not None]
    single = [r.group.label for r in tested if r.test_accuracy and r.test_accuracy.n == 1]
    if single:
        more = f" and {len(single) - 8} more" if len(single) > 8 else ""
        names = f" in {', '.join(single[:8])}{more}" if len(single) < len(tested) else " per group"
        items.append(f"One finished {unit}{names}: the variance there is unknown.")
    items += _warnings(analysis)
    return items


def _finding(result: GroupResult, baseline: str, *, rough: bool, mixed: bool) -> str:
    test = result.comparisons[baseline].test_accuracy
    unit = "pair" if result.group.folds is None else "fold"
    way = result.to_best
    if test is None:
        said = f"no finished {'seed' if unit == 'pair' else 'fold'} shared with the baseline"
    elif test.p_holm is None or test.low is None or test.high is None:
        said = (
            f"test accuracy {wording.signed(100 * test.difference)} points against the baseline "
            f"({plural(test.n, unit)}: {_why_no_test(test)})"
        )
    else:
        verdict = "higher than" if test.difference > 0 else "lower than"
        if test.p_holm >= 0.05:
            verdict = "not shown to differ from"
        low, high = wording.signed(100 * test.low), wording.signed(100 * test.high)
        said = (
            f"test accuracy {verdict} the baseline's: {wording.signed(100 * test.difference)} "
            f"points (95 % interval {low} to {high}; p {_equals(wording.p_value(test.p_holm))} "
            f"after Holm; {plural(test.n, unit)})"
        )
    if way.reach is None or way.epochs_ratio is None:
        return f"{said}."
    if not way.reach.all_reached:
        return (
            f"{said}; {way.reach.reached} of {plural(way.reach.runs, 'run')} reached the "
            "baseline's best validation accuracy."
        )
    about = "roughly " if rough else ""
    clock = ""
    if way.seconds_ratio is not None and not mixed:
        clock = f" and {about}{way.seconds_ratio:.2f} of its time"
    return (
        f"{said}; the baseline's best validation accuracy in {way.epochs_ratio:.2f} of its "
        f"epochs{clock}."
    )


def _against(rows: Sequence[GroupResult], baseline: str) -> Inline:
    """Returns one sentence on the test accuracies against a further baseline."""
    verdicts: dict[str, list[str]] = {"higher": [], "lower": [], "not shown to differ": []}
    for result in rows:
        test = result.comparisons[baseline].test_accuracy
        if test is not None and test.p_holm is not None:
            side = "higher" if test.difference > 0 else "lower"
            verdict = side if test.p_holm < 0.05 else "not shown to differ"
            p = wording.p_value(test.p_holm)
            difference = wording.signed(100 * test.difference)
            verdicts[verdict].append(f"{result.group.label} ({difference}, p {_equals(p)})")
    unit = "seeds" if rows and rows[0].group.folds is None else "folds"
    said = [f"{verdict}: {', '.join(who)}" for verdict, who in verdicts.items() if who]
    start = ["Test accuracy against ", Bold(baseline), " (points, p by Holm): "]
    return [*start, ("; ".join(said) or f"no group shares {MIN_SEEDS} finished {unit}") + "."]


def _why_no_test(test: PairedTest) -> str:
    return "too few for a test" if test.n < MIN_SEEDS else "all differ by the same, no test"


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _machine(made_with: dict[str, str]) -> str:
    """Returns device and threads, between which times are not comparable."""
    device = made_with.get("device_name") or made_with.get("device", "unknown device")
    threads = made_with.get("threads")
    return f"{device}, {threads} threads" if threads else device


def machines_of(groups: Sequence[Group]) -> Counter[str]:
    """Counts the runs of each machine, as device and threads, and processor where these differ.

    Runs of earlier versions recorded no processor. They count with the others if all have the same.
    """
    runs = [run for group in groups for run in group.runs]
    found: dict[str, set[str]] = {}
    for run in runs:
        if "machine" in run.made_with:
            found.setdefault(_machine(run.made_with), set()).add(run.made_with["machine"])

    def name(run: Run) -> str:
        device = _machine(run.made_with)
        if "machine" not in run.changed and len(found.get(device, ())) < 2:
            return device
        return run.made_with.get("machine", f"{device}, unknown processor")

    return Counter(map(name, runs))


def _mixed(groups: Sequence[Group]) -> bool:
    """Returns whether the times are of several machines, of all runs or of one."""
    return len(machines_of(groups)) > 1 or any(
        "machine" in run.changed for g in groups for run in g.runs
    )


def times_are_comparable(groups: Sequence[Group]) -> bool:
    """Returns whether one machine ran all runs, and equal runs took about equal times."""
    return not _mixed(groups) and not any(map(_rough, groups))


def _rough(group: Group) -> bool:
    """Returns whether the seconds per epoch of equal runs differ by more than a quarter."""
    found = (run.per_epoch(run.train_seconds) for run in group.counted_runs)
    seconds = [each for each in found if each]
    return len(seconds) > 1 and max(seconds) > 1.25 * min(seconds)


def _measured_differently(runs: Sequence[Run]) -> list[Inline]:
    """Returns what the runs' evaluations and splits mean for the numbers."""
    items: list[Inline] = []
    every = {run.config.get("trainer.evaluate_every", 1) for run in runs if len(run.validation)}
    known = sorted(each for each in every if isinstance(each, int))
    if len(known) > 1:
        items.append(
            f"The runs are evaluated every {', '.join(map(str, known[:-1]))} or {known[-1]} "
            "epochs: the fewer evaluations, the later an accuracy counts as reached and the lower "
            "the best one, so that epochs, times and their ratios are not directly comparable."
        )
    elif known and known[0] > 1:
        items.append(
            f"All runs are evaluated every {known[0]} epochs, so that epochs and times to an "
            "accuracy, and their ratios, are that coarse."
        )
    if gaps := sum(map(_lacks_evaluations, runs)):
        items.append(
            f"The curves of {plural(gaps, 'finished run')} lack evaluations, as if metrics.csv had "
            "been removed or changed during training. Accuracies count as reached at the first "
            "evaluation that is left, and areas cover the epochs that all runs have."
        )
    if any(map(splits_differ, runs)):
        items.append(
            "The splits are drawn anew for each seed, and the training sets of two seeds overlap. "
            "Intervals and p-values over seeds are therefore too optimistic."
        )
    return items


def _lacks_evaluations(run: Run) -> bool:
    """Returns whether a finished run's curve has fewer points than the run had evaluations."""
    every = run.config.get("trainer.evaluate_every", 1)
    if run.state != "done" or run.best_val_accuracy is None or type(every) is not int or every < 1:
        return False
    return len(run.validation) < math.ceil(round(run.epoch, 6) / every)


def _warnings(analysis: Analysis) -> list[Inline]:
    """Returns warnings about limits of the comparison."""
    items: list[Inline] = []
    runs = [run for group in analysis.section.groups for run in group.runs]
    machines = machines_of(analysis.section.groups)
    mixed = _mixed(analysis.section.groups)
    if mixed:
        counts = "; ".join(f"{name}: {count}" for name, count in machines.most_common(6))
        items.append(f"Times are not comparable. Runs by device: {counts}.")
    noisy = [group.label for group in analysis.section.groups if _rough(group)]
    if noisy and not mixed:
        more = f" and {len(noisy) - 8} more" if len(noisy) > 8 else ""
        items.append(
            f"Times are rough: within {', '.join(noisy[:8])}{more} the seconds per epoch differ by "
            "more than a quarter from run to run, so the machine was busy with other work."
        )
    commits = {run.made_with.get("commit", "unknown") for run in runs}
    if len(commits) > 1:
        items.append(f"The runs were made with {len(commits)} commits of the code (see the end).")
    if mixed_code := sum("code" in run.changed for run in runs):
        items.append(
            f"{plural(mixed_code, 'run')} resumed with another commit or another version of torch "
            "than before (see the end)."
        )
    section = analysis.section
    if section.folds is not None:
        missing = set(range(section.folds)) - {run.fold for run in runs if run.state == "done"}
        if missing:
            which = ", ".join(map(str, sorted(missing)[:20]))
            items.append(
                f"No finished run has fold {which} of {section.folds}: the sequences that they "
                "test count in no number."
            )
    items += _measured_differently(runs)
    ends = {round(run.epoch, 3) for run in runs if run.state == "done"}
    if len(ends) > 1:
        items.append(
            f"Finished runs have trained between {min(ends):g} and {max(ends):g} epochs: curves "
            "and best accuracies are not directly comparable."
        )
    failed = sum(len(group.failed) for group in analysis.section.groups)
    if failed:
        items.append(f"{plural(failed, 'failed run')}, not counted in these numbers (see the end).")
    return items
