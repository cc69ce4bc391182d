"""Trackers beside TensorBoard: what they receive, and that they never harm a run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from training_runs import at, rows, send, small_config, without_pictures

from elstm.config import extras
from elstm.config.schema import Config, TrackingConfig
from elstm.errors import UserError
from elstm.records import feeds
from elstm.records.feeds import Cursor, Feed
from elstm.records.sink import Description, Point
from elstm.train import main
from elstm.training import loop
from elstm.training.run import run


class FakeSink:
    """Remembers what it is given; `down` makes it fail as a network does."""

    title = "a fake"

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.states: list[str] = []
        self.ids: list[str | None] = []
        self.down: Exception | None = None

    def open(self, run: Description, known: str | None) -> str:
        self.ids.append(known)
        if isinstance(self.down, UserError):
            raise self.down
        return known or "first"

    def log(self, points: Any, first_row: int) -> None:
        if self.down is not None:
            raise self.down
        assert first_row == len(self.points)
        self.points += [(point.step, dict(point.values)) for point in points]

    def close(self, state: str) -> None:
        self.states.append(state)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSink:
    sink = FakeSink()
    monkeypatch.setitem(feeds.SINKS, "wandb", lambda: sink)
    monkeypatch.setattr(extras, "installed", lambda package: True)
    without_pictures(monkeypatch)
    return sink


def tracked(**trainer: Any) -> Config:
    config = small_config("lstm", log_every=2, **trainer)
    config.tracking = TrackingConfig(wandb=True)
    return config


def steps(sink: FakeSink, tag: str) -> list[int]:
    return [step for step, values in sink.points if tag in values]


def test_a_resumed_run_continues_the_same_tracked_run(
    tmp_path: Path, fake: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop.TrainingLoop, "after_step", at(loop.TrainingLoop, "after_step", 7, send(15))
    )
    assert run(tracked(), tmp_path).state == "interrupted"
    assert fake.states == ["interrupted"]
    assert run(tracked(), tmp_path, resume=True).state == "done"
    assert fake.ids == [None, "first"]
    assert fake.states == ["interrupted", "done"]
    found = rows(tmp_path)
    for tag, column in (("loss/train", "train_loss"), ("accuracy/val", "val_accuracy")):
        assert steps(fake, tag) == [int(row["step"]) for row in found if row[column]]
    assert steps(fake, "accuracy/test") == steps(fake, "results/best_val_accuracy") == [10]
    assert steps(fake, "pictures/gradient_over_time") == [5, 10]


def test_a_tracker_that_joins_at_a_resume_gets_the_earlier_rows(
    tmp_path: Path, fake: FakeSink
) -> None:
    run(small_config("lstm", log_every=2, max_epochs=1), tmp_path)
    run(tracked(max_epochs=1), tmp_path, resume=True, extend={"trainer.max_epochs": 2})
    assert steps(fake, "accuracy/val") == [5, 10]
    assert steps(fake, "accuracy/test") == [5, 10]


def test_rows_of_an_extension_that_fails_are_not_sent(
    tmp_path: Path, fake: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker takes no row back, so that those of the next extension would be left out."""

    def fail() -> None:
        raise RuntimeError("the device is lost")

    run(tracked(max_epochs=1), tmp_path)
    more = {"trainer.max_epochs": 2}
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "after_step", at(loop.TrainingLoop, "after_step", 3, fail))
        with pytest.raises(RuntimeError):
            run(tracked(max_epochs=1), tmp_path, resume=True, extend={**more, "optimizer.lr": 1.0})
    run(tracked(max_epochs=1), tmp_path, resume=True, extend=more)
    sent = {step: each["loss/train"] for step, each in fake.points if "loss/train" in each}
    recorded = {int(row["step"]): row["train_loss"] for row in rows(tmp_path) if row["train_loss"]}
    assert {step: f"{value:.9g}" for step, value in sent.items()} == recorded
    assert steps(fake, "accuracy/test") == [5, 10]


def test_a_finished_run_sends_what_a_tracker_lacks(tmp_path: Path, fake: FakeSink) -> None:
    run(small_config("lstm", log_every=2, max_epochs=1), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    for _ in range(2):  # nothing is sent twice
        assert run(tracked(max_epochs=1), tmp_path, resume=True).state == "done"
        for tag in ("accuracy/val", "accuracy/test", "results/best_val_accuracy"):
            assert steps(fake, tag) == [5]
    assert fake.states == ["done", "done"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_failing_tracker_costs_one_line(
    tmp_path: Path, fake: FakeSink, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feeds, "RETRY_SECONDS", 0.0)
    fake.down = ConnectionError("no route")
    assert run(tracked(), tmp_path).state == "done"
    lines = [r.getMessage() for r in caplog.records if "a fake" in r.getMessage()]
    assert len(lines) == 1
    assert "ConnectionError: no route; training continues" in lines[0]
    assert fake.points == []
    fake.down = None
    run(tracked(), tmp_path, resume=True, extend={"trainer.max_epochs": 3})
    assert steps(fake, "accuracy/val") == [5, 10, 15]


def test_a_full_disk_costs_one_line_and_no_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker whose place in tracking.json cannot be written gets its points later."""
    sink, failed = FakeSink(), threading.Event()
    feed = Feed("wandb", sink, Description("lstm/seed-0", "digits", tmp_path, {}))
    feed.start([])

    def full(*_: object, **__: object) -> None:
        failed.set()
        raise UserError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feeds, "write_atomic", full)
        feed.put(Point(1, {"loss/train": 0.5}))
        assert failed.wait(5)
        feed.put(Point(2, {"loss/train": 0.25}))
        while feed.thread.is_alive() and not feed.warned:
            feed.thread.join(0.01)
    feed.close("done")
    assert sink.points == [(1, {"loss/train": 0.5}), (2, {"loss/train": 0.25})]
    assert sink.states == ["done"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "No space left on device; training continues" in line


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_run_stays_locked_while_it_trains(
    tmp_path: Path, fake: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackers and extensions read metrics.csv, which must not release the lock on it."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-ISc", code, str(tmp_path / "metrics.csv")]
    found = []

    def probe() -> None:
        found.append(subprocess.run(command, stderr=subprocess.PIPE, check=False).stderr)

    run(small_config("lstm", max_epochs=1), tmp_path)
    for config in (small_config("lstm", max_epochs=1), tracked(max_epochs=2)):
        more = {"trainer.max_epochs": config.trainer.max_epochs + 1}
        with monkeypatch.context() as patch:
            after_step = at(loop.TrainingLoop, "after_step", 1, probe)
            patch.setattr(loop.TrainingLoop, "after_step", after_step)
            run(config, tmp_path, resume=True, extend=more)
    assert [b"BlockingIOError" in error for error in found] == [True, True]


def test_a_run_that_fails_is_closed_as_failed(
    tmp_path: Path, fake: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UserError("the loss is not finite")

    monkeypatch.setattr(
        loop.TrainingLoop, "after_step", at(loop.TrainingLoop, "after_step", 3, fail)
    )
    with pytest.raises(UserError, match="not finite"):
        run(tracked(), tmp_path)
    assert fake.states == ["failed"]


def test_a_wrong_setting_of_a_tracker_ends_the_run_at_its_start(
    tmp_path: Path, fake: FakeSink
) -> None:
    fake.down = UserError("there is no key")
    with pytest.raises(UserError, match="there is no key"):
        run(tracked(), tmp_path)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_a_tracker_that_hangs_does_not_hold_the_run(
    tmp_path: Path, fake: FakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(fake, "log", lambda *_: released.wait(20))
    monkeypatch.setattr(feeds, "END_SECONDS", 0.1)
    assert run(tracked(), tmp_path).state == "done"
    released.set()


@pytest.mark.parametrize(
    "stored",
    [None, [], {"id": "../x", "rows": 0, "sent": {}}, {"id": "a", "rows": "1", "sent": {}},
     {"id": "a", "rows": 0, "sent": {"x": "1"}}, {"id": 5}],
)  # fmt: skip
def test_a_file_that_anyone_wrote_starts_a_new_tracked_run(stored: Any) -> None:
    assert Cursor.read(stored) == Cursor()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_extra_is_refused_before_anything_is_made(
    training: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: ModuleSpec(name, None))  # a plain folder
    for words in ([], ["-m", "seed=0,1"]):
        assert main([*words, f"tracking.{package}=true"]) == 1
        training.check_nothing_began(
            capsys.readouterr(), f"tracking.{package}=true needs a package: pip install 'elstm["
        )
    assert main([]) == 0
    (folder,) = Path("outputs").glob("*/*/*/*")
    assert main([f"trainer.resume={folder}", f"tracking.{package}=true"]) == 1
    assert "pip install" in capsys.readouterr().err
    assert len(training.calls) == 1


# --- the packages themselves, or small fakes of them


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """A fake package that notes each call."""
    calls: list[tuple[str, Any]] = []
    module: Any = types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="fake")

    class Run:
        id = "abc"

        def __init__(self) -> None:
            self.summary: dict[str, Any] = {}

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: calls.append((name, args or options))

        def log(self, values: dict[str, Any], step: int) -> None:
            calls.append(("log", (values, step)))

    def init(**options: Any) -> Run:
        calls.append(("init", options))
        return Run()

    module.init, module.Settings, module.Image = init, dict, lambda picture: picture.size
    module.errors = types.SimpleNamespace(UsageError=ValueError)
    module.login = lambda prompt: False
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode="offline"))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "elstm.records.wandb_sink", raising=False)
    yield calls
    sys.modules.pop("elstm.records.wandb_sink", None)


DESCRIPTION = Description("lstm/seed-0", "digits", Path(), {"seed": 0})


def test_weights_and_biases_gets_rows_of_its_own_step(wandb: list[tuple[str, Any]]) -> None:
    sink = feeds.SINKS["wandb"]()
    assert sink.open(DESCRIPTION, "abc") == "abc"
    sink.log([Point(5, {"loss/train": 1.0}), Point(5, {"loss/val": 2.0})], first_row=3)
    sink.close("interrupted")
    calls = dict(wandb)
    assert calls["init"]["id"] == "abc"
    assert calls["init"]["resume"] == "allow"
    assert calls["init"]["settings"]["reinit"] == "create_new"
    logged = [call for name, call in wandb if name == "log"]
    assert logged == [({"loss/train": 1.0, "step": 5}, 3), ({"loss/val": 2.0, "step": 5}, 4)]
    assert calls["define_metric"] == ("*",)
    assert calls["finish"] == {"exit_code": 255}


def test_weights_and_biases_never_asks_for_a_key(wandb: list[tuple[str, Any]]) -> None:
    online = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
    sys.modules["wandb"].setup = lambda: online  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="run `wandb login` once, or set WANDB_MODE=offline"):
        feeds.SINKS["wandb"]().open(DESCRIPTION, None)
    assert wandb == []


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "seed-0"
    folder.mkdir()
    other = feeds.SINKS["wandb"]()  # of an earlier run of a sweep, which could not be finished
    other.open(Description("a/a", "digits", tmp_path, {}), None)
    feed = Feed("wandb", feeds.SINKS["wandb"](), Description("a/b", "digits", folder, {"lr": 0.1}))
    feed.start([])
    feed.put(Point(1, {"loss/train": 1.0}))
    feed.close("done")
    other.close("failed")
    assert not feed.warned
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert json.loads((folder / "tracking.json").read_text())["wandb"]["id"] in written.name


@pytest.mark.filterwarnings("ignore")  # of the package's own dependencies
def test_mlflow_on_its_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for last, state, status in ((2, "interrupted", "KILLED"), (4, "done", "FINISHED")):
        run = Description("a/b", "digits", tmp_path, {"lr": 0.1})
        feed = Feed("mlflow", feeds.SINKS["mlflow"](), run)
        feed.start([])
        for step in range(1, last + 1):
            feed.put(Point(step, {"loss/train": 1 / step}))
        feed.close(state)
        assert not feed.warned
        client = mlflow.MlflowClient()
        (found,) = client.search_runs([client.get_experiment_by_name("elstm").experiment_id])
        assert found.info.status == status
        history = client.get_metric_history(found.info.run_id, "loss/train")
        assert [m.step for m in history] == list(range(1, last + 1))
    assert found.data.params == {"lr": "0.1"}
    assert found.info.run_name == "a/b"
    assert {"mlflow.user", "mlflow.source.name", "data", "run_folder"} <= found.data.tags.keys()
