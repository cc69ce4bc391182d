"""Pictures are drawn after the checkpoint; a resume neither loses nor doubles one."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import assert_same_runs, at, events, last, no_picture, send, small_config

from elstm.records import pictures as figures
from elstm.training.run import run
from elstm.training.step import TrainStep

CONFIG = small_config(max_epochs=3, log_every=2)
GRADIENT = "pictures/gradient_over_time"


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The epochs of which a picture was drawn; each shows what it was drawn from."""
    epochs: list[float] = []

    def draw(norms: np.ndarray, epoch: float, title: str) -> bytes:
        epochs.append(epoch)
        return f"{title} {epoch} ".encode() + norms.tobytes()

    monkeypatch.setattr(figures, "gradient_figure", draw)
    for name in ("confusion_figure", "mistakes_figure"):
        monkeypatch.setattr(figures, name, no_picture)
    return epochs


def crash() -> None:
    raise KeyboardInterrupt


def end(folder: Path, owner: Any, name: str, call: int, action: Callable[[], None]) -> None:
    """Starts or resumes a run that ends at a call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(owner, name, call, action))
        if action is crash:
            with pytest.raises(KeyboardInterrupt):
                run(CONFIG, folder, resume=True)
        else:
            assert run(CONFIG, folder, resume=True).state == "interrupted"


@pytest.fixture
def complete(folders: Any, drawn: list[float]) -> Path:
    folder: Path = next(folders)
    run(CONFIG, folder)
    assert drawn == [1, 2, 3]
    drawn.clear()
    return folder


def test_a_crash_within_the_drawing_costs_no_epoch(
    complete: Path, folders: Any, drawn: list[float]
) -> None:
    folder = next(folders)
    for _ in range(2):  # in the run, and when the resume draws it
        end(folder, figures, "gradient_figure", 1, crash)
        assert last(folder)["state"]["step"] == 5
        assert GRADIENT not in {tag for _, tag, _ in events(folder)}
    assert run(CONFIG, folder, resume=True).state == "done"
    assert drawn == [1, 1, 1, 2, 3]
    assert_same_runs(complete, folder)


def test_a_picture_behind_the_checkpoint_stays(
    complete: Path, folders: Any, drawn: list[float]
) -> None:
    folder = next(folders)
    end(folder, TrainStep, "__call__", 7, crash)  # step 7, whose last checkpoint is that of step 5
    end(folder, TrainStep, "__call__", 1, crash)
    assert run(CONFIG, folder, resume=True).state == "done"
    assert drawn == [1, 2, 3]
    assert_same_runs(complete, folder)


def test_a_checkpoint_after_the_picture_holds_it(
    complete: Path, folders: Any, drawn: list[float]
) -> None:
    """A signal between the two has the run saved once more."""
    folder = next(folders)
    end(folder, figures, "gradient_figure", 1, send(signal.SIGTERM))
    for _ in range(2):
        end(folder, TrainStep, "__call__", 1, crash)
    assert run(CONFIG, folder, resume=True).state == "done"
    assert drawn == [1, 2, 3]
    assert_same_runs(complete, folder)


def test_an_extension_keeps_the_pictures_of_the_first_test(
    complete: Path, drawn: list[float]
) -> None:
    run(CONFIG, complete, resume=True, extend={"trainer.max_epochs": 4})
    assert drawn == [4]
    found = Counter((step, tag) for step, tag, _ in events(complete) if tag.startswith("pictures/"))
    test = ("pictures/confusion_of_test", "pictures/mistakes_of_test")
    shown = [(step, GRADIENT) for step in (5, 10, 15, 20)]
    assert found == Counter([*shown, *((step, tag) for step in (15, 20) for tag in test)])
