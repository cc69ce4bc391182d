"""trainer.ema_decay: what is averaged, evaluated, stored and resumed."""

from __future__ import annotations

import csv
import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    assert_same_runs,
    at,
    differences,
    last,
    send,
    small_config,
    without_pictures,
)

from elstm.commands import evaluate, export, predict
from elstm.config.check import validate
from elstm.config.schema import Config
from elstm.data.load import load_data
from elstm.errors import UserError
from elstm.models import build_model
from elstm.nn.norm import STATISTICS
from elstm.records.status import read_status
from elstm.training import checkpoint, evaluation, trained
from elstm.training.ema import EmaModel, chosen_weights
from elstm.training.initial import checked_record, take_weights
from elstm.training.run import run
from elstm.training.step import TrainStep
from elstm.training.trained import load_trained

DECAY = 0.3  # the rule gives 2/11 and 3/12 for the first two steps and 0.3 from the third on


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    monkeypatch.setattr(trained, "load_run_config", lambda run_dir: CONFIG)


CONFIG = small_config(ema_decay=DECAY, max_epochs=2, model={"dropout": 0.2, "num_layers": 2})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run, and its raw weights at its beginning and after each step."""
    folder, weights = tmp_path_factory.mktemp("made"), []

    def noted(name: str) -> Any:
        original = getattr(EmaModel, name)

        def wrapped(self: EmaModel, *args: int) -> None:
            weights.append(
                {k: v.detach().clone() for k, v in zip(_names(self), self._raw, strict=True)}
            )
            original(self, *args)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for name in ("start", "update"):
            patch.setattr(EmaModel, name, noted(name))
        run(CONFIG, folder)
    return folder, weights


def _names(ema: EmaModel) -> list[str]:
    return [name for name, _ in ema.model.named_parameters()]


def test_the_average_is_that_of_the_rule(made: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, weights = made
    assert len(weights) == 11
    expected = {name: value.double() for name, value in weights[0].items()}
    for step, raw in enumerate(weights[1:], start=1):
        d = min(DECAY, (1 + step) / (10 + step))
        expected = {k: d * v + (1 - d) * raw[k].double() for k, v in expected.items()}
    stored = last(folder)["ema"]
    assert stored["decay"] == DECAY
    for name, value in expected.items():
        torch.testing.assert_close(stored["model"][name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(stored["model"][name], last(folder)["model"][name])


def test_it_is_evaluated_with_statistics_of_its_own_and_decides(
    made: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = made
    data = load_data(CONFIG.data)
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    evaluated = [row for row in table if row["val_accuracy"]]
    best, (test,) = checkpoint.best(folder), [row for row in table if row["test_accuracy"]]
    state, epoch = best["state"], round(best["state"]["best_epoch"])
    assert state["best_val_accuracy"] == max(float(row["val_accuracy"]) for row in evaluated)
    row = evaluated[epoch - 1]
    for kind, suffix in (("ema", ""), ("raw", "_raw")):
        model = load_trained(folder, weights=kind).model
        score = evaluation.score_split(model, data, "val", 1000)
        assert float(row[f"val_loss{suffix}"]) == pytest.approx(score.loss, rel=1e-5)
        assert float(row[f"val_accuracy{suffix}"]) == pytest.approx(score.accuracy)
        stored = {name: value.clone() for name, value in model.state_dict().items()}
        evaluation.recompute_statistics(model, data, CONFIG, epoch - 1)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(stored[name], value)
    score = evaluation.score_split(load_trained(folder).model, data, "test", 1000)
    assert float(test["test_loss"]) == pytest.approx(score.loss, rel=1e-5)
    status = read_status(folder)
    assert status is not None
    assert status["weights"] == "ema"


def test_the_raw_weights_are_those_of_a_run_without_it(
    made: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    plain = dataclasses.replace(CONFIG.trainer, ema_decay=None)
    run(dataclasses.replace(CONFIG, trainer=plain), tmp_path)
    assert differences(last(tmp_path)["model"], last(made[0])["model"]) == []
    assert "ema" not in last(tmp_path)
    assert "val_loss_raw" not in (tmp_path / "metrics.csv").read_text()


def interrupted(config: Config, folder: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", step, send(signal.SIGTERM)))
        assert run(config, folder, resume=True).state == "interrupted"


def test_a_resume_is_exact(made: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    interrupted(CONFIG, tmp_path, 3)
    interrupted(CONFIG, tmp_path, 4)
    assert run(CONFIG, tmp_path, resume=True).state == "done"
    assert_same_runs(made[0], tmp_path)


def test_an_extension_is_that_of_a_longer_run(
    made: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    short = dataclasses.replace(CONFIG, trainer=dataclasses.replace(CONFIG.trainer, max_epochs=1))
    run(short, tmp_path)
    run(short, tmp_path, resume=True, extend={"trainer.max_epochs": 2})
    assert differences(last(tmp_path)["ema"], last(made[0])["ema"]) == []


def test_within_an_epoch_the_raw_weights_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averaged ones have statistics of the last evaluation; a model without any has no need."""
    interrupted(CONFIG, tmp_path, 7)
    taken = load_trained(tmp_path, "last")
    assert (taken.weights, load_trained(tmp_path, "best").weights) == ("raw", "ema")
    assert taken.weights_text == (
        "raw: the checkpoint is from step 7, between two evaluations, and the statistics of its "
        "averaged weights are from step 5"
    )
    with pytest.raises(UserError, match="take the raw weights, or the best checkpoint"):
        load_trained(tmp_path, "last", "ema")
    content = last(tmp_path)
    for part in (content["model"], content["ema"]["model"]):
        for name in [name for name in part if name.endswith(STATISTICS)]:
            del part[name]
    assert chosen_weights(content)[1] == "ema"


def test_a_run_begins_with_the_averaged_weights(
    made: tuple[Path, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = made[0]
    config = small_config(init_from=str(folder), model={"dropout": 0.2, "num_layers": 2})
    model = build_model(
        "elstm_bn", config.model.options(), input_size=8, num_steps=8, num_classes=10
    )
    record = take_weights(config, model, {})
    assert record["weights"] == "ema"
    assert "step 10, averaged" in caplog.text or "step 5, averaged" in caplog.text
    assert differences(dict(model.state_dict()), checkpoint.best(folder)["ema"]["model"]) == []
    assert checked_record({"init_from": record}) == record
    earlier = {key: value for key, value in record.items() if key != "weights"}
    assert checked_record({"init_from": earlier}) == {**record, "weights": "raw"}


def test_what_does_not_fit_is_refused(
    made: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = checkpoint.best(made[0])
    plain = dataclasses.replace(CONFIG, trainer=dataclasses.replace(CONFIG.trainer, ema_decay=None))
    wrong: list[tuple[dict[str, Any], Config, str]] = [
        ({k: v for k, v in content.items() if k != "ema"}, CONFIG, "no averaged weights"),
        ({**content, "ema": {**content["ema"], "decay": 0.9}}, CONFIG, "ema_decay=0.9, not 0.3"),
        ({**content, "ema": {"decay": DECAY, "model": {}}}, CONFIG, "not at all"),
        (content, plain, "trainer.ema_decay is null"),
    ]
    for changed, config, said in wrong:
        with pytest.raises(ValueError, match=said):
            trained.check_fits(changed, config)
    with pytest.raises(ValueError, match="no averaged weights: its run has no"):
        chosen_weights({k: v for k, v in content.items() if k != "ema"}, "ema")
    validate(small_config("lstm", ema_decay=0.9, recompute_batches=0))
    with pytest.raises(UserError, match="cannot be combined with trainer"):
        validate(small_config(ema_decay=0.9, recompute_batches=0))


def test_the_commands_say_which_weights_they_use(
    made: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(made[0])
    status = read_status(made[0])
    assert status is not None
    assert evaluate.main([folder]) == 0
    out = capsys.readouterr().out
    assert (
        f"weights      averaged (trainer.ema_decay=0.3)\naccuracy     {status['test_accuracy']:.2%}"
        in out
    )
    assert evaluate.main([folder, "--weights", "raw"]) == 0
    assert "weights      raw\n" in capsys.readouterr().out
    assert (made[0] / "confusion_test_raw.png").exists()
    assert predict.main([folder, str(tmp_path / "none.png")]) == 1
    assert "elstm-predict: weights: averaged (trainer.ema_decay=0.3)" in capsys.readouterr().err
    assert export._metadata(load_trained(made[0]), made[0], "")["weights"] == "ema"
