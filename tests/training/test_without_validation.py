"""data.val_fraction=0, where the last epoch is tested, and trainer.evaluate_every."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from own_data import QUICK, the_run, write_arrays, write_pictures
from training_runs import assert_same_runs, at, send
from training_runs import rows as metrics

from elstm import train
from elstm.commands import evaluate, report
from elstm.records.status import read_status
from elstm.records.stored import RunFolder
from elstm.reporting.repeat import overrides_of
from elstm.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("no_pictures")
ALL = ("data=arrays", "data.path=waves.npz", *QUICK, "data.val_fraction=0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("waves.npz"))


def checkpoint(folder: Path, name: str) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    return dict(content["model"])


def test_the_last_epoch_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*ALL, "trainer.max_epochs=3"]) == 0
    folder, out = the_run(), capsys.readouterr().out
    assert "51 training, 0 validation, 9 test sequences" in out
    assert "no validation split (data.val_fraction=0): the last epoch is tested" in out
    assert "of epoch 3, the last; " in out
    assert "holds no sequence of" not in out
    status = read_status(folder)
    assert status is not None
    assert (status["best_epoch"], status["best_val_accuracy"]) == (3.0, None)
    best, last = checkpoint(folder, "best"), checkpoint(folder, "last")
    assert all(torch.equal(value, last[name]) for name, value in best.items())

    again = overrides_of(RunFolder(str(folder), folder))  # as own data, whatever they are called
    assert {"data=arrays", "data.name=waves", "data.val_fraction=0.0"} <= set(again)
    assert not any(word.startswith("data.source=") for word in again)

    assert evaluate.main([str(folder)]) == 0
    assert f"accuracy     {status['test_accuracy']:.2%} (" in capsys.readouterr().out
    assert evaluate.main([str(folder), "--split", "val"]) == 1
    assert "no val split (data.val_fraction=0)" in capsys.readouterr().err

    assert train.main([f"trainer.resume={folder}", "trainer.max_epochs=4"]) == 0
    status = read_status(folder)
    assert status is not None
    assert status["best_epoch"] == 4.0
    assert report.main(["outputs", "--figures", "none", "-o", "report"]) == 0
    assert "or of the last epoch where data.val_fraction=0" in Path("report/report.md").read_text()


def test_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(Path("light"), 12)
    assert train.main(["data=images", "data.path=light", *QUICK, "data.val_fraction=0"]) == 0
    assert "20 training, 0 validation, 4 test images" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["trainer.early_stopping_epochs=2", "scheduler=plateau"])
def test_what_needs_a_validation_split(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*ALL, setting]) == 1
    error = capsys.readouterr().err
    assert f"{setting.partition('epochs=')[0]}" in error
    assert "needs a validation split" in error
    assert not list(Path("outputs").rglob("status.json"))


def test_a_search_needs_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    words = ["-m", "hydra/sweeper=optuna", *ALL, "optimizer.lr=interval(0.001, 0.1)"]
    assert train.main(words) == 1
    assert "data.val_fraction has to be above 0" in capsys.readouterr().err
    assert train.main([*words, "data.val_fraction=0.2,0"]) == 1
    assert "data.val_fraction has to be above 0" in capsys.readouterr().err
    arrays = np.load("waves.npz")
    np.savez(
        "waves.npz",
        **{f"{name}_train": values[::2] for name, values in arrays.items()},
        **{f"{name}_val": values[1::4] for name, values in arrays.items()},
        **{f"{name}_test": values[3::4] for name, values in arrays.items()},
    )
    assert train.main([*words, "hydra.sweeper.n_trials=1"]) == 0


def test_folds_of_all_training_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """Each sequence tests once, and all others train."""
    # A name before the path, from which the default of the name follows.
    words = ["data.name=mine", *ALL, "trainer.max_epochs=1", "data.folds=3", "data.fold=0,1,2"]
    assert train.main(["-m", *words]) == 0
    assert len(list(Path("outputs/mine").rglob("status.json"))) == 3
    assert capsys.readouterr().out.count("40 training, 0 validation, 20 test sequences") == 3


def test_evaluations_of_some_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights do not depend on it, and a run resumed between two evaluations is the same."""
    write_arrays(Path("equal.npz"), unequal=False)  # a step of one sequence takes the statistics
    words = ("data=arrays", "data.path=equal.npz", *QUICK, "trainer.max_epochs=5")
    for name, every in (("each", 1), ("some", 2), ("resumed", 2)):
        with monkeypatch.context() as patch:
            if name == "resumed":
                stop = at(TrainStep, "__call__", 13, send(signal.SIGTERM))
                patch.setattr(TrainStep, "__call__", stop)
            code = train.main([*words, f"trainer.evaluate_every={every}", f"hydra.run.dir={name}"])
            assert (code == 0) == (name != "resumed")
    assert train.main(["trainer.resume=resumed"]) == 0
    assert_same_runs(Path("some"), Path("resumed"))
    each, some = checkpoint(Path("each"), "last"), checkpoint(Path("some"), "last")
    differing = {name for name, value in each.items() if not torch.equal(value, some[name])}
    assert all(name.endswith("num_batches_tracked") for name in differing)
    found = {row["epoch"] for row in metrics(Path("some")) if row["val_accuracy"]}
    assert found == {"2", "4", "5"}
