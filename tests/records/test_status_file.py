"""status.json: what it holds, and what a run does if it cannot be written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from elstm.errors import UserError
from elstm.records import status


def test_status(tmp_path: Path) -> None:
    assert status.read_status(tmp_path) is None
    first = status.Status(tmp_path)
    first.update(state="running", model="lstm", test_loss=float("nan"), unknown=3)
    fields = status.read_status(tmp_path)
    assert fields is not None
    assert (fields["state"], fields["model"], fields["test_accuracy"]) == ("running", "lstm", None)
    assert fields["test_loss"] is None  # JSON has no NaN
    assert "unknown" not in fields
    assert fields["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert fields["updated"].endswith("+00:00")
    assert list(tmp_path.iterdir()) == [tmp_path / "status.json"]

    first.fail(UserError("one line"))
    assert json.loads((tmp_path / "status.json").read_text())["error"] == "one line"
    first.fail(RuntimeError("bad\nworse"))
    assert first.fields["error"] == "RuntimeError: bad"
    assert first.fields["state"] == "failed"
    first.fail(KeyboardInterrupt())
    assert (first.fields["state"], first.fields["error"]) == ("interrupted", None)

    first.update(started="2020-01-01T00:00:00+00:00")
    again = status.Status(tmp_path)  # of a resume
    assert again.fields["started"] == "2020-01-01T00:00:00+00:00"
    (tmp_path / "status.json").write_text("{half")
    assert status.read_status(tmp_path) is None


def test_a_status_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    gone = status.Status(tmp_path / "gone")
    gone.fail(UserError("the disk is full"))
    with pytest.raises(UserError, match="cannot write"):
        gone.update()


def test_git_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(folder: Path, *words: str) -> None:
        subprocess.run(
            ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *words],
            check=True, capture_output=True,
        )  # fmt: skip

    def state() -> dict[str, object]:
        status.git_state.cache_clear()
        return status.git_state()

    package = tmp_path / "elstm"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr("elstm.__file__", str(package / "__init__.py"))
    nothing = {"git_commit": None, "git_dirty": None}
    assert state() == nothing
    git(tmp_path, "init", "-q")
    assert state() == nothing  # somebody else's repository, in which it happens to lie
    git(tmp_path, "add", "elstm")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = state()
    assert len(str(clean["git_commit"])) == 40
    assert clean["git_dirty"] is False
    (package / "__init__.py").write_text("x = 1\n")
    assert state() == {**clean, "git_dirty": True}
    status.git_state.cache_clear()
