"""Counters, limits and sums of a run."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import torch
from accelerate import Accelerator

from elstm.training.state import Clock, Limits, StepSums, TrainState
from elstm.training.step import StepResult

LIMITS = Limits(processes=2, steps_per_epoch=3, max_epochs=4)
# What the first version and all since have in a checkpoint, and what commit d8d01eb had besides.
STORED = {
    "epoch": 1, "batch": 2, "step": 4, "evaluated_step": 3, "best_val_accuracy": 0.5,
    "best_epoch": 1.0, "waited": 2, "train_loss": 0.25, "train_seconds": 3.0, "wall_seconds": 4.0,
}  # fmt: skip


def test_an_epoch() -> None:
    state = TrainState(LIMITS)
    assert (state.epochs, state.steps_left, state.evaluated, state.finished) == (0, 3, False, False)
    for _ in range(3):
        state.count_step()
    assert (state.epochs, state.steps_left, state.step, state.batch) == (1.0, 0, 3, 6)
    assert state.end_epoch(0.5)
    assert (state.epoch, state.batch, state.epochs, state.best_epoch) == (1, 0, 1.0, 1.0)
    assert state.evaluated
    assert not state.end_epoch(0.5)  # not above the best
    assert (state.evaluations_since_best, state.best_val_accuracy) == (1, 0.5)
    assert state.end_epoch(0.6)
    assert state.evaluations_since_best == 0


@pytest.mark.parametrize(
    ("limits", "epoch", "step", "since_best", "finished", "early"),
    [
        (LIMITS, 4, 12, 9, True, False),
        (LIMITS, 3, 9, 9, False, False),
        (Limits(1, 3, 4, max_steps=5), 1, 5, 0, True, False),
        (Limits(1, 3, 4, max_steps=5), 1, 4, 0, False, False),
        (Limits(1, 3, 4, early_stopping=2), 2, 6, 2, True, True),
        (Limits(1, 3, 4, early_stopping=2), 2, 6, 1, False, False),
        (Limits(1, 3, 4, early_stopping=2), 4, 12, 2, True, False),
    ],
)
def test_the_end(
    limits: Limits, epoch: int, step: int, since_best: int, finished: bool, early: bool
) -> None:
    state = TrainState(limits, epoch=epoch, step=step, evaluated_step=step)
    state.best_epoch = epoch - since_best
    assert (state.finished, state.stopped_early) == (finished, early)
    state.evaluated_step -= 1  # the last evaluation is missing
    assert not state.finished


def test_the_length() -> None:
    assert (LIMITS.batches_per_epoch, LIMITS.total_steps) == (6, 12)
    assert Limits(1, 3, 4, max_steps=5).total_steps == 5
    assert Limits(1, 3, 4, max_steps=50).total_steps == 12
    assert TrainState(Limits(1, 3, 4, max_steps=5), epoch=1, step=3).steps_left == 2


def test_counters_keep_their_names_in_a_checkpoint() -> None:
    state = TrainState(LIMITS)
    state.load_state_dict({**STORED, "skipped_steps": 0})
    assert state.evaluations_since_best == 2
    assert state.state_dict() == STORED


def result(loss: float, correct: int, *norms: float) -> StepResult:
    return StepResult(torch.tensor(loss), torch.tensor(correct), torch.tensor(norms))


def test_sums_and_means() -> None:
    sums = StepSums(torch.device("cpu"))
    sums.add(result(1.0, 3, 3.0, 4.0), 8)
    sums.add(result(2.0, 5, 0.0, 1.0), 8)
    assert sums.first_bad_step(2) is None
    means = sums.pop_means(Accelerator(cpu=True), train_seconds=2.0)
    assert means == {
        "train_loss": 1.5, "train_accuracy": 0.5, "grad_norm": 3.0, "samples_per_second": 8.0,
    }  # fmt: skip
    assert (sums.steps, sums.samples, sums.start_seconds) == (0, 0, 2.0)
    sums.add(result(7.0, 1, 1.0, 0.0), 2)
    means = sums.pop_means(Accelerator(cpu=True), train_seconds=3.0)
    assert (means["train_loss"], means["samples_per_second"]) == (7.0, 2.0)


def test_a_bad_step_is_found_later_with_its_cause() -> None:
    sums = StepSums(torch.device("cpu"))
    for loss, first, second in ((1.0, 1.0, 9.0), (math.nan, 1.0, 1.0), (1.0, 1.0, math.inf)):
        sums.add(result(loss, 0, first, second), 8)
    assert sums.first_bad_step(12) == 11
    assert sums.culprit(["a", "b"]) == ("the loss (the step before had its largest gradient in b)")


@pytest.mark.parametrize("bad", [1.0, math.nan])
def test_sums_are_the_same_whenever_they_are_read_and_after_a_restore(bad: float) -> None:
    steps = [result(0.1, 1, 0.3, 0.7), result(bad, 2, 0.2, 0.1), result(0.7, 3, 0.9, 0.4)]
    at_once, one_by_one = (StepSums(torch.device("cpu")) for _ in range(2))
    for step in steps:
        at_once.add(step, 4)
        one_by_one.add(step, 4)
        one_by_one.flush()
        restored = StepSums(torch.device("cpu"))
        restored.load_state_dict({**one_by_one.state_dict(), "skipped": torch.tensor(0)}, 2)
        one_by_one = restored
    a, b = at_once.state_dict(), one_by_one.state_dict()
    assert a.keys() == b.keys() == {"sums", "bad", "steps", "samples", "began", "norms"}
    for name in ("sums", "bad", "norms"):
        assert torch.equal(a[name].nan_to_num(5.0), b[name].nan_to_num(5.0)), name


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("elstm.training.state.time.perf_counter", lambda: now[0])
    state = TrainState(LIMITS)
    clock = Clock(state)

    def wait(seconds: float) -> None:
        now[0] += seconds

    wait(1)
    with clock.training():
        wait(2)
        with clock.paused():
            wait(4)
        wait(8)
    wait(16)
    clock.update()
    assert (state.train_seconds, state.wall_seconds) == (10, 31)
    with suppress(KeyError), clock.training():
        wait(1)
        raise KeyError
    wait(1)
    clock.update()
    assert (state.train_seconds, state.wall_seconds) == (11, 33)


def test_evaluations_of_some_epochs() -> None:
    """Evaluates after every second epoch, and after the last one."""
    state, evaluated = TrainState(Limits(1, 2, max_epochs=5, evaluate_every=2, max_steps=9)), []
    while not state.finished:
        for _ in range(state.steps_left):
            state.count_step()
            to_last = (0 if state.step > 8 else state.steps_to_evaluation) + state.step
            assert to_last == min(-(-state.step // 4) * 4, 9)
            assert (state.step - state.steps_since_evaluation) % 4 == 0
        if state.steps_to_evaluation:
            state.count_epoch()
        else:
            state.end_epoch(0.5)
            evaluated.append((state.step, state.epochs))
    assert evaluated == [(4, 2.0), (8, 4.0), (9, 4.5)]


def test_patience_counts_epochs() -> None:
    """An extension may follow an evaluation that came before evaluate_every epochs were over."""
    state, since, stopped = TrainState(Limits(1, 2, 3, None, 3, evaluate_every=2)), [], []
    while not state.finished:
        for _ in range(state.steps_left):
            state.count_step()
        if state.steps_to_evaluation:
            state.count_epoch()
        else:
            since.append(state.epochs_since_evaluation)
            state.end_epoch(0.9 if state.step == 4 else 0.8)
            stopped.append((state.epoch, state.stopped_early))
            if state.complete:
                state.limits = Limits(1, 2, 9, None, 3, evaluate_every=2)
    assert stopped == [(2, False), (3, False), (4, False), (6, True)]
    assert since == [2, 1, 1, 2]


def test_without_validation_the_latest_epoch_is_the_best() -> None:
    state = TrainState(Limits(1, 1, 2))
    for epoch in (1, 2):
        state.count_step()
        assert state.end_epoch(None)
        assert (state.best_epoch, state.best_validation) == (epoch, None)
    assert state.evaluations_since_best == 0
