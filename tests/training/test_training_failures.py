"""Runs on the digits that fail: tests what they report and what they leave behind."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from training_runs import assert_same_runs, at, last, rows, small_config

from elstm.errors import UserError
from elstm.records import pictures as figures
from elstm.records.status import read_status
from elstm.training import build, checkpoint, step
from elstm.training.run import run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("log_every", [2, 50])
def test_a_loss_that_is_not_finite_stops_at_its_step(
    folders: Any, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    folder = next(folders)
    original, calls = functional.cross_entropy, iter(range(100))

    def poisoned(logits: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        loss = original(logits, y, **options)
        # Of the calls before that of step 9 one is over_time's.
        return (
            loss * float("nan") if options.get("reduction") != "sum" and next(calls) == 9 else loss
        )

    monkeypatch.setattr(functional, "cross_entropy", poisoned)
    config = small_config(max_epochs=3, log_every=log_every)
    message = (
        r"the loss \(the step before had its largest gradient in head.weight\) was not finite at "
        r"step 9 \(epoch 2\).*last.pt holds"
    )
    with pytest.raises(UserError, match=message):
        run(config, folder)
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "failed"
    assert "step 9" in status["error"]
    assert last(folder)["state"]["step"] == 5  # the last good one
    assert all(v.isfinite().all() for v in last(folder)["model"].values())
    assert all("nan" not in r.values() for r in rows(folder))


def poison_gradient(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """An infinity in the gradient of the last parameter but one, at each of `steps`."""
    original = step.clip_gradients

    def poisoned(accelerator: Any, parameters: list[Any], clip: float) -> torch.Tensor:
        count[0] += 1
        if count[0] in steps:
            parameters[-2].grad[0, 0] = float("inf")
        return original(accelerator, parameters, clip)

    count = [0]
    patch.setattr(step, "clip_gradients", poisoned)


def test_a_gradient_that_is_not_finite_stops_as_well(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_gradient(monkeypatch, 3)
    pattern = (
        r"the gradient of head.weight was not finite at step 3 \(epoch 1\).*nothing was saved yet"
    )
    with pytest.raises(UserError, match=pattern):
        run(small_config(), next(folders))


def test_an_error_is_in_the_status(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(folders)
    monkeypatch.setattr(build, "build_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small_config(), folder)
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_disk_that_fills_leaves_what_was_there(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, folder = next(folders), next(folders)
    config = small_config(max_epochs=3)
    run(config, complete)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint, "save", at(checkpoint, "save", 1, lambda: patch.setattr(os, "fsync", full))
        )
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            run(config, folder)
    assert run(config, folder, resume=True).state == "done"
    assert_same_runs(complete, folder)


def test_a_picture_that_cannot_be_drawn_costs_no_epoch(
    folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = next(folders)
    monkeypatch.setattr(figures, "gradient_figure", lambda *_: 1 / 0)
    assert run(small_config(max_epochs=2), folder).state == "done"
    left_out = [m for m in caplog.messages if "is left out: ZeroDivisionError" in m]
    assert len(left_out) == 2
    assert last(folder)["state"]["epoch"] == 2
