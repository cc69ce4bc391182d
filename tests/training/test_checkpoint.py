"""Checkpoints: whole or not at all, and nothing in a damaged or foreign one is run."""

from __future__ import annotations

import os
import pickle
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

from elstm.config.data_options import ArraysConfig
from elstm.config.model_options import LSTMConfig
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.files import atomic as files
from elstm.training import checkpoint
from elstm.training.trained import size_limit

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


def test_the_largest_size_that_is_read_grows_with_the_model() -> None:
    """A run on user data could otherwise save what it does not load again."""
    config = Config(LSTMConfig(hidden_size=16_384), ArraysConfig(name="x", path="x.npz"))
    weights = 4 * 4 * config.model.hidden_size**2
    assert size_limit(config) > 4 * weights  # with two moments and averaged weights


def test_data_of_many_features_are_loaded(path: Path) -> None:
    content = {"data": {"mean": [0.5] * 60_000, "std": [1.0] * 60_000}}
    checkpoint.save(content, path)
    assert checkpoint.load(path)["data"] == content["data"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_one(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(CONTENT, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "write":
        original = files.write_atomic
        monkeypatch.setattr(checkpoint, "write_atomic", lambda p, _, **kw: original(p, full, **kw))
    else:
        monkeypatch.setattr(
            *{"fsync": (os, "fsync", full), "replace": (Path, "replace", full)}[call]
        )
    with pytest.raises(UserError, match=r"cannot write .*last.pt: No space left .* is unchanged"):
        checkpoint.save({"names": []}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        checkpoint.save(CONTENT, tmp_path / "gone" / "last.pt")


def test_every_damage_is_noticed(path: Path) -> None:
    checkpoint.save(CONTENT, path)
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 150)
    for place in (*places, len(whole) - checkpoint.SEAL_SIZE, len(whole) - 1):
        for flip in (0x01, 0x55):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(checkpoint.Unreadable, match="damaged"):
                checkpoint.load(path)
    sealless = len(whole) - checkpoint.SEAL_SIZE
    for size in (0, 1, 100, len(whole) // 2, sealless, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(checkpoint.Unreadable, match="damaged"):
            checkpoint.load(path)


def test_the_first_version_had_no_seal(path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "version": 1, **CONTENT}, path)
    assert torch.equal(checkpoint.load(path)["model"]["weight"], CONTENT["model"]["weight"])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"weight", b"wEight", 1))  # its CRC-32 are looked at
    with pytest.raises(checkpoint.Unreadable, match="damaged"):
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


class Call:
    """Becomes a call of bytearray, which torch.load(weights_only=True) makes."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (2**62,)


@pytest.mark.parametrize("kind", ["call", "many", "before the zip"])
def test_a_pickle_is_checked_before_torch_reads_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Few bytes could otherwise take all memory."""
    content = {"format": checkpoint.FORMAT, "version": 1, "x": Call() if kind == "call" else 0}
    torch.save(content, path)
    if kind == "many":
        monkeypatch.setattr(checkpoint, "MAX_BUILT", 100)
        torch.save({**content, "x": [[] for _ in range(101)]}, path)
    if kind == "before the zip":
        path.write_bytes(pickle.dumps(content) + path.read_bytes())
    monkeypatch.setattr(torch, "load", lambda *_, **options: {**content, "x": 0})
    with pytest.raises(checkpoint.Unreadable, match="damaged or was not written by elstm"):
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
    with pytest.raises(UserError, match="has checkpoint version 7, this elstm reads up to 2"):
        checkpoint.load(path)


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept(path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "no hard links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    for number in range(3):
        checkpoint.save({"names": [number]}, path)
        previous = checkpoint.previous_path(path.parents[1])
        assert checkpoint.load(path)["names"] == [number]
        assert not number or checkpoint.load(previous)["names"] == [number - 1]
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.pt", "previous.pt"]


def test_the_latest(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = path.parents[1]
    best, previous = checkpoint.best_path(run_dir), checkpoint.previous_path(run_dir)

    def names() -> list[str]:
        content = checkpoint.latest(run_dir)
        assert content is not None
        return content["names"]  # type: ignore[no-any-return]

    assert checkpoint.latest(run_dir) is None
    for step, file in enumerate((best, path)):
        checkpoint.save({"state": {"step": step}, "names": [f"step {step}"]}, file)
    assert names() == ["step 1"]
    checkpoint.save({"state": {"step": 3}, "names": [], "settings": {"seed": 9}}, best)
    assert names() == ["step 1"]  # of another run
    checkpoint.save({"state": {"step": 2}, "names": ["killed before last.pt"]}, best)
    assert names() == ["killed before last.pt"]
    assert path.read_bytes() == best.read_bytes()
    assert checkpoint.load(previous)["names"] == ["step 1"]
    checkpoint.save({"state": {"step": 0}, "names": ["step 0"]}, best)
    assert caplog.text == ""

    damaged = path.read_bytes()[:-50]
    path.write_bytes(damaged)
    assert names() == ["step 1"]
    assert "last.pt is damaged" in caplog.text
    assert re.search(r"resuming from \S+previous.pt instead, which is of step 1", caplog.text)
    assert path.with_name("damaged.pt").read_bytes() == damaged
    assert not path.exists()

    checkpoint.save({"state": {"step": 3}, "names": ["step 3"]}, best)
    assert names() == ["step 3"]  # the further one, where last.pt is gone
    previous.write_bytes(b"")
    assert names() == ["step 3"]
    best.write_bytes(b"")
    path.write_bytes(b"")
    pattern = (
        r"last.pt is damaged.*previous.pt is damaged.*best.pt is damaged.*delete .*the beginning"
    )
    with pytest.raises(UserError, match=pattern):
        checkpoint.latest(run_dir)
    assert path.exists()


def test_a_newer_last_is_not_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(CONTENT, path)
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    checkpoint.save(CONTENT, path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="update elstm"):
        checkpoint.latest(path.parents[1])


def test_leftovers_of_a_killed_write_are_removed(path: Path) -> None:
    (path.parent / ".last.pt.123.tmp").write_bytes(b"half")
    checkpoint.save(CONTENT, path)
    files.remove_leftovers(path.parent)
    assert list(path.parent.iterdir()) == [path]
