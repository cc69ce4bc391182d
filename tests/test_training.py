"""Whole runs on the digits: what they write, how they stop, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import MODELS, assert_same_runs, differences, events, last, rows, small_config

from elstm import checkpoint, evaluation, figures, runtime, training
from elstm.config import Config, CosineConfig, PlateauConfig
from elstm.data import ImageSequences
from elstm.errors import UserError
from elstm.status import read_status
from elstm.training import _Run, run

Signal = Callable[[], None]


def no_picture(*_: Any) -> bytes:
    return b"a picture"


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib's half of an evaluation, but for one test."""
    if request.function is not test_a_whole_run:
        monkeypatch.setattr(figures, "gradient_figure", no_picture)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Makes a folder for each run."""

    def make() -> Iterator[Path]:
        for number in range(100):
            folder = tmp_path / f"run{number}"
            folder.mkdir()
            yield folder

    return make()  # type: ignore[return-value]


def at(owner: Any, name: str, number: int, action: Signal) -> Callable[..., Any]:
    """`owner.name`, with `action` after its call of that number, counted from 1."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if next(calls) == number:
            action()
        return result

    return wrapped


def send(number: signal.Signals) -> Signal:
    return lambda: os.kill(os.getpid(), number)


# --- a run and what it writes


# Ten times the largest relative difference of two seeds: 5.6e-5 and 6.1e-5. BN-LSTM's grows tenfold
# in each 50 steps, as does the reference to itself at a learning rate 1e-7 larger: so fewer steps.
@pytest.mark.parametrize(
    ("name", "steps", "bound"), [("bn_lstm", 50, 6e-4), ("elstm_bn", 200, 6e-4)]
)
def test_the_fast_recurrence_trains_as_the_reference(
    folders: Any, name: str, steps: int, bound: float
) -> None:
    curves = []
    for backend in ("cpu", "reference"):
        config = small_config(
            name,
            model={"backend": backend},
            data={"batch_size": 24},
            max_epochs=5,
            max_steps=steps,
            log_every=1,
        )
        status = run(config, folder := next(folders)).status
        if backend == "cpu" and status["backend"] != "cpu":
            pytest.skip("no C compiler")
        curves.append([float(r["train_loss"]) for r in rows(folder) if r["train_loss"]])
    fast, reference = map(torch.tensor, curves)
    assert len(fast) == steps
    assert reference[-10:].mean() < 0.85 * reference[0]
    torch.testing.assert_close(fast, reference, rtol=bound, atol=0)


def test_a_whole_run(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = next(folders)
    config = small_config(max_epochs=3, log_every=2, scheduler=CosineConfig(), lr=0.05)
    result = run(config, folder)
    status = read_status(folder)
    assert result.state == "done"
    assert result.status == status
    assert result.test_accuracy == status["test_accuracy"] > 0.5  # type: ignore[index]

    table = rows(folder)
    train = [r for r in table if r["train_loss"]]
    assert [r["step"] for r in train] == ["2", "4", "5", "7", "9", "10", "12", "14", "15"]
    assert [r["epoch"] for r in train[:4]] == ["0.4", "0.8", "1", "1.4"]
    val = [r for r in table if r["val_accuracy"]]
    assert [r["epoch"] for r in val] == ["1", "2", "3"]
    assert float(train[-1]["train_loss"]) < float(train[0]["train_loss"])
    accuracies = [float(r["val_accuracy"]) for r in val]
    assert status is not None
    assert status["best_val_accuracy"] == result.best_val_accuracy == max(accuracies)
    assert status["best_epoch"] == 1 + accuracies.index(max(accuracies))
    (test,) = [r for r in table if r["test_accuracy"]]
    assert test == table[-1]
    assert float(test["test_accuracy"]) == pytest.approx(status["test_accuracy"])
    assert (status["epoch"], status["step"], status["backend"] is not None) == (3, 15, True)
    assert 0 < status["train_seconds"] < status["wall_seconds"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    weights = [v for k, v in last(folder)["model"].items() if not k.endswith(buffers)]
    assert status["parameters"] == sum(w.numel() for w in weights)

    tags = [tag for _, tag, _ in events(folder)]
    for tag, count in {
        "train/loss": 9, "lr": 9, "grad_norm": 9, "val/accuracy": 3, "val/accuracy_batch_stats": 3,
        "gradient/hidden": 3, "gamma/norm_c_l0": 3, "running_var/norm_hh_l0": 3, "test/loss": 1,
        "test/accuracy": 1,
    }.items():  # fmt: skip
        assert tags.count(tag) == count, tag
    assert "15 steps" not in caplog.text
    assert "done: test accuracy" in caplog.text
    assert "the recurrence runs on backend" in caplog.text
    names = sorted(p.name for p in folder.iterdir() if "tfevents" not in p.name)
    assert names == ["checkpoints", "metrics.csv", "norms.csv", "over_time.csv", "status.json"]
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "previous.pt"]


def test_a_long_run_has_histograms_and_pictures_at_some_epochs(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MAX_PICTURES", 2)
    folder = next(folders)
    run(small_config(max_epochs=5), folder)
    for wanted in ("gradient/hidden", "gamma/norm_c_l0", "running_var/norm_c_l0"):
        assert [step for step, tag, _ in events(folder) if tag == wanted] == [5, 20, 25]
    text = (folder / "norms.csv").read_text()
    assert [text.count(f"\n{epoch},{5 * epoch},norm_c_l0,") for epoch in range(1, 6)] == [1] * 5


def test_best_is_the_checkpoint_of_the_best_evaluation(folders: Any) -> None:
    """A learning rate that is raised at the end spoils the model; best.pt is from before."""
    folder, tested = next(folders), next(folders)

    class Spoiling(training.Schedule):
        def lr(self, step: int) -> float:
            return 0.02 if step < 10 else 5.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Schedule", Spoiling)
        config = small_config(max_epochs=4, clip_grad_norm=None)
        result = run(config, folder)
        # The test takes the weights of the best; an interruption there must not save them as last.
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(
                evaluation, "autocast", at(evaluation, "autocast", 13, send(signal.SIGTERM))
            )
            assert run(config, tested).state == "interrupted"
        run(config, tested, resume=True)
    assert_same_runs(folder, tested)
    best = torch.load(checkpoint.best_path(folder), weights_only=True)
    assert best["state"]["best_epoch"] == last(folder)["state"]["best_epoch"] == 2.0
    assert best["state"]["step"] == 10
    assert differences(best["model"], last(folder)["model"]) != []
    worst = [float(r["val_accuracy"]) for r in rows(folder) if r["val_accuracy"]][-1]
    assert result.test_accuracy is not None
    assert result.test_accuracy > worst + 0.1


def test_a_run_that_was_pruned_can_be_finished(folders: Any) -> None:
    whole, pruned = next(folders), next(folders)
    config, told = small_config(max_epochs=3), []

    def prune(epoch: int, accuracy: float) -> bool:
        told.append((epoch, accuracy))
        return epoch == 2

    result = run(config, pruned, on_evaluation=prune)
    assert (result.state, result.test_accuracy, result.signal) == ("pruned", None, None)
    accuracies = [float(r["val_accuracy"]) for r in rows(pruned) if r["val_accuracy"]]
    assert [epoch for epoch, _ in told] == [1, 2]
    assert [accuracy for _, accuracy in told] == pytest.approx(accuracies)
    # At its end a run is not pruned any more.
    assert run(config, pruned, resume=True, on_evaluation=lambda *_: True).state == "done"
    run(config, whole)
    assert_same_runs(whole, pruned)


def test_the_population_is_recomputed_before_an_evaluation(folders: Any) -> None:
    """With the moving averages alone the model would look far worse after one epoch."""
    moving, exact = next(folders), next(folders)
    run(small_config(max_epochs=1, recompute_batches=0), moving)
    run(small_config(max_epochs=1), exact)
    found = {d: next(r for r in rows(d) if r["val_loss"]) for d in (moving, exact)}
    gap = {
        d: float(r["val_accuracy_batch_stats"]) - float(r["val_accuracy"]) for d, r in found.items()
    }
    assert abs(gap[exact]) < 0.05 < gap[moving]
    # and has no part in training
    assert found[moving]["val_accuracy_batch_stats"] == found[exact]["val_accuracy_batch_stats"]


@pytest.mark.parametrize(
    ("trainer", "steps", "epochs"),
    [({"max_steps": 7}, 7, 1.4), ({"max_steps": 100}, 10, 2), ({"overfit_batches": 2}, 4, 2)],
)
def test_lengths(folders: Any, trainer: dict[str, int], steps: int, epochs: float) -> None:
    folder = next(folders)
    result = run(small_config(**trainer), folder)
    assert (result.status["step"], result.status["epoch"]) == (steps, pytest.approx(epochs))
    assert rows(folder)[-2]["val_accuracy"] != ""  # the end is evaluated wherever it is


def test_a_short_rest_of_an_epoch_joins_the_window_before(folders: Any) -> None:
    folder = next(folders)
    run(small_config(log_every=4, max_epochs=1), folder)
    assert [r["step"] for r in rows(folder) if r["train_loss"]] == ["5"]


def test_overfitting_repeats_the_same_batches(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = _Run.train_step

    def spy(self: _Run, x: torch.Tensor, y: torch.Tensor) -> None:
        seen.append(y)
        original(self, x, y)

    monkeypatch.setattr(_Run, "train_step", spy)
    run(small_config(overfit_batches=2, max_epochs=3), next(folders))
    assert all(torch.equal(y, seen[i % 2]) for i, y in enumerate(seen))
    assert not torch.equal(seen[0], seen[1])


def test_early_stopping(folders: Any) -> None:
    folder = next(folders)
    config = small_config(lr=1e-12, max_epochs=9, early_stopping_epochs=2)
    assert run(config, folder).status["epoch"] <= 5
    values = [r["val_accuracy"] for r in rows(folder) if r["val_accuracy"]]
    assert max(values[-2:]) <= max(values[:-2])


def test_one_process_runs_jobs_of_different_settings(folders: Any) -> None:
    """As a sweep does: precision, threads and determinism are each job's own."""
    threads = torch.get_num_threads()
    losses = set()
    for trainer in (
        {"precision": "fp32"},
        {"precision": "bf16", "deterministic": True},
        {"threads": 2},
    ):
        folder = next(folders)
        status = run(small_config(max_steps=3, **trainer), folder).status
        assert status["threads"] == trainer.get("threads", 1)
        assert status["precision"] == trainer.get("precision", "fp32")
        losses.add(rows(folder)[0]["train_loss"])
    assert len(losses) >= 2
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_devices_that_are_not_there(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_devices", lambda: ["cpu"])
    with pytest.raises(UserError, match=r"trainer.device=cuda is not available.* has: auto, cpu$"):
        run(small_config(device="cuda"), next(folders))
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(small_config(precision="fp16"), next(folders))
    assert runtime.choose_device("auto") == "cpu"
    monkeypatch.setattr(runtime, "available_devices", lambda: ["mps", "cpu"])
    assert runtime.choose_device("auto", "fp16") == "mps"


def test_profile(folders: Any) -> None:
    folder = next(folders)
    run(small_config(profile=True), folder)
    with gzip.open(folder / "profile.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::linear" in names


# --- failures


@pytest.mark.parametrize("log_every", [2, 50])
def test_a_loss_that_is_not_finite_stops_at_its_step(
    folders: Any, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    folder = next(folders)
    original, calls = training.F.cross_entropy, iter(range(100))

    def poisoned(logits: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        loss = original(logits, y, **options)
        # Of the calls before that of step 9 one is over_time's.
        return loss * float("nan") if not options and next(calls) == 9 else loss

    monkeypatch.setattr(training.F, "cross_entropy", poisoned)
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
    original = training.clip_gradients

    def poisoned(accelerator: Any, parameters: list[Any], clip: float) -> torch.Tensor:
        count[0] += 1
        if count[0] in steps:
            parameters[-2].grad[0, 0] = float("inf")
        return original(accelerator, parameters, clip)

    count = [0]
    patch.setattr(training, "clip_gradients", poisoned)


def test_a_gradient_that_is_not_finite_stops_as_well(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_gradient(monkeypatch, 3)
    pattern = (
        r"the gradient of head.weight was not finite at step 3 \(epoch 1\).*nothing was saved yet"
    )
    with pytest.raises(UserError, match=pattern):
        run(small_config(), next(folders))


def test_steps_that_are_not_finite_are_skipped_and_counted(
    folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = small_config(on_nonfinite="skip", max_epochs=3, log_every=2, recompute_batches=0)
    whole, folder, usual = next(folders), next(folders), next(folders)
    with pytest.MonkeyPatch.context() as patch:
        poison_gradient(patch, 1, 9)
        status = run(config, whole).status
    assert (status["state"], status["step"], status["skipped_steps"]) == ("done", 15, 2)
    assert re.search(r"skipped 1 of the last 2 steps, first step 9: the gradient of head.wei",
                     caplog.text)  # fmt: skip
    assert all(math.isfinite(float(v)) for r in rows(whole) for v in r.values() if v)
    with pytest.MonkeyPatch.context() as patch:
        poison_gradient(patch, 1, 9)
        patch.setattr(_Run, "train_step", at(_Run, "train_step", 9, send(signal.SIGTERM)))
        run(config, folder)
    run(config, folder, resume=True)
    assert_same_runs(whole, folder)
    # and a run without such steps is the same as ever
    stop = dataclasses.replace(config.trainer, on_nonfinite="stop")
    run(config, next(folders))
    run(dataclasses.replace(config, trainer=stop), usual)
    assert differences(last(usual)["model"], last(usual.with_name("run3"))["model"]) == []

    monkeypatch.setattr(training, "MAX_SKIPPED", 4)
    poison_gradient(monkeypatch, *range(4, 99))
    with pytest.raises(UserError, match=r"all steps from 4 to 7 were skipped, .*last.pt holds"):
        run(dataclasses.replace(config, trainer=dataclasses.replace(
            config.trainer, log_every=1, checkpoint_every=4)), next(folders))  # fmt: skip


def test_an_error_is_in_the_status(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(folders)
    monkeypatch.setattr(training, "build_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small_config(), folder)
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_disk_that_fills_leaves_what_was_there(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = next(folders), next(folders)
    config = small_config(max_epochs=3)
    run(config, whole)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint, "save", at(checkpoint, "save", 1, lambda: patch.setattr(os, "fsync", full))
        )
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            run(config, folder)
    assert run(config, folder, resume=True).state == "done"
    assert_same_runs(whole, folder)


# --- interruptions and resumes

# Where a signal comes: the call after which it does; step and evaluated_step of the checkpoint.
# 5 steps an epoch; an evaluation is 1 batch for the statistics and 2 + 2 of images, the test 3 + 3.
ENDS: dict[str, tuple[Any, str, int, tuple[int, int]]] = {
    "in the middle of an epoch": (_Run, "train_step", 8, (8, 5)),
    "at the end of an epoch": (_Run, "train_step", 10, (10, 5)),
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
        patch.setattr(figures, "gradient_figure", no_picture)
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
    whole, folder = next(folders), next(folders)
    run(config, whole)
    assert last(whole)["schedule"]["factor"] == 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", at(_Run, "train_step", 12, send(signal.SIGTERM)))
        run(config, folder)
    run(config, folder, resume=True)
    assert_same_runs(whole, folder)


@pytest.mark.parametrize("name", MODELS)
def test_many_interruptions(folders: Any, name: str) -> None:
    """At each third step, whatever the window, the epoch and the checkpoints."""
    config = small_config(name, max_epochs=3, log_every=4, model=RANDOM_MODEL)
    whole, folder = next(folders), next(folders)
    run(config, whole)
    states = []
    while "done" not in states:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Run, "train_step", at(_Run, "train_step", 3, send(signal.SIGTERM)))
            states.append(run(config, folder, resume=True).state)
    assert states == ["interrupted"] * 5 + ["done"]  # 15 steps in all
    assert_same_runs(whole, folder)


def test_a_second_ctrl_c_ends_at_once(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(folders)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    config = small_config(max_epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", at(_Run, "train_step", 8, twice))
        with pytest.raises(KeyboardInterrupt):
            run(config, folder)
    assert last(folder)["state"]["step"] == 5
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "interrupted"
    whole = next(folders)
    run(config, whole)
    run(config, folder, resume=True)
    assert_same_runs(whole, folder)


def test_a_signal_before_training_ends_at_once(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(folders)
    monkeypatch.setattr(training, "load_data", at(training, "load_data", 1, send(signal.SIGTERM)))
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
    whole, folder = next(folders), next(folders)
    run(small_config(), whole)
    (folder / "metrics.csv").write_text("half a li")
    assert run(small_config(), folder, resume=True).state == "done"
    assert "no checkpoint yet" in caplog.text
    assert_same_runs(whole, folder)


def interrupted(config: Config, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", at(_Run, "train_step", 7, send(signal.SIGTERM)))
        assert run(config, folder).state == "interrupted"


def test_a_damaged_last_checkpoint_falls_back_on_the_one_before(
    folders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = next(folders), next(folders)
    run(small_config(), whole)
    interrupted(small_config(), folder)
    path = checkpoint.last_path(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    assert run(small_config(), folder, resume=True).state == "done"
    assert "going on from" in caplog.text
    assert_same_runs(whole, folder)
    assert path.with_name("damaged.pt").exists()


def test_a_checkpoint_of_something_else_is_refused(folders: Any) -> None:
    folder = next(folders)
    interrupted(small_config(), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    for config, message in (
        (small_config("lstm"), "does not fit the run's config"),
        (small_config(data={"permute": True}), "no order of the pixels"),
        (small_config(data={"train_size": 600}), "differs"),
    ):
        with pytest.raises(UserError, match=message):
            run(config, folder, resume=True)
    assert {p: p.read_bytes() for p in folder.rglob("*.pt")} == before
    content = {k: v for k, v in last(folder).items() if k not in ("optimizer", "version", "format")}
    checkpoint.save(content, checkpoint.last_path(folder))
    with pytest.raises(UserError, match=r"does not fit .*this version of elstm: 'optimizer'"):
        run(small_config(), folder, resume=True)


def test_the_permutation_is_stored(folders: Any) -> None:
    folder = next(folders)
    run(small_config(data={"permute": True}, max_steps=1), folder)
    permutation = last(folder)["data"]["permutation"]
    assert sorted(permutation.tolist()) == list(range(64))
    assert permutation.tolist() != list(range(64))


def test_the_same_config_gives_the_same_run(folders: Any) -> None:
    a, b, other = (next(folders) for _ in range(3))
    config = small_config(max_steps=6)
    run(config, a)
    torch.manual_seed(99)  # whatever happened before in the process
    run(config, b)
    assert_same_runs(a, b)
    run(dataclasses.replace(config, seed=1), other)
    assert differences(last(a)["model"], last(other)["model"]) != []
