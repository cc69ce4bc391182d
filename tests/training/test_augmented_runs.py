"""Runs with data.augment: exact resumes, CUDA graphs, and what they record."""

from __future__ import annotations

import dataclasses
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from own_data import QUICK, the_run, write_arrays
from training_runs import assert_same_runs, at, differences, events, last, send, small_config

from elstm import train
from elstm.config.data_options import AugmentPicturesConfig
from elstm.config.identity import identity
from elstm.config.schema import Config
from elstm.records import pictures as figures
from elstm.records.status import read_status
from elstm.training import evaluation
from elstm.training.run import run
from elstm.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("no_pictures")
AUGMENT = AugmentPicturesConfig(shift=1, rotation=10, crop=0.8, flip=True)


@pytest.fixture(autouse=True)
def no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "examples_figure", lambda examples, title: b"augmented")


def config(**trainer: Any) -> Config:
    return small_config("lstm", data={"augment": AUGMENT}, checkpoint_every=3, **trainer)


def test_a_resume_in_the_middle_of_an_epoch_is_exact(
    folders: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that an interruption and an evaluation in between do not change the draws."""
    caplog.set_level(logging.INFO)
    complete, resumed, plain = (next(folders) for _ in range(3))
    run(config(), complete)
    assert (
        "training sequences are augmented: shifted by up to 1 pixels, rotated by up to 10 degrees, "
        "cropped to 80 to 100 % of their area, mirrored by chance; evaluation and population "
        "statistics use them as they are"
    ) in caplog.text
    assert "data.augment.flip=true trains digits on mirror images of characters" in caplog.text
    status = read_status(complete)
    assert status is not None
    assert status["augmentation"].startswith("shifted by up to 1 pixels")
    assert "pictures/augmented_training" in {tag for _, tag, _ in events(complete)}

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 8, send(signal.SIGTERM)))
        assert run(config(), resumed).state == "interrupted"
    assert last(resumed)["state"]["step"] == 8
    with monkeypatch.context() as patch:  # a signal in the evaluation, which is repeated
        patch.setattr(evaluation, "measure", at(evaluation, "measure", 1, send(signal.SIGTERM)))
        run(config(), resumed, resume=True)
    run(config(), resumed, resume=True)
    assert_same_runs(complete, resumed)
    run(dataclasses.replace(config(), data=small_config().data), plain)
    assert differences(last(complete)["model"], last(plain)["model"]) != []


def test_augmentation_is_part_of_what_makes_a_run() -> None:
    plain = dataclasses.replace(config(), data=small_config().data)
    assert identity(config()) != identity(plain)
    assert "augment" not in identity(plain)


def test_series_of_unequal_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("waves.npz"))
    words = [
        "data=arrays", "data.path=waves.npz", "data.augment.jitter=0.1", "data.augment.scale=0.2",
        "data.augment.time_mask=0.3", *QUICK, "trainer.max_steps=3",
    ]  # fmt: skip
    assert train.main(words) == 0
    folder = the_run()
    assert "jitter-0.1" in str(folder)
    status = read_status(folder)
    assert status is not None
    assert status["augmentation"] == (
        "noise of 0.1 standard deviations is added, they are scaled by 0.8 to 1.2, up to 0.3 of "
        "their steps are masked"
    )
    assert torch.load(folder / "checkpoints/last.pt", weights_only=True)["settings"][
        "data.augment.jitter"
    ] == pytest.approx(0.1)
    changed = f"trainer.resume={folder}"
    assert train.main([changed]) == 0  # a run that is done


def test_the_picture_of_augmented_inputs_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    images = [[torch.zeros(4, 4, 3, dtype=torch.uint8)] * 2] * 2
    series = [[torch.zeros(5, 2)] * 2] * 2
    for examples in (images, series):
        assert figures.examples_figure(examples, "a $ in a title").startswith(b"\x89PNG")
