"""The comparison of two groups image by image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from elstm.commands import report
from elstm.records.correct import encode_correct
from elstm.reporting.document import to_markdown
from elstm.reporting.findings import findings
from elstm.reporting.groups import choose_baselines, make_sections
from elstm.reporting.images import correct_images, image_test, mcnemar
from elstm.reporting.measures import analyse
from elstm.reporting.repeat import differences
from elstm.reporting.runs import load_runs
from elstm.reporting.section import Pictures, section_blocks


def test_mcnemar_by_hand() -> None:
    """p = 2 P(X <= min(b, c)) with X ~ Binomial(b + c, 1/2), at most 1."""
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 0) == 1


def test_the_interval_is_over_images() -> None:
    ours = [np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)]
    theirs = [np.array([1, 0, 0, 1], bool), np.array([1, 1, 0, 1], bool)]
    test = image_test(ours, theirs)
    assert test is not None
    differences = np.array([0, 0.5, 0.5, -1])
    half = 3.182446305284263 * differences.std(ddof=1) / math.sqrt(4)  # t of 3 degrees, 95 %
    assert (test.pairs, test.images, test.difference) == (2, 4, 0)
    assert (test.low, test.high) == pytest.approx((-half, half))
    assert (test.only_group, test.only_baseline) == (1.0, 1.0)
    assert test.p == 1
    assert image_test([], []) is None
    assert image_test(ours[:1], [theirs[0][:3]]) is None  # other test sets


def test_a_report_has_the_test_where_runs_recorded_the_images(tmp_path: Path) -> None:
    for model, wrong in (("lstm", 30), ("gru", 10)):
        for seed in range(3):
            run = write_run(tmp_path / "runs" / f"{model}-{seed}", model, seed=seed)
            correct = np.arange(200) >= wrong + seed
            (run / "test_correct.csv").write_bytes(encode_correct(correct))
    other = write_run(tmp_path / "runs" / "other", "ln_lstm", seed=0)
    (other / "test_correct.csv").write_text("images,correct\n5,zz\n")  # damaged: left out
    words = [str(tmp_path / "runs"), "--baseline", "lstm", "-o", str(tmp_path / "out")]
    assert report.main([*words, "--figures", "none"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| gru | 3 | +10.00 (+5.91 to +14.09) | 20 | 0 | < 0.0001 |" in text
    assert "**Test images** (200)" in text
    assert "images_p" in (tmp_path / "out" / "summary.csv").read_text()


def test_own_series_are_sequences_and_no_images(tmp_path: Path) -> None:
    """Their configs have no data.pixels_per_step."""
    for model in ("lstm", "gru"):
        for seed in range(3):
            run = write_run(tmp_path / f"{model}-{seed}", model, "series", seed, epochs=1)
            config = run / ".hydra" / "config.yaml"
            config.write_text(config.read_text().replace("  pixels_per_step: 28\n", ""))
            (run / "test_correct.csv").write_bytes(encode_correct(np.arange(40) >= seed))
    runs = load_runs([tmp_path])[0]
    (section,) = make_sections(runs)
    choose_baselines([section], [])
    text = to_markdown(section_blocks(analyse(section), Pictures(*[None] * 6)))
    assert "**Test sequences** (40): the interval is over sequences" in text
    assert "mean numbers of sequences per pair" in text
    assert "images" not in text
    assert differences(runs[0].stored, runs[1].stored)[-1] == "1 test sequence classified otherwise"


def test_runs_with_splits_of_their_own_share_no_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", epochs=1, data__split_seed="${seed}")
    (run / "test_correct.csv").write_bytes(encode_correct(np.ones(8, bool)))
    (section,) = make_sections(load_runs([tmp_path])[0])
    assert correct_images(section.groups[0]) == {}
    choose_baselines([section], [])
    assert "The splits are drawn anew for each seed" in str(findings(analyse(section)))
