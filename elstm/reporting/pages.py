"""Writes the parts of a report around its sections: opening, lists of runs, method, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from elstm.cli import plural
from elstm.reporting import wording
from elstm.reporting.document import Block, Bold, Bullets, Code, Details, Heading, Paragraph, Table
from elstm.reporting.measures import Analysis
from elstm.reporting.runs import Run
from elstm.reporting.stats import MIN_SEEDS

MAX_LISTED = 50  # runs in a list; results.csv has them all


def opening(
    title: str, analyses: Sequence[Analysis], runs: Sequence[Run], damaged: Sequence[object]
) -> list[Block]:
    """Returns the title, what was read, and whether it is final."""
    groups = sum(len(analysis.section.groups) for analysis in analyses)
    sets = len(analyses)
    read = (
        f"{plural(len(runs), 'run')} in {plural(groups, 'group')} on "
        f"{plural(sets, 'task')}: {wording.count_states(runs)}"
    )
    if damaged:
        read += f"; {plural(len(damaged), 'folder')} that cannot be read"
    latest = max((run.updated for run in runs), default="")
    blocks: list[Block] = [Heading(1, title)]
    blocks.append(Paragraph(f"{read}. Latest change: {wording.moment(latest)}."))
    going = [run for run in runs if run.state == "running"]
    if going:
        blocks.append(
            Paragraph(
                [
                    Bold("Preliminary:"),
                    f" {plural(len(going), 'run')} not finished yet (listed at the end); "
                    "the numbers will change.",
                ]
            )
        )
    return blocks


def run_lists(
    analyses: Sequence[Analysis], runs: Sequence[Run], damaged: Sequence[tuple[str, str]]
) -> list[Block]:
    """Returns the runs that are not finished, left out or unreadable, each with its reason."""
    blocks: list[Block] = []
    going = [run for run in runs if run.state in ("running", "interrupted", "pruned")]
    failed = [run for run in runs if run.state == "failed"]
    superseded = [r for a in analyses for group in a.section.groups for r in group.superseded]
    if going:
        rows = [[Code(run.path), str(run.seed), _state(run), _progress(run)] for run in going]
        blocks += [
            Heading(3, "Not finished"),
            _list(["Run", "Seed", "State", "Epochs"], rows, left=(0, 2)),
        ]
    if failed:
        rows = [[Code(r.path), str(r.seed), _progress(r), _error(r)] for r in failed]
        blocks += [
            Heading(3, "Failed"),
            Paragraph("Failed runs count in no mean and no test."),
            _list(["Run", "Seed", "Epochs", "Error"], rows, left=(0, 3)),
        ]
    if damaged:
        rows = [[Code(name), reason] for name, reason in damaged]
        blocks += [Heading(3, "Cannot be read"), _list(["Folder", "Reason"], rows, left=(0, 1))]
    if superseded:
        rows = [[Code(run.path), str(run.seed), _state(run)] for run in superseded]
        blocks += [
            Heading(3, "Left out"),
            Paragraph(
                "Another run with the same settings and seed has trained further or is newer."
            ),
            _list(["Run", "Seed", "State"], rows, left=(0, 2)),
        ]
    return [Heading(2, "Runs that are unfinished, failed or left out"), *blocks] if blocks else []


def method() -> list[Block]:
    """Returns how the numbers are made."""
    return [
        Heading(2, "How these numbers are computed"),
        Bullets(
            [
                "Runs form a group when their configs differ in the seed alone (paths, threads, "
                "logging and progress aside). Data sets, and other ways of cutting their images "
                "into sequences, are never compared with each other.",
                "The tables show a group's finished runs, or all its runs while none is finished. "
                "The curves show both.",
                "Test accuracy is that of the checkpoint with the best validation accuracy, "
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
            ]
        ),
    ]


def made_with(runs: Sequence[Run]) -> list[Block]:
    """Returns devices, versions and commits, with the number of runs behind each."""
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


def _list(header: Sequence[str], rows: list[list[str]], left: Sequence[int]) -> Block:
    if len(rows) <= MAX_LISTED:
        return Table(header, rows, left)
    shown = [
        *rows[:MAX_LISTED],
        [f"… and {len(rows) - MAX_LISTED} more", *[""] * (len(header) - 1)],
    ]
    return Table(header, shown, left)


def _state(run: Run) -> str:
    return (
        f"{run.state}, last written at {wording.moment(run.updated)}" if run.stalled else run.state
    )


def _progress(run: Run) -> str:
    return f"{wording.epochs(run.epoch)} of {wording.epochs(run.max_epochs)}"


def _error(run: Run) -> Code:
    return Code(run.error or "no reason given")
