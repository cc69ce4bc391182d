"""Checkpoints: whole or not at all, and nothing in a damaged or foreign one is run."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from elstm import checkpoint, files
from elstm.errors import UserError

CONTENT = {
    "model": {"weight": torch.arange(40.0).view(5, 8), "count": torch.tensor([1, 2])},
    "state": {"step": 3, "loss": 0.25, "best": None},
    "names": ["a", "b"],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return checkpoint.last_path(tmp_path)


def test_what_is_saved_is_loaded(path: Path) -> None:
    best = checkpoint.best_path(path.parents[1])
    checkpoint.save(CONTENT, best, path)
    for file in (best, path):
        content = checkpoint.load(file)
        assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
        assert content["state"] == CONTENT["state"]
        assert torch.load(file, weights_only=True)["names"] == ["a", "b"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_one(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(CONTENT, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr(checkpoint, "write_atomic", lambda p, _: files.write_atomic(p, full))
    else:
        monkeypatch.setattr(
            *{"fsync": (os, "fsync", full), "replace": (Path, "replace", full)}[call]
        )
    with pytest.raises(UserError, match=r"cannot write .*last.pt: No space left .* is unharmed"):
        checkpoint.save({"names": []}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        checkpoint.save(CONTENT, tmp_path / "gone" / "last.pt")


def test_every_damage_is_noticed(path: Path) -> None:
    """A byte that the format does not look at may change; then the content is the same."""
    checkpoint.save(CONTENT, path)
    whole = path.read_bytes()
    rng, noticed = random.Random(0), 0
    for _ in range(150):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            content = checkpoint.load(path)
        except UserError:
            noticed += 1
        else:
            assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
            assert content["state"] == CONTENT["state"]
    assert noticed > 20
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_foreign_files_are_refused_and_run_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="damaged or was not written by elstm"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 1, "model": Malicious()}, path)
    with pytest.raises(UserError, match="damaged or was not written by elstm"):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of elstm"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint of elstm"):
        checkpoint.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.load(path)


def test_compressed_entries_are_refused(path: Path) -> None:
    """A small file must not burst into a large one."""
    checkpoint.save(CONTENT, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)


def test_a_newer_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    checkpoint.save(CONTENT, path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has checkpoint version 7, this elstm reads up to 1"):
        checkpoint.load(path)


def test_the_latest(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = path.parents[1]
    best = checkpoint.best_path(run_dir)
    assert checkpoint.latest(run_dir) is None
    checkpoint.save({**CONTENT, "names": ["best"]}, best)
    checkpoint.save({**CONTENT, "names": ["last"]}, path)
    content = checkpoint.latest(run_dir)
    assert content is not None
    assert content["names"] == ["last"]
    assert caplog.text == ""

    path.write_bytes(path.read_bytes()[:-50])
    content = checkpoint.latest(run_dir)
    assert content is not None
    assert content["names"] == ["best"]
    assert "last.pt is damaged" in caplog.text
    assert "going on from" in caplog.text

    best.write_bytes(b"")
    with pytest.raises(UserError, match=r"last.pt is damaged.*best.pt is damaged.*delete both"):
        checkpoint.latest(run_dir)
    best.unlink()
    with pytest.raises(UserError, match=r"last.pt is damaged.*delete it to start this run afresh"):
        checkpoint.latest(run_dir)


def test_leftovers_of_a_killed_write_are_removed(path: Path) -> None:
    (path.parent / ".last.pt.123.tmp").write_bytes(b"half")
    checkpoint.save(CONTENT, path)
    files.remove_leftovers(path.parent)
    assert list(path.parent.iterdir()) == [path]
