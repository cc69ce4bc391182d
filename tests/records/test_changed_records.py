"""Records that another program changed or removed: kept aside, said so, and sanely continued."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elstm.errors import UserError
from elstm.files import atomic
from elstm.records.record_files import COLUMNS
from elstm.records.tracking import Tracker
from elstm.sweeps.job import run_log


def row(tracker: Tracker, step: int, **values: float) -> None:
    position = {"epoch": step / 4, "step": step, "train_seconds": 1.5, "wall_seconds": 2.5}
    tracker.log(position, values or {"train_loss": 1 / 3})


def steps(run_dir: Path) -> list[str]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert all(tuple(r) == COLUMNS and None not in r.values() for r in table)
    return [r["step"] for r in table]


def paused(run_dir: Path) -> dict[str, Any]:
    tracker = Tracker(run_dir)
    tracker.start({})
    for step in (2, 4):
        row(tracker, step)
    sizes = tracker.sizes()
    tracker.close()
    return sizes


def resume(run_dir: Path, sizes: dict[str, Any]) -> None:
    tracker = Tracker(run_dir)
    tracker.start({}, sizes, step=4)
    row(tracker, 6)
    tracker.close()


BOM = b"\xef\xbb\xbf"
CHANGES: dict[str, tuple[Callable[[bytes], bytes], list[str], bool]] = {
    # what somebody does to the file; the steps of the rows that are left; whether a copy is kept
    "line ends": (lambda b: b.replace(b"\n", b"\r\n"), ["2", "4", "6"], True),
    "byte order mark": (lambda b: BOM + b.replace(b"\n", b"\r\n"), ["2", "4", "6"], True),
    "a row removed": (lambda b: b"".join(b.splitlines(True)[::2]), ["4", "6"], True),
    "cut in a row": (lambda b: b[:-9], ["2", "6"], True),
    "semicolons": (lambda b: b.replace(b",", b";"), ["6"], True),
    "emptied": (lambda b: b"", ["6"], False),
    "binary": (lambda b: bytes(range(256)) * 9, ["6"], True),
    "notes behind": (lambda b: b + b"my notes\n", ["2", "4", "6"], True),
    "rows behind": (lambda b: b + b.split(b"\n")[-2] + b"\n", ["2", "4", "6"], False),
    "half a row behind": (lambda b: b + b"1,5,0.", ["2", "4", "6"], False),
    "nothing": (lambda b: b, ["2", "4", "6"], False),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_was_changed_while_paused(
    change: str, old: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit, expected, kept = CHANGES[change]
    sizes = paused(tmp_path)
    if old:  # checkpoints of the first versions hold sizes alone
        sizes = {k: v for k, v in sizes.items() if not k.endswith("sha256")}
    path = tmp_path / "metrics.csv"
    changed = edit(path.read_bytes())
    path.write_bytes(changed)
    resume(tmp_path, sizes)
    assert steps(tmp_path) == expected
    copies = [p.read_bytes() for p in tmp_path.glob("metrics.csv.kept*")]
    assert copies == ([changed] if kept else [])
    assert (str(path) in caplog.text) == (kept or change == "emptied")
    assert ("have a gap" in caplog.text) == (len(expected) < 3)


def test_an_earlier_copy_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv.kept1").write_text("mine")
    sizes = paused(tmp_path)
    (tmp_path / "metrics.csv").write_text("x\n")
    resume(tmp_path, sizes)
    assert (tmp_path / "metrics.csv.kept1").read_text() == "mine"
    assert (tmp_path / "metrics.csv.kept2").read_text() == "x\n"


@pytest.mark.parametrize("how", ["removed", "replaced", "changed"])
def test_a_table_that_is_removed_during_the_run(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path)
    tracker.start({})
    row(tracker, 2)
    path = tmp_path / "metrics.csv"
    text = path.read_bytes()
    if how == "changed":
        path.write_bytes(b"")
    else:
        path.unlink()
    if how == "replaced":
        path.write_bytes(text.replace(b"\n", b"\r\n"))
    row(tracker, 4)
    sizes = tracker.sizes()
    tracker.close()
    assert f"{path} was" in caplog.text
    assert steps(tmp_path) == (["4"] if how == "changed" else ["2", "4"])
    assert len(list(tmp_path.glob("metrics.csv.kept*"))) == (how != "removed")
    resume(tmp_path, sizes)
    assert steps(tmp_path)[-1] == "6"


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_an_event_file_that_is_removed_during_the_run(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path)
    tracker.start({})
    row(tracker, 2)
    (path,) = tmp_path.glob("events*")
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    row(tracker, 4)
    row(tracker, 6)
    tracker.close()
    assert f"{path} was {how}" in caplog.text
    seen = [e.step for e in EventAccumulator(str(tmp_path)).Reload().Scalars("loss/train")]
    assert seen == ([2, 4, 6] if how == "removed" else [6])


def test_a_log_that_is_removed_during_the_run_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_log(tmp_path):
        logging.getLogger("elstm").info("before")
        (tmp_path / "train.log").unlink()
        logging.getLogger("elstm").info("after")
        (tmp_path / "train.log").unlink()
        (tmp_path / "elsewhere").write_text("mine")
        (tmp_path / "train.log").symlink_to(tmp_path / "elsewhere")
        logging.getLogger("elstm").info("into a link")
    assert "train.log was removed during the run: a new file is started" in capsys.readouterr().out
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_but_a_plain_file_is_opened_for_appending(kind: str, tmp_path: Path) -> None:
    """Checks that a file is refused when it is opened, whatever was checked before."""
    path = tmp_path / "file"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    {
        "link": lambda: path.symlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "refuse_links", lambda *_: None)  # as if it came after the check
        with pytest.raises(UserError, match=r"cannot write .*file: |is not a plain file"):
            atomic.open_append(path)
    with pytest.raises(UserError, match=r"is a link|is not a plain file|Is a directory"):
        atomic.open_locked(path, tmp_path)
    assert victim.read_text() == "mine"
