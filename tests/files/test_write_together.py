"""Several files are replaced together: all old ones or all new ones are there afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.errors import UserError
from elstm.files.atomic import write_together

OLD = {"a.md": b"old a", "figures/b.png": b"old b", "c.csv": b"old c"}
NEW = {name: content.replace(b"old", b"new") for name, content in OLD.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the old files, in which nothing else may be left."""
    write_together(tmp_path / "out", OLD)
    yield tmp_path / "out"
    assert contents(tmp_path / "out").keys() == OLD.keys()


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_all_files_are_replaced(folder: Path) -> None:
    assert contents(folder) == OLD
    write_together(folder, NEW)
    assert contents(folder) == NEW


class Full:
    """A disk that is full from the nth file on, or is interrupted there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
        self.left, self.error, self.open = number, error, Path.open
        monkeypatch.setattr(Path, "open", lambda *args, **options: self(*args, **options))

    def __call__(self, path: Path, *args: object, **options: object) -> object:
        file = self.open(path, *args, **options)  # type: ignore[arg-type]
        self.left -= path.suffix == ".tmp"
        if self.left < 0 and path.suffix == ".tmp":
            file.close()
            raise self.error
        return file


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_full_disk_leaves_the_old_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        Full(patch, number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(UserError, match="No space left on device; the earlier files"):
            write_together(folder, NEW)
    assert contents(folder) == OLD


def test_ctrl_c_leaves_the_old_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Full(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_together(folder, NEW)
    assert contents(folder) == OLD


def test_ctrl_c_while_files_are_replaced_waits_for_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = Path.replace, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 1:
            raise KeyboardInterrupt("SIGTERM")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            write_together(folder, NEW)
    assert contents(folder) == NEW


def test_a_file_in_the_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_together(folder / "a.md", NEW)
    assert contents(folder) == OLD


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT"),
    ],
)
def test_a_report_is_replaced_as_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    write_run(tmp_path / "runs/a", epochs=1)
    arguments = [str(tmp_path / "runs"), "-o", str(tmp_path / "report"), "--figures", "none"]
    assert main(arguments) == 0
    before = contents(tmp_path / "report")
    write_run(tmp_path / "runs/b", epochs=1, seed=1)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        Full(patch, 2, error)
        assert main(arguments) == code
    assert said in capsys.readouterr().err
    assert contents(tmp_path / "report") == before
    assert main(arguments) == 0
    assert contents(tmp_path / "report") != before
