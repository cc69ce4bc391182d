"""Prints the table of small published sets in elstm/data/README.md from the study's archive.

    python scripts/ucr_table.py                  # outputs/paper/ucr
    python scripts/ucr_table.py FOLDER           # runs or an archive elsewhere

conf/study/ucr.yaml says how the runs were made. Published accuracies come with their sources below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from elstm.errors import UserError
from elstm.reporting.choose import best_overrides
from elstm.reporting.groups import Section, make_sections
from elstm.reporting.runs import load_runs
from elstm.reporting.stats import PairedTest, holm, paired_test, summarize

# By set: TWIESN and ResNet of Fawaz et al. (2019), means over 10 runs in %, and InceptionTime of
# Fawaz et al. (2020), all on the published splits. None: none found.
#   github.com/hfawaz/dl-4-tsc, commit eb2953e: results/results-uea-avg-std.csv (five sets of one
#   feature) and results/results-mts-avg-std.csv (JapaneseVowels); commit 4c2cdff:
#   results/results-ucr-128.csv (ACSF1, the mean of the first four of its runs)
#   github.com/hfawaz/InceptionTime, commit 365ce4d: results-InceptionTime-128.csv; commit 0d623a3:
#   results-mts.csv (BasicMotions, JapaneseVowels)
PUBLISHED: dict[str, tuple[float | None, float | None, float | None]] = {
    "ItalyPowerDemand": (88.0, 96.3, 96.5),
    "JapaneseVowels": (96.5, 99.2, 99.2),
    "BasicMotions": (None, None, 100.0),
    "GunPoint": (96.1, 99.1, 100.0),
    "ArrowHead": (65.9, 84.5, 84.6),
    "OSULeaf": (59.5, 97.9, 94.2),
    "ACSF1": (None, 92.8, 92.0),
}
MODELS = ("lstm", "bn_lstm", "elstm_bn")
AGAINST = ("lstm", "bn_lstm")  # with which eLSTM-BN is compared


def accuracies(section: Section) -> dict[str, dict[int, float]]:
    """Returns the test accuracy in % of each model by seed.

    Raises:
        UserError: a model was trained with several settings.
    """
    found: dict[str, dict[int, float]] = {}
    for group in section.groups:
        if group.model in found:
            raise UserError(f"{section.title} has several settings of {group.model}")
        found[group.model] = {
            run.seed: 100 * run.test_accuracy for run in group.runs if run.test_accuracy is not None
        }
    return found


def compare(of_set: dict[str, dict[int, float]]) -> list[PairedTest]:
    """Compares eLSTM-BN with the other models over the seeds."""
    tests = []
    for other in AGAINST:
        ours, theirs = of_set["elstm_bn"], of_set[other]
        seeds = sorted(ours.keys() & theirs.keys())
        test = paired_test([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
        assert test is not None
        tests.append(test)
    return tests


def table(folder: Path) -> list[str]:
    """Returns the lines of the table.

    Raises:
        UserError: there are no finished runs of a set and model.
    """
    runs, _ = load_runs([folder])
    final = [run for run in runs if run.state == "done" and run.data in PUBLISHED]
    sets = {section.data: accuracies(section) for section in make_sections(final)}
    for name in PUBLISHED:
        for model in MODELS:
            if not sets.get(name, {}).get(model):
                raise UserError(f"{folder} holds no finished run of {model} on {name}")
    tests = {name: compare(sets[name]) for name in PUBLISHED}
    p_values = [1.0 if test.p is None else test.p for of_set in tests.values() for test in of_set]
    corrected = iter(holm(p_values))
    lines = [
        "| set | rates | LSTM | BN-LSTM | eLSTM-BN | against LSTM | against BN-LSTM | TWIESN | "
        "ResNet | InceptionTime |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, published in PUBLISHED.items():
        rates = [best_overrides([folder / f"{name}-folds"], model)[0] for model in MODELS]
        cells = [name, ", ".join(rate.rpartition("=")[2] for rate in rates)]
        for model in MODELS:
            summary = summarize(list(sets[name][model].values()))
            assert summary is not None
            cells.append(f"{summary.mean:.1f} ± {summary.sd or 0:.1f}")
        for test in tests[name]:
            difference = f"{test.difference:+.1f}".replace("-", "−")
            cells.append(f"{difference}, p = {next(corrected):.2g}")
        cells += ["none found" if each is None else f"{each:.1f}" for each in published]
        lines.append(f"| {' | '.join(cells)} |")
    means = [
        sum(sum(sets[name][model].values()) / len(sets[name][model]) for name in PUBLISHED) / 7
        for model in MODELS
    ]
    lines.append(f"| mean | | {' | '.join(f'{mean:.1f}' for mean in means)} | | | | | |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        print("\n".join(table(Path(words[0] if words else "outputs/paper/ucr"))))
    except UserError as error:
        print(f"ucr_table.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
