"""Writes the numbers as CSV: results.csv by run, summary.csv by group and baseline.

Accuracies are fractions here; an empty cell means that the value was not measured. In summary.csv,
epochs_to_X and seconds_to_X are means over runs_to_X runs. They are lower bounds where fewer of
these, reached_X, reach the accuracy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields

from elstm.files.bounded import Value, spreadsheet_safe
from elstm.reporting.groups import Group
from elstm.reporting.images import ImageTest
from elstm.reporting.measures import Analysis, GroupResult, Reach, area_under_curve, first_reach
from elstm.reporting.runs import Run
from elstm.reporting.stats import PairedTest, Summary

Row = dict[str, object]


def results_csv(analyses: Sequence[Analysis]) -> str:
    """Returns one row per run, failed and left-out ones too, with all settings that differ."""
    return _write([_run_row(a, group, run) for a, group, run in _all_runs(analyses)])


def summary_csv(analyses: Sequence[Analysis]) -> str:
    """Returns one row per group and baseline."""
    rows = []
    for analysis in analyses:
        for result in analysis.results:
            for baseline in analysis.baselines:
                rows.append(_group_row(analysis, result, baseline.label))
    return _write(rows)


def _all_runs(analyses: Sequence[Analysis]) -> Iterable[tuple[Analysis, Group, Run]]:
    for analysis in analyses:
        for group in analysis.section.groups:
            for run in (*group.runs, *group.failed, *group.superseded):
                yield analysis, group, run


def _run_row(analysis: Analysis, group: Group, run: Run) -> Row:
    row: Row = {
        "task": analysis.section.title,
        "group": group.label,
        "model": run.model,
        **({"data_fingerprint": run.fingerprint} if run.fingerprint else {}),
        **({} if run.fold is None else {"fold": run.fold}),
        "seed": run.seed,
        "state": run.state,
        "left_out": run.state == "failed" or any(run is other for other in group.superseded),
        "epochs": run.epoch,
        "max_epochs": run.max_epochs,
        "test_accuracy": run.test_accuracy,
        "test_accuracy_batch_stats": run.test_accuracy_batch_stats,
        "test_balanced_accuracy": run.test_balanced_accuracy,
        "test_macro_f1": run.test_macro_f1,
        "best_val_accuracy": run.best_val_accuracy,
        "val_accuracy": run.val_accuracy,
        "val_accuracy_batch_stats": run.val_accuracy_batch_stats,
        "area_under_curve": area_under_curve(run.validation, analysis.horizon, analysis.start)
        if analysis.horizon is not None
        else None,
        "train_seconds": run.train_seconds,
        "wall_seconds": run.wall_seconds,
        "parameters": run.parameters,
    }
    for threshold in analysis.thresholds:
        epoch, seconds = first_reach(run.validation, threshold) or (None, None)
        row[f"epochs_to_{threshold:g}"] = epoch
        row[f"seconds_to_{threshold:g}"] = seconds
    row.update((key, _setting(value)) for key, value in group.settings.items())
    row.update(run.made_with)
    row["path"] = run.path
    row["error"] = run.error
    return row


def _setting(value: Value) -> object:
    """Returns a setting so that numbers stay numbers, negative ones too, and texts stay whole."""
    return "null" if value is None else value


def _group_row(analysis: Analysis, result: GroupResult, baseline: str) -> Row:
    group = result.group
    row: Row = {
        "task": analysis.section.title,
        "group": group.label,
        "model": group.model,
        "runs": len(group.runs),
        "done": group.count("done"),
        "running": group.count("running"),
        "interrupted": group.count("interrupted"),
        "pruned": group.count("pruned"),
        "failed": len(group.failed),
        "parameters": " / ".join(map(str, result.parameters)),
        **_summary("test_accuracy", result.test_accuracy),
        **_summary("test_balanced_accuracy", result.balanced_accuracy),
        **_summary("test_macro_f1", result.macro_f1),
        **_summary("best_val_accuracy", result.best_validation),
        **_summary("area_under_curve", result.area),
        **_summary("train_seconds_per_epoch", result.train_seconds),
        **_summary("wall_seconds_per_epoch", result.wall_seconds),
        **_summary("val_gap", result.validation[2] if result.validation else None),
        **_summary("test_gap", result.test[2] if result.test else None),
    }
    for threshold, reach in zip(analysis.thresholds, result.reaches, strict=True):
        row.update(_reach(f"{threshold:g}", reach))
    row.update(_reach("baseline_best", result.to_best.reach))
    row["epochs_ratio_to_baseline"] = result.to_best.epochs_ratio
    row["seconds_ratio_to_baseline"] = result.to_best.seconds_ratio
    row["baseline"] = baseline
    comparison = result.comparisons[baseline]
    row.update(_test("test_accuracy", comparison.test_accuracy))
    row.update(_test("area_under_curve", comparison.area))
    row.update(_image_test(comparison.images))
    return row


def _summary(name: str, summary: Summary | None) -> Row:
    if summary is None:
        return {f"{name}_n": 0, name: None, f"{name}_sd": None}
    return {f"{name}_n": summary.n, name: summary.mean, f"{name}_sd": summary.sd}


def _reach(name: str, reach: Reach | None) -> Row:
    return {
        f"reached_{name}": reach and reach.reached,
        f"runs_to_{name}": reach and reach.runs,
        f"epochs_to_{name}": reach and reach.epochs.mean,
        f"seconds_to_{name}": reach and reach.seconds and reach.seconds.mean,
    }


def _test(name: str, test: PairedTest | None) -> Row:
    names = ("n", "difference", "low", "high", "t", "p", "p_holm", "effect")
    return {f"{name}_test_{each}": getattr(test, each, None) for each in names}


def _image_test(test: ImageTest | None) -> Row:
    return {f"images_{each.name}": getattr(test, each.name, None) for each in fields(ImageTest)}


def _write(rows: Sequence[Row]) -> str:
    columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writerow({key: _cell(key) for key in columns})
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if value != value else f"{value:.10g}"
    if isinstance(value, str):
        return spreadsheet_safe(value)
    return value
