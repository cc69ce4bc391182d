"""Each model's best setting from the runs of a tuning study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic_runs import write_run

from elstm.commands import report
from elstm.errors import UserError
from elstm.reporting.choose import RankedSetting, best_overrides, read_settings, settings_table
from elstm.reporting.groups import by_standing, choose_baselines, make_sections
from elstm.reporting.runs import load_runs


def tuned(folder: Path) -> Path:
    """lr 0.003 is better than 0.001; 0.01 better still on one seed, and has no second."""
    for seed in (100, 101):
        for lr, offset in ((0.001, -0.05), (0.003, 0.0)):
            # What is best by test accuracy must not matter.
            status = {"test_accuracy": 0.5 - offset}
            write_run(folder / f"lstm-{lr}-{seed}", seed=seed, optimizer__lr=lr, offset=offset,
                      epochs=3, status=status)  # fmt: skip
    write_run(folder / "lstm-0.01", seed=100, optimizer__lr=0.01, offset=0.05, epochs=3)
    write_run(folder / "failed", seed=101, optimizer__lr=0.01, epochs=3, state="failed")
    for bias in ("chrono", 1.0):
        offset = 0.0 if bias == "chrono" else -0.1
        write_run(folder / f"gru-{bias}", "gru", seed=100, model__update_bias=bias,
                  offset=offset, epochs=3)  # fmt: skip
    return folder


def test_the_best_by_validation_of_the_most_seeds(tmp_path: Path) -> None:
    settings = read_settings([tuned(tmp_path)])
    assert [s.overrides for s in settings["lstm"]] == [
        ("optimizer.lr=0.003",), ("optimizer.lr=0.001",), ("optimizer.lr=0.01",)
    ]  # fmt: skip
    assert [len(s.bests) for s in settings["lstm"]] == [2, 2, 1]
    assert settings["gru"][0].overrides == ("model.update_bias=chrono",)
    assert "| lstm | **lr=0.003** | **75." in settings_table(settings)


def test_an_archive_gives_the_same_table(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "tuning")
    before = settings_table(read_settings([folder]))
    report.main(["--pack", str(folder)])
    for run in folder.iterdir():
        if run.is_dir():
            shutil.rmtree(run)
    assert settings_table(read_settings([folder])) == before
    assert best_overrides([folder], "gru") == ("model.update_bias=chrono",)


def test_what_cannot_be_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run of ln_lstm"):
        best_overrides([tuned(tmp_path)], "ln_lstm")
    write_run(tmp_path / "mnist", data="mnist")
    with pytest.raises(UserError, match="on one task, not 2"):
        read_settings([tmp_path])


def test_the_best_of_two_folders(tmp_path: Path) -> None:
    """A second study varies the weight decay at the rate that the first one chose."""
    for lr in (0.001, 0.003):
        write_run(tmp_path / f"rates/{lr}", optimizer__lr=lr, offset=lr, epochs=3)
    for decay, offset in ((0.1, 0.05), (0.3, -0.05)):
        write_run(tmp_path / f"decay/{decay}", optimizer__lr=0.003, epochs=3,
                  optimizer__weight_decay=decay, offset=offset)  # fmt: skip
    folders = [tmp_path / "rates", tmp_path / "decay"]
    chosen = ("optimizer.lr=0.003", "optimizer.weight_decay=0.1")
    assert best_overrides(folders, "lstm") == chosen
    assert best_overrides(folders[:1], "lstm") == ("optimizer.lr=0.003",)


def test_a_lucky_seed_is_no_baseline(tmp_path: Path) -> None:
    for lr, seeds, offset in ((0.01, 1, 0.02), (0.02, 2, 0.01), (0.03, 4, 0)):
        for seed in range(seeds):
            write_run(tmp_path / f"{lr}-{seed}", seed=seed, optimizer__lr=lr, offset=offset,
                      epochs=3)  # fmt: skip
    [section] = make_sections(load_runs([tmp_path])[0])
    choose_baselines([section], [])
    assert section.baseline.settings["optimizer.lr"] == 0.02
    assert [group.settings["optimizer.lr"] for group in by_standing(section.groups)] == [
        0.02, 0.03, 0.01,
    ]  # fmt: skip


def test_over_folds_without_a_validation_split(tmp_path: Path) -> None:
    """The part that is left out ranks; a run that only tests on test data cannot."""
    folds = {"data__folds": 2, "data__val_fraction": 0}
    for lr, accuracies in ((0.01, (0.5, 0.9)), (0.1, (0.6, 0.6))):
        for fold, accuracy in enumerate(accuracies):
            run = write_run(tmp_path / f"{lr}-{fold}", optimizer__lr=lr, data__fold=fold, **folds,
                            epochs=3, status={"test_accuracy": accuracy})  # fmt: skip
            drop_validation(run)
    best, other = read_settings([tmp_path])["lstm"]
    assert (best.overrides, best.bests) == (("optimizer.lr=0.01",), (0.5, 0.9))
    assert other.bests == (0.6, 0.6)
    [section] = make_sections(load_runs([tmp_path])[0])
    choose_baselines([section], [])
    assert section.baseline.settings["optimizer.lr"] == 0.01

    alone = write_run(tmp_path / "alone" / "run", epochs=3)
    drop_validation(alone)
    with pytest.raises(UserError, match="neither a validation split nor folds"):
        read_settings([tmp_path / "alone"])


def drop_validation(run: Path) -> None:
    """Empties val_accuracy in metrics.csv."""
    path = run / "metrics.csv"
    header, *lines = path.read_text().splitlines()
    at = header.split(",").index("val_accuracy")
    rows = [line.split(",") for line in lines]
    kept = [",".join([*row[:at], "", *row[at + 1 :]]) for row in rows]
    path.write_text("\n".join([header, *kept]) + "\n")


def test_settings_that_only_some_runs_have(tmp_path: Path) -> None:
    """Covers settings such as those of one optimizer; an extended run is no setting."""
    sgd = {"name": "sgd", "lr": 0.003, "momentum": 0.9}
    write_run(tmp_path / "a", epochs=1, optimizer=sgd, offset=0.05)
    for name, beta in (("b", 0.8), ("c", 0.9)):
        write_run(tmp_path / name, epochs=1, optimizer__beta1=beta, offset=beta / 100)
    extensions = [{"step": 5, "changed": {"max_epochs": [1, 2]}}]
    write_run(tmp_path / "d", epochs=1, offset=0.1, status={"extensions": extensions})
    assert [setting.overrides for setting in read_settings([tmp_path])["lstm"]] == [
        ("optimizer.momentum=0.9", "optimizer.name=sgd"),
        ("optimizer.beta1=0.9", "optimizer.name=adam"),
        ("optimizer.beta1=0.8", "optimizer.name=adam"),
    ]


def test_a_setting_is_given_with_all_its_digits(tmp_path: Path) -> None:
    write_run(tmp_path / "a", epochs=1, optimizer__lr=0.0012345678912345, model__note="x, " * 20)
    write_run(tmp_path / "b", epochs=1, optimizer__lr=1e-05, model__note="y", offset=-0.1)
    best, other = read_settings([tmp_path])["lstm"]
    note = "x, " * 20
    assert best.overrides == (f'model.note="{note}"', "optimizer.lr=0.0012345678912345")
    assert other.overrides == ("model.note=y", "optimizer.lr=1e-05")


def test_a_bar_in_a_name_ends_no_cell() -> None:
    setting = RankedSetting("a|b", ("model.x='c|d'",), (0.5,))
    assert "| a\\|b | **x='c\\|d'** | **50.00** | 1 |" in settings_table({"a|b": [setting]})
