"""Makes a report: reads the runs, computes, draws, and writes all files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from elstm.cli import plural
from elstm.errors import UserError
from elstm.files.atomic import write_together
from elstm.reporting import dynamics, figures, pages, style, wording
from elstm.reporting.document import Block, CurveLine, Picture, anchored, to_markdown
from elstm.reporting.figure_list import (
    earlier_figures,
    figure_checksums,
    refuse_others,
    remove_figures,
)
from elstm.reporting.findings import drawn_groups, times_are_comparable
from elstm.reporting.groups import Group, choose_baselines, make_sections
from elstm.reporting.html_page import to_html
from elstm.reporting.measures import Analysis, analyse
from elstm.reporting.runs import load_runs
from elstm.reporting.section import Pictures, section_blocks, shown_results
from elstm.reporting.stats import MIN_SEEDS
from elstm.reporting.tables import results_csv, summary_csv


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str = "Comparison of runs",
    baselines: Sequence[str] = (),
    thresholds: Sequence[float] | None = None,
    ignored: Sequence[str] = (),
    figures: Sequence[str] | None = None,
    times: bool = True,
) -> str:
    """Reads the runs in the folders and writes the report; returns the message for the user.

    Args:
        folders: run folders, archives and folders that hold them.
        output: the folder of the report.
        title: the heading.
        baselines: the groups to compare with.
        thresholds: accuracies as fractions.
        ignored: settings that do not divide groups.
        figures: the names of the figures to draw; None: all.
        times: whether to draw wall-clock times, where they are comparable.

    Raises:
        UserError: there are no runs, a baseline fits no group, the output cannot be written, or it
            holds files of the user with the names of a report's.
    """
    refuse_others(output)
    runs, damaged = load_runs(folders)
    if not runs:
        where = ", ".join(map(str, folders))
        if damaged:
            raise UserError(f"no readable run in {where}; {damaged[0][0]}: {damaged[0][1]}")
        raise UserError(f"no run folders in {where}: elstm-train makes them under outputs/")
    sections = make_sections(runs, ignored)
    specs = choose_baselines(sections, baselines)
    analyses = [analyse(section, specs, thresholds) for section in sections]

    # If no task has a finished run, all are shown, because the report would be empty.
    chapters = [each for each in analyses if pages.has_chapter(each)] or analyses
    drawn = [drawn_groups(analysis) for analysis in chapters]
    styles = style.group_styles([[(g.label, g.model) for g in groups] for groups in drawn])

    blocks: list[Block] = []
    files: dict[str, bytes] = {}
    names: set[str] = set()
    for analysis, groups, group_styles in zip(chapters, drawn, styles, strict=True):
        name = _file_name(analysis.section.title, names)
        pictures = _pictures(analysis, groups, group_styles, name, files, figures, times)
        blocks += section_blocks(analysis, pictures)
    blocks += [*pages.table_of_runs(analyses, output), *pages.run_lists(analyses, runs, damaged)]
    blocks += [*pages.method(analyses), *pages.made_with(runs)]
    opening = pages.opening(title, analyses, chapters, runs, damaged)
    first = len(opening)
    blocks = anchored([*opening, *blocks])
    blocks[first:first] = pages.contents(blocks, len(chapters))
    earlier = earlier_figures(output)
    files |= _texts(title, blocks, analyses, figure_checksums(files))
    write_together(output, files)
    remove_figures(output, {n: digest for n, digest in earlier.items() if n not in files})
    return _message(output, len(runs), chapters, damaged)


def _pictures(
    analysis: Analysis,
    groups: Sequence[Group],
    group_styles: dict[str, style.GroupStyle],
    name: str,
    files: dict[str, bytes],
    chosen: Sequence[str] | None,
    times: bool,
) -> Pictures:
    """Draws the figures of a section into `files`."""
    baseline = analysis.section.baseline.label
    title = analysis.section.title
    read = dynamics.read_groups(groups)
    # Times that the report calls rough or not comparable are not drawn.
    times = times and times_are_comparable(analysis.section.groups)
    against = "against epochs and wall-clock time" if times else "against epochs"
    seeds, one = "seeds", "seed"
    if analysis.section.folds is not None:
        seeds, one = "folds and seeds", "run"
    means = (
        f"Mean over {seeds} with a 95 % t band. A thin line is a single {one} where there are "
        f"fewer than {MIN_SEEDS}, or the mean of only some {one}s."
    )

    def picture(
        kind: str,
        draw: Callable[[], Figure | None],
        caption: str,
        lines: Callable[[], Sequence[CurveLine]] = tuple,
    ) -> Picture | None:
        figure = draw() if chosen is None or kind in chosen else None
        if figure is None:
            return None
        path = f"figures/{name}-{kind}"
        files[f"{path}.png"], files[f"{path}.svg"] = style.render(figure)
        return Picture(f"{path}.png", files[f"{path}.svg"], f"{title}: {caption}", lines())

    return Pictures(
        validation=picture(
            "validation-accuracy",
            lambda: figures.curves_figure(
                groups,
                group_styles,
                lambda run: run.validation,
                "validation accuracy, %",
                title=title,
                percent=True,
                times=times,
            ),
            f"validation accuracy {against}. {means}",
            lambda: figures.curve_lines(
                groups, group_styles, lambda run: run.validation, percent=True
            ),
        ),
        loss=picture(
            "training-loss",
            lambda: figures.curves_figure(
                groups,
                group_styles,
                lambda run: run.loss,
                "training loss, nats",
                title=title,
                percent=False,
                times=times,
            ),
            f"training loss (mean over each epoch) {against}. {means}",
            lambda: figures.curve_lines(groups, group_styles, lambda run: run.loss, percent=False),
        ),
        accuracy=picture(
            "test-accuracy",
            lambda: figures.accuracy_figure(analysis, groups, group_styles),
            "final test accuracy: mean with its 95 % interval (from "
            f"{MIN_SEEDS} {one}s on), and below it each {one}.",
        ),
        reach=picture(
            "time-to-baseline",
            lambda: figures.reach_figure(analysis, groups, group_styles, times=times),
            f"{'epochs and wall-clock time' if times else 'epochs'} to {baseline}'s best "
            f"validation accuracy; mean over {seeds} with its 95 % interval (from {MIN_SEEDS} "
            f"{one}s on). Hatched bars are lower bounds: not all runs have reached it.",
        ),
        statistics=picture(
            "normalisation",
            lambda: dynamics.statistics_figure(read, group_styles, title),
            f"above, γ of {dynamics.shown_norms(read)} over training, mean ± standard deviation "
            "over the units; below, the root of its population variance, mean over time steps and "
            "units. One run of each group.",
        ),
        time_steps=picture(
            "time-steps",
            lambda: dynamics.time_steps_figure(read, group_styles, title),
            "over the time steps of the sequence, at the last evaluation. One run of each group.",
        ),
    )


def _texts(
    title: str, blocks: Sequence[Block], analyses: Sequence[Analysis], figure_list: str
) -> dict[str, bytes]:
    return {
        "report.md": to_markdown(blocks).encode(),
        "report.html": to_html(title, blocks, figure_list).encode(),
        "results.csv": results_csv(analyses).encode(),
        "summary.csv": summary_csv(analyses).encode(),
    }


def _file_name(title: str, taken: set[str]) -> str:
    """Returns a section's title as a short name for files that is not taken yet."""
    stem = re.sub(r"[^A-Za-z0-9_.=-]+", "-", title).strip("-.") or "runs"
    if len(stem) > 60:  # between words, so that no number loses digits
        stem = stem[:60].rpartition("-")[0] or stem[:60]
    name, count = stem, 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}-{count}"
    taken.add(name.lower())
    return name


def _message(
    output: Path, runs: int, analyses: Sequence[Analysis], damaged: Sequence[object]
) -> str:
    lines = []
    for analysis in analyses:
        lines.append(f"{analysis.section.title}:")
        rows = shown_results(analysis)[:12]
        width = max(len(result.group.label) for result in rows)
        for result in rows:
            accuracy = wording.percent(result.test_accuracy)
            baseline = "  (baseline)" if result.group is analysis.section.baseline else ""
            states = wording.states(result.group)
            lines.append(f"  {result.group.label:{width}}  test {accuracy} %  {states}{baseline}")
        if len(analysis.results) > 12:
            lines.append(f"  ... and {len(analysis.results) - 12} more groups")
    superseded = sum(len(g.superseded) for a in analyses for g in a.section.groups)
    read = plural(runs, "run") + (f", {len(damaged)} unreadable" if damaged else "")
    if superseded:
        read += f", {superseded} left out for another of the same group and seed"
    lines.append(f"{read}; report: {output / 'report.html'}")
    return "\n".join(lines)
