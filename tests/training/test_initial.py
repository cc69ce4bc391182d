"""A new run that begins with the weights of another one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import at, differences, last, send, small_config

from elstm import train
from elstm.config.identity import identity
from elstm.config.run_config import load_run_config
from elstm.config.schema import SCHEMAS, Config
from elstm.errors import UserError
from elstm.models import build_model
from elstm.records.source import checksum
from elstm.records.stored import RunFolder
from elstm.reporting.runs import load_run
from elstm.sweeps.fingerprints import Fingerprints, source_in
from elstm.sweeps.plan import _identity_in
from elstm.training import build, checkpoint, initial
from elstm.training.step import TrainStep
from elstm.training.trained import load_trained, settings

pytestmark = pytest.mark.usefixtures("no_pictures")

WORDS = [
    "model=elstm_bn", "data=digits", "data.pixels_per_step=8", "data.batch_size=256",
    "model.hidden_size=8", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false",
    "trainer.max_epochs=1",
]  # fmt: skip

SERIES = [
    *(word for word in WORDS if not word.startswith("data")),
    "data=arrays", "data.path=series.npz", "data.batch_size=20", "hydra.run.dir=new",
]  # fmt: skip


def start(folder: str, *words: str) -> int:
    return train.main([*WORDS, f"hydra.run.dir={folder}", *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert start("run") == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("run")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The weights of each model after it has taken those of another run."""
    found = []

    def take(config: Any, model: Any, facts: Any) -> dict[str, Any]:
        record = initial.take_weights(config, model, facts)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
        return record

    monkeypatch.setattr(build, "take_weights", take)
    return found


def status(run: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "status.json").read_text())
    return found


@pytest.mark.parametrize("given", ["run", "run/checkpoints/best.pt"])
def test_a_run_begins_with_the_weights_of_another(
    run: Path, given: str, weights: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    assert start("new", f"trainer.init_from={given}", "seed=3") == 0
    best = run / "checkpoints" / "best.pt"
    source = torch.load(best, weights_only=True)
    assert differences(weights[0], source["model"]) == []
    expected = {
        "path": str(best),
        "step": 5,
        "sha256": checksum(best),
        "head": True,
        "weights": "raw",
    }
    assert status("new")["init_from"] == last(Path("new"))["init_from"] == expected
    assert status(run)["init_from"] is None
    assert "init_from" not in last(run)
    assert f"initial weights: {best}, step 5" in caplog.text
    assert last(Path("new"))["state"]["step"] == 5  # counted from its own beginning


def test_the_head_may_be_new(run: Path, weights: list[dict[str, Any]]) -> None:
    words = ["trainer.init_from=run", "trainer.init_head=false", "data.permute=true"]
    assert start("new", *words) == 0
    source = last(run)["model"]
    for name, value in weights[0].items():
        assert torch.equal(value, source[name]) != name.startswith("head.")


def test_a_data_set_with_other_classes_wants_a_new_head(
    run: Path, weights: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Series of 8 features in 5 classes, of another length than the rows of digits."""
    write_series(steps=12)
    words = [*SERIES, "trainer.init_from=run"]
    assert train.main(words) == 1
    err = capsys.readouterr().err
    assert "its head has 10 classes and the data set 5: trainer.init_head=false" in err
    assert not Path("new").exists()
    assert train.main([*words, "trainer.init_head=false"]) == 0
    assert "the statistics of 8 steps are extended" in Path("new/train.log").read_text()
    source = last(run)["model"]
    for name, value in weights[0].items():
        if name.endswith("running_var"):
            assert torch.equal(value[:8], source[name])
            assert torch.equal(value[8:], source[name][-1:].expand(4, -1))


def test_a_head_of_other_classes_is_reported(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = load_trained(run)
    trainer = dataclasses.replace(trained.config.trainer, init_from="run")
    config = dataclasses.replace(trained.config, trainer=trainer)
    for names, reported in ((list("0123456789"), False), (list("1234567890"), True)):
        caplog.clear()
        initial.take_weights(config, trained.model, {**trained.facts, "class_names": names})
        assert ("trainer.init_head=false starts" in caplog.text) == reported


def test_other_splits_of_the_same_data_are_reported(run: Path) -> None:
    write_series(steps=8)
    words = [word for word in SERIES if not word.startswith("hydra.run.dir=")]
    first = ["trainer.max_steps=1", "hydra.run.dir=first"]
    assert train.main([*words, *first]) == 0
    for number, more in enumerate(([], ["data.split_seed=1"], ["data.folds=3", "data.fold=0"])):
        folder = f"hydra.run.dir=next{number}"
        assert (
            train.main([*words, "trainer.init_from=first", "trainer.max_steps=1", folder, *more])
            == 0
        )
        text = Path(f"next{number}/train.log").read_text()
        assert ("other splits of the same data" in text) == bool(more)
    assert "(data.folds=null, here 3, data.fold=null, here 0)" in text


def test_statistics_are_cut(run: Path, weights: list[dict[str, Any]]) -> None:
    write_series(steps=4)
    assert train.main([*SERIES, "trainer.init_from=run", "trainer.init_head=false"]) == 0
    assert "the statistics of 8 steps are cut, to 4 steps" in Path("new/train.log").read_text()
    source = last(run)["model"]
    names = [name for name in weights[0] if name.endswith("running_mean")]
    assert names
    assert all(torch.equal(weights[0][name], source[name][:4]) for name in names)


def write_series(steps: int) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        "series.npz",
        X=generator.normal(size=(200, steps, 8)).astype("float32"),
        y=np.arange(200) % 5,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.init_from=nowhere"], "there is no checkpoint nowhere"),
        (["trainer.init_from=."], "there is no checkpoint checkpoints/best.pt"),
        (["trainer.init_from=run/metrics.csv"], "is damaged or was not written by elstm"),
        (["trainer.init_from=run", "model=lstm"], "it was trained with model.name=elstm_bn"),
        (["trainer.init_from=run", "model.hidden_size=9"], "model.hidden_size=8, not 9"),
        (
            ["trainer.init_from=run", "model=bn_lstm"],
            "model.name=elstm_bn, whose cell_norm is update, not output as that of bn_lstm",
        ),
        (["trainer.init_from=run", "model=gru"], "whose layer is NormalizedLSTM, not GRU"),
        (["trainer.init_from=run", "model.normalize_hidden=false"], "normalize_hidden=true, not"),
        (["trainer.init_from=run", "data.pixels_per_step=16"], "its model has rnn."),
        (["trainer.init_head=false"], "trainer.init_head=false needs trainer.init_from"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("new", *words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not Path("new").exists()


NONE = {"cell_norm": "none"}


@pytest.mark.parametrize(
    ("source", "of_source", "own", "of_own", "warned"),
    [
        ("bn_lstm", {}, "bn_lstm_published", {"eps": 1e-5, "gamma_c": 0.1}, True),
        ("bn_lstm_published", {"eps": 0.1, "gamma_ih": 0.1}, "bn_lstm", {"momentum": 0.5}, False),
        ("bn_lstm", {}, "elstm_bn", {"cell_norm": "output"}, False),
        ("elstm_bn", {**NONE, "normalize_hidden": False}, "bn_lstm_input",
         {**NONE, "normalize_hidden": False, "state_noise": 0.5}, False),
        ("bn_lstm_gates", NONE, "elstm_bn", NONE, False),
        ("elstm_bn", {"gamma_c": 2.0}, "elstm_bn", {}, True),  # eps of the carried norm follows it
    ],
)  # fmt: skip
def test_a_name_does_not_decide_whether_weights_fit(
    source: str,
    of_source: dict[str, Any],
    own: str,
    of_own: dict[str, Any],
    warned: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def built(name: str, options: dict[str, Any], **trainer: Any) -> tuple[Config, Any]:
        kind = SCHEMAS["model"][name]
        config = dataclasses.replace(
            small_config(**trainer), model=kind(**{"name": name, "hidden_size": 4, **options})
        )
        sizes = {"input_size": 8, "num_steps": 8, "num_classes": 10}
        return config, build_model(name, config.model.options(), **sizes)

    config, model = built(source, of_source)
    content = {
        "model": model.state_dict(), "state": {"step": 1}, "settings": settings(config)
    }  # fmt: skip
    checkpoint.save(content, tmp_path / "source.pt")
    new, target = built(own, of_own, init_from=str(tmp_path / "source.pt"))
    initial.take_weights(new, target, {})
    assert differences(dict(target.state_dict()), dict(model.state_dict())) == []
    assert ("another eps" in caplog.text) == warned
    content["settings"]["model.cell_norm"] = torch.zeros(2)
    checkpoint.save(content, tmp_path / "source.pt")
    with pytest.raises(UserError, match="settings are damaged"):
        initial.take_weights(new, target, {})


def test_damaged_weights_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    checkpoint.save({**content, "settings": None}, Path("old.pt"))
    name = next(name for name in content["model"] if name.endswith("running_var"))
    content["model"][name][0] = -1.0
    checkpoint.save(content, Path("crafted.pt"))
    for given, said in (("old.pt", "an early version"), ("crafted.pt", "values below 0")):
        assert start("new", f"trainer.init_from={given}") == 1
        assert said in capsys.readouterr().err


def test_it_is_resumed_without_its_source(run: Path) -> None:
    assert start("complete", "trainer.init_from=run", "trainer.max_epochs=2") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        assert start("new", "trainer.init_from=run", "trainer.max_epochs=2") == 143
    shutil.rmtree(run)
    assert train.main(["trainer.resume=new"]) == 0
    assert differences(last(Path("new")), last(Path("complete"))) == []
    assert status("new")["init_from"] == status("complete")["init_from"]


def test_the_weights_are_part_of_what_a_run_is(run: Path) -> None:
    assert start("new", "trainer.init_from=run") == 0
    shown = load_run(RunFolder("new", Path("new"))).config["trainer.init_from"]
    digest = checksum(run / "checkpoints" / "best.pt")
    assert shown == f"{digest[:8]} (step 5)"
    before = _identity_in(Path("new"))
    assert digest in str(before)
    config = load_run_config("new")
    assert identity(config, None, Fingerprints().of_source(config)) == before
    assert train.main(["trainer.resume=run", "trainer.max_epochs=3", "optimizer.lr=0.01"]) == 0
    assert source_in(status("new")) == digest
    assert identity(config, None, Fingerprints().of_source(config)) != before
