"""Writes the section of one task: findings, tables, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from elstm.reporting import wording
from elstm.reporting.document import (
    Block,
    Bold,
    Bullets,
    Code,
    Details,
    Heading,
    Inline,
    Paragraph,
    Picture,
    Table,
)
from elstm.reporting.findings import drawn_groups, findings
from elstm.reporting.groups import Section, leading_groups
from elstm.reporting.labels import short_names, show_value
from elstm.reporting.measures import Analysis, GroupResult
from elstm.reporting.stats import MIN_SEEDS, PairedTest

MAX_ROWS = 40  # groups in a table; summary.csv has them all
# They are listed under a section's heading if all its runs share them.
MAIN_KEYS = (
    "data.pixels_per_step",
    "data.permute",
    "data.train_size",
    "data.batch_size",
    "model.hidden_size",
    "model.num_layers",
    "optimizer.name",
    "optimizer.lr",
    "scheduler.name",
    "trainer.max_epochs",
)


class Pictures(NamedTuple):
    """Holds the figures of a section; None if there is nothing to draw."""

    validation: Picture | None
    loss: Picture | None
    accuracy: Picture | None
    reach: Picture | None
    statistics: Picture | None
    time_steps: Picture | None


def section_blocks(analysis: Analysis, pictures: Pictures) -> list[Block]:
    """Returns all blocks about one task."""
    section = analysis.section
    rows = shown_results(analysis)
    blocks: list[Block] = [Heading(2, section.title)]
    shared = [k for k in MAIN_KEYS if section.common.get(k) is not None]
    if shared:
        names = short_names(shared)
        settings = [f"{names[key]}={show_value(section.common[key])}" for key in shared]
        blocks.append(Paragraph(f"All runs: {', '.join(settings)}."))
    blocks += _data_blocks(section)
    blocks.append(Bullets(findings(analysis)))
    drawn = len(drawn_groups(analysis))
    if len(section.groups) > drawn:
        tables = f"the tables show {len(rows)}, " if len(section.groups) > len(rows) else ""
        blocks.append(
            Paragraph(
                f"Of {len(section.groups)} groups {tables}the sentences above and the figures "
                f"{drawn}: the baseline, each model's best by validation accuracy, and the best "
                "of the rest. summary.csv has all."
            )
        )
    blocks += [Heading(3, "Accuracy and cost"), _main_table(rows)]
    blocks += [picture for picture in (pictures.accuracy,) if picture]
    blocks += [Heading(3, "Convergence")]
    blocks += [picture for picture in (pictures.validation, pictures.loss) if picture]
    blocks += _reach_blocks(analysis, rows)
    blocks += [picture for picture in (pictures.reach,) if picture]
    for baseline in analysis.baselines:
        blocks += _test_blocks(rows, baseline.label)
    blocks += _gap_blocks(rows)
    inside = [picture for picture in (pictures.statistics, pictures.time_steps) if picture]
    if inside:
        blocks += [Heading(3, "Inside the recurrence"), *inside]
    blocks += _settings_blocks(analysis, rows)
    return blocks


def _data_blocks(section: Section) -> list[Block]:
    """Describes the user data of the runs, and what runs on several folds mean."""
    blocks: list[Block] = []
    if section.fingerprint:
        runs = [run for group in section.groups for run in (*group.runs, *group.failed)]
        run = next((run for run in runs if run.description), runs[0])
        where = "" if run.fold is None else f" of fold {run.fold}"
        read = f"{run.description}; " if run.description else ""
        blocks.append(Paragraph(f"Data{where}: {read}checksum {section.fingerprint}."))
    if section.others:
        others = ", ".join(each or "not recorded" for each in section.others[:8])
        blocks.append(
            Paragraph(
                f"Other runs read other data under the name {section.data} (checksum {others}). "
                "They have separate sections, and no number here includes them."
            )
        )
    if section.folds is not None:
        found = sorted({run.fold for run in section.runs if run.fold is not None})
        blocks.append(
            Paragraph(
                f"Cross-validation: the runs are on the folds {', '.join(map(str, found))} of "
                f"{section.folds}, which count as seeds do: a run is compared with the run of the "
                "same fold and seed. The folds share training sequences, so that a plain t-test "
                "would be too optimistic. Intervals and tests are therefore those of the corrected "
                "resampled t-test (see the end)."
            )
        )
    return blocks


def shown_results(analysis: Analysis) -> list[GroupResult]:
    """Returns the results that are rows of the tables, the baseline first."""
    by_label = {result.group.label: result for result in analysis.results}
    return [by_label[group.label] for group in leading_groups(analysis.section, MAX_ROWS)]


def _main_table(rows: Sequence[GroupResult]) -> Block:
    unit = "seeds" if all(r.group.folds is None for r in rows) else "runs"
    columns: list[tuple[str, Callable[[GroupResult], str]]] = [
        ("Group", lambda r: r.group.label),
        ("Runs", lambda r: wording.states(r.group)),
        (
            f"Test accuracy, % ({unit})",
            lambda r: (
                wording.percent(r.test_accuracy)
                + (f" ({r.test_accuracy.n})" if r.test_accuracy else "")
            ),
        ),
        ("95 % interval", lambda r: wording.interval(r.test_accuracy)),
    ]
    # In the published image sets the classes are about equally frequent.
    own_data = any(run.fingerprint for r in rows for run in r.group.runs)
    if own_data and any(r.balanced_accuracy for r in rows):
        columns += [
            ("Balanced accuracy, %", lambda r: wording.percent(r.balanced_accuracy)),
            ("Macro F1, %", lambda r: wording.percent(r.macro_f1)),
        ]
    columns += [
        ("Best validation, %", lambda r: wording.percent(r.best_validation)),
        ("Area under curve, %", lambda r: wording.percent(r.area)),
        ("Parameters", lambda r: " / ".join(f"{n:,}" for n in r.parameters) or wording.NONE),
        ("Training, s/epoch", lambda r: wording.seconds(r.train_seconds)),
        ("In all, s/epoch", lambda r: wording.seconds(r.wall_seconds)),
    ]
    body = [[cell(r) for _, cell in columns] for r in rows]
    return Table([name for name, _ in columns], body, left=(0, 1))


def _reach_blocks(analysis: Analysis, rows: Sequence[GroupResult]) -> list[Block]:
    baseline = analysis.section.baseline.label
    names = [f"{100 * threshold:g} %" for threshold in analysis.thresholds]
    header = ["Group", *names, f"{baseline}'s best", "ratio to it"]
    tables = []
    for clock in ("epochs", "seconds"):
        body = []
        for r in rows:
            way = r.to_best
            mark = "" if way.paired or way.reach is None else " †"
            best = wording.reached(way.reach, clock) + mark
            ratio = wording.ratio(getattr(way, f"{clock}_ratio"), way.reach)
            at = [wording.reached(reach, clock) for reach in r.reaches]
            body.append([r.group.label, *at, best, ratio])
        tables.append(Table(header, body))
    blocks: list[Block] = [
        Paragraph([Bold("Epochs"), " to a validation accuracy (mean ± standard deviation):"]),
        tables[0],
        Paragraph([Bold("Wall-clock seconds"), ", evaluation included, to the same:"]),
        tables[1],
    ]
    if any(not r.to_best.paired and r.to_best.reach is not None for r in rows):
        blocks.append(
            Paragraph(
                "† No seed is shared with the baseline: its mean best accuracy counts instead."
                if analysis.section.folds is None
                else "† No fold and seed is shared with the baseline: its mean best accuracy "
                "counts instead."
            )
        )
    return blocks


def _test_blocks(rows: Sequence[GroupResult], baseline: str) -> list[Block]:
    tested = [r for r in rows if r.group.label != baseline]
    if not tested:
        return []
    blocks: list[Block] = [Heading(3, f"Paired tests against {baseline}")]
    several = tested[0].group.folds is not None
    pairs = [t.n for r in tested for t in _tests_of(r, baseline)]
    if not pairs:
        blocks.append(
            Paragraph(
                f"No group shares a finished {'fold and seed' if several else 'seed'} with the "
                "baseline: nothing can be compared."
            )
        )
        return blocks
    if min(pairs) < MIN_SEEDS:
        blocks.append(
            Paragraph(
                f"With fewer than {MIN_SEEDS} {'folds' if several else 'pairs'}, the difference is "
                "given without an interval and without a test."
            )
        )
    header = ["Group", "Folds" if several else "Pairs", "Difference, points"]
    if max(pairs) >= MIN_SEEDS:
        header = [*header[:2], f"{header[2]} (95 % interval)", "t", "p", "p (Holm)", "d_z"]
    for name, field in (("Test accuracy", "test_accuracy"), ("Area under the curve", "area")):
        tests: list[PairedTest | None] = [getattr(r.comparisons[baseline], field) for r in tested]
        if any(test is not None for test in tests):
            rows_of_tests = zip(tested, tests, strict=True)
            body = [_test_row(r, test)[: len(header)] for r, test in rows_of_tests]
            blocks += [Paragraph([Bold(name), ":"]), Table(header, body)]
    return blocks + _image_blocks(tested, baseline)


def _image_blocks(tested: Sequence[GroupResult], baseline: str) -> list[Block]:
    what = wording.tested_items(run.config for r in tested for run in r.group.runs)
    found = [(r.group.label, r.comparisons[baseline].images) for r in tested]
    tests = [(label, test) for label, test in found if test and test.pairs >= MIN_SEEDS]
    if not tests:
        return []
    header = [
        "Group", "Pairs", f"Difference, points (95 % interval over {what})",
        "Only this group correct", "Only the baseline correct", "p (McNemar)",
    ]  # fmt: skip
    body = [
        [
            label,
            str(test.pairs),
            f"{wording.signed(100 * test.difference)} ({wording.signed(100 * test.low)} to "
            f"{wording.signed(100 * test.high)})",
            f"{test.only_group:.0f}",
            f"{test.only_baseline:.0f}",
            wording.p_value(test.p),
        ]
        for label, test in tests
    ]
    counts = " or ".join(f"{n:,}" for n in sorted({test.images for _, test in tests}))
    text: Inline = [
        Bold(f"Test {what}"),
        f" ({counts}): the interval is over {what} and takes the trained models as they are. The "
        f"next columns are mean numbers of {what} per pair of runs; p is the median over the pairs "
        "of McNemar's exact test, without a correction.",
    ]
    return [Paragraph(text), Table(header, body)]


def _tests_of(result: GroupResult, baseline: str) -> list[PairedTest]:
    comparison = result.comparisons[baseline]
    return [test for test in (comparison.test_accuracy, comparison.area) if test is not None]


def _test_row(result: GroupResult, test: PairedTest | None) -> list[str]:
    if test is None:
        return [result.group.label, "0", *[wording.NONE] * 5]
    return [
        result.group.label,
        str(test.n),
        wording.points(test),
        wording.NONE if test.t is None else wording.signed(test.t),
        wording.p_value(test.p),
        wording.p_value(test.p_holm),
        wording.NONE if test.effect is None else wording.signed(test.effect),
    ]


def _has_gap(result: GroupResult) -> bool:
    """Returns False without batch normalisation, because both accuracies are the same then."""
    gaps = [gap[2] for gap in (result.validation, result.test) if gap is not None]
    return any(gap.mean or gap.sd for gap in gaps)


def _gap_blocks(rows: Sequence[GroupResult]) -> list[Block]:
    measured = [r for r in rows if _has_gap(r)]
    if not measured:
        return []
    header = [
        "Group", "Validation: population, %", "batch, %", "gap, points",
        "Test: population, %", "batch, %", "gap, points",
    ]  # fmt: skip
    body = []
    for r in measured:
        cells = []
        for gap in (r.validation, r.test):
            if gap is None:
                cells += [wording.NONE] * 3
            else:
                population, batch, difference = gap
                sd = "" if difference.sd is None else f" ± {100 * difference.sd:.2f}"
                shown = wording.signed(100 * difference.mean) + sd
                cells += [wording.percent(population), wording.percent(batch), shown]
        body.append([r.group.label, *cells])
    return [
        Heading(3, "Population against batch statistics"),
        Paragraph(
            "The gap is the accuracy with the statistics of the evaluated batch less that with "
            "the population statistics, at the last evaluation and in the final test. Models "
            "without batch normalisation have none."
        ),
        Table(header, body),
    ]


def _settings_blocks(analysis: Analysis, rows: Sequence[GroupResult]) -> list[Block]:
    blocks: list[Block] = []
    body: list[list[Inline]] = [
        [
            r.group.label,
            Code(", ".join(f"{k}={show_value(v)}" for k, v in sorted(r.group.settings.items()))),
        ]
        for r in rows
    ]
    if any(r.group.settings for r in rows):
        blocks.append(Details("Settings that differ", [Table(["Group", "Settings"], body, (0, 1))]))
    common = sorted(analysis.section.common.items())
    if common:
        shown: list[list[Inline]] = [[Code(k), Code(show_value(v))] for k, v in common[:200]]
        blocks.append(Details("Settings that all share", [Table(["Key", "Value"], shown, (0, 1))]))
    return [Heading(3, "Settings"), *blocks] if blocks else []
