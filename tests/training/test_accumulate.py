"""trainer.accumulate: steps on several batches are those on one batch of all their sequences."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training_runs import assert_same_runs, at, last, rows, send, small_config

from elstm.config.check import validate
from elstm.config.schema import Config
from elstm.data.load import load_data
from elstm.data.series import SeriesData, SeriesSplit
from elstm.errors import UserError
from elstm.training.build import Parts, build_limits, build_parts
from elstm.training.run import run
from elstm.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("no_pictures")


def in_float64(**trainer: Any) -> Parts:
    config = small_config("lstm", model={"backend": "reference"}, **trainer)
    parts = build_parts(config, Accelerator(cpu=True))
    parts.model.double()
    if parts.step.class_weights is not None:
        parts.step.class_weights = parts.step.class_weights.double()
    return parts


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_a_step_is_that_of_one_larger_batch(class_weights: str | None) -> None:
    """The batches have other sums of class weights, and the norm of all gradients is clipped."""
    settings = {"class_weights": class_weights, "label_smoothing": 0.1, "clip_grad_norm": 0.05}
    one, several = in_float64(**settings), in_float64(**settings)
    for x, y in one.data.train_batches(0, 0):
        x = x.double()
        expected = one.step(x, y)
        batches = zip(x.split(64, 1), y.split(64), strict=True)
        result = several.step.accumulated(batches, y, 4)
        for value, other in zip(result, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=0)
        assert expected.grad_norms.norm() > 0.05
    for mine, theirs in zip(several.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_a_value_that_is_not_finite_in_one_batch_is_noticed() -> None:
    parts = in_float64()
    x, y = next(parts.data.train_batches(0, 0))
    x = x.double()
    x[:, :128] = torch.nan
    result = parts.step.accumulated(zip(x.split(128, 1), y.split(128), strict=True), y, 2)
    assert result.loss.isnan()


def test_a_run_has_the_steps_and_records_of_larger_batches(
    folders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def config(**settings: Any) -> Config:
        return small_config("lstm", log_every=2, checkpoint_every=3, **settings)

    caplog.set_level("INFO")
    larger, complete, resumed = (next(folders) for _ in range(3))
    run(config(), larger)
    several = config(data={"batch_size": 64}, accumulate=4)
    run(several, complete)
    assert "adds up the gradients of 4 batches, 256 sequences" in caplog.text
    table = rows(complete)
    assert len(table) == len(rows(larger))
    for row, expected in zip(table, rows(larger), strict=True):
        for column, cell in expected.items():
            if cell:
                assert float(row[column]) == pytest.approx(float(cell), rel=1e-3), column

    with pytest.MonkeyPatch.context() as patch:  # a signal within an optimizer step
        stop = at(TrainStep, "_loss", 4 * 7 - 1, send(signal.SIGTERM))
        patch.setattr(TrainStep, "_loss", stop)
        assert run(several, resumed).state == "interrupted"
    assert last(resumed)["state"]["step"] == 7
    assert run(several, resumed, resume=True).state == "done"
    assert_same_runs(complete, resumed)


def test_parts_of_several_processes_are_those_of_one() -> None:
    """Batch statistics over all processes are then those of one process."""
    data = build_parts(small_config(), Accelerator(cpu=True)).data
    one = list(data.with_batch_size(240).train_rows(0, 1, parts=3))
    three = [
        list(data.with_batch_size(120).train_rows(0, 1, rank, 2, parts=3)) for rank in range(2)
    ]
    assert len(one) == 5
    for step, rows_of_one in enumerate(one):
        for part, piece in enumerate(rows_of_one.chunk(3)):
            shared = [of_rank[step].chunk(3)[part] for of_rank in three]
            assert torch.equal(torch.cat(shared), piece)
    later = list(data.with_batch_size(120).train_rows(0, 1, 2 * 3 + 1, 2, parts=3))
    assert torch.equal(later[0], three[1][3])


def test_buckets_of_several_processes_are_those_of_one() -> None:
    """A resume with another number of processes then trains on the rest of the epoch."""
    lengths = torch.arange(96) * 5 % 17 + 3
    split = SeriesSplit(torch.zeros(96, 20, 1), lengths, torch.zeros(96, dtype=torch.int64), ())
    data = SeriesData(
        "series", ("a", "b"), torch.zeros(1), torch.ones(1), 20, split, split, split, "", "",
        bucket=True,
    )  # fmt: skip
    half = data.with_batch_size(10)  # nine batches, of which the last has no partner
    two = zip(*(half.train_rows(0, 1, rank, 2) for rank in range(2)), strict=True)
    for one, both in zip(data.train_rows(0, 1), two, strict=True):
        assert torch.equal(one, torch.cat(both))


def test_refusals(tmp_path: Path) -> None:
    config = small_config(overfit_batches=3, accumulate=2)
    with pytest.raises(UserError, match=r"a multiple of trainer\.accumulate=2"):
        validate(config)
    with pytest.raises(UserError, match=r"accumulate=6 batches of 256 .* than the 1297 training"):
        run(small_config(accumulate=6), tmp_path)
    config = small_config(overfit_batches=2, accumulate=2)
    data = load_data(config.data).with_batch_size(512)
    with pytest.raises(UserError, match=r"overfit_batches=2 has to be at least 4, .* 2 processes"):
        build_limits(config, data, 2)
