"""Makes the table of small published sets in elstm/data/README.md, with published accuracies."""

from __future__ import annotations

from elstm.reporting import wording
from elstm.reporting.choose import best_overrides
from paper.compared import NAMES, OURS, Archives, Task, correct, markdown

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
AGAINST = ("lstm", "bn_lstm")  # with which eLSTM-BN is compared
MODELS = (*AGAINST, OURS)


def small_sets(archives: Archives) -> list[str]:
    """Compares the main three models on the seven sets, with one correction for the 14 tests."""
    found = [archives.compare(Task(name, "ucr", {"data.name": name}), MODELS) for name in PUBLISHED]
    correct(found, AGAINST, planned=len(found) * len(AGAINST))
    lines = []
    means: list[list[float]] = [[] for _ in MODELS]
    for compared in found:
        name = compared.task.title
        folds = archives.out / "ucr" / f"{name}-folds"
        rates = [best_overrides([folds], model)[0] for model in MODELS]
        cells = [name, ", ".join(rate.rpartition("=")[2] for rate in rates)]
        for model, of_model in zip(MODELS, means, strict=True):
            summary = compared.results[model].test_accuracy
            assert summary is not None  # the runs are finished
            cells.append(wording.spread(summary, 100))
            of_model.append(100 * summary.mean)
        for other in AGAINST:
            test = compared.tests[other]
            cells.append(f"{wording.signed(100 * test.difference, 1)}, p = {test.p_holm:.2g}")
        cells += ["none found" if each is None else f"{each:.1f}" for each in PUBLISHED[name]]
        lines.append(cells)
    lines.append(
        ["mean", "", *(f"{sum(each) / len(each):.1f}" for each in means), "", "", "", "", ""]
    )
    header = ["set", "rates", *(NAMES[model] for model in MODELS)]
    header += [*(f"against {NAMES[model]}" for model in AGAINST)]
    return markdown([*header, "TWIESN", "ResNet", "InceptionTime"], 2, lines)
