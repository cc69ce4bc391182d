"""SIGKILL at any moment: the resumed run ends with the weights and records of one never killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from training_runs import assert_same_runs, small_config

from elstm.config.schema import Config

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and forks")

# Each resume is killed before the call of that number: of a training step; of an fsync, with which
# records and checkpoints reach the disk; of a replace, which puts a file in place: with 4 and 5 a
# checkpoint is written but not in place, or best.pt is and last.pt is not; and so on.
PLANS = {
    "few": [("record", 1), ("step", 4), ("fsync", 4), ("replace", 4), ("picture", 1), ("test", 1)],
    "many": [
        ("step", 1), ("replace", 2), ("step", 6), ("fsync", 7), ("record", 3), ("recompute", 1),
        ("picture", 1), ("picture", 1),
        ("replace", 5), ("fsync", 3), ("measure", 1), ("replace", 6), ("test", 1),
    ],
}  # fmt: skip


def run_and_be_killed(config: Config, folder: Path, moment: str, number: int) -> None:
    """Runs in a process of its own; with `number` 0 it is not killed."""
    from elstm.records import pictures as figures
    from elstm.records import tracking
    from elstm.training import evaluation
    from elstm.training import run as training
    from elstm.training.step import TrainStep

    owner, name = {
        "step": (TrainStep, "__call__"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "recompute": (evaluation.elstm_nn, "recompute_statistics"),
        "record": (tracking.Tracker, "log"),
        "measure": (evaluation, "measure"),
        "test": (training, "test_best"),
        "picture": (figures, "gradient_figure"),
    }[moment]
    figures.gradient_figure = lambda *_: b"a picture"
    original: Any = getattr(owner, name)
    calls = iter(range(1, 10**9))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    training.run(config, folder, resume=True)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("elstm_bn", "few"),
        pytest.param("lstm", "few", marks=pytest.mark.slow),
        pytest.param("elstm_bn", "many", marks=pytest.mark.slow),
    ],
)
def test_kills_at_any_moment(name: str, plan: str, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["elstm.training.run", "sklearn.datasets", "torch._dynamo"])

    def attempt(folder: Path, moment: str, number: int) -> int | None:
        process = processes.Process(target=run_and_be_killed, args=(config, folder, moment, number))
        process.start()
        process.join(timeout=60)
        return process.exitcode

    config = small_config(
        name,
        max_epochs=3,
        log_every=2,
        checkpoint_every=2,
        model={"dropout": 0.2, "num_layers": 2, "state_noise": 0.1},
    )
    complete, folder = tmp_path / "complete", tmp_path / "killed"
    complete.mkdir()
    folder.mkdir()
    assert attempt(complete, "step", 0) == 0
    for moment, number in PLANS[plan]:
        assert attempt(folder, moment, number) == -signal.SIGKILL, (moment, number)
    assert attempt(folder, "step", 0) == 0
    assert_same_runs(complete, folder)
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "previous.pt"]


@pytest.mark.slow
def test_kills_from_outside_at_random_moments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import kill_test

    assert kill_test.main(["--models", "bn_lstm", "--kills", "4"]) == 0, capsys.readouterr().err
