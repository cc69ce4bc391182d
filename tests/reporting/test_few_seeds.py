"""Fewer than three seeds or pairs give differences and thin lines, but no interval and no test."""

import csv

import pytest
from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.reporting.figures import THIN, curves_figure
from elstm.reporting.groups import make_sections
from elstm.reporting.runs import load_runs
from elstm.reporting.style import group_styles


def report(tmp_path, seeds):
    for model in ("lstm", "elstm_bn"):
        for seed in range(seeds):
            write_run(
                tmp_path / f"runs/{model}-{seed}", model, seed=seed, epochs=3,
                offset=0.05 * (model == "elstm_bn"),
            )  # fmt: skip
    arguments = ("--figures", "none", "--baseline", "lstm", "--baseline", "elstm_bn")
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "report"), *arguments]) == 0
    with (tmp_path / "report/summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    [row] = [r for r in rows if r["group"] == "elstm_bn" and r["baseline"] == "lstm"]
    return (tmp_path / "report/report.md").read_text(), row


VERDICTS = ("interval +", "after Holm", "higher", "lower than", "not shown to differ", "| p |")


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_pairs_have_a_difference_and_no_verdict(tmp_path, seeds):
    text, row = report(tmp_path, seeds)
    said = text.partition("## How these numbers")[0]
    assert not [verdict for verdict in VERDICTS if verdict in said]
    pairs = "1 pair" if seeds == 1 else "2 pairs"
    assert f"points against the baseline ({pairs}: too few for a test)" in said
    table = said.partition("### Paired tests against lstm")[2].partition("###")[0]
    assert "| Group | Pairs | Difference, points |\n" in table
    assert f"| elstm_bn | {seeds} | +" in table
    assert "no group shares 3 finished seeds" in said
    assert float(row["test_accuracy_test_difference"]) > 0
    for area in ("test_accuracy", "area_under_curve"):
        assert row[f"{area}_test_n"] == str(seeds)
        assert not any(row[f"{area}_test_{f}"] for f in ("low", "high", "t", "p", "p_holm"))


def test_three_pairs_are_tested(tmp_path):
    text, row = report(tmp_path, 3)
    assert "test accuracy higher than the baseline's: +" in text
    assert "3 pairs)" in text
    assert "With fewer than" not in text.partition("## How these numbers")[0]
    assert float(row["test_accuracy_test_p_holm"]) < 0.05


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 2, 0), (3, 1, 1)])
def test_single_seeds_are_thin_lines(tmp_path, seeds, lines, bands):
    for seed in range(seeds):
        write_run(tmp_path / f"{seed}", seed=seed, epochs=3)
    [section] = make_sections(load_runs([tmp_path])[0])
    [styles] = group_styles([[("lstm", "lstm")]])
    figure = curves_figure(
        section.groups, styles, lambda run: run.validation, "accuracy",
        title="", percent=True, times=False,
    )  # fmt: skip
    axes = figure.axes[0]
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)
    assert all((line.get_linewidth() == THIN) == (bands == 0) for line in axes.lines)
    assert len(figure.legends[0].get_texts()) == 1
