"""Tests what full runs on the digits write."""

from __future__ import annotations

import gzip
import json
import logging
import signal
from typing import Any

import pytest
import torch
from training_runs import assert_same_runs, at, differences, events, last, rows, send, small_config

from elstm.config.schema import CosineConfig
from elstm.errors import UserError
from elstm.records.correct import read_correct
from elstm.records.status import read_status
from elstm.records.stored import RunFolder
from elstm.training import build, checkpoint, evaluation, recorder
from elstm.training import device as runtime
from elstm.training.run import run
from elstm.training.step import StepResult, TrainStep


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    """Disables pictures for all tests but one."""
    if request.function is not test_a_full_run:
        request.getfixturevalue("no_pictures")


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


def test_a_full_run(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
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
    correct = read_correct(RunFolder("", folder))
    assert correct is not None
    assert len(correct) == 300  # of the digits
    assert correct.mean() == pytest.approx(status["test_accuracy"])
    assert (status["epoch"], status["step"], status["backend"] is not None) == (3, 15, True)
    assert 0 < status["train_seconds"] < status["wall_seconds"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    weights = [v for k, v in last(folder)["model"].items() if not k.endswith(buffers)]
    assert status["parameters"] == sum(w.numel() for w in weights)

    tags = [tag for _, tag, _ in events(folder)]
    for tag, count in {
        "loss/train": 9, "optimization/lr": 9, "optimization/grad_norm": 9, "accuracy/val": 3,
        "statistics/val_accuracy_batch_stats": 3, "pictures/gradient_over_time": 3,
        "weights/gamma/norm_c_l0": 3, "statistics/running_var/norm_hh_l0": 3, "loss/test": 1,
        "accuracy/test": 1,
    }.items():  # fmt: skip
        assert tags.count(tag) == count, tag
    assert "15 steps" not in caplog.text
    assert "done: test accuracy" in caplog.text
    assert "the recurrence runs on backend" in caplog.text
    names = sorted(p.name for p in folder.iterdir() if "tfevents" not in p.name)
    assert names == [
        "checkpoints", "metrics.csv", "norms.csv", "over_time.csv", "status.json",
        "test_correct.csv",
    ]  # fmt: skip
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "previous.pt"]


def test_a_long_run_has_histograms_and_pictures_at_some_epochs(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MAX_PICTURES", 2)
    folder = next(folders)
    run(small_config(max_epochs=5), folder)
    for tag_due in (
        "pictures/gradient_over_time",
        "weights/gamma/norm_c_l0",
        "statistics/running_var/norm_c_l0",
    ):
        assert [step for step, tag, _ in events(folder) if tag == tag_due] == [5, 20, 25]
    text = (folder / "norms.csv").read_text()
    assert [text.count(f"\n{epoch},{5 * epoch},norm_c_l0,") for epoch in range(1, 6)] == [1] * 5


def test_best_is_the_checkpoint_of_the_best_evaluation(folders: Any) -> None:
    """A learning rate that is raised at the end spoils the model; best.pt is from before."""
    folder, tested = next(folders), next(folders)

    class Spoiling(build.Schedule):
        def lr(self, step: int) -> float:
            return 0.02 if step < 10 else 5.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Schedule", Spoiling)
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
    complete, pruned = next(folders), next(folders)
    config, reported = small_config(max_epochs=3), []

    def prune(epoch: int, accuracy: float) -> bool:
        reported.append((epoch, accuracy))
        return epoch == 2

    result = run(config, pruned, on_evaluation=prune)
    assert (result.state, result.test_accuracy, result.signal) == ("pruned", None, None)
    accuracies = [float(r["val_accuracy"]) for r in rows(pruned) if r["val_accuracy"]]
    assert [epoch for epoch, _ in reported] == [1, 2]
    assert [accuracy for _, accuracy in reported] == pytest.approx(accuracies)
    # At its end a run is not pruned any more.
    assert run(config, pruned, resume=True, on_evaluation=lambda *_: True).state == "done"
    run(config, complete)
    assert_same_runs(complete, pruned)


def test_the_population_is_recomputed_before_an_evaluation(folders: Any) -> None:
    """Checks it by a model that the moving averages alone would score far worse."""
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
    original = TrainStep.__call__

    def spy(self: TrainStep, x: torch.Tensor, y: torch.Tensor) -> StepResult:
        seen.append(y)
        return original(self, x, y)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    run(small_config(overfit_batches=2, max_epochs=3), next(folders))
    assert all(torch.equal(y, seen[i % 2]) for i, y in enumerate(seen))
    assert not torch.equal(seen[0], seen[1])


def test_early_stopping(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder, full = next(folders), next(folders)
    config = small_config(lr=1e-12, max_epochs=9, early_stopping_epochs=2)
    epoch = run(config, folder).status["epoch"]
    assert epoch <= 5
    values = [r["val_accuracy"] for r in rows(folder) if r["val_accuracy"]]
    assert max(values[-2:]) <= max(values[:-2])
    best = 100 * max(map(float, values))
    reason = (
        f"stopped early at epoch {epoch:g}: validation accuracy has not risen above {best:.2f}% "
        "for 2 epochs (trainer.early_stopping_epochs=2)"
    )
    assert caplog.messages.count(reason) == 1
    caplog.clear()
    run(small_config(max_steps=1), full)
    assert "stopped early" not in caplog.text


def test_one_process_runs_jobs_of_different_settings(folders: Any) -> None:
    """Checks that precision, threads and determinism are separate for each job, as in a sweep."""
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
