"""Runs that are stopped at any moment, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    MODELS,
    assert_same_runs,
    at,
    differences,
    last,
    send,
    small_config,
    without_pictures,
)

from elstm.config.schema import Config, CosineConfig, PlateauConfig
from elstm.data.sequences import ImageSequences
from elstm.errors import UserError
from elstm.records.status import read_status
from elstm.training import build, checkpoint, evaluation
from elstm.training.run import run
from elstm.training.step import TrainStep
from elstm.training.trained import check_fits

pytestmark = pytest.mark.usefixtures("no_pictures")


# Where a signal comes: the call after which it does; step and evaluated_step of the checkpoint.
# 5 steps an epoch; an evaluation is 1 batch for the statistics and 2 + 2 of images, the test 3 + 3.
ENDS: dict[str, tuple[Any, str, int, tuple[int, int]]] = {
    "in the middle of an epoch": (TrainStep, "__call__", 8, (8, 5)),
    "at the end of an epoch": (TrainStep, "__call__", 10, (10, 5)),
    "while statistics are recomputed": (ImageSequences, "statistics_batches", 2, (10, 5)),
    "while evaluating": (evaluation, "autocast", 7, (10, 5)),
    "while a checkpoint is written": (checkpoint, "save", 3, (6, 5)),
    "at the test": (evaluation, "autocast", 16, (15, 15)),
}
RANDOM_MODEL = {"dropout": 0.2, "num_layers": 2, "state_noise": 0.1}


@pytest.fixture(scope="module")
def signalled() -> Config:
    return small_config(
        data={"eval_batch_size": 100},
        max_epochs=3,
        log_every=2,
        checkpoint_every=3,
        model=RANDOM_MODEL,
        scheduler=CosineConfig(warmup_steps=3),
    )


@pytest.fixture(scope="module")
def uninterrupted(signalled: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        run(signalled, folder)
    return folder


@pytest.mark.parametrize("end", ENDS)
def test_a_signal_saves_and_a_resume_is_exact(
    folders: Any,
    end: str,
    signalled: Config,
    uninterrupted: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    folder = next(folders)
    owner, name, call, steps = ENDS[end]
    number = signal.SIGINT if end == "while evaluating" else signal.SIGTERM
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(owner, name, call, send(number)))
        result = run(signalled, folder)
    assert (result.state, result.signal) == ("interrupted", number.name)
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["error"]) == ("interrupted", None)
    saved = last(folder)["state"]
    assert (saved["step"], saved["evaluated_step"]) == steps
    assert f"interrupted by {number.name}" in caplog.text
    assert signal.getsignal(number) is before
    assert run(signalled, folder, resume=True).state == "done"
    assert_same_runs(uninterrupted, folder)


def test_the_plateau_is_resumed(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_better(_model: Any, _data: Any, split: str, *_: Any) -> dict[str, float]:
        names = ("loss", "accuracy", "accuracy_batch_stats")
        return {f"{split}_{name}": 0.5 for name in names}

    monkeypatch.setattr(evaluation, "measure", no_better)
    config = small_config(max_epochs=4, scheduler=PlateauConfig(patience=1))
    complete, folder = next(folders), next(folders)
    run(config, complete)
    assert last(complete)["schedule"]["factor"] == 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 12, send(signal.SIGTERM)))
        run(config, folder)
    run(config, folder, resume=True)
    assert_same_runs(complete, folder)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ("lstm", "elstm_bn") else pytest.mark.slow) for n in MODELS],
)
def test_many_interruptions(folders: Any, name: str) -> None:
    """Interrupts at each third step, whatever the window, the epoch and the checkpoints."""
    config = small_config(name, max_epochs=3, log_every=4, model=RANDOM_MODEL)
    complete, folder = next(folders), next(folders)
    run(config, complete)
    states = []
    while "done" not in states:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 3, send(signal.SIGTERM)))
            states.append(run(config, folder, resume=True).state)
    assert states == ["interrupted"] * 5 + ["done"]  # 15 steps in all
    assert_same_runs(complete, folder)


def test_a_second_ctrl_c_ends_at_once(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(folders)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    config = small_config(max_epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 8, twice))
        with pytest.raises(KeyboardInterrupt):
            run(config, folder)
    assert last(folder)["state"]["step"] == 5
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "interrupted"
    complete = next(folders)
    run(config, complete)
    run(config, folder, resume=True)
    assert_same_runs(complete, folder)


def test_a_signal_before_training_ends_at_once(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(folders)
    monkeypatch.setattr(build, "load_data", at(build, "load_data", 1, send(signal.SIGTERM)))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run(small_config(), folder)
    assert not checkpoint.last_path(folder).exists()


def test_a_run_that_is_done_is_left_as_it_is(
    folders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = next(folders)
    caplog.set_level(logging.INFO)
    first = run(small_config(), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    caplog.clear()
    again = run(small_config(), folder, resume=True)
    assert again == first
    assert "is done" in caplog.text
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_nothing_saved_yet_starts_afresh(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    complete, folder = next(folders), next(folders)
    run(small_config(), complete)
    (folder / "metrics.csv").write_text("half a li")
    assert run(small_config(), folder, resume=True).state == "done"
    assert "no checkpoint yet" in caplog.text
    assert_same_runs(complete, folder)


def interrupted(config: Config, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        assert run(config, folder).state == "interrupted"


def test_a_damaged_last_checkpoint_falls_back_on_the_one_before(
    folders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    complete, folder = next(folders), next(folders)
    run(small_config(), complete)
    interrupted(small_config(), folder)
    path = checkpoint.last_path(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    assert run(small_config(), folder, resume=True).state == "done"
    assert "resuming from" in caplog.text
    assert_same_runs(complete, folder)
    assert path.with_name("damaged.pt").exists()


def test_a_checkpoint_of_something_else_is_refused(folders: Any) -> None:
    folder = next(folders)
    interrupted(small_config(), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    for config, message in (
        (small_config("lstm"), "does not fit the run's config"),
        (small_config(data={"permute": True}), "no order of the pixels"),
        (small_config(data={"train_size": 600}), "data.train_size=null, not 600"),
        (small_config(lr=0.5), "optimizer.lr=0.01, not 0.5"),
        (small_config(clip_grad_norm=0.5), "trainer.clip_grad_norm=1.0, not 0.5"),
    ):
        with pytest.raises(UserError, match=message):
            run(config, folder, resume=True)
    assert {p: p.read_bytes() for p in folder.rglob("*.pt")} == before
    content = {k: v for k, v in last(folder).items() if k not in ("optimizer", "version", "format")}
    checkpoint.save(content, checkpoint.last_path(folder))
    with pytest.raises(UserError, match=r"does not fit .*: it holds no optimizer"):
        run(small_config(), folder, resume=True)


def test_the_permutation_is_stored(folders: Any) -> None:
    folder = next(folders)
    run(small_config(data={"permute": True}, max_steps=1), folder)
    permutation = last(folder)["data"]["permutation"]
    assert sorted(permutation.tolist()) == list(range(64))
    assert permutation.tolist() != list(range(64))


def test_an_order_of_the_pixels_for_each_seed(folders: Any) -> None:
    def order(seed: int, **data: Any) -> list[int]:
        folder = next(folders)
        config = small_config(data={"permute": True, **data}, max_steps=1)
        run(dataclasses.replace(config, seed=seed), folder)
        check_fits(last(folder), dataclasses.replace(config, seed=seed))
        return last(folder)["data"]["permutation"].tolist()

    first = order(3, permute_seed=None)
    assert first == order(0, permute_seed=3)
    assert first != order(4, permute_seed=None)


def test_the_same_config_gives_the_same_run(folders: Any) -> None:
    a, b, other = (next(folders) for _ in range(3))
    config = small_config(max_steps=6)
    run(config, a)
    torch.manual_seed(99)  # whatever happened before in the process
    run(config, b)
    assert_same_runs(a, b)
    run(dataclasses.replace(config, seed=1), other)
    assert differences(last(a)["model"], last(other)["model"]) != []


def test_a_checkpoint_with_fields_that_were_removed(folders: Any) -> None:
    """Up to commit d8d01eb checkpoints counted skipped steps."""
    complete, folder = next(folders), next(folders)
    run(small_config(), complete)
    interrupted(small_config(), folder)
    content = last(folder)
    del content["format"], content["version"]
    content["state"]["skipped_steps"] = 0
    content["window"]["skipped"] = torch.tensor(0)
    checkpoint.save(content, checkpoint.last_path(folder))
    assert run(small_config(), folder, resume=True).state == "done"
    assert_same_runs(complete, folder)
