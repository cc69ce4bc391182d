"""Own data from the command line to the test: training, resume, evaluation, sweeps."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from own_data import QUICK, sequences, the_run, write_arrays, write_pictures
from training_runs import assert_same_runs, at, events, send
from training_runs import rows as metrics

from elstm import train
from elstm.commands import evaluate
from elstm.config.check import config_from
from elstm.data.load import load_data
from elstm.data.sequences import to_sequences
from elstm.records.status import read_status
from elstm.training.step import TrainStep
from elstm.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("no_pictures")
ARRAYS = ("data=arrays", "data.path=waves.npz", *QUICK)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Path:
    assert train.main(list(words)) == 0
    return the_run()


def status_of(folder: Path) -> dict[str, object]:
    status = read_status(folder)
    assert status is not None
    return status


def test_arrays_of_unequal_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(Path("waves.npz"))
    folder = run(*ARRAYS)
    first, *rest = capsys.readouterr().out.splitlines()
    said = (
        "42 training, 9 validation, 9 test sequences of 5 to 12 steps x 2 features, 3 classes, "
        "from waves.npz"
    )
    assert first == f"waves: {said}"
    assert rest[0] == ("test split: 9 of 60 sequences, drawn class by class with data.split_seed=0")
    status = status_of(folder)
    assert (status["state"], status["data"], status["data_description"]) == ("done", "waves", said)
    assert re.fullmatch("[0-9a-f]{16}", str(status["data_fingerprint"]))

    assert evaluate.main([str(folder)]) == 0
    assert f"accuracy     {status['test_accuracy']:.2%} (" in capsys.readouterr().out


def test_pictures_in_class_folders(capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(Path("light"), 30)
    folder = run("data=images", "data.path=light", *QUICK, "trainer.max_epochs=10")
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "light: 42 training, 8 validation, 10 test images of 6 x 5 pixels, grey, 2 classes, from "
        "light"
    )
    accuracy = status_of(folder)["test_accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy >= 0.9
    assert evaluate.main([str(folder)]) == 0
    assert f"accuracy     {accuracy:.2%} (" in capsys.readouterr().out


@pytest.mark.parametrize("bucket", ["true", "false"])
def test_a_resume_is_exact(bucket: str) -> None:
    write_arrays(Path("waves.npz"))
    words = [*ARRAYS, f"data.bucket={bucket}", "model.dropout=0.2", "model.num_layers=2"]
    assert train.main([*words, "hydra.run.dir=full"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        assert train.main([*words, "hydra.run.dir=cut"]) == 128 + signal.SIGTERM
    assert train.main(["trainer.resume=cut"]) == 0
    assert_same_runs(Path("full"), Path("cut"))


@pytest.fixture
def interrupted() -> Path:
    """A run on waves.npz that was stopped in its second epoch."""
    write_arrays(Path("waves.npz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        train.main(list(ARRAYS))
    return the_run()


def test_changed_data_are_refused(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = sequences()
    arrays["X"][7, 3, 1] += 1
    np.savez("waves.npz", **arrays)
    before = (interrupted / "checkpoints" / "last.pt").read_bytes()
    reason = "values, labels or splits differ: checksum"
    assert train.main([f"trainer.resume={interrupted}"]) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert "set data.path= to the same files" in err
    assert (interrupted / "checkpoints" / "last.pt").read_bytes() == before
    assert evaluate.main([str(interrupted)]) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert "set --data-root to the same files" in err


def test_moved_data_are_taken(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere").mkdir()
    moved = Path("waves.npz").rename("elsewhere/other name.npz")
    assert train.main([f"trainer.resume={interrupted}"]) == 1
    assert "set data.path= to where the data lie" in capsys.readouterr().err
    assert train.main([f"trainer.resume={interrupted}", f"data.path='{moved}'"]) == 0
    assert (status_of(interrupted)["state"], status_of(interrupted)["data"]) == ("done", "waves")
    capsys.readouterr()
    assert evaluate.main([str(interrupted)]) == 1
    assert "set --data-root to where the data lie" in capsys.readouterr().err
    assert evaluate.main([str(interrupted), "--data-root", str(moved)]) == 0
    assert " on waves, test split, 9 sequences" in capsys.readouterr().out


def test_a_run_keeps_its_name_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(Path("light"))
    monkeypatch.chdir("light")
    assert train.main(["data=images", "data.path=.", "hydra.run.dir=../run", *QUICK]) == 0
    monkeypatch.chdir("..")
    assert status_of(Path("run"))["data"] == "light"
    assert evaluate.main(["run", "--data-root", "light"]) == 0


def test_data_name(capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(Path("waves.npz"))
    folder = run(*ARRAYS, "data.name=mine", "trainer.max_steps=1")
    assert folder.parts[:2] == ("outputs", "mine")
    for name in ("../up", ".hidden", "a/b"):
        assert train.main([*ARRAYS, f"data.name={name}"]) == 1
        assert "it names folders" in capsys.readouterr().err
    assert train.main(["data=digits", "data.name=mnist"]) == 1
    assert "data.name=mnist: choose with data=mnist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data=digits", "data.root=X"], "data.root: there is no such key with this option of "
         "data: it goes with data=mnist, fashion_mnist, kmnist, emnist, emnist_letters, cifar10; "
         "files of your own are read with data.path by data=images"),
        (["data=mnist", "data.path=X"], "data.path: there is no such key with this option of "
         "data: it goes with data=arrays, table, ts, images; published sets are read from "
         "data.root"),
        (["data=arrays", "data.path=X", "data.root=X"], "it goes with data=mnist, fashion_mnist"),
        (["data=arrays", "data.path=X", "data.channels=3"], "it goes with data=images"),
        (["model=lstm", "model.cell_norm=carry"], "it goes with model=bn_lstm_input"),
        (["data=arrays", "data.path=X"], "data.path=X: there is no such file or folder"),
        (["data=arrays", "data.path=/dev/null"], "data.path=/dev/null is neither a file nor a"),
        (["data=arrays", "data.path=~no-such-user/X"], "data.path=~no-such-user/X: Could not"),
        (["data=arrays"], "data.path has to be given"),
    ],
)  # fmt: skip
def test_a_setting_that_the_option_does_not_use(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words) == 1
    assert reason in capsys.readouterr().err
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_a_resume_refuses_a_place_that_its_data_do_not_have(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([f"trainer.resume={interrupted}", "data.root=X"]) == 1
    assert "data.root: there is no such key with this option of data" in capsys.readouterr().err


def test_a_finished_run_on_other_data_is_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", *ARRAYS, "trainer.max_steps=2", "seed=0,1"]

    def states() -> list[str]:
        assert train.main(words) == 0
        capsys.readouterr()
        return sorted(str(path.parent.name) for path in Path("outputs").rglob("status.json"))

    write_arrays(Path("waves.npz"))
    first = states()
    assert len(first) == 2
    assert states() == first  # finished
    Path("elsewhere").mkdir()
    shutil.copy("waves.npz", "elsewhere")
    words[2] = "data.path=elsewhere/waves.npz"
    assert states() == first  # the same data in another place
    write_arrays(Path("elsewhere/waves.npz"), seed=1)
    assert len(states()) == 4  # other data of the same name


def test_a_file_of_ones_own_in_the_group_data(capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(Path("waves.npz"))
    Path("configs/data").mkdir(parents=True)
    Path("configs/data/mine.yaml").write_text(
        "defaults:\n  - arrays\npath: waves.npz\nval_fraction: 0.3\n", encoding="utf-8"
    )
    folder = run("--config-dir", "configs", "data=mine", *QUICK)
    assert "waves: 36 training, 15 validation, 9 test sequences" in capsys.readouterr().out
    assert evaluate.main([str(folder)]) == 0


def test_a_stored_config_of_the_digits_has_a_root() -> None:
    stored = {
        "model.name": "lstm", "data.name": "digits", "data.root": "data", "optimizer.name": "adam",
        "scheduler.name": "constant", "data.pixels_per_step": 8,
    }  # fmt: skip
    assert config_from(stored, stored=True).data.name == "digits"


def test_evaluation_depends_on_no_neighbour(interrupted: Path) -> None:
    """A sequence has the same logits alone and in batches with longer and shorter ones."""
    trained = load_trained(interrupted, "last")
    data = load_data(trained.config.data)
    with torch.no_grad():
        logits = {
            size: torch.cat([trained.model(x) for x, _ in data.eval_batches("train", size)])
            for size in (1, 2, 7, 1000)
        }
    for size in (2, 7, 1000):
        torch.testing.assert_close(logits[size], logits[1], rtol=1e-5, atol=1e-6)


def test_a_longer_sequence_than_in_training_uses_the_last_statistics(interrupted: Path) -> None:
    trained = load_trained(interrupted, "last")
    x = torch.randn(20, 3, 2)
    with torch.no_grad():
        assert trained.model(x).isfinite().all()
        assert not torch.equal(trained.model(x), trained.model(x[:12]))


def test_channels_of_pictures_stay_side_by_side() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(1, 12)  # 2 x 2 pixels of 3 channels
    x = to_sequences(images, 2, 0.0, 1.0, torch.tensor([3, 2, 1, 0]), channels=3) * 255
    assert x.round().int().flatten().tolist() == [9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]


def test_other_labelled_data_are_scaled_by_the_training_split(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other data of the same numbers give the same figures, although their moments differ."""
    arrays = sequences()
    trained = load_trained(interrupted)
    test = load_data(trained.config.data).test
    rows = [int(name[2:-1]) for name in test.ids]
    np.savez("few.npz", **{name: values[rows] for name, values in arrays.items()})
    capsys.readouterr()
    assert evaluate.main([str(interrupted)]) == 0
    expected = capsys.readouterr().out.splitlines()[2:-2]
    assert evaluate.main([str(interrupted), "--data", "few.npz"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2:-2] == expected
    assert "on few.npz" in out
    assert (interrupted / "confusion_few.png").is_file()

    arrays["y"][0] = 7
    np.savez("few.npz", **arrays)
    assert evaluate.main([str(interrupted), "--data", "few.npz"]) == 1
    assert "labels that the run was not trained on: 7" in capsys.readouterr().err
    np.savez("few.npz", X=arrays["X"][:, :, :1], y=arrays["y"] % 3)
    assert evaluate.main([str(interrupted), "--data", "few.npz"]) == 1
    assert "few.npz has 1 features, and the run was trained on 2" in capsys.readouterr().err


def test_balanced_scores_are_recorded() -> None:
    arrays = sequences()
    rows = np.flatnonzero((arrays["y"] != 2) | (np.arange(60) < 15))  # few of class 2
    np.savez("waves.npz", **{name: values[rows] for name, values in arrays.items()})
    folder = run(*ARRAYS, "trainer.class_weights=balanced", "trainer.label_smoothing=0.1")
    test = metrics(folder)[-1]
    assert float(test["test_balanced_accuracy"]) != float(test["test_accuracy"])
    assert 0 <= float(test["test_macro_f1"]) <= 1
    status, val = status_of(folder), metrics(folder)[-2]
    for row, names in ((test, "test_balanced_accuracy test_macro_f1"),
                       (val, "val_balanced_accuracy val_macro_f1")):  # fmt: skip
        for name in names.split():
            assert float(row[name]) == pytest.approx(status[name], rel=1e-6)
    tags = {tag for _, tag, _ in events(folder)}
    assert {
        "per_class/balanced_accuracy_val", "per_class/macro_f1_val",
        "per_class/balanced_accuracy_test", "per_class/macro_f1_test",
    } <= tags  # fmt: skip


def test_a_test_fold_chooses_nothing() -> None:
    """Other values in the sequences that test change the test alone, not the best epoch."""
    words = [*ARRAYS, "data.folds=3", "data.fold=1", "trainer.max_epochs=4"]
    arrays = sequences()
    np.savez("waves.npz", **arrays)
    assert train.main([*words, "hydra.run.dir=first"]) == 0
    data = load_data(load_trained(Path("first")).config.data)
    tested = [int(name[2:-1]) for name in data.test.ids]
    assert len(tested) == 20
    arrays["X"][tested] = -arrays["X"][tested]
    np.savez("waves.npz", **arrays)
    assert train.main([*words, "hydra.run.dir=second"]) == 0
    first, second = status_of(Path("first")), status_of(Path("second"))
    assert first["data_fingerprint"] != second["data_fingerprint"]
    assert first["test_loss"] != second["test_loss"]
    for name in ("best_epoch", "best_val_accuracy", "val_macro_f1"):
        assert first[name] == second[name]
    losses = [[row["val_loss"] for row in metrics(Path(name))] for name in ("first", "second")]
    assert losses[0] == losses[1]
