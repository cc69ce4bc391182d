"""scripts/tables.py: the pages show the tables of the archives, and the numbers are right."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from synthetic_runs import write_run

from elstm.reporting.stats import PairedTest

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "outputs" / "paper"
PAGES = {
    "headline": [ROOT / "README.md", PAPER / "README.md"],
    "rows": [PAPER / "README.md"],
    "default": [PAPER / "README.md"],
    "epochs": [PAPER / "README.md"],
    "steps-196": [PAPER / "README.md"],
    "ordered": [PAPER / "README.md"],
    "permuted": [PAPER / "README.md"],
    "statistics": [PAPER / "README.md"],
    "ucr": [ROOT / "elstm" / "data" / "README.md"],
}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tables

    return tables


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_show_the_tables(tables: ModuleType, name: str) -> None:
    text = "\n".join(tables.TABLES[name](tables.Archives(PAPER)))
    for page in PAGES[name]:
        assert f"\n\n{text}\n\n" in page.read_text(encoding="utf-8"), page


def test_every_table_is_on_a_page(tables: ModuleType) -> None:
    assert set(tables.TABLES) == set(PAGES)


def test_a_model_that_is_not_finished_is_one_line(
    tables: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for model in ("lstm", "elstm_bn"):
        for data in ("fashion_mnist", "mnist"):
            write_run(tmp_path / "rows-default" / f"{model}-{data}", model, data, epochs=2)
    assert tables.main(["headline", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(" has no finished run of bn_lstm\n")


def test_the_headline_by_hand(tables: ModuleType) -> None:
    """The row of Fashion-MNIST from the CSV files alone."""
    accuracy: dict[str, dict[str, float]] = defaultdict(dict)
    with (PAPER / "rows" / "runs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["data.name"] == "fashion_mnist":
                model, seed = row["model.name"], row["seed"]
                accuracy[model][seed] = 100 * float(row["test_accuracy"])
    ours, lstm = accuracy["elstm_bn"], accuracy["lstm"]
    assert len(ours) == len(lstm) == 10
    differences = [ours[seed] - lstm[seed] for seed in ours]
    mean = sum(differences) / 10
    deviation = math.sqrt(sum((each - mean) ** 2 for each in differences) / 9)
    half = 2.262157 * deviation / math.sqrt(10)  # the 97.5 % quantile of t with 9 degrees
    compared = tables.Archives(PAPER).compare(tables.FASHION)
    test = compared.tests["lstm"]
    assert [100 * test.difference, 100 * test.low, 100 * test.high] == pytest.approx(
        [mean, mean - half, mean + half], abs=1e-5
    )
    assert compared.results["lstm"].test_accuracy.mean * 100 == pytest.approx(
        sum(lstm.values()) / 10
    )


def test_the_correction_covers_all_tests_of_the_plan(tables: ModuleType) -> None:
    from paper.compared import Compared, correct

    def test_of(p: float | None) -> PairedTest:
        return PairedTest(5, 0.1, 0.0, 0.2, 2.0, p, 1.0)

    tasks = [
        Compared(tables.FASHION, {}, {"lstm": test_of(0.01), "gru": test_of(0.001)}),
        Compared(tables.MNIST, {}, {"lstm": test_of(0.03), "bn_lstm": test_of(None)}),
    ]
    correct(tasks, ["lstm", "bn_lstm"], planned=4)  # one of them is not made yet
    assert tasks[0].tests["lstm"].p_holm == pytest.approx(0.04)
    assert tasks[1].tests["lstm"].p_holm == pytest.approx(0.09)
    assert tasks[1].tests["bn_lstm"].p_holm == 1.0
    assert tasks[0].tests["gru"].p_holm is None
