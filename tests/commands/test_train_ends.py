"""elstm-train: interrupted runs, and runs that end before their first step."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from train_command import REPOSITORY, command, files, here, run_dirs

from elstm.errors import UserError
from elstm.train import main


def test_a_real_run_is_interrupted_and_resumed(no_pictures, tmp_path, monkeypatch, capsys):
    train = command(
        "model=lstm", "model.hidden_size=8", "trainer.max_epochs=100000", "trainer.threads=1",
        "data.train_size=320",
        cwd=tmp_path,
    )  # fmt: skip
    try:
        for line in train.stdout:
            if line.startswith("epoch 1:"):
                break
        train.send_signal(signal.SIGTERM)
        out, err = train.communicate(timeout=60)
    finally:
        train.kill()
    assert train.returncode == 143
    assert err == ""
    assert "interrupted by SIGTERM" in out
    (folder,) = (tmp_path / "outputs" / "digits" / "lstm").glob("*/*")
    assert f"trainer.resume=outputs/digits/lstm/{folder.parent.name}/{folder.name}" in out
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["step"] > 0
    assert (folder / "checkpoints" / "last.pt").is_file()
    (folder / ".hydra" / "config.yaml").write_text(
        (folder / ".hydra" / "config.yaml")
        .read_text()
        .replace("100000", str(int(status["epoch"]) + 1))
    )
    monkeypatch.chdir(tmp_path / "outputs")
    assert main([f"trainer.resume={folder}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "done: test accuracy" in out
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_a_termination_while_it_still_composes(tmp_path):
    """The exit code is that of the handler: Python's own death by SIGTERM is -15."""
    code = """if True:
        import os, signal, sys, time
        from elstm.config import compose
        from elstm.train import main
        def slow(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        compose.Composer.__init__ = slow
        sys.exit(main([]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (143, "elstm-train: interrupted by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


# --- runs that end before their first step


@pytest.mark.parametrize(
    "answer", [UserError("no"), ZeroDivisionError("no"), KeyboardInterrupt("SIGINT")]
)
def test_a_run_that_ends_before_its_first_step_leaves_no_folder(training, capsys, answer):
    training.answer, training.step = lambda config: answer, 0
    code = 130 if isinstance(answer, KeyboardInterrupt) else 1
    assert main([]) == code
    assert main(["hydra.run.dir=a/b/c"]) == code
    assert here() == []
    Path("mine/empty").mkdir(parents=True)
    assert main(["hydra.run.dir=mine/empty"]) == code
    assert main(["hydra.run.dir=mine/new/x"]) == code
    assert [str(path) for path in Path().rglob("*")] == ["mine", "mine/empty"]
    assert "train.log" not in capsys.readouterr().err


def test_a_resumed_folder_stays_whatever_happens(training):
    training.answer = lambda config: "interrupted"
    assert main(["hydra.run.dir=run"]) == 143
    before = files("run")
    training.answer, training.step = lambda config: UserError("no data"), 0
    assert main(["trainer.resume=run"]) == 1
    assert files("run") == before


def test_runs_of_a_sweep_that_end_before_their_first_step_leave_no_folder(training, capsys):
    def answer(config):
        training.step = 7 * (config.seed != 1)
        return "done" if config.seed != 1 else UserError("there is no GPU")

    training.answer = answer
    assert main(["-m", "seed=0,1,2"]) == 1
    assert len(run_dirs()) == 2
    assert "seed=1: failed: there is no GPU" in capsys.readouterr().out
    (table,) = Path("outputs/sweeps").glob("*/sweep.csv")
    assert "there is no GPU" in table.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.device=cuda"], "trainer.device=cuda is not available here ("),
        (["trainer=gpu"], "this machine has: auto, cpu"),
        (["trainer.precision=fp16", "trainer.device=cpu"], "fp16 needs a GPU"),
        (["model.backend=triton", "trainer.device=cpu"], "model.backend='triton' cannot serve"),
        (["model=lstm", "model.hidden_size=65536", "model.num_layers=100"], "GiB of memory"),
        (["data=mnist", "data.root=/dev/null/x"], "data.root"),
    ],
)
def test_options_that_cannot_train_here_leave_no_folder(tmp_path, monkeypatch, capsys, words, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert here() == []
