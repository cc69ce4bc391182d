"""Full disks, damaged files, moved and vanished folders: a run works, or ends in one clear line.

In every case what was written before is intact, and the run goes on once the trouble is over.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from training_runs import assert_same_runs, rows, small_config, without_pictures

from elstm.commands import evaluate
from elstm.config import run_folder as schema
from elstm.config.run_config import load_run_config
from elstm.errors import UserError
from elstm.sweeps.job import execute
from elstm.training import checkpoint, evaluation, trained
from elstm.training import run as training
from elstm.training.loop import TrainingLoop
from elstm.training.run import run
from elstm.training.state import TrainState

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIG = small_config(max_epochs=3, log_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        run(CONFIG, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def interrupt(folder: Path, step: int = 7) -> None:
    """A run that was interrupted after so many steps."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        after(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(CONFIG, folder).state == "interrupted"


def after(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    original = TrainState.count_step

    def count_step(self: TrainState) -> None:
        original(self)
        if self.step == step:
            action()

    patch.setattr(TrainState, "count_step", count_step)


def checkpoints(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


def ends_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str], *said: str) -> None:
    """A resume, as the command does it."""
    capfd.readouterr()
    assert execute(CONFIG, folder, resume=True).code == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1, err
    for words in ("elstm-train: error: ", *said):
        assert words in err


def test_a_full_disk(small_disk: Path, whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = small_disk / "run"
    interrupt(folder)
    before = checkpoints(folder)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1024)):
            pass
    ends_in_one_line(folder, capfd, "No space left on device")
    assert checkpoints(folder) == before
    with filler.open("r+b") as file:  # room for the records, not for a checkpoint
        file.truncate(filler.stat().st_size - 12 * 1024)
    ends_in_one_line(folder, capfd, "No space left on device")
    assert checkpoints(folder) == before
    filler.unlink()
    assert run(CONFIG, folder, resume=True).state == "done"
    assert_same_runs(whole, folder)


def test_a_file_that_may_not_grow(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A quota, or a file system's limit: the checkpoint is larger than a file may be."""
    folder = tmp_path / "run"
    interrupt(folder)
    before = checkpoints(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.pt"]) // 2, limits[1]))
    try:
        ends_in_one_line(folder, capfd, "cannot write", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints(folder) == before
    assert run(CONFIG, folder, resume=True).state == "done"
    assert_same_runs(whole, folder)


def test_a_read_only_folder(
    small_disk: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small_disk / "run"
    interrupt(folder)
    before = checkpoints(folder)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match=r"cannot write .*train.log: Read-only file system"):
        execute(CONFIG, folder, resume=True)
    with pytest.raises(UserError, match=r"cannot write .*metrics.csv: Read-only file system"):
        run(CONFIG, folder, resume=True)
    assert checkpoints(folder) == before
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with pytest.MonkeyPatch.context() as patch:  # and in the middle of a run
        after(patch, 9, lambda: _over_itself(small_disk))
        ends_in_one_line(folder, capfd, "cannot write", "Read-only file system")
    subprocess.run(["umount", small_disk], check=True)
    assert run(CONFIG, folder, resume=True).state == "done"
    assert_same_runs(whole, folder)


def _over_itself(disk: Path) -> None:
    """Read-only from now on, although files are open for writing there."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)


def test_a_folder_that_vanishes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    interrupt(folder)
    with pytest.MonkeyPatch.context() as patch:
        after(patch, 9, lambda: shutil.rmtree(folder))
        ends_in_one_line(folder, capfd, f"cannot write {folder}", "No such file or directory")
    assert not folder.exists()


def test_a_folder_that_was_moved(tmp_path: Path, whole: Path) -> None:
    interrupt(tmp_path / "here")
    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    shutil.copytree(tmp_path / "here", elsewhere / "run")
    shutil.rmtree(tmp_path / "here")
    assert run(CONFIG, elsewhere / "run", resume=True).state == "done"
    assert_same_runs(whole, elsewhere / "run")


def test_a_damaged_best_checkpoint(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "load_run_config", lambda _: CONFIG)
    replaced, lost = tmp_path / "replaced", tmp_path / "lost"
    interrupt(replaced, 12)  # in the third epoch
    best = checkpoint.best_path(replaced)
    whole_best = best.read_bytes()
    best.write_bytes(whole_best[:-100])
    shutil.copytree(replaced, lost)

    capfd.readouterr()
    assert evaluate.main([str(replaced)]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"elstm-eval: error: the checkpoint {best} is damaged")
    assert err.endswith(": --checkpoint last takes that of the last epoch\n")
    assert evaluate.main([str(replaced), "--checkpoint", "last"]) == 0

    assert execute(CONFIG, replaced, resume=True).code == 0
    assert "damaged or was not written by elstm: the next epoch that" in capfd.readouterr().out
    assert_same_runs(whole, replaced)  # the third epoch is the best

    with pytest.MonkeyPatch.context() as patch:  # here it is not, and best.pt stays as it is
        worst = {"val_loss": 9.0, "val_accuracy": 0.0, "val_accuracy_batch_stats": 0.0}
        patch.setattr(evaluation, "measure", lambda *_: worst)
        last = f"elstm-eval {lost} --checkpoint last"
        ends_in_one_line(lost, capfd, "best.pt is damaged", "of the best epoch, 2: restore", last)
    checkpoint.best_path(lost).write_bytes(whole_best)
    assert execute(CONFIG, lost, resume=True).code == 0


def test_a_best_checkpoint_is_mended_from_the_last(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While both are of one epoch."""
    test = training.test_best

    def damaged(loop: TrainingLoop, run_dir: Path) -> None:
        checkpoint.best_path(run_dir).write_bytes(b"")
        test(loop, run_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "test_best", damaged)
        assert run(CONFIG, tmp_path).state == "done"
    assert "written again from" in caplog.text
    assert_same_runs(whole, tmp_path)


def test_two_runs_of_the_same_microsecond(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        @staticmethod
        def now(time: Any = schema.datetime.now()) -> Any:  # noqa: B008
            return time

    monkeypatch.setattr(schema, "datetime", Stopped)
    assert len({schema.run_name() for _ in range(100)}) == 100


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    """tests/data/run_of_version_1: by the first elstm, on torch 2.11, interrupted at step 7."""
    kept = Path(__file__).parent / "data" / "run_of_version_1"
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    result = run(load_run_config(folder), folder, resume=True)
    assert (result.state, result.status["step"]) == ("done", 10)
    assert result.test_accuracy is not None
    before, after = ((d / "metrics.csv").read_text() for d in (kept, folder))
    assert after.startswith(before)
    assert [row["step"] for row in rows(folder)] == ["2", "4", "5", "5", "7", "9", "10", "10", "10"]
