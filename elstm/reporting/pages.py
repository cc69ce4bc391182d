"""Writes the parts of a report around its sections: opening, lists of runs, method, versions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from elstm.cli import plural
from elstm.reporting import wording
from elstm.reporting.document import (
    Block,
    Bold,
    Bullets,
    Code,
    Details,
    Heading,
    Inline,
    Link,
    Paragraph,
    Table,
)
from elstm.reporting.measures import Analysis
from elstm.reporting.runs import Run
from elstm.reporting.stats import MIN_SEEDS

MAX_LISTED = 50  # runs in a list; results.csv has them all
MAX_RUNS = 500  # runs in the table of all runs


def opening(
    title: str,
    analyses: Sequence[Analysis],
    chapters: Sequence[Analysis],
    runs: Sequence[Run],
    damaged: Sequence[object],
) -> list[Block]:
    """Returns the title, a summary of the runs, and whether the report is final.

    Args:
        title: the report's title.
        analyses: all tasks.
        chapters: the tasks that have a section.
        runs: all runs.
        damaged: the folders that cannot be read.
    """
    groups = sum(len(analysis.section.groups) for analysis in analyses)
    sets = len(analyses)
    read = (
        f"{plural(len(runs), 'run')} in {plural(groups, 'group')} on "
        f"{plural(sets, 'task')}: {wording.count_states(runs)}"
    )
    if damaged:
        read += f"; {plural(len(damaged), 'folder')} that cannot be read"
    bare = [a.section.title for a in analyses if not any(a is chapter for chapter in chapters)]
    latest = max((run.updated for run in runs), default="")
    blocks: list[Block] = [Heading(1, title)]
    blocks.append(Paragraph(f"{read}. Latest change: {wording.timestamp(latest)}."))
    if bare:
        blocks.append(
            Paragraph(
                f"No finished run and none in training on {', '.join(bare)}: the runs there are "
                "listed at the end and have no section."
            )
        )
    going = [run for run in runs if run.state == "running"]
    if going:
        blocks.append(
            Paragraph(
                [
                    Bold("Preliminary:"),
                    f" {plural(len(going), 'run')} not finished yet (listed at the end); the "
                    "numbers will change.",
                ]
            )
        )
    return blocks


def has_chapter(analysis: Analysis) -> bool:
    """Returns whether a task has a finished run, or one that is still training."""
    runs = [run for group in analysis.section.groups for run in group.runs]
    return any(run.state == "done" or (run.state == "running" and not run.stalled) for run in runs)


def contents(blocks: Sequence[Block], tasks: int) -> list[Block]:
    """Returns links to the main headings of a page about two tasks or more."""
    if tasks < 2:
        return []
    main = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links: list[Inline] = [[Link(heading.text, f"#{heading.anchor}")] for heading in main]
    return [Paragraph([Bold("Contents")]), Bullets(links)]


def table_of_runs(analyses: Sequence[Analysis], output: Path) -> list[Block]:
    """Returns all runs, each with a link to its folder if that exists."""
    rows: list[list[Inline]] = [
        [
            [_folder_link(run, output)],
            analysis.section.title,
            group.label,
            _seed(run),
            _state(run),
            wording.epochs(run.epoch),
            wording.NONE if run.test_accuracy is None else f"{100 * run.test_accuracy:.2f}",
        ]
        for analysis in analyses
        for group in analysis.section.groups
        for run in (*group.runs, *group.failed, *group.superseded)
    ]
    header = ["Run", "Task", "Group", "Seed", "State", "Epochs", "Test accuracy, %"]
    table = _list(header, rows, (0, 1, 2, 4), at_most=MAX_RUNS)
    note = " (results.csv has all)" if len(rows) > MAX_RUNS else ""
    return [Heading(2, "Runs"), Details(f"{plural(len(rows), 'run')}{note}", [table])]


def _folder_link(run: Run, output: Path) -> str:
    """Returns the run's name, as a link relative to the report if its folder exists."""
    folder = run.stored.folder
    if not folder.is_dir():
        return run.path
    try:
        path = os.path.relpath(folder.resolve(), output.resolve())
    except ValueError:  # another drive
        return run.path
    return Link(run.path, quote(path.replace(os.sep, "/")) + "/")


def run_lists(
    analyses: Sequence[Analysis], runs: Sequence[Run], damaged: Sequence[tuple[str, str]]
) -> list[Block]:
    """Returns the runs that are not finished, left out or unreadable, each with its reason."""
    blocks: list[Block] = []
    going = [run for run in runs if run.state in ("running", "interrupted", "pruned")]
    failed = [run for run in runs if run.state == "failed"]
    superseded = [r for a in analyses for group in a.section.groups for r in group.superseded]
    if going:
        rows = [[Code(run.path), _seed(run), _state(run), _progress(run)] for run in going]
        blocks += [
            Heading(3, "Not finished"),
            _list(["Run", "Seed", "State", "Epochs"], rows, left=(0, 2)),
        ]
    if failed:
        rows = [[Code(r.path), _seed(r), _progress(r), _error(r)] for r in failed]
        blocks += [
            Heading(3, "Failed"),
            Paragraph("Failed runs count in no mean and no test."),
            _list(["Run", "Seed", "Epochs", "Error"], rows, left=(0, 3)),
        ]
    if damaged:
        rows = [[Code(name), reason] for name, reason in damaged]
        blocks += [Heading(3, "Cannot be read"), _list(["Folder", "Reason"], rows, left=(0, 1))]
    if superseded:
        rows = [[Code(run.path), _seed(run), _state(run)] for run in superseded]
        blocks += [
            Heading(3, "Left out"),
            Paragraph("Another run of the same group and seed has trained further or is newer."),
            _list(["Run", "Seed", "State"], rows, left=(0, 2)),
        ]
    return [Heading(2, "Runs that are unfinished, failed or left out"), *blocks] if blocks else []


def method(analyses: Sequence[Analysis]) -> list[Block]:
    """Returns the description of how the numbers are computed."""
    several = any(analysis.section.folds is not None for analysis in analyses)
    groups = [group for analysis in analyses for group in analysis.section.groups]
    tested = "the checkpoint with the best validation accuracy"
    if any(run.state == "done" and run.best_val_accuracy is None for g in groups for run in g.runs):
        tested += ", or of the last epoch where data.val_fraction=0 leaves no validation split"
    return [
        Heading(2, "How these numbers are computed"),
        Bullets(
            [
                "Runs form a group when their configs differ in the seed alone (paths, threads, "
                "logging, progress and keys given by --ignore aside). Data sets, and other ways of "
                "cutting their images into sequences, are never compared with each other.",
                "The tables show a group's finished runs, or all its runs while none is finished. "
                "The curves show both.",
                f"Test accuracy is that of {tested}, "
                "measured once at the end of a run. ± is the standard deviation over seeds "
                "(n − 1); intervals are 95 % intervals of the mean by Student's t.",
                "An accuracy counts as reached at the first evaluation at or above it, without "
                "interpolation. Seconds are wall-clock seconds with evaluation and recomputation "
                'of statistics. "> 17.4 (3 of 5)": 3 of 5 runs reach it; the others count with '
                "what they have trained, so the mean is a lower bound.",
                "The baseline's best is taken seed by seed: each run is compared with "
                "the best validation accuracy of the baseline's run with the same seed. Ratios are "
                "ratios of the means.",
                "The area under the curve is the mean validation accuracy over the epochs that "
                "all finished runs of the task have (trapezoids).",
                "Tests are two-sided paired t-tests over shared seeds; Holm's correction covers "
                "all groups tested against one baseline in one quantity. d_z is the mean "
                "difference divided by the standard deviation of the differences. Fewer than "
                f"{MIN_SEEDS} pairs are not tested, and fewer than {MIN_SEEDS} seeds have no "
                "interval.",
                "Training loss is the mean over an epoch, drawn at its end. Against wall-clock "
                "time, each epoch is drawn at the mean over seeds of the time at its end.",
                *(_OVER_FOLDS if several else ()),
            ]
        ),
    ]


_OVER_FOLDS = (
    "Runs on the folds of a cross-validation form one group. Each fold is one observation: "
    "runs of a fold that differ in the seed are averaged first. Two folds of K share training "
    "sequences, so their results depend on each other. The variance of a mean over k folds is "
    "therefore taken as (1/k + 1/(K − 1)) s² in place of s²/k, with k − 1 degrees of freedom, in "
    "intervals, bands and tests: the corrected resampled t-test of Nadeau and Bengio, Inference "
    "for the Generalization Error, Machine Learning 52, 2003. Fewer than "
    f"{MIN_SEEDS} folds have no interval and no test. ± is the spread of single runs.",
)


def made_with(runs: Sequence[Run]) -> list[Block]:
    """Returns devices, versions and commits, with the number of runs of each."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        for key, value in run.made_with.items():
            facts.setdefault(key, Counter())[value] += 1
    if not facts:
        return []
    rows = []
    for key, counts in facts.items():
        shown = [f"{value} ({plural(n, 'run')})" for value, n in counts.most_common(8)]
        more = len(counts) - len(shown)
        rows.append([key, ", ".join(shown) + (f" and {more} more" if more else "")])
    return [Details("Devices, versions and commits", [Table(["What", "Value"], rows, (0, 1))])]


def _list(
    header: Sequence[str],
    rows: Sequence[Sequence[Inline]],
    left: Sequence[int],
    at_most: int = MAX_LISTED,
) -> Block:
    if len(rows) <= at_most:
        return Table(header, rows, left)
    more = [f"… and {len(rows) - at_most} more", *[""] * (len(header) - 1)]
    shown: list[Sequence[Inline]] = [*rows[:at_most], more]
    return Table(header, shown, left)


def _state(run: Run) -> str:
    return (
        f"{run.state}, last written at {wording.timestamp(run.updated)}"
        if run.stalled
        else run.state
    )


def _seed(run: Run) -> str:
    return str(run.seed) if run.fold is None else f"{run.seed}, fold {run.fold}"


def _progress(run: Run) -> str:
    return f"{wording.epochs(run.epoch)} of {wording.epochs(run.max_epochs)}"


def _error(run: Run) -> Code:
    return Code(run.error or "no reason given")
