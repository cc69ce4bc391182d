"""A run that is extended: trained further, or with another schedule, in its own folder."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_runs import at, differences, events, last, rows, send, without_pictures

from elstm import train
from elstm.config.run_config import load_run_config
from elstm.errors import UserError
from elstm.records.record_files import RecordFiles
from elstm.records.stored import RunFolder
from elstm.records.tracking import Tracker
from elstm.reporting.groups import make_sections
from elstm.reporting.runs import load_run
from elstm.sweeps.plan import _identity_in
from elstm.training import checkpoint
from elstm.training.extension import Extension
from elstm.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("no_pictures")

WORDS = [
    "model=elstm_bn", "data=digits", "data.pixels_per_step=8", "data.batch_size=256",
    "model.hidden_size=8", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false",
    "scheduler=constant",
]  # fmt: skip
EXTEND = ["trainer.resume=run", "trainer.max_epochs=4"]


def start(folder: str, *words: str, code: int = 0) -> Path:
    assert train.main([*WORDS, f"hydra.run.dir={folder}", *words]) == code
    return Path(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, of 2 epochs, and `planned`, the same of 4."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        start("run", "trainer.max_epochs=2")
        start("planned", "trainer.max_epochs=4")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("run")


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def trained(run: Path) -> dict[str, Any]:
    """Returns the last checkpoint without the entries that say that it was extended."""
    return {k: v for k, v in last(run).items() if k != "extensions"}


def contents(run: Path) -> dict[str, bytes]:
    files = (p for p in run.rglob("*") if p.is_file() and p.name != "train.log")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_finished_run_is_trained_further(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = status(run)
    best, correct = run / "checkpoints" / "best.pt", run / "test_correct.csv"
    old = {path: path.read_bytes() for path in (best, correct, run / ".hydra" / "config.yaml")}
    tested = [row for row in rows(run) if row["test_accuracy"]]
    assert train.main(EXTEND) == 0
    assert "trainer.max_epochs 2 -> 4" in caplog.text
    assert "(constant) is recomputed over 20 steps" in caplog.text
    # With a constant rate, the weights are those of a run that was planned at this length.
    assert differences(trained(run), trained(Path("planned"))) == []
    after = status(run)
    assert (after["state"], after["max_epochs"], after["step"]) == ("done", 4, 20)
    (entry,) = after["extensions"]
    assert (entry["step"], entry["changed"]) == (10, {"trainer.max_epochs": [2, 4]})
    for name in ("best_val_accuracy", "best_epoch", "test_accuracy", "test_loss"):
        assert entry[name] == before[name]
    for path, content in old.items():
        kept = path.with_name(f"{path.stem}-before-step-10{path.suffix}")
        assert kept.read_bytes() == content
    assert load_run_config(run).trainer.max_epochs == 4
    # The first test stays in its place, and so does everything after it.
    now = rows(run)
    assert [row for row in now if row["test_accuracy"]][:1] == tested
    assert [row for row in now if row not in tested] == [
        row for row in rows(Path("planned")) if row not in tested
    ]
    shown = [step for step, tag, _ in events(run) if tag == "accuracy/test"]
    assert shown == [10, 20]


def test_the_same_command_again_does_nothing(run: Path) -> None:
    assert train.main(EXTEND) == 0
    before = contents(run)
    assert train.main(EXTEND) == 0
    assert train.main(["trainer.resume=run"]) == 0
    assert contents(run) == before


def test_an_extension_that_is_interrupted_is_resumed_exactly(run: Path) -> None:
    words = [*EXTEND, "scheduler=cosine", "scheduler.warmup_steps=3", "optimizer.lr=0.01"]
    shutil.copytree(run, "complete")
    assert train.main(["trainer.resume=complete", *words[1:]]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 3, send(signal.SIGTERM)))
        assert train.main(words) == 143
    assert (status(run)["state"], status(run)["test_accuracy"]) == ("interrupted", None)
    assert train.main(["trainer.resume=run"]) == 0
    assert differences(trained(run), trained(Path("complete"))) == []
    assert rows(run) == rows(Path("complete"))
    with (run / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert 0 < rates[-1] < rates[-2] < 0.01  # the end of half a cosine over 20 steps
    assert len(status(run)["extensions"]) == 1
    tree = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert tree["scheduler"] == {"name": "cosine", "warmup_steps": 3, "min_lr": 0.0}


def test_a_stopped_run_is_extended_within_an_epoch(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 7, send(signal.SIGTERM)))
        start("stopped", "trainer.max_epochs=3", code=143)
    assert train.main(["trainer.resume=stopped", "trainer.max_epochs=4"]) == 0
    (entry,) = status(Path("stopped"))["extensions"]
    assert (entry["step"], entry["test_accuracy"]) == (7, None)
    assert differences(trained(Path("stopped")), trained(Path("planned"))) == []


def test_runs_of_so_many_steps_are_extended_again_and_again(run: Path) -> None:
    """Each extension adds an evaluation within the first epoch."""
    start("few", "trainer.max_steps=1")
    for steps in (2, 3, 4):
        assert train.main(["trainer.resume=few", f"trainer.max_steps={steps}"]) == 0
    assert [entry["step"] for entry in status(Path("few"))["extensions"]] == [1, 2, 3]
    assert train.main(["trainer.resume=few", "trainer.max_steps=null", "trainer.max_epochs=1"]) == 0
    assert status(Path("few"))["step"] == 5


def test_a_plateau_begins_or_ends_with_an_extension(run: Path) -> None:
    words = ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=1e-9"]
    assert train.main([*EXTEND, *words]) == 0
    assert last(run)["schedule"]["factor"] < 1
    assert train.main(["trainer.resume=run", "trainer.max_epochs=5", "scheduler=constant"]) == 0
    assert last(run)["schedule"]["factor"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_epochs=1"], "leaves nothing to train"),
        (["optimizer.lr=0.1"], "trainer.max_epochs=2 leaves nothing to train"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0: has to be an integer at least 1"),
        (["trainer.max_epochs=4", "scheduler.min_lr=0"], "scheduler.min_lr: there is no such key"),
        (["trainer.max_epochs=4", "scheduler=cosin"], "cosine"),
        (["trainer.max_epochs=4", "optimizer.weight_decay=1"], "optimizer.weight_decay=1: "),
        (["trainer.max_epochs=4", "trainer.precision=bf16"], "would change what has been trained"),
        (
            ["trainer.max_epochs=4", "trainer=gpu"],
            "trainer=gpu: trainer.resume=RUN_DIR can only be combined with",
        ),
    ],
)
def test_what_cannot_be_extended_is_refused_and_the_run_stays(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = status(run)
    files = {k: v for k, v in contents(run).items() if "events" not in k and "status" not in k}
    assert train.main(["trainer.resume=run", *words]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    after = contents(run)
    assert {key: after[key] for key in files} == files
    assert {**status(run), "error": None} == {**before, "updated": status(run)["updated"]}


def test_early_stopping_has_to_be_lifted_as_well(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("still", "optimizer.lr=1e-12", "trainer.early_stopping_epochs=1", "trainer.max_epochs=9")
    assert train.main(["trainer.resume=still", "trainer.max_epochs=12"]) == 1
    assert "set trainer.early_stopping_epochs above 1, or to null" in capsys.readouterr().err
    step = status(Path("still"))["step"]
    more = ["trainer.early_stopping_epochs=null", "trainer.max_epochs=3"]
    assert train.main(["trainer.resume=still", *more]) == 0
    assert status(Path("still"))["step"] == 15 > step


def test_a_run_without_a_checkpoint_is_not_extended(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert train.main(EXTEND) == 1
    assert "has no checkpoint yet" in capsys.readouterr().err


# Where an extension fails: the call after which it does.
FAILURES: dict[str, tuple[Any, str, int]] = {
    "at the start": (Tracker, "open_feeds", 1),
    "at the first checkpoint": (RecordFiles, "sizes", 3),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_extension_that_fails_before_its_first_checkpoint_leaves_the_run(
    run: Path, failure: str
) -> None:
    def fail() -> None:
        raise RuntimeError("the device is lost")

    before, files, recorded, shown = status(run), contents(run), rows(run), set(events(run))
    owner, name, call = FAILURES[failure]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(owner, name, call, fail))
        assert train.main([*EXTEND, "trainer.log_every=1"]) == 1
    after = status(run)
    assert "the device is lost" in after["error"]
    kept = ("state", "step", "max_epochs", "test_accuracy", "extensions")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    same = {name for name, content in contents(run).items() if content == files.get(name)}
    others = {"status.json", "metrics.csv", *(name for name in files if "events" in name)}
    assert files.keys() - same == others
    assert rows(run) == recorded  # the clocks of the test are those of the checkpoint
    assert set(events(run)) == shown
    assert train.main(EXTEND) == 0
    assert differences(trained(run), trained(Path("planned"))) == []
    assert [row["step"] for row in rows(run) if row["test_accuracy"]] == ["10", "20"]


def test_a_kill_right_after_the_first_checkpoint_is_mended(run: Path) -> None:
    def killed(_: Extension) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extension, "complete", killed)
        assert train.main(EXTEND) == 130
    assert status(run)["state"] == "interrupted"
    assert load_run_config(run).trainer.max_epochs == 2
    assert train.main(["trainer.resume=run"]) == 0
    assert load_run_config(run).trainer.max_epochs == 4
    assert [entry["step"] for entry in status(run)["extensions"]] == [10]
    assert differences(trained(run), trained(Path("planned"))) == []


@pytest.mark.parametrize("files", [2, 3])
def test_a_full_disk_at_the_first_checkpoint_is_mended(run: Path, files: int) -> None:
    """last.pt is then of the extension's start, and best.pt of the old run or the extension."""
    written, write = [], checkpoint.write_atomic

    def full(path: Path, *args: Any, **options: Any) -> None:
        written.append(path.name)
        if len(written) == files:
            raise UserError("the disk is full")
        write(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", full)
        assert train.main(EXTEND) == 1
    assert written == ["last.pt", "best.pt", "last.pt"][:files]
    assert status(run)["state"] == "failed"
    assert [entry["step"] for entry in status(run)["extensions"]] == [10]
    assert load_run_config(run).trainer.max_epochs == 4
    assert train.main(["trainer.resume=run"]) == 0
    assert differences(trained(run), trained(Path("planned"))) == []
    assert [row["step"] for row in rows(run) if row["test_accuracy"]] == ["10", "20"]
    for tag in ("accuracy/test", "run/config/text_summary"):
        assert max(step for step, each, _ in events(run) if each == tag and step < 20) == 10


def test_a_checkpoint_from_before_the_extension_does_not_stand_in(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "checkpoints" / "last.pt", "old.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", at(TrainStep, "__call__", 3, send(signal.SIGTERM)))
        assert train.main(EXTEND) == 143
    shutil.copy("old.pt", run / "checkpoints" / "last.pt")
    assert train.main(["trainer.resume=run"]) == 1
    assert "is from before the run was extended" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entries",
    [
        "all",
        ["x"],
        [{"step": -1, "settings": {}}],
        [{"step": 10, "settings": {"model.hidden_size": 10_000}}],
        [{"step": 10, "settings": {"optimizer.lr": "${oc.env:HOME}"}}],
        [{"step": 10, "settings": {"optimizer.lr": -1.0}}],
    ],
)
def test_a_crafted_extension_is_refused(
    run: Path, entries: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "last.pt"
    checkpoint.save({**torch.load(path, weights_only=True), "extensions": entries}, path)
    assert train.main(EXTEND) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_reports_and_sweeps_take_it_for_another_setting(run: Path) -> None:
    assert _identity_in(run) is not None
    assert train.main(EXTEND) == 0
    assert _identity_in(run) is None
    runs = [load_run(RunFolder(name, Path(name))) for name in ("run", "planned")]
    (section,) = make_sections(runs)
    assert sorted(group.label for group in section.groups) == [
        "elstm_bn",
        "elstm_bn extended=step 10: max_epochs 2 -> 4",
    ]


def test_an_archive_keeps_the_extensions(run: Path) -> None:
    from elstm.records.archive import Archive
    from elstm.reporting.pack import pack_study

    assert train.main(EXTEND) == 0
    pack_study(Path())
    packed = {archived.name: archived.status() for archived in Archive(Path()).runs}
    assert packed["run"]["extensions"] == status(run)["extensions"]
    assert not packed["planned"]["extensions"]
