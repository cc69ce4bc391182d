"""elstm-eval on a trained run: the figures of status.json again, the table, the picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import small_config

from elstm.commands import evaluate, predict
from elstm.config.schema import Config
from elstm.records import pictures as figures
from elstm.records.status import read_status
from elstm.training import run as training
from elstm.training import trained


@pytest.fixture(scope="module")
def config() -> Config:
    return small_config(max_epochs=2, lr=0.05)


@pytest.fixture(scope="module")
def trained_run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "gradient_figure", lambda *_: b"a picture")
        training.run(config, folder)
    return folder


@pytest.fixture(autouse=True)
def its_config(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was made without Hydra; reading .hydra/config.yaml is tested elsewhere."""
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: config)


def test_the_figures_are_those_of_the_run(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(trained_run)]) == 0
    out = capsys.readouterr().out
    status = read_status(trained_run)
    assert status is not None
    assert f"accuracy     {status['test_accuracy']:.2%} (" in out
    assert f"{round(300 * status['test_accuracy'])} right" in out
    assert f"{status['test_accuracy_batch_stats']:.2%} with the statistics of each batch" in out
    assert f"loss         {status['test_loss']:.4f}" in out
    assert (trained_run / "confusion_test.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert str(trained_run / "confusion_test.png") in out

    recalls = [float(r) for r in re.findall(r"^\d +30 +([\d.]+)%", out, re.MULTILINE)]
    balanced = re.search(r"^balanced +([\d.]+)% mean recall", out, re.MULTILINE)
    assert balanced is not None
    assert float(balanced[1]) == pytest.approx(sum(recalls) / 10, abs=0.06)
    assert len(recalls) == 10  # 30 images of each digit
    assert sum(recalls) / 1000 == pytest.approx(status["test_accuracy"], abs=1e-3)


def test_other_splits_and_checkpoints(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = read_status(trained_run)
    assert status is not None
    assert evaluate.main([str(trained_run), "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert f"accuracy     {status['best_val_accuracy']:.2%} (" in out
    assert "200 images" in out
    path = trained_run / "checkpoints" / "last.pt"
    assert evaluate.main([str(trained_run), "--split", "val", "--checkpoint", str(path)]) == 0
    assert f"accuracy     {status['val_accuracy']:.2%} (" in capsys.readouterr().out
    assert (trained_run / "confusion_val_last.png").exists()


def test_the_table() -> None:
    confusion = torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    assert evaluate._table(confusion, ["a cat", "dog", "none"], "images").splitlines() == [
        "class  images  recall  precision      F1  mostly taken for",
        "a cat      10   80.0%      88.9%   84.2%  dog (2)",
        "dog        10   90.0%      81.8%   85.7%  a cat (1)",
        "none        0       -          -       -",
    ]
    long = evaluate._table(confusion, ["a" * 300, "b", "c"], "images")
    assert max(map(len, long.splitlines())) < 100


def test_pictures_of_other_data_have_names_of_their_own() -> None:
    names = []
    for words in (
        "",
        "--data few.npz",
        "--data new/test.csv",
        "--data test_last.npz --weights ema",
    ):
        names.append(evaluate._picture_name(evaluate._parse(["run", *words.split()])))
    assert names == [
        "confusion_test.png", "confusion_few.png", "confusion_data_test.png",
        "confusion_data_test_last_ema.png",
    ]  # fmt: skip


def test_a_picture_that_cannot_be_drawn_comes_after_the_figures(
    trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "confusion_figure", lambda *_: 1 / 0)
    assert evaluate.main([str(trained_run)]) == 1
    captured = capsys.readouterr()
    assert "macro F1" in captured.out
    message = "the confusion matrix cannot be drawn: ZeroDivisionError: division by zero"
    assert captured.err == f"elstm-eval: error: {message}\n"


def test_errors_are_one_line(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        ([tmp_path / "gone"], "there is no run folder"),
        ([tmp_path], "has no best checkpoint"),
        ([trained_run, "--checkpoint", tmp_path / "x.pt"], "there is no checkpoint"),
        ([trained_run, "--device", "mps"], "trainer.device=mps is not available"),
    ):
        assert evaluate.main([str(word) for word in words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("elstm-eval: error: ")
        assert message in captured.err
    with pytest.raises(SystemExit) as exit:
        evaluate.main([str(trained_run), "--split", "all"])
    assert exit.value.code == 2


def test_a_run_of_other_data_is_refused(
    trained_run: Path,
    config: Config,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = small_config(data={"train_size": 600})
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: other)
    assert evaluate.main([str(trained_run)]) == 1
    assert "the data are not those that the run was trained on" in capsys.readouterr().err
    wider = small_config(model={"num_layers": 2})
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: wider)
    assert evaluate.main([str(trained_run)]) == 1
    assert "does not fit the config" in capsys.readouterr().err


@pytest.mark.parametrize("module", [evaluate, predict])
def test_help_needs_no_torch(module: object) -> None:
    name = module.__name__  # type: ignore[attr-defined]
    code = f"""if True:
        import sys, {name} as module
        try:
            module.main(["--help"])
        finally:
            assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RUN_DIR" in done.stdout
