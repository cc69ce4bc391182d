"""A run is resumed and evaluated where its data lie in another folder."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from small_sets import write_idx_set
from training_runs import at, send, without_pictures

from elstm import train
from elstm.commands import evaluate
from elstm.training.step import TrainStep

WORDS = [
    "model=lstm", "data=mnist", "model.hidden_size=4", "data.batch_size=20", "trainer.max_epochs=2",
    "trainer.device=cpu", "trainer.threads=1", "hydra.run.dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN/run, which was trained with the data in RUN/data and then interrupted."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_idx_set(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ELSTM_DATA", raising=False)
        without_pictures(patch)
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        assert train.main([*WORDS, f"data.root={folder / 'data'}"]) == 143
    (folder / "data").rename(folder / "moved")
    return folder


@pytest.fixture
def run(interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    without_pictures(monkeypatch)
    monkeypatch.setattr("elstm.data.download._fetch", lambda *_: "no network")
    monkeypatch.delenv("ELSTM_DATA", raising=False)
    shutil.copytree(interrupted, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("run")


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def test_a_resume_without_the_data_says_how_and_leaves_the_run_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.csv").read_bytes()
    assert state(run) == "interrupted"
    assert train.main([f"trainer.resume={run}"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "set data.root= to a folder that holds MNIST/raw" in err
    assert "data=digits" not in err
    assert state(run) == "interrupted"
    assert (run / "metrics.csv").read_bytes() == before
    assert train.main([f"trainer.resume={run}", "data.root=moved"]) == 0  # as it was advised
    assert state(run) == "done"


def test_the_environment_tells_where_the_data_are(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSTM_DATA", str(Path("moved").absolute()))
    assert train.main([f"trainer.resume={run}", "trainer.progress=false"]) == 0
    assert state(run) == "done"
    assert evaluate.main([str(run)]) == 0


@pytest.mark.parametrize(
    "word", ["seed=3", "model.hidden_size=8", "data.batch_size=30", "data=mnist"]
)
def test_what_is_trained_cannot_be_changed(
    run: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([f"trainer.resume={run}", "data.root=moved", word]) == 1
    assert (
        f"{word}: trainer.resume=RUN_DIR can only be combined with data.path, data.root"
        in capsys.readouterr().err
    )
    assert state(run) == "interrupted"


def test_evaluation_names_its_own_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run)]) == 1
    assert "set --data-root to a folder that holds MNIST/raw" in capsys.readouterr().err
    write_idx_set(Path("other"), train=240)
    assert evaluate.main([str(run), "--data-root", "other"]) == 1
    err = capsys.readouterr().err
    assert "data are not those that the run was trained on" in err
    assert "set --data-root to the same files" in err
    assert evaluate.main([str(run), "--data-root", "moved"]) == 0
